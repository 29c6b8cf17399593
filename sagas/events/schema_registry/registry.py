"""The interface of a schema registry: revisions of definitions by subject, and the rules for new ones."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sagas.errors import ConfigurationError, EventError, SchemaRefused
from sagas.events.messages import MessageType
from sagas.events.schema_registry import compatibility
from sagas.events.schema_registry.compatibility import Difference, Mode
from sagas.events.schema_registry.derive import schema_of

__all__ = ["JSON", "Format", "Schema", "SchemaRegistry", "canonical"]

#: How often a registration is retried because another process registered the same subject meanwhile.
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """One revision of a subject. It never changes."""

    subject: str  #: a message type and its version: orders.order.placed.v1
    revision: int  #: rises with each change within a version; from 1
    format: str
    definition: Any = field(repr=False)
    owner: str  #: the service that may register revisions
    fingerprint: str


class Format(Protocol):
    """A language for definitions."""

    @property
    def name(self) -> str: ...

    def subject(self, declared: MessageType) -> str:
        """Return the subject of a message type's definitions. A subject has one format."""

    def derive(self, declared: MessageType) -> Any:
        """Describe a message type. Raises `SchemaRefused` if that is impossible."""

    def normal(self, definition: Any) -> Any:
        """Return the normal form of a definition, which is the same for all ways to write it."""

    def compare(
        self, writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
    ) -> tuple[Difference, ...]:
        """Return what a writer may write that a reader does not accept; see `compatibility.compare`."""


class _JsonSchema:
    """JSON Schema, the language for this library's messages."""

    name = "json"

    def subject(self, declared: MessageType) -> str:
        return declared.topic

    def derive(self, declared: MessageType) -> Any:
        return schema_of(declared)

    def normal(self, definition: Any) -> Any:
        return definition  # `canonical` sorts the keys

    def compare(
        self, writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
    ) -> tuple[Difference, ...]:
        return compatibility.compare(writer, reader, writer_name, reader_name)


#: JSON Schema, the language for this library's messages.
JSON: Format = _JsonSchema()


def canonical(definition: Any) -> str:
    """Return a definition as JSON text, independent of the order of its keys."""
    return json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class SchemaRegistry(abc.ABC):
    """Stores the revisions of each subject's definition, and rejects those that would break readers or writers.

    A subject is a message type with its version. A change within a version must be compatible according to `mode`. An
    incompatible change needs a new version, which is a new subject.

    `mode`: which readers must be able to read which writers. With the default, all code, old and new, can read events
        that are stored or in transit.
    `formats`: the languages that definitions may use.
    """

    def __init__(self, *, mode: Mode = Mode.FULL_TRANSITIVE, formats: Iterable[Format] = (JSON,)) -> None:
        self.mode = mode
        self.formats: Mapping[str, Format] = {each.name: each for each in formats}

    # -- implemented by each backend ------------------------------------------------------------------------------

    @abc.abstractmethod
    def revisions(self, subject: str) -> Sequence[Schema]:
        """Return every revision of a subject, oldest first; none if the subject does not exist."""

    @abc.abstractmethod
    def subjects(self) -> Sequence[str]:
        """Return the names of all subjects, sorted."""

    @abc.abstractmethod
    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
        """Add a revision that was found to follow `before`, and return its number.

        Returns None if another process was faster: the revision is then judged again.
        """

    # -- shared by all backends -----------------------------------------------------------------------------------

    def latest(self, subject: str) -> Schema | None:
        """Return the newest revision of a subject; None if the subject does not exist."""
        found = self.revisions(subject)
        return found[-1] if found else None

    def format(self, name: str) -> Format:
        """Return a format by its name. Raises `ConfigurationError` if this registry does not have it."""
        if name not in self.formats:
            raise ConfigurationError(
                f"this registry has no format {name!r}, only {', '.join(self.formats)}. Pass it in formats=[...]"
            )
        return self.formats[name]

    def fingerprint(self, definition: Any, format: str) -> str:  # noqa: A002
        """Return a hash that is the same for two equivalent definitions."""
        known = self.formats.get(format)
        normal = known.normal(definition) if known else definition
        return hashlib.sha256(canonical(normal).encode()).hexdigest()

    def register(self, subject: str, definition: Any, owner: str, *, format: str = "json") -> int:  # noqa: A002
        """Add a revision, unless the subject already has it, and return its number.

        `owner`: the service that registers it: the first word of the subject.
        Raises `SchemaRefused`, with each place and reason, if it is incompatible or not the owner's, and `EventError`
        if the registry does not answer.
        """
        for _ in range(_ATTEMPTS):
            before = self.revisions(subject)
            known = self.judge(subject, definition, owner, before, format=format)
            if known is not None:
                return known
            schema = Schema(
                subject=subject,
                revision=before[-1].revision + 1 if before else 1,
                format=format,
                definition=definition,
                owner=owner,
                fingerprint=self.fingerprint(definition, format),
            )
            written = self._write(schema, before)
            if written is not None:
                return written
        raise EventError(
            f"{subject}: another process registered a revision meanwhile, {_ATTEMPTS} times in a row. Let one process "
            "register schemas"
        )

    def judge(
        self,
        subject: str,
        definition: Any,
        owner: str,
        before: Sequence[Schema],
        *,
        format: str = "json",  # noqa: A002
    ) -> int | None:
        """Return the number of the revision that already has this definition, or None if it may be added.

        Raises `SchemaRefused` if it may not.
        """
        context = subject.partition(".")[0]
        if owner != context:
            raise SchemaRefused(
                f"{subject}: belongs to {context!r}, not to {owner!r}. Only the service that owns an event, or "
                "receives a command, registers its schema"
            )
        how = self.format(format)
        compatibility.check_depth(definition, subject)
        if before and before[-1].format != format:
            raise SchemaRefused(
                f"{subject}: its revisions are in {before[-1].format}, but this one is in {format}. A subject has one "
                "format"
            )
        known = self.fingerprint(definition, format)
        for each in before:
            if each.fingerprint == known:
                return each.revision
        found = compatibility.check(
            definition, [(each.revision, each.definition) for each in before], self.mode, how.compare
        )
        if found:
            raise SchemaRefused(
                f"{subject}: not {self.mode} compatible.\n"
                + "\n".join(f"  {difference}" for difference in found)
                + "\nMake the change compatible, or raise the version of the message"
            )
        return None

    def _confirm(self, schema: Schema, before: Sequence[Schema]) -> int:
        """Find a revision that was just added, in a registry that does not prevent concurrent additions.

        Raises `EventError` if another one was added and the two are incompatible: a person has to decide.
        """
        last = before[-1].revision if before else 0
        after = [each for each in self.revisions(schema.subject) if each.revision > last]
        mine = next((each for each in after if each.fingerprint == schema.fingerprint), None)
        if mine is None:
            raise EventError(f"{schema.subject}: the registry accepted a revision, but does not return it")
        others = [(each.revision, each.definition) for each in (*before, *after) if each.revision < mine.revision]
        found = compatibility.check(schema.definition, others, self.mode, self.format(schema.format).compare)
        if found:
            raise EventError(
                f"{schema.subject}: revision {mine.revision} was registered at the same time as another one and is not "
                f"{self.mode} compatible with it: {found[0]}. Delete one of them in the registry"
            )
        return mine.revision
