"""What a schema registry is: revisions of definitions by subject, and the rules for a new one."""

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

#: How often a registration is tried again because somebody else registered the same subject meanwhile.
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """One revision of a subject. It never changes."""

    subject: str  #: a message type and its version: orders.order.placed.v1
    revision: int  #: rises with each change within the version; from 1
    format: str
    definition: Any = field(repr=False)
    owner: str  #: the service that may register revisions
    fingerprint: str


class Format(Protocol):
    """A language that definitions are written in."""

    @property
    def name(self) -> str: ...

    def subject(self, declared: MessageType) -> str:
        """Return where definitions of a message type are kept. One subject has one format."""

    def derive(self, declared: MessageType) -> Any:
        """Describe a message type. Raises `SchemaRefused` when that cannot be done."""

    def normal(self, definition: Any) -> Any:
        """Return a definition in the one form that all ways to write it share."""

    def compare(
        self, writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
    ) -> tuple[Difference, ...]:
        """Return what a writer may write that a reader does not take; see `compatibility.compare`."""


class _JsonSchema:
    """JSON Schema, which is what messages of this library are written in."""

    name = "json"

    def subject(self, declared: MessageType) -> str:
        return declared.topic

    def derive(self, declared: MessageType) -> Any:
        return schema_of(declared)

    def normal(self, definition: Any) -> Any:
        return definition  # the order of keys is seen to by `canonical`

    def compare(
        self, writer: Any, reader: Any, writer_name: str = "the writer", reader_name: str = "the reader"
    ) -> tuple[Difference, ...]:
        return compatibility.compare(writer, reader, writer_name, reader_name)


#: JSON Schema, which is what messages of this library are written in.
JSON: Format = _JsonSchema()


def canonical(definition: Any) -> str:
    """Return a definition as JSON text that is the same however its keys were ordered."""
    return json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class SchemaRegistry(abc.ABC):
    """Keeps the revisions of the definition of each subject, and refuses those that would break readers or writers.

    A subject is a message type with its version. A change within a version must be compatible, as `mode` says; one that
    is not becomes a new version, which is a new subject.

    `mode`: which readers must be able to read which writers. The default is the one under which events that are stored
        or on their way can be read by all code, old and new.
    `formats`: the languages that definitions may be written in.
    """

    def __init__(self, *, mode: Mode = Mode.FULL_TRANSITIVE, formats: Iterable[Format] = (JSON,)) -> None:
        self.mode = mode
        self.formats: Mapping[str, Format] = {each.name: each for each in formats}

    # -- what a backend does --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def revisions(self, subject: str) -> Sequence[Schema]:
        """Return every revision of a subject, oldest first; none when there is no such subject."""

    @abc.abstractmethod
    def subjects(self) -> Sequence[str]:
        """Return the names of all subjects, sorted."""

    @abc.abstractmethod
    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:
        """Add a revision that was found to follow `before`, and return its number.

        Returns None when somebody else was quicker: then it is judged anew.
        """

    # -- what all of them do --------------------------------------------------------------------------------------

    def latest(self, subject: str) -> Schema | None:
        """Return the newest revision of a subject; None when there is no such subject."""
        found = self.revisions(subject)
        return found[-1] if found else None

    def format(self, name: str) -> Format:
        """Return a format by its name. Raises `ConfigurationError` when this registry was not given it."""
        if name not in self.formats:
            raise ConfigurationError(
                f"this registry knows no format {name!r}, only {', '.join(self.formats)}: give it formats=[...]"
            )
        return self.formats[name]

    def fingerprint(self, definition: Any, format: str) -> str:  # noqa: A002
        """Return what is the same for two definitions that say the same."""
        known = self.formats.get(format)
        normal = known.normal(definition) if known else definition
        return hashlib.sha256(canonical(normal).encode()).hexdigest()

    def register(self, subject: str, definition: Any, owner: str, *, format: str = "json") -> int:  # noqa: A002
        """Add a revision, unless the subject has it already, and return its number.

        `owner`: the service that registers it: the first word of the subject.
        Raises `SchemaRefused`, with each place and reason, when it is not compatible or not the owner's; `EventError`
        when the registry does not answer.
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
            f"{subject}: {_ATTEMPTS} times somebody else registered a revision meanwhile. Let one process register"
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
        """Return the number of the revision that this definition already is, or None for one that may be added.

        Raises `SchemaRefused` for one that may not.
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
                f"{subject}: its revisions are {before[-1].format}, this one is {format}. One subject has one format"
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
                + "\nMake the change in a way that is, or raise the version of the message"
            )
        return None

    def _confirm(self, schema: Schema, before: Sequence[Schema]) -> int:
        """Find a revision that was just added by a registry that does not keep others from adding one meanwhile.

        Raises `EventError` when somebody did, and the two are not compatible: a person has to decide.
        """
        last = before[-1].revision if before else 0
        after = [each for each in self.revisions(schema.subject) if each.revision > last]
        mine = next((each for each in after if each.fingerprint == schema.fingerprint), None)
        if mine is None:
            raise EventError(f"{schema.subject}: the registry took a revision, and does not have it")
        others = [(each.revision, each.definition) for each in (*before, *after) if each.revision < mine.revision]
        found = compatibility.check(schema.definition, others, self.mode, self.format(schema.format).compare)
        if found:
            raise EventError(
                f"{schema.subject}: revision {mine.revision} was registered at the same time as another, and is not "
                f"{self.mode} compatible with it: {found[0]}. Delete one of them in the registry"
            )
        return mine.revision
