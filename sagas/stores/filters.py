"""What operators ask a store for, and what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sagas.checkpoints import HistoryEntry, SagaStatus
from sagas.errors import PayloadUnreadable

__all__ = ["EVERYTHING", "AuditEntry", "Filter", "InFlight", "Payloads", "Standing", "StatusCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Says which sagas are meant: those that all of its fields fit. A field that is left out fits every saga.

    >>> Filter(name="place_order", statuses=frozenset({SagaStatus.STUCK})).name
    'place_order'
    """

    ids: tuple[str, ...] | None = None  #: an empty tuple fits no saga
    name: str | None = None
    version: int | None = None
    statuses: frozenset[SagaStatus] = frozenset()
    key: str | None = None
    correlation_id: str | None = None
    family: str | None = None  #: the id of the saga at the top of a tree: that one and all below it
    parent: str | None = None  #: the id of the saga that they are children of; give its `family` too
    step: str | None = None  #: stands at a step of this name: it has begun and is not settled
    error: str | None = None  #: its error, or that of a stuck step, has this in it, in upper or lower case
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_before: datetime | None = None  #: nothing has happened to it since
    attention: bool = False  #: needs a person: it is stuck, has an open dead letter, or stands still


#: The filter that every saga fits.
EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class StatusCount:
    """How many sagas of one name have one status."""

    name: str
    status: SagaStatus
    count: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """The unfinished sagas that were started with one definition and have one status."""

    name: str
    version: int
    outline: str
    status: SagaStatus
    count: int
    oldest: datetime  #: when the oldest of them was started
    example: str  #: the id of one of them: the oldest


@dataclass(frozen=True, slots=True)
class Standing:
    """The unfinished sagas of one outline that stand at one stage."""

    stage: int  #: the last one that they have opened, from 0; -1 of those that are to start later
    early: str | None  #: a wait ahead whose signal they have; None of all sagas that stand here
    count: int
    example: str  #: the id of the oldest of them


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Something that an operator did to a saga."""

    number: int  #: of the entry in the history; goes up with time
    saga_id: str
    name: str
    key: str
    entry: HistoryEntry
    parent_id: str | None = None  #: of a child saga


@dataclass(frozen=True, slots=True)
class Payloads:
    """The payloads of one saga as JSON. The error takes the place of a payload that cannot be read."""

    input: str | PayloadUnreadable
    results: Mapping[str, str | PayloadUnreadable]  #: by step
