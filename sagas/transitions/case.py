"""What a rule decides on, and what it decides."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sagas.binding import BoundStep
from sagas.checkpoints import (
    AT_REST,
    DeadLetter,
    Direction,
    HistoryEntry,
    HistoryKind,
    SagaRecord,
    SagaStatus,
    StepRecord,
    StepStatus,
    replace,
)
from sagas.definition import Saga
from sagas.opening import current_stage, goes_back, goes_on, is_undecided, opened, settled
from sagas.retries import Retry

__all__ = ["SKIPPED", "Begun", "Case", "Change", "Failure", "Outcome", "Skipped", "Timing", "Verdict", "Waiting"]

#: While nobody begins the next step, each look at a saga doubles the wait for the next look, up to 2 ** this.
_MOST_DOUBLINGS = 5

#: An item that has come to rest passes its place on to the next. If whoever brought it there does not, recovery does.
_TELL_SOON = timedelta(seconds=5)

_GIVEN_UP = (StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.STUCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the engine is, in seconds."""

    lease: float = 30.0  #: a claim that is not renewed for this long is dead
    redispatch_after: float = 30.0  #: a saga whose next step nobody claims for this long is overdue


class Verdict(enum.Enum):
    """What the messenger does after a change."""

    GO_AWAY = "go away"  #: nothing to do with this message; the chain it belongs to ends here
    ACT = "act"  #: the claim is yours
    CONTINUE = "continue"  #: the chain goes on
    SETTLED = "settled"  #: it was done before: the chain goes on if it was this message's own doing, else it ends here
    PARTED = "parted"  #: recorded; siblings of the stage are still at work
    CLOSED = "closed"  #: recorded, and it was the last of its stage: the join is yours to send
    RETRY = "retry"  #: the attempt failed; the step is tried again
    FAILED = "failed"  #: the step is out of attempts: raise, so that link_error fires
    DISPATCH = "dispatch"  #: dispatch what the plan says is left
    OVERDUE = "overdue"  #: its message waits in a queue, or is lost: recovery has to find out which


