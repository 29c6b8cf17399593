"""A schema registry with Confluent's HTTP API. Needs the extra `confluent`.

This library decides about compatibility, not the server. Confluent's rules for JSON Schema reject every property added
to a schema that does not forbid others. A JSON subject therefore gets the level NONE, an Avro subject the mode of this
registry. An existing level is not changed.

Concurrent registrations are detected by the version number they ask for: the server accepts only the next number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import urllib3
from urllib3.util import Retry, Timeout, make_headers

from sagas.errors import EventError, SchemaRefused
from sagas.events.schema_registry.compatibility import Mode
from sagas.events.schema_registry.registry import JSON, Format, Schema, SchemaRegistry, canonical

__all__ = ["ConfluentSchemaRegistry"]

_MEDIA = "application/vnd.schemaregistry.v1+json"
#: Responses that may be temporary. Every request here can be repeated.
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class ConfluentSchemaRegistry(SchemaRegistry):
    """Stores schemas in Confluent Schema Registry or a compatible server.

    `url`: the address of the server. `auth`: a user and password, or an API key and secret. `timeout`: seconds to wait
    for a connection and for a response. `retries`: how often a request is repeated after a temporary failure.
    `ca_certs`: a file with trusted certificates. The other parameters are as for `SchemaRegistry`.
    All methods raise `EventError` if the server does not answer, or answers unexpectedly.
    """

    def __init__(
        self,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        ca_certs: str | None = None,
        mode: Mode = Mode.FULL_TRANSITIVE,
        formats: Iterable[Format] = (JSON,),
    ) -> None:
        super().__init__(mode=mode, formats=formats)
        self.url = url.rstrip("/")
        headers = {"Accept": f"{_MEDIA}, application/json", "Content-Type": _MEDIA}
        if auth is not None:
            headers |= make_headers(basic_auth=":".join(auth))
        self._http = urllib3.PoolManager(
            headers=headers,
            ca_certs=ca_certs,
            timeout=Timeout(connect=timeout, read=timeout),
            retries=Retry(
                total=retries,
                backoff_factor=0.2,
                status_forcelist=_TRY_AGAIN,
                allowed_methods=None,
                raise_on_status=False,
                respect_retry_after_header=False,  # it could ask for hours
            ),
        )

    def __repr__(self) -> str:
        return f"ConfluentSchemaRegistry({self.url!r})"

    def revisions(self, subject: str) -> Sequence[Schema]:
        numbers = self._ask("GET", f"/subjects/{_quoted(subject)}/versions")
        found = [self._ask("GET", f"/subjects/{_quoted(subject)}/versions/{number}") for number in numbers or []]
        return [self._schema(each) for each in found if each is not None]  # one may be deleted meanwhile

    def subjects(self) -> Sequence[str]:
        return sorted(self._ask("GET", "/subjects") or [])

    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
        path = f"/subjects/{_quoted(schema.subject)}/versions"
        config = f"/config/{_quoted(schema.subject)}"
        if self._ask("GET", config) is None:
            level = Mode.NONE if schema.format == JSON.name else self.mode
            self._ask("PUT", config, {"compatibility": str(level)})
        number = self._next(path)
        # Checked again: otherwise the number could follow a revision that this schema was not compared with.
        if (self._ask("GET", path) or []) != [each.revision for each in before]:
            return None
        body = {"schema": canonical(schema.definition), "schemaType": schema.format.upper(), "version": number}
        try:
            self._ask("POST", path, body)
        except SchemaRefused:
            if self._next(path) != number:
                return None
            raise
        return self._confirm(schema, before)

    def _next(self, path: str) -> int:
        numbers: list[int] = self._ask("GET", f"{path}?deleted=true") or [0]  # deleted numbers are not reused
        return max(numbers) + 1

    def _schema(self, answer: Any) -> Schema:
        try:
            format_ = str(answer.get("schemaType", "AVRO")).lower()  # the server omits it for Avro
            text = answer["schema"]
            definition = text if format_ == "protobuf" else json.loads(text)
            return Schema(
                subject=answer["subject"],
                revision=answer["version"],
                format=format_,
                definition=definition,
                owner=answer["subject"].partition(".")[0],
                fingerprint=self.fingerprint(definition, format_),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EventError(f"{self.url}: unexpected schema from the registry: {answer!r}") from error

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the response; None if the object does not exist. Raises `SchemaRefused` for a rejected schema."""
        where = f"{method} {self.url}{path}"
        try:
            response = self._http.request(method, self.url + path, body=None if body is None else json.dumps(body))
        except urllib3.exceptions.HTTPError as error:
            raise EventError(f"the schema registry did not answer: {where}: {error}") from error
        try:
            answer = json.loads(response.data)
        except ValueError as error:
            raise EventError(
                f"{where}: the response {response.status} is not JSON. Check that this is a schema registry"
            ) from error
        if response.status < 300:
            return answer
        details = answer if isinstance(answer, dict) else {}
        code, message = details.get("error_code"), details.get("message", "")
        if response.status == 404 and code in _NOT_THERE:
            return None
        if response.status in (409, 422):
            raise SchemaRefused(f"the schema registry rejected the request: {where}: {code} {message}")
        raise EventError(f"{where}: answered {response.status}: {code} {message}")


#: Subject, version or schema not found, subject or version deleted, no compatibility level of its own.
_NOT_THERE = frozenset({40401, 40402, 40403, 40404, 40406, 40408})


def _quoted(subject: str) -> str:
    return quote(subject, safe="")
