"""A schema registry in AWS Glue. Needs the extra `glue`.

This library decides about compatibility, not Glue: a JSON schema gets the mode NONE in Glue, an Avro schema the mode of
this registry. Glue prevents concurrent registrations only of a first revision. For later ones, the conflict is detected
afterwards: `register` raises `EventError` if the other revision is incompatible, and a person has to delete one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sagas.errors import EventError, SchemaRefused
from sagas.events.schema_registry.compatibility import Mode
from sagas.events.schema_registry.registry import JSON, Format, Schema, SchemaRegistry, canonical

__all__ = ["GlueSchemaRegistry"]

_MODES: Mapping[Mode, str] = {
    Mode.NONE: "NONE",
    Mode.BACKWARD: "BACKWARD",
    Mode.FORWARD: "FORWARD",
    Mode.FULL: "FULL",
    Mode.BACKWARD_TRANSITIVE: "BACKWARD_ALL",
    Mode.FORWARD_TRANSITIVE: "FORWARD_ALL",
    Mode.FULL_TRANSITIVE: "FULL_ALL",
}
#: Seconds to wait for Glue to check a revision, and between two polls.
_PATIENCE, _PAUSE = 30.0, 0.5


class GlueSchemaRegistry(SchemaRegistry):
    """Stores schemas in an existing AWS Glue registry.

    `registry`: its name. `client`: a boto3 Glue client; by default one for the region and credentials that boto3 finds,
    with timeouts of 10 s and 3 attempts. The other parameters are as for `SchemaRegistry`.
    All methods raise `EventError` if Glue does not answer or rejects a request.
    """

    def __init__(
        self,
        registry: str,
        *,
        client: Any = None,
        mode: Mode = Mode.FULL_TRANSITIVE,
        formats: Iterable[Format] = (JSON,),
    ) -> None:
        super().__init__(mode=mode, formats=formats)
        self.registry = registry
        self._client = client or boto3.client(
            "glue", config=Config(connect_timeout=10, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
        )

    def __repr__(self) -> str:
        return f"GlueSchemaRegistry({self.registry!r})"

    def revisions(self, subject: str) -> Sequence[Schema]:
        with self._translated(subject):
            latest = self._unless_missing(self._client.get_schema, SchemaId=self._id(subject))
            if latest is None:
                return []
            found = [self._version(subject, number) for number in range(1, latest["LatestSchemaVersion"] + 1)]
        return [self._schema(subject, each) for each in found if each is not None and each["Status"] == "AVAILABLE"]

    def subjects(self) -> Sequence[str]:
        found: list[str] = []
        more: dict[str, str] = {}
        with self._translated(self.registry):
            while True:
                page = self._client.list_schemas(RegistryId={"RegistryName": self.registry}, **more)
                found += [each["SchemaName"] for each in page["Schemas"]]
                if not page.get("NextToken"):
                    return sorted(found)
                more = {"NextToken": page["NextToken"]}

    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
        text = canonical(schema.definition)
        with self._translated(schema.subject):
            try:
                if not before:
                    self._client.create_schema(
                        RegistryId={"RegistryName": self.registry},
                        SchemaName=schema.subject,
                        DataFormat=schema.format.upper(),
                        Compatibility=_MODES[Mode.NONE if schema.format == JSON.name else self.mode],
                        SchemaDefinition=text,
                    )
                else:
                    made = self._client.register_schema_version(
                        SchemaId=self._id(schema.subject), SchemaDefinition=text
                    )
                    self._await(schema.subject, made["VersionNumber"], made["Status"])
            except ClientError as error:
                if _code(error) in ("AlreadyExistsException", "ConcurrentModificationException"):
                    return None
                raise
        return self._confirm(schema, before)

    def _await(self, subject: str, number: int, status: str) -> None:
        give_up = time.monotonic() + _PATIENCE
        while status == "PENDING":
            if time.monotonic() > give_up:
                raise EventError(f"{subject}: Glue did not finish checking version {number} within {_PATIENCE:g} s")
            time.sleep(_PAUSE)
            status = (self._version(subject, number) or {"Status": "FAILURE"})["Status"]
        if status != "AVAILABLE":
            raise SchemaRefused(f"{subject}: Glue rejected version {number} ({status}) in the mode that is set there")

    def _version(self, subject: str, number: int) -> Any:
        return self._unless_missing(
            self._client.get_schema_version,
            SchemaId=self._id(subject),
            SchemaVersionNumber={"VersionNumber": number},
        )

    def _schema(self, subject: str, answer: Mapping[str, Any]) -> Schema:
        format_ = answer["DataFormat"].lower()
        text = answer["SchemaDefinition"]
        definition = text if format_ == "protobuf" else json.loads(text)
        return Schema(
            subject=subject,
            revision=answer["VersionNumber"],
            format=format_,
            definition=definition,
            owner=subject.partition(".")[0],
            fingerprint=self.fingerprint(definition, format_),
        )

    def _id(self, subject: str) -> dict[str, str]:
        return {"RegistryName": self.registry, "SchemaName": subject}

    def _unless_missing(self, call: Any, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except ClientError as error:
            if _code(error) == "EntityNotFoundException":
                return None
            raise

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            details = error.response.get("Error", {})
            reason = f"{_code(error)}: {details.get('Message', '')}"
            raise EventError(f"{what}: Glue rejected the request: {reason}") from error
        except BotoCoreError as error:
            raise EventError(f"{what}: Glue did not answer: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
