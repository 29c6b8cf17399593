"""What is remembered of a saga: its record, the states it can be in, and the only moves between them.

A record is immutable. `transitions` makes the next one from it, a store keeps it, and everybody else reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from sagas.causes import Cause

__all__ = [
    "AT_REST",
    "CLOCKS_DIFFER",
    "NOT_SENT",
    "SAGA_MOVES",
    "STEP_MOVES",
    "FINISHED",
    "DeadLetter",
    "Direction",
    "HistoryEntry",
    "HistoryKind",
    "Items",
    "Resolution",
    "SagaRecord",
    "SagaStatus",
    "SagaSummary",
    "StepProgress",
    "StepRecord",
    "StepStatus",
    "node_of",
    "replace",
    "step_name",
    "tells_parent",
]


RecordT = TypeVar("RecordT")


def replace(record: RecordT, /, **changes: Any) -> RecordT:
    """Do as `dataclasses.replace` does, in a tenth of its time, for records without `__slots__`.

    The rules make some sixty new records for a saga of four steps, so that this is much of what the engine costs.
    """
    before: dict[str, Any] = record.__dict__
    values = before | changes
    if len(values) != len(before):
        raise TypeError(f"{type(record).__name__} has no {', '.join(sorted(changes.keys() - before.keys()))}")
    new = object.__new__(type(record))
    object.__setattr__(new, "__dict__", values)
    return new


class SagaStatus(enum.StrEnum):
    """Where a saga as a whole stands."""

    PENDING = "PENDING"  #: stored; no step has begun
    RUNNING = "RUNNING"  #: going forward
    COMPLETED = "COMPLETED"  #: every step is done
    COMPENSATING = "COMPENSATING"  #: steps are being compensated, last first
    COMPENSATED = "COMPENSATED"  #: everything that had begun is undone
    STUCK = "STUCK"  #: a person is needed


class StepStatus(enum.StrEnum):
    """Where one step of a saga stands."""

    PENDING = "PENDING"  #: not begun, or waiting for its next attempt
    RUNNING = "RUNNING"  #: claimed: its action is at work
    WAITING = "WAITING"  #: for a signal, an external completion, a moment or a child saga; nobody is at work
    DONE = "DONE"  #: its action succeeded and the result is kept
    FAILED = "FAILED"  #: its action said that it had no effect
    IN_DOUBT = "IN_DOUBT"  #: nobody knows whether its action had an effect
    COMPENSATING = "COMPENSATING"  #: its compensation is at work, or waits for its next attempt
    COMPENSATED = "COMPENSATED"  #: its compensation succeeded, or there was nothing to undo
    SKIPPED = "SKIPPED"  #: an operator decided that it need not be done, or undone
    STUCK = "STUCK"  #: out of attempts where only success would do


class Direction(enum.StrEnum):
    """Which way a saga goes."""

    FORWARD = "FORWARD"
    BACKWARD = "BACKWARD"


#: A saga in one of these has nothing left to do.
FINISHED = frozenset({SagaStatus.COMPLETED, SagaStatus.COMPENSATED})

#: A saga in one of these does nothing by itself: it is at its end, or waits for a person.
AT_REST = FINISHED | {SagaStatus.STUCK}

#: Every move that a saga may make. `docs/states.md` is drawn from this table.
SAGA_MOVES: Mapping[SagaStatus, Mapping[SagaStatus, str]] = {
    SagaStatus.PENDING: {
        SagaStatus.RUNNING: "a worker claims the first step, or what it waits for first has come",
        SagaStatus.COMPENSATING: "cancelled, or timed out before it began",
    },
    SagaStatus.RUNNING: {
        SagaStatus.COMPLETED: "the last step is done",
        SagaStatus.COMPENSATING: "compensation started: a step failed or is in doubt, a timeout, a cancel",
        SagaStatus.STUCK: "a step at or after the pivot is out of attempts",
    },
    SagaStatus.COMPENSATING: {
        SagaStatus.COMPENSATED: "nothing is left to undo",
        SagaStatus.STUCK: "a compensation is out of attempts",
    },
    SagaStatus.COMPENSATED: {
        SagaStatus.COMPENSATING: "an action that was given up ended late, and may have had its effect",
    },
    SagaStatus.STUCK: {
        SagaStatus.RUNNING: "an operator retried, skipped or marked a step, going forward",
        SagaStatus.COMPENSATING: "an operator retried, skipped or marked a step, going backward",
    },
    SagaStatus.COMPLETED: {
        SagaStatus.COMPENSATING: "it is a child saga, and its parent compensates",
    },
}

#: Every move that a step may make.
STEP_MOVES: Mapping[StepStatus, Mapping[StepStatus, str]] = {
    StepStatus.PENDING: {
        StepStatus.RUNNING: "claimed",
        StepStatus.WAITING: "reached, and there is nothing to begin",
        StepStatus.DONE: "the signal came before the wait began",
        StepStatus.FAILED: "could not be started",
        StepStatus.IN_DOUBT: "compensation started between two attempts",
        StepStatus.STUCK: "could not be started, at or after the pivot",
        StepStatus.COMPENSATED: "compensation started between two attempts, with nothing to undo",
    },
    StepStatus.RUNNING: {
        StepStatus.DONE: "the action succeeded",
        StepStatus.WAITING: "the action has asked; somebody else answers",
        StepStatus.SKIPPED: "its condition said no",
        StepStatus.PENDING: "the attempt failed or was lost, and another is due",
        StepStatus.FAILED: "the action raised TerminalError",
        StepStatus.IN_DOUBT: "out of attempts, or it ended after compensation had started",
        StepStatus.STUCK: "out of attempts, at or after the pivot",
        StepStatus.COMPENSATED: "compensation started, with nothing to undo",
    },
    StepStatus.WAITING: {
        StepStatus.DONE: "the signal, the completion or the moment came, or the child saga is COMPLETED",
        StepStatus.FAILED: "the timeout of a wait, a failure reported from outside, or the child saga is COMPENSATED",
        StepStatus.IN_DOUBT: "given up after its deadline, or compensation started",
        StepStatus.STUCK: "its deadline passed, or its child saga failed, after the pivot",
        StepStatus.COMPENSATING: "its child saga has to be told once more to compensate",
        StepStatus.COMPENSATED: "its child saga is COMPENSATED, or compensation started with nothing to undo",
    },
    StepStatus.DONE: {
        StepStatus.COMPENSATING: "its compensation is claimed",
        StepStatus.COMPENSATED: "compensation started, with nothing to undo",
        StepStatus.STUCK: "its compensation could not be started",
    },
    StepStatus.FAILED: {
        StepStatus.COMPENSATING: "its compensation is claimed",
        StepStatus.IN_DOUBT: "the action ended late, and may have had its effect",
        StepStatus.STUCK: "its compensation could not be started",
    },
    StepStatus.IN_DOUBT: {
        StepStatus.COMPENSATING: "its compensation is claimed",
        StepStatus.COMPENSATED: "compensation started, with nothing to undo",
        StepStatus.STUCK: "its compensation could not be started",
    },
    StepStatus.COMPENSATING: {
        StepStatus.COMPENSATED: "the compensation succeeded",
        StepStatus.WAITING: "its child saga compensates",
        StepStatus.STUCK: "the compensation is out of attempts",
        StepStatus.IN_DOUBT: "the action ended late, and may have had its effect",
    },
    StepStatus.COMPENSATED: {
        StepStatus.IN_DOUBT: "the action ended late, and may have had its effect",
    },
    StepStatus.STUCK: {
        StepStatus.PENDING: "an operator retries it, going forward",
        StepStatus.COMPENSATING: "an operator retries it, going backward",
        StepStatus.SKIPPED: "an operator skips it",
        StepStatus.DONE: "an operator marks it as done",
        StepStatus.COMPENSATED: "an operator marks it as undone",
        StepStatus.FAILED: "an operator marks a pivot as failed",
        StepStatus.IN_DOUBT: "the action ended late, and may have had its effect",
    },
    StepStatus.SKIPPED: {
        StepStatus.IN_DOUBT: "the action ended late, and may have had its effect",
    },
}


#: Processes may differ by so much in what they take for the database's time. Whatever was written further in the future
#: was written before the database's clock was set back.
CLOCKS_DIFFER = timedelta(seconds=10)


#: What the error of a step begins with whose message no broker took.
NOT_SENT = "not sent"


def step_name(node: str, item: int | None) -> str:
    """Return what a step is called that a node opened.

    >>> step_name("reserve", None), step_name("reserve", 3)
    ('reserve', 'reserve:3')
    """
    return node if item is None else f"{node}:{item}"


def node_of(step: str) -> str:
    """Return the node of the definition that a step of this name belongs to. Names of nodes have no colon.

    >>> node_of("reserve:3")
    'reserve'
    """
    return step.partition(":")[0]


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far a step has come, as it says itself.

    >>> str(StepProgress(300, 1200)), str(StepProgress(300))
    ('300 of 1,200 (25 %)', '300')
    """

    done: int
    total: int | None = None  #: None where the step does not know

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.done:,}"
        share = f" ({self.done * 100 // self.total} %)" if self.total else ""
        return f"{self.done:,} of {self.total:,}{share}"


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of one saga. Times are UTC."""

    node: str  #: the node of the definition that opened it
    item: int | None = None  #: its number among the steps of a node that opened several, from 0
    seq: int = 0  #: its number among the steps of the saga, in the order in which they were opened, from 1
    stage: int = 0  #: the stage of the definition, from 0
    kind: str = "step"  #: what it waits for
    status: StepStatus = StepStatus.PENDING
    started_seq: int = 0  #: its place in the order of start, from 1; 0 while it has not begun
    failures: int = 0  #: attempts that reported a failure or ran out of time, in this direction
    lost: int = 0  #: deliveries that ended in silence, in this direction
    owner: str | None = None  #: the claim that holds it
    lease_until: datetime | None = None  #: when the claim dies unless it is renewed
    deadline: datetime | None = None  #: when the attempt has run too long
    due_at: datetime | None = None  #: not to be tried before
    opened_at: datetime | None = None  #: when its node had decided that it runs; None where there is nothing to decide
    sent_at: datetime | None = None  #: when a message was sent for it; None for the one that came with the chain
    input: str | None = None  #: JSON of its own, such as who sent the signal that a wait received
    result: str | None = None  #: JSON; None while the outcome is unknown
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    child_id: str | None = None  #: the saga that it started, of a node that starts one
    heartbeat_at: datetime | None = None  #: when its attempt last reported that it goes on, or began to be watched
    heartbeat_details: str | None = None  #: JSON that an attempt reported last, for the next one to resume from
    progress_done: int | None = None  #: how far the attempt has come, as it says
    progress_total: int | None = None  #: of how many; None where it does not know

    @property
    def name(self) -> str:
        """What the step is called: its node, and its number among the steps of that node if there are several."""
        return step_name(self.node, self.item)

    @property
    def attempt(self) -> int:
        """The number of the attempt that is at work or comes next, from 1."""
        return self.failures + self.lost + 1

    @property
    def attempts(self) -> int:
        """How many attempts have begun, in the direction that the saga goes, since an operator last had it retried."""
        if not self.started_seq:
            return 0
        one_more = self.held or self.status in (StepStatus.DONE, StepStatus.COMPENSATED, StepStatus.IN_DOUBT)
        return self.failures + self.lost + one_more

    @property
    def progress(self) -> StepProgress | None:
        """How far it has come; None for a step that does not report it."""
        return None if self.progress_done is None else StepProgress(self.progress_done, self.progress_total)

    @property
    def held(self) -> bool:
        return self.owner is not None

    def move(self, status: StepStatus, **changes: Any) -> StepRecord:
        if status is not self.status and status not in STEP_MOVES[self.status]:
            raise AssertionError(f"step {self.name!r} cannot go from {self.status} to {status}")
        return replace(self, status=status, **changes)


@dataclass(frozen=True, kw_only=True)
class SagaSummary:
    """A saga as lists show it: without its input, and without the results of its steps. Times are UTC."""

    id: str
    name: str
    version: int
    key: str  #: unique among the sagas of this name
    outline: str  #: of the definition that it goes by, as JSON; see `sagas.outline`
    correlation_id: str
    caused_by: Cause | None = None  #: the message or the step that started it
    traceparent: str | None = None  #: W3C's name of the span that started it, where there is one
    parent_id: str | None = None  #: the saga that it is a child of
    parent_step: str | None = None  #: the step of the parent that started it
    parent_item: int | None = None  #: its number among the items of that step, from 0; None of a single child
    root_id: str | None = None  #: the saga at the top of the tree that it is in; None of one without a parent
    status: SagaStatus = SagaStatus.PENDING
    direction: Direction = Direction.FORWARD
    epoch: int = 1  #: messages of another epoch are stale
    revision: int = 1  #: +1 at every save; a save of another revision changes nothing
    dispatches: int = 1  #: how often its messages were sent: by its start, by recovery, by operators
    idle_checks: int = 0  #: looks of recovery in a row that found nobody had begun the next step
    error: str | None = None  #: why it compensates, or is stuck
    created_at: datetime
    updated_at: datetime
    stage_ready_at: datetime  #: since when the next stage waits for a worker
    deadline: datetime | None = None  #: when it starts compensating, unless it is past its pivot
    next_check_at: datetime | None = None  #: when recovery looks at it; None when there is nothing to look for
    steps: Mapping[str, StepRecord] = field(default_factory=dict)  #: by name, in the order in which they were opened

    @property
    def family(self) -> str:
        """The id of the saga at the top of the tree that this one is in, which may be itself."""
        return self.root_id or self.id

    @property
    def trouble(self) -> str | None:
        """What operators should know: why it is stuck, where it is, and else its error."""
        stuck = [step for step in self.steps.values() if step.status is StepStatus.STUCK]
        if self.status is not SagaStatus.STUCK or not stuck:
            return self.error
        return "; ".join(f"step {step.name!r} is stuck: {step.error}" for step in stuck)

    def cause(self, step: str | None = None) -> Cause:
        """Return what the saga, or a step of it, is to the messages and sagas that come of it.

        A saga is no message: what it emits has as many hops as if the handler that started it had emitted it.
        """
        return Cause(
            self.id if step is None else f"{self.id}:{step}",
            self.correlation_id,
            hops=self.caused_by.hops if self.caused_by else 0,
            path=self.caused_by.path if self.caused_by else (),
            trace={} if self.traceparent is None else {"traceparent": self.traceparent},
        )

    def without_payloads(self) -> SagaRecord:
        """Return a record that rules can be tried on. They ask for no payload."""
        return SagaRecord(**{name: getattr(self, name) for name in _SUMMARY_FIELDS}, input="null")

    def step(self, name: str) -> StepRecord:
        """Return the record of a step. A step that is not open yet has an empty one."""
        return self.steps.get(name) or StepRecord(node=node_of(name))

    def sent_at(self, step: StepRecord) -> datetime:
        """Say when the message of a step that waits was sent."""
        return self.stage_ready_at if step.sent_at is None else max(step.sent_at, self.stage_ready_at)

    def move(self, status: SagaStatus, **changes: Any) -> Self:
        if status is not self.status and status not in SAGA_MOVES[self.status]:
            raise AssertionError(f"saga {self.name!r} ({self.id}) cannot go from {self.status} to {status}")
        return replace(self, status=status, **changes)

    def with_step(self, step: StepRecord) -> Self:
        return replace(self, steps={**self.steps, step.name: step})


@dataclass(frozen=True, kw_only=True)
class SagaRecord(SagaSummary):
    """One saga and all its steps, as last stored. Times are UTC."""

    input: str  #: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """How the items of a step stand."""

    waiting: int = 0  #: not begun
    working: int = 0  #: begun and not at their ends, in either direction; those that are stuck too
    completed: int = 0
    failed: int = 0  #: begun and COMPENSATED
    trouble: str | None = None  #: what the first that failed has to say, or the first that is stuck

    @property
    def total(self) -> int:
        return self.waiting + self.working + self.completed + self.failed


def tells_parent(before: SagaSummary, after: SagaSummary) -> bool:
    """Tell whether a change to a child saga concerns its parent: it comes to rest, or goes on from there."""
    moved = before.status is not after.status
    return after.parent_id is not None and moved and (before.status in AT_REST or after.status in AT_REST)


class HistoryKind(enum.StrEnum):
    """What can happen to a saga beside its plain way forward."""

    STEP_FAILED = "step failed"  #: an attempt at an action failed
    COMPENSATION_FAILED = "compensation failed"  #: an attempt at a compensation failed
    LOST = "lost"  #: a worker took a step and was not heard of again
    NOT_SENT = "not sent"  #: no broker takes the message of a step
    NOT_STARTED = "not started"  #: no worker began the step within its `start_timeout`
    LATE_OUTCOME = "late outcome"  #: an attempt that had been given up reported how it ended
    COMPENSATION_STARTED = "compensation started"
    STUCK = "stuck"  #: the saga needs a person
    SIGNAL = "signal"  #: somebody answered what the saga waited for
    OPERATOR_RETRY = "operator: retry"
    OPERATOR_SKIP = "operator: skip"
    OPERATOR_DONE = "operator: done"
    OPERATOR_FAILED = "operator: failed"
    OPERATOR_RESUME = "operator: resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """Something that happened to a saga beside its plain way forward."""

    at: datetime
    what: str  #: a `HistoryKind`; or the text of one that only another version of the library knows
    epoch: int
    step: str | None = None
    detail: str = ""
    actor: str | None = None  #: the operator, where it was one


class Resolution(enum.StrEnum):
    """How the dead letter of a step was resolved."""

    RETRY = "retry"
    SKIP = "skip"
    DONE = "done"
    FAILED = "failed"
    LATE_OUTCOME = "late outcome"  #: by the step itself, which reported how it ended


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A step that is out of attempts where only success would do: work for a person."""

    saga_id: str
    step: str
    direction: Direction
    error: str
    created_at: datetime
    resolved_at: datetime | None = None
    resolution: str | None = None  #: a `Resolution`, with the same exception as `HistoryEntry.what`
    reason: str | None = None
    actor: str | None = None


_SUMMARY_FIELDS = tuple(field.name for field in fields(SagaSummary))
