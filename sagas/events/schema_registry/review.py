"""Compare this code's message types with a registry: what is new, what may change, and what would break."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from sagas.errors import SchemaRefused
from sagas.events.messages import MessageType
from sagas.events.schema_registry.compatibility import uncompared
from sagas.events.schema_registry.derive import schema_of
from sagas.events.schema_registry.registry import Format, Schema, SchemaRegistry

__all__ = ["Finding", "ReviewResult", "register", "review"]


class ReviewResult(enum.StrEnum):
    """The result for a message type."""

    NEW = "new"  #: its first revision would be registered
    CHANGED = "changed"  #: a new revision would be registered
    UNCHANGED = "unchanged"
    REFUSED = "refused"  #: it would break readers or writers
    READABLE = "readable"  #: of another owner: this code reads all registered revisions
    UNREADABLE = "unreadable"  #: of another owner: this code cannot read everything that may be written
    UNKNOWN = "unknown"  #: of another owner, who has not registered it


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The comparison of one message type with the registry."""

    declared: MessageType
    subject: str
    verdict: ReviewResult
    revision: int | None = None  #: its current number, or the number it would get
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.verdict not in (ReviewResult.REFUSED, ReviewResult.UNREADABLE)


def review(
    types: Iterable[MessageType],
    registry: SchemaRegistry,
    *,
    owners: Iterable[str],
    format: str = "json",  # noqa: A002
) -> list[Finding]:
    """Return what `register` would do with these types. Changes nothing.

    `owners`: the services of this code. Types of other services are only read here: this code must be able to read each
    registered revision.
    """
    own, how = set(owners), registry.format(format)
    return [_review(declared, registry, own, how) for declared in types]


def register(
    types: Iterable[MessageType],
    registry: SchemaRegistry,
    *,
    owners: Iterable[str],
    format: str = "json",  # noqa: A002
) -> list[Finding]:
    """Register the types of these owners, and return the result for each. A rejected type does not stop the others."""
    found = []
    for finding in review(types, registry, owners=owners, format=format):
        if finding.verdict in (ReviewResult.NEW, ReviewResult.CHANGED):
            definition = registry.format(format).derive(finding.declared)
            try:
                registry.register(finding.subject, definition, finding.declared.context, format=format)
            except SchemaRefused as error:  # another process registered a revision meanwhile
                finding = Finding(  # noqa: PLW2901
                    declared=finding.declared,
                    subject=finding.subject,
                    verdict=ReviewResult.REFUSED,
                    reasons=(str(error),),
                )
        found.append(finding)
    return found


def _review(declared: MessageType, registry: SchemaRegistry, own: set[str], how: Format) -> Finding:
    subject = how.subject(declared)
    judge = _judge_own if declared.context in own else _judge_foreign
    verdict, revision, reasons = judge(declared, registry, how, registry.revisions(subject))
    return Finding(
        declared=declared,
        subject=subject,
        verdict=verdict,
        revision=revision,
        reasons=tuple(dict.fromkeys(reasons)),
        warnings=tuple(_warnings(declared, registry, how)),
    )


_Judgement: TypeAlias = tuple[ReviewResult, int | None, Sequence[str]]


def _judge_own(declared: MessageType, registry: SchemaRegistry, how: Format, revisions: Sequence[Schema]) -> _Judgement:
    last = revisions[-1].revision if revisions else 0
    try:
        definition = how.derive(declared)
        known = registry.judge(how.subject(declared), definition, declared.context, revisions, format=how.name)
    except SchemaRefused as error:
        return ReviewResult.REFUSED, last or None, [str(error)]
    if known is not None:
        return ReviewResult.UNCHANGED, known, []
    return ReviewResult.CHANGED if revisions else ReviewResult.NEW, last + 1, []


def _judge_foreign(
    declared: MessageType,
    registry: SchemaRegistry,  # noqa: ARG001
    how: Format,
    revisions: Sequence[Schema],
) -> _Judgement:
    if not revisions:
        return ReviewResult.UNKNOWN, None, []
    reasons = []
    try:
        definition = how.derive(declared)
        for each in revisions:
            found = how.compare(each.definition, definition, f"revision {each.revision}", "this code")
            reasons += [str(difference) for difference in found]
    except SchemaRefused as error:
        reasons = [str(error)]
    return ReviewResult.UNREADABLE if reasons else ReviewResult.READABLE, revisions[-1].revision, reasons


def _warnings(declared: MessageType, registry: SchemaRegistry, how: Format) -> Iterator[str]:
    with suppress(SchemaRefused):  # reported elsewhere
        yield from uncompared(schema_of(declared))
    yield from _about_versions(declared, registry, how)


def _about_versions(declared: MessageType, registry: SchemaRegistry, how: Format) -> Iterator[str]:
    """Compare the old versions with the upcasters: messages in these versions may be stored or in transit."""
    for version in range(1, declared.version):
        subject = how.subject(replace(declared, version=version))
        count = len(registry.revisions(subject))
        if version in declared.upcasters and not count:
            yield f"an upcaster reads version {version}, which is not registered as {subject}"
        elif version not in declared.upcasters and count:
            yield (
                f"no upcaster reads version {version}, although {count} of its "
                f"{'revisions is' if count == 1 else 'revisions are'} registered: this code cannot read its messages"
            )
