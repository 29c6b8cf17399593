"""A schema registry that speaks Confluent's HTTP API. Needs the extra `confluent`.

Compatibility is decided here, not there. Confluent's own rules for JSON Schema refuse every property that is added to a
schema which does not forbid others, so a subject of JSON gets the level NONE; one of Avro gets that of this registry. A
level that somebody has set is left as it is.

Two that register at once are told apart by the number that each asks for: the registry takes only the next one.
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
#: What may go away by itself. Every request here may be repeated.
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class ConfluentSchemaRegistry(SchemaRegistry):
    """Keeps schemas in Confluent Schema Registry, or in one that is like it.

    `url`: where it listens. `auth`: a user and password, or an API key and its secret. `timeout`: seconds to wait for
    a connection, and for an answer. `retries`: how often a request is repeated when it fails in a way that may go away.
    `ca_certs`: a file of certificates to trust. The rest is as for `SchemaRegistry`.
    All methods raise `EventError` when the registry does not answer, or not as it should.
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
        return [self._schema(each) for each in found if each is not None]  # one may have been deleted meanwhile

    def subjects(self) -> Sequence[str]:
        return sorted(self._ask("GET", "/subjects") or [])

    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
        path = f"/subjects/{_quoted(schema.subject)}/versions"
        config = f"/config/{_quoted(schema.subject)}"
        if self._ask("GET", config) is None:
            level = Mode.NONE if schema.format == JSON.name else self.mode
            self._ask("PUT", config, {"compatibility": str(level)})
        number = self._next(path)
        # Looked at once more after that: else the number could follow a revision that this one was not judged against.
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
        numbers: list[int] = self._ask("GET", f"{path}?deleted=true") or [0]  # a deleted number is not given again
        return max(numbers) + 1

    def _schema(self, answer: Any) -> Schema:
        try:
            format_ = str(answer.get("schemaType", "AVRO")).lower()  # which is left out for Avro
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
            raise EventError(f"{self.url}: this is no schema as Confluent's registry tells it: {answer!r}") from error

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer; None for what is not there. Raises `SchemaRefused` for a schema that is not taken."""
        where = f"{method} {self.url}{path}"
        try:
            response = self._http.request(method, self.url + path, body=None if body is None else json.dumps(body))
        except urllib3.exceptions.HTTPError as error:
            raise EventError(f"the schema registry did not answer: {where}: {error}") from error
        try:
            answer = json.loads(response.data)
        except ValueError as error:
            raise EventError(
                f"{where}: answered {response.status} with what is not JSON. Is this a schema registry?"
            ) from error
        if response.status < 300:
            return answer
        told = answer if isinstance(answer, dict) else {}
        code, message = told.get("error_code"), told.get("message", "")
        if response.status == 404 and code in _NOT_THERE:
            return None
        if response.status in (409, 422):
            raise SchemaRefused(f"the schema registry refused: {where}: {code} {message}")
        raise EventError(f"{where}: answered {response.status}: {code} {message}")


#: Subject, version or schema not found, subject or version deleted, no level of compatibility of its own.
_NOT_THERE = frozenset({40401, 40402, 40403, 40404, 40406, 40408})


def _quoted(subject: str) -> str:
    return quote(subject, safe="")