class Outcome(enum.Enum):
    """How an attempt failed."""

    TERMINAL = "terminal"  #: it had no effect; do not try again
    FAILED = "failed"  #: nobody knows what effect it had; try again as the policy says
    IN_DOUBT = "in doubt"  #: nobody knows, and trying again would not tell
    NOT_YET = "not yet"  #: it polls, and what it waits for is not there: ask again


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt that failed says about it."""

    outcome: Outcome
    error: str
    after: float | None = None  #: seconds until the next attempt, where the step itself said so
    retry: Retry | None = None  #: the policy for what it raised; None for that of the step


@dataclass(frozen=True, slots=True)
class Waiting:
    """What an attempt says whose step waits from here on."""

    until: datetime  #: when it has waited for long enough


@dataclass(frozen=True, slots=True)
class Begun:
    """What an attempt says whose node starts child sagas: they are stored if and only if this is."""

    children: Sequence[SagaRecord]


class Skipped(enum.Enum):
    """What an attempt says whose node decided that it does not run."""

    SKIPPED = "skipped"


SKIPPED = Skipped.SKIPPED


@dataclass(frozen=True)
class Change:
    """The record to store (the very same object when nothing changed), and what to do then."""

    record: SagaRecord
    verdict: Verdict
    note: str = ""  #: why, for the log
    history: tuple[HistoryEntry, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()

    def then(self, second: Change) -> Change:
        """Return the change that followed on this one, with what both of them have to tell."""
        return replace(
            second,
            note=second.note or self.note,
            history=self.history + second.history,
            dead_letters=self.dead_letters + second.dead_letters,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One saga in front of a rule: its definition, its record with the steps of its stage, and the time."""

    saga: Saga
    record: SagaRecord
    now: datetime
    timing: Timing

    @classmethod
    def of(cls, saga: Saga, record: SagaRecord, now: datetime, timing: Timing) -> Case:
        """Open what is to be opened."""
        return cls(saga, record, now, timing).reached()

    def reached(self) -> Case:
        """Return the case with the next stage opened, if the one before it is settled."""
        if self.is_ahead:
            return self
        return self.on(opened(self.saga, self.record))

    @property
    def is_ahead(self) -> bool:
        """Whether the saga is to start later."""
        return self.record.dispatches == 0 and self.record.stage_ready_at > self.now

    def on(self, record: SagaRecord) -> Case:
        """Return the case with another record."""
        return Case(self.saga, record, self.now, self.timing)

    def set(self, step: StepRecord, **changes: object) -> Case:
        """Return the case with a step as it is now, and with changes to the saga."""
        return self.on(replace(self.record, steps={**self.record.steps, step.name: step}, **changes))

    def node(self, step: StepRecord) -> BoundStep:
        """Return what the definition says of a step."""
        return self.saga.steps[step.node]

    # -- the stage ----------------------------------------------------------------------------------------------

    @property
    def forward(self) -> bool:
        return self.record.direction is Direction.FORWARD

    @property
    def stage(self) -> tuple[StepRecord, ...]:
        """The steps of the stage that the saga is at. Empty when nothing is left in its direction."""
        return current_stage(self.saga, self.record)

    def siblings(self, step: StepRecord) -> tuple[StepRecord, ...]:
        """Return the steps of a step's stage, the step itself included."""
        return tuple(each for each in self.record.steps.values() if each.stage == step.stage)

    def is_undecided(self, step: StepRecord) -> bool:
        """Tell whether the condition of a step has not been answered: then its action has not been called."""
        return is_undecided(self.saga, step)

    def settled(self, step: StepRecord) -> bool:
        return settled(self.saga, step, self.record.direction)

    def is_turn_of(self, step: StepRecord) -> bool:
        stage = self.stage
        return bool(stage) and stage[0].stage == step.stage

    def doomed(self, stage: Sequence[StepRecord]) -> bool:
        """Tell whether a step of the stage is given up, so that the saga cannot go forward from it."""
        return self.forward and any(step.status in _GIVEN_UP for step in stage)

    def over(self, stage: Sequence[StepRecord]) -> bool:
        """Tell whether a stage is at its end: nobody is at work, and all are settled or, going forward, one failed."""
        if any(step.held for step in stage):
            return False
        return self.doomed(stage) or all(self.settled(step) or step.status is StepStatus.STUCK for step in stage)

    def goes_on(self, stage: Sequence[StepRecord]) -> bool:
        """Tell whether a message leads on from a stage that has ended: the chain does, or the next compensation's."""
        return goes_on(self.saga, stage[0].stage) if self.forward else goes_back(stage)

    @property
    def committed(self) -> bool:
        """Whether the pivot has been reached: done, or begun with an effect that is not known."""
        if self.saga.pivot is None:
            return False
        pivot = self.record.step(self.saga.pivot.name)
        return pivot.status in (StepStatus.DONE, StepStatus.SKIPPED, StepStatus.RUNNING, StepStatus.STUCK) or (
            pivot.status is StepStatus.PENDING and pivot.started_seq > 0
        )

    # -- who waits ----------------------------------------------------------------------------------------------

    def ready(self, step: StepRecord) -> bool:
        """Tell whether a step waits to be claimed, and is due."""
        if step.held or (step.due_at is not None and step.due_at > self.now):
            return False
        if self.forward:
            return step.status is StepStatus.PENDING
        return step.status in (StepStatus.DONE, StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.COMPENSATING)

    def dead(self, step: StepRecord) -> bool:
        """Tell whether the claim on a step has run out."""
        return step.lease_until is not None and step.lease_until <= self.now

    def silent_until(self, step: StepRecord) -> datetime | None:
        """Say until when an action that is at work may go without a heartbeat. None where it need not report."""
        limit = self.node(step).step.heartbeat_timeout
        if limit is None or step.heartbeat_at is None or step.status is not StepStatus.RUNNING:
            return None
        return step.heartbeat_at + timedelta(seconds=limit)

    def leased(self, step: StepRecord) -> StepRecord:
        """Return a step that is held, with a lease from now on: no longer than its attempt may take, or be silent."""
        limits = self.now + timedelta(seconds=self.timing.lease), step.deadline, self.silent_until(step)
        return replace(step, lease_until=min(filter(None, limits)))

    @property
    def waiting(self) -> list[StepRecord]:
        """The steps of the current stage that a worker could begin now."""
        stage = self.stage
        return [] if self.doomed(stage) else [step for step in stage if not self.settled(step) and self.ready(step)]

    def start_deadline(self, step: StepRecord) -> datetime | None:
        """Say until when a worker has to begin a step."""
        limit = self.node(step).step.start_timeout
        if limit is None or not self.forward or (step.started_seq and step.due_at is None):
            return None  # one that had begun has only lost its worker
        since = max(filter(None, (self.record.stage_ready_at, step.due_at)))
        return since + timedelta(seconds=limit)

    @property
    def patience(self) -> timedelta:
        """For how long a message may go unanswered. Each look in vain doubles that."""
        return timedelta(seconds=self.timing.redispatch_after * 2 ** min(self.record.idle_checks, _MOST_DOUBLINGS))

    @property
    def next_check_at(self) -> datetime | None:
        """When recovery should look at the saga again, if nothing else happens until then."""
        stage = self.stage
        if self.is_ahead and self.forward:
            return self.record.stage_ready_at
        if self.record.status in AT_REST or not stage:
            return self.now + _TELL_SOON if self.record.parent_item is not None else None
        times: list[datetime | None] = []
        doomed = self.doomed(stage)
        for step in stage:
            if step.held:
                times.append(step.lease_until)
            elif step.status is StepStatus.WAITING:
                times.append(self._after_now(step.due_at) or self.now)
            elif not doomed and not self.settled(step):
                times += [self._message_overdue(step), self._after_now(self.start_deadline(step))]
        if self.forward and not self.committed and self.record.deadline:
            times.append(max(self.record.deadline, self.now))
        return min(filter(None, times), default=self.now + self.patience)

    def _message_overdue(self, step: StepRecord) -> datetime:
        if step.due_at is not None and step.due_at > self.now:
            return step.due_at
        sent = self.record.sent_at(step)
        recent = sent + timedelta(seconds=self.timing.redispatch_after) > self.now
        return (sent if recent else self.now) + self.patience

    def _after_now(self, at: datetime | None) -> datetime | None:
        return at if at is not None and at > self.now else None

    # -- what comes of it ---------------------------------------------------------------------------------------

    def refuse(self, why: str, verdict: Verdict = Verdict.GO_AWAY) -> Change:
        """Change nothing."""
        return Change(self.record, verdict, why)

    def done(
        self,
        verdict: Verdict,
        note: str = "",
        history: tuple[HistoryEntry, ...] = (),
        dead_letters: tuple[DeadLetter, ...] = (),
    ) -> Change:
        """Return the record as the change to store, with what it is to be dispatched, and when to look at it again."""
        case = self.reached()
        if verdict is Verdict.DISPATCH and case.stage:
            for step in case.waiting:
                case = case.set(replace(step, sent_at=self.now))
            case = case.on(replace(case.record, dispatches=case.record.dispatches + 1))
        # It may be looked at too early, never too late. Where the time that is stored will do it stays: that spares
        # the database an index entry at every checkpoint.
        record, next_check_at = case.record, case.next_check_at
        if (
            record.next_check_at is None
            or next_check_at is None
            or not self.now < record.next_check_at <= next_check_at
        ):
            record = replace(record, next_check_at=next_check_at)
        return Change(replace(record, updated_at=self.now), verdict, note, history, dead_letters)

    def entry(self, what: HistoryKind, step: StepRecord | None, detail: str, actor: str | None = None) -> HistoryEntry:
        """Return an entry for the saga's history."""
        name = None if step is None else step.name
        return HistoryEntry(at=self.now, what=what, epoch=self.record.epoch, step=name, detail=detail, actor=actor)

    def letter(self, step: StepRecord, **resolved: str | None) -> DeadLetter:
        """Open the dead letter of a step, or close it with how it was resolved."""
        return DeadLetter(
            saga_id=self.record.id,
            step=step.name,
            direction=self.record.direction,
            error=step.error or "",
            created_at=self.now,
            resolved_at=self.now if resolved else None,
            **resolved,
        )

    def reason(self, stage: Sequence[StepRecord]) -> str:
        """Say which steps failed, and how, for people."""
        said = {StepStatus.FAILED: "failed", StepStatus.IN_DOUBT: "is in doubt", StepStatus.STUCK: "is stuck"}
        return "; ".join(f"step {s.name!r} {said[s.status]}: {s.error}" for s in stage if s.status in said)

    @property
    def about(self) -> str:
        """Which saga it is, for errors."""
        return f"saga {self.record.name!r} ({self.record.id})"

    @property
    def stuck(self) -> list[StepRecord]:
        """The steps that wait for a person."""
        return [step for step in self.record.steps.values() if step.status is StepStatus.STUCK]

    def status(self, status: SagaStatus, **changes: object) -> Case:
        """Return the case with the saga moved to a status."""
        return self.on(self.record.move(status, **changes))
