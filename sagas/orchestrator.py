"""Check, act, record: what a step's task does when its message arrives, and everything else that changes a saga.

The orchestrator loads a record, lets `transitions` decide, and stores the outcome with a compare-and-set; whoever
loses that race loads and decides again. It returns what is to be dispatched and never dispatches anything itself.
"""

from __future__ import annotations

import functools
import logging
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import uuid_utils

from sagas import tokens, transitions
from sagas.causes import CURRENT, Cause, within
from sagas.checkpoints import Direction, SagaRecord, SagaSummary, StepStatus
from sagas.definition import BoundStep, Retry, Saga, StepContext
from sagas.endings import ends_process, meant
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    DuplicateName,
    InvalidInput,
    KeyConflict,
    NotAllowed,
    PayloadTooLarge,
    RetryableError,
    StoreUnavailable,
    TerminalError,
    UnserialisableResult,
)
from sagas.functions import refuse_unfinished
from sagas.leases import Leases
from sagas.nodes import Sleep
from sagas.observers import SUCCEEDED, Attempt, Observers, Start
from sagas.opening import is_undecided
from sagas.outline import Outline
from sagas.plan import Plan, plan
from sagas.redaction import Redaction
from sagas.text import clean, describe, is_clean
from sagas.transitions import (
    SKIPPED,
    Case,
    Change,
    Failure,
    Outcome,
    Repair,
    Skipped,
    Timing,
    Verdict,
    Waiting,
)
from sagas.values import ABSENT, NO_TYPE, convert, dump, explain, field_of, load, same

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["Next", "Orchestrator"]

logger = logging.getLogger(__name__)

_LONGEST_KEY = 200
_LONGEST_ERROR = 10_000

#: Seconds for which a message insists on a database that does not answer, before it is put off.
_CLAIM_PATIENCE = 3.0

#: A step that comes to one of these has done what it was asked for.
_SUCCEEDED = (StepStatus.DONE, StepStatus.COMPENSATED)

#: The verdicts whose messenger needs to know what is left.
_PLANNED = (Verdict.DISPATCH, Verdict.ACT, Verdict.OVERDUE)

_Decide = Callable[[Case], Change]


@dataclass(frozen=True, slots=True)
class Next:
    """What the messenger does now."""

    verdict: Verdict
    note: str
    record: SagaRecord
    plan: Plan | None = None  #: what to dispatch, if the verdict is DISPATCH; what is waited for, if it is OVERDUE
    claim: Claim | None = None  #: the claim on the following step, if it was asked for and granted
    error: BaseException | None = None  #: what the attempt raised, if it failed


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that was granted to an owner."""

    record: SagaRecord
    name: str
    owner: str
    token: str = field(repr=False)  #: with which another system may complete it


class Publisher(Protocol):
    """What makes rows of the outbox for sagas. `sagas.events.Events` does."""

    def prepare(self, message: Any, *, key: str, cause: Cause) -> Mapping[str, Any]:
        """Return the row for a message that a step emits."""

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        """Return the rows for the events of a saga's own life."""


class Orchestrator:
    """Changes sagas. One per app; safe to use from any thread."""

    def __init__(
        self,
        store: CheckpointStore,
        *,
        timing: Timing,
        max_payload: int,
        events: Publisher | None = None,
        observers: Observers | None = None,
        redact: frozenset[str] = frozenset(),
    ) -> None:
        self.store = store
        self.redact = redact
        self.observers = Observers() if observers is None else observers
        self.events = events
        self.timing = timing
        self.max_payload = max_payload
        self.sagas: dict[tuple[str, int], Saga] = {}
        self._leases = Leases(timing.lease, self._renew)

    # -- definitions --------------------------------------------------------------------------------------------

    def register(self, saga: Saga) -> None:
        key = saga.name, saga.version
        if self.sagas.get(key, saga) is not saga:
            raise DuplicateName(f"there is already a saga {saga.name!r} of version {saga.version}")
        if saga.publish_lifecycle and self.events is None:
            raise ConfigurationError(
                f"saga {saga.name!r} publishes its life, but there is nothing to publish through: "
                "Sagas(..., events=Events(...))"
            )
        self.sagas[key] = saga

    def definition(self, record: SagaSummary, step: str | None = None) -> Saga:
        """Return the definition that a saga was started with.

        Raises `DefinitionMissing` where the running code has none, or one of other steps.
        """
        where = f"saga {record.name!r} version {record.version} ({record.id})" + (f", step {step!r}" if step else "")
        saga = self.sagas.get((record.name, record.version))
        if saga is None:
            known = ", ".join(str(version) for name, version in sorted(self.sagas) if name == record.name)
            raise DefinitionMissing(
                f"{where}: the running code has "
                + (f"only version {known} of it" if known else "no saga of this name")
                + ". Deploy code that still has this version; until then nothing of it is run"
            )
        if saga.outline != record.outline:
            was, are = Outline.parse(record.outline).describe(), Outline.parse(saga.outline).describe()
            raise DefinitionMissing(
                f"{where}: its steps were [{was}] and are [{are}] in the running code. "
                "Steps of sagas in flight must not change: give the new ones a new version and keep the old"
            )
        return saga

    # -- start --------------------------------------------------------------------------------------------------

    def start(
        self,
        saga: Saga,
        given: Any,
        *,
        key: str | None,
        correlation_id: str | None,
        session: AnySession | None,
        at: datetime | None = None,
    ) -> Next:
        """Store a new saga. The plan is there to be dispatched once the caller's transaction, if any, has committed."""
        record = self.prepare(saga, given, key=key, correlation_id=correlation_id, at=at)
        with self.observers.during(Start(record)) as start:
            if start.traceparent is not None:
                record = replace(record, traceparent=start.traceparent)
            stored = self.store.insert(record, session)
        if stored.id == record.id:
            if self.observers:
                self.store.after_commit(session, lambda: self.observers.changed(None, record))
            return Next(Verdict.DISPATCH, "", record, plan(saga, record) if record.dispatches else None)
        self.check_same(saga, record, stored)
        return Next(Verdict.GO_AWAY, "it was started before", stored)

    def prepare(
        self, saga: Saga, given: Any, *, key: str | None, correlation_id: str | None, at: datetime | None = None
    ) -> SagaRecord:
        """Return the record of a saga that is about to be stored. Raises `InvalidInput` and `PayloadTooLarge`.

        Without `dispatches` it needs no message: recovery begins it.
        """
        text = self._encode_input(saga, given)
        saga_id = str(uuid_utils.uuid7())
        key = saga_id if key is None else key
        cause = CURRENT.get()
        if correlation_id is None:
            # That of others need not be one that could be asked for: it may have blanks around it.
            inherited = clean(cause.correlation_id).strip()[:_LONGEST_KEY].strip() if cause else ""
            correlation_id = inherited or saga_id
        for what, value in (("key", key), ("correlation_id", correlation_id)):
            if not isinstance(value, str):
                raise InvalidInput(
                    f"saga {saga.name!r}: {what} must be a str, not {type(value).__name__}: {what}=str(...)"
                )
            if not 0 < len(value) <= _LONGEST_KEY or value != value.strip() or not is_clean(value):
                raise InvalidInput(
                    f"saga {saga.name!r}: {what} {value!r} must be a string of 1 to {_LONGEST_KEY} characters "
                    "without white space around it, NUL or lone surrogates"
                )
        now = self.store.now()
        if at is not None and at.tzinfo is None:
            raise InvalidInput(f"saga {saga.name!r}: at={at!r} has no time zone")
        ready_at = now if at is None else max(at.astimezone(UTC), now)
        # Recovery begins what is to start later, and what begins to wait without a message.
        later = ready_at > now or any(node.step.is_open_at_once for node in saga.stages[0])
        return SagaRecord(
            id=saga_id,
            name=saga.name,
            version=saga.version,
            key=key,
            outline=saga.outline,
            correlation_id=correlation_id,
            caused_by=cause,
            input=text,
            created_at=now,
            updated_at=now,
            stage_ready_at=ready_at,
            dispatches=0 if later else 1,
            deadline=None if saga.timeout is None else ready_at + timedelta(seconds=saga.timeout),
            next_check_at=ready_at if later else now + timedelta(seconds=self.timing.redispatch_after),
        )

    @staticmethod
    def check_same(saga: Saga, record: SagaRecord, stored: SagaRecord) -> None:
        """Raise `KeyConflict` when the saga that has the key of `record` was started with another input."""
        # Compared as values: a default that was left out and one that was given are the same.
        if stored.input != record.input and not same(load(stored.input, saga.input), load(record.input, saga.input)):
            raise KeyConflict(
                f"saga {saga.name!r}: the key {record.key!r} belongs to {stored.id}, which was started with another "
                "input"
            )

    def _encode_input(self, saga: Saga, given: Any) -> str:
        where = f"saga {saga.name!r}, input"
        if saga.input is None:
            if given is not None:
                raise InvalidInput(f"{where}: it takes none, but was given a {type(given).__name__}")
            return "null"
        try:
            value = convert(given, saga.input) if isinstance(given, Mapping) else given
            text = dump(value, saga.input)
        except TypeError as error:
            raise InvalidInput(f"{where}: {error}") from error
        if (size := len(text.encode())) > self.max_payload:
            raise PayloadTooLarge(
                f"{where}: {size:,} bytes are more than max_payload={self.max_payload:,}; "
                "keep large things elsewhere and pass a reference"
            )
        return text

    # -- a step's message: check, act, record -------------------------------------------------------------------

    def perform(
        self, saga_id: str, name: str, epoch: int, *, claim: Claim | None = None, following: str | None = None
    ) -> Next:
        """Do what the message of a step asks for, if it is still to be done.

        `following`: the step that the caller runs next if this one succeeds. It is claimed together with the
        checkpoint of this one, and the claim is handed to the next call.
        """
        if claim is None:
            owner = str(uuid_utils.uuid7())
            token, digest = tokens.new(saga_id, name)

            def check(case: Case) -> Change:
                return transitions.claim(case, name, epoch, owner, _digest(case, name, digest))

            claimed = self._insist(lambda: self.change(saga_id, check, step=name), _CLAIM_PATIENCE)
            if claimed.verdict is not Verdict.ACT:
                return claimed
            claim = Claim(claimed.record, name, owner, token)
        return self._act_and_record(claim, following)

    def _act_and_record(self, claim: Claim, following: str | None) -> Next:
        saga_id, name, owner = claim.record.id, claim.name, claim.owner
        seen = Attempt(claim.record, name)
        with (
            self._leases.held(saga_id, name, owner),
            within(claim.record.cause(name)),
            ExitStack() as resources,
            self.observers.during(seen),
        ):
            attempt = _Attempt(self, claim, resources)
            try:
                resources.enter_context(self.store.attempt(attempt.open_session))
                if not attempt.decide():
                    result: str | Waiting | Skipped | None = SKIPPED
                elif attempt.is_undecided and (kept := self._keep_decision(claim)).verdict is not Verdict.ACT:
                    return kept
                else:
                    attempt.record = kept.record if attempt.is_undecided else attempt.record
                    result = attempt.act()
                if attempt.session is not None:
                    return self._record_within(attempt, owner, result, seen)
                resources.close()  # where that fails the step has failed
            except BaseException as error:
                if ends_process(error):
                    raise
                resources.__exit__(type(error), error, error.__traceback__)
                redaction = self._masking(claim.record)
                failure = _failure(error, redaction, attempt)
                seen.end(failure.outcome.value, error, redaction)
                if failure.outcome not in (Outcome.TERMINAL, Outcome.NOT_YET):
                    told = "\n" + redaction.text("".join(traceback.format_exception(error))) if redaction else ""
                    logger.info(
                        "saga %s, step %s: attempt failed%s", saga_id, name, told, exc_info=None if told else error
                    )
                return replace(self._record(attempt, owner, failure), error=error)
            seen.end(SUCCEEDED)
            return self._record(attempt, owner, result, following)

    def _masking(self, record: SagaRecord) -> Redaction:
        payloads = record.input, *(step.result for step in record.steps.values() if step.result is not None)
        return Redaction(self.redact, payloads)

    def _record(
        self,
        attempt: _Attempt,
        owner: str,
        outcome: str | Failure | Waiting | Skipped | None,
        following: str | None = None,
    ) -> Next:
        epoch, next_owner = attempt.record.epoch, str(uuid_utils.uuid7())
        token, digest = tokens.new(attempt.record.id, following) if following is not None else ("", "")

        def record(case: Case) -> Change:
            done = _recorded(case, attempt, owner, outcome)
            if following is None or done.verdict is not Verdict.CONTINUE:
                return done
            case = case.on(done.record)
            claimed = transitions.claim(case, following, epoch, next_owner, _digest(case, following, digest))
            if claimed.verdict is not Verdict.ACT:
                return done
            return replace(done, record=claimed.record, history=done.history + claimed.history)

        # The effect is there: it is worth insisting for as long as the claim may live.
        emitted = None if isinstance(outcome, Failure) else attempt
        next_ = self._insist(
            lambda: self.change(attempt.record.id, record, loaded=attempt.record, emitted=emitted), self.timing.lease
        )
        if following is not None and next_.record.step(following).owner == next_owner:
            return replace(next_, claim=Claim(next_.record, following, next_owner, token))
        return next_

    def _keep_decision(self, claim: Claim) -> Next:
        """Keep that the condition of a step said yes, before its action is called."""
        return self._insist(
            lambda: self.change(claim.record.id, lambda case: transitions.decided(case, claim.name, claim.owner)),
            self.timing.lease,
        )

    def _record_within(
        self, attempt: _Attempt, owner: str, result: str | Waiting | Skipped | None, seen: Attempt
    ) -> Next:
        """Record a success in the transaction of its effect, or undo both."""

        def record(case: Case) -> Change:
            if case.record.step(attempt.name).owner != owner or case.record.direction is not attempt.direction:
                raise _Fenced(f"rolled back: the saga is {case.record.status} and no longer wants it")
            return _recorded(case, attempt, owner, result)

        told: list[Callable[[], None]] = []
        next_ = self.change(
            attempt.record.id,
            record,
            loaded=attempt.record,
            session=attempt.session,
            emitted=attempt,
            told=told,
        )
        attempt.resources.close()  # commits
        seen.end(SUCCEEDED)
        for tell in told:
            tell()
        return next_

    # -- the other messages -------------------------------------------------------------------------------------

    def join(self, saga_id: str, name: str, epoch: int) -> Next:
        return self._insist(
            lambda: self.change(saga_id, lambda case: transitions.join(case, name, epoch), step=name),
            _CLAIM_PATIENCE,
        )

    def report(self, saga_id: str, name: str, epoch: int) -> Next:
        """link_error fired: start compensating, unless that has happened."""
        return self._insist(
            lambda: self.change(
                saga_id,
                lambda case: transitions.report(case, name, epoch),
                step=name,
            ),
            _CLAIM_PATIENCE,
        )

    def arrived(self, task: str, sent_at: datetime) -> None:
        """A probe came through the queue: what was sent for its task before has come, or never will."""
        try:
            self.store.arrived(task, sent_at)
        except StoreUnavailable as error:  # recovery sends another
            logger.warning("the arrival of a probe for %s could not be noted: %s", task, error)

    # -- recovery -----------------------------------------------------------------------------------------------

    def look_at(self, saga_ids: Sequence[str]) -> tuple[Sequence[Next], Sequence[str]]:
        """Look at sagas that are due, in a few statements for all of them: most can only wait, in a long queue.

        Returns what comes of those, OVERDUE or GO_AWAY, and the ids of the others. `examine` them one by one.
        """
        waiting: list[Next] = []
        now = self.store.now()
        for summary in self.store.summaries(saga_ids) if saga_ids else ():
            record = summary.without_payloads()
            try:
                saga = self.definition(record)
                case = Case.of(saga, transitions.rewound(record, now), now, self.timing)
                change = transitions.examine(case)
                after = change.record
                if after == replace(
                    record, idle_checks=after.idle_checks, next_check_at=after.next_check_at, steps=case.record.steps
                ):
                    left = plan(saga, after) if change.verdict in _PLANNED else None
                    waiting.append(Next(change.verdict, change.note, after, left))
            except Exception:  # looked at alone, its failure is its own
                logger.debug("saga %s (%s) is looked at alone", record.name, record.id, exc_info=True)
        if waiting:
            self.store.reschedule([next_.record for next_ in waiting])
        found = {next_.record.id for next_ in waiting}
        return waiting, [saga_id for saga_id in saga_ids if saga_id not in found]

    def examine(self, saga_id: str) -> Next:
        """Look at a saga that is due. DISPATCH: send its plan. OVERDUE: find out whether its message is lost."""
        return self.change(saga_id, transitions.examine)

    def redispatch(self, saga_id: str, step: str, sent_at: datetime) -> Next:
        """Have an overdue saga's messages sent once more."""
        return self.change(saga_id, lambda case: transitions.redispatch(case, step, sent_at))

    def not_sent(self, saga_id: str, why: str, *, broker_answers: bool) -> None:
        """No broker took the plan of a saga: show that on the saga, and look at it again before long."""
        self.change(
            saga_id,
            lambda case: transitions.not_sent(case, why, broker_answers=broker_answers),
        )

    # -- people -------------------------------------------------------------------------------------------------

    def cancel(self, saga_id: str, reason: str, actor: str | None = None) -> Next:
        reason, actor = _said(reason), _named(actor)
        return self.change(saga_id, lambda case: transitions.cancel(case, reason, actor))

    def resume(self, saga_id: str, reason: str, actor: str | None = None) -> Next:
        reason, actor = _said(reason), _named(actor)
        return self.change(saga_id, lambda case: transitions.resume(case, reason, actor))

    def repair(
        self, saga_id: str, step: str, how: Repair, *, reason: str, actor: str | None = None, result: Any = None
    ) -> Next:
        if not reason.strip():
            raise NotAllowed(f"saga {saga_id}, step {step!r}: say why; it is kept with the saga")
        reason, actor = _said(reason), _named(actor)

        def decide(case: Case) -> Change:
            text = None
            if how is Repair.DONE and case.forward and (found := case.record.steps.get(step)):
                try:
                    text = dump(result, case.node(found).action.returns)
                except TypeError as error:
                    raise InvalidInput(f"saga {case.record.name!r}, result of step {step!r}: {error}") from error
                if (size := len(text.encode())) > self.max_payload:
                    raise PayloadTooLarge(
                        f"saga {case.record.name!r}, result of step {step!r}: {size:,} bytes are more than "
                        f"max_payload={self.max_payload:,}"
                    )
            return transitions.repair(case, step, how, reason, actor=actor, result=text)

        return self.change(saga_id, decide, step=step)

    def result(self, record: SagaRecord) -> Mapping[str, Any]:
        """Return what the steps of a saga returned, as the types that their actions declare."""
        saga = self.definition(record)
        return {
            step.name: None
            if step.status is StepStatus.SKIPPED
            else load(step.result or "null", saga.steps[step.node].action.returns)
            for step in record.steps.values()
            if step.status in (StepStatus.DONE, StepStatus.SKIPPED) and step.kind != "timer"
        }

    # -- the one way to change a saga ---------------------------------------------------------------------------

    def change(
        self,
        saga_id: str,
        decide: _Decide,
        *,
        step: str | None = None,
        loaded: SagaRecord | None = None,
        session: AnySession | None = None,
        emitted: _Attempt | None = None,
        told: list[Callable[[], None]] | None = None,
    ) -> Next:
        """Load, decide, compare and set; again until nobody was quicker.

        `emitted`: an attempt that succeeded; what it emitted is stored if it counts.
        `told`: where to put what observers are told, for after the commit of `session`.
        """
        while True:
            before = loaded or self.store.load(saga_id, session)
            loaded = None
            try:
                saga = self.definition(before, step)
            except DefinitionMissing as error:
                self._note(before, str(error))
                raise
            now = self.store.now()
            case = Case.of(saga, transitions.rewound(before, now), now, self.timing)
            change = decide(case)
            after = change.record
            if after is not case.record:
                outbox = self._outbox(saga, before, after, emitted)
                saved = self.store.save(before, after, change.history, change.dead_letters, outbox, session)
                if saved is None:
                    time.sleep(random.uniform(0, 0.005))  # noqa: S311 - siblings of a chord meet here; let them part
                    continue
                after = saved
                if self.observers:
                    tell = functools.partial(self.observers.changed, before, after, change.history)
                    if told is None:
                        self.store.after_commit(session, tell)
                    else:
                        told.append(tell)
            dispatch = plan(saga, after) if change.verdict in _PLANNED else None
            return Next(change.verdict, change.note, after, dispatch)

    def _outbox(
        self, saga: Saga, before: SagaRecord, after: SagaRecord, emitted: _Attempt | None
    ) -> Sequence[Mapping[str, Any]]:
        """Return what leaves with a change: what its step emitted, if that counts as done now, and the saga's life."""
        rows: list[Mapping[str, Any]] = []
        if emitted is not None and emitted.messages:
            status = after.step(emitted.name).status
            if status in _SUCCEEDED and before.step(emitted.name).status is not status:
                rows += emitted.messages
        if saga.publish_lifecycle and self.events is not None:
            rows += self.events.lifecycle(before, after)
        return rows

    def _note(self, record: SagaRecord, error: str) -> None:
        """Show on the saga itself why it stands still; a worker with other code may bring it on."""
        # While the saga compensates, its error says why, and that is worth more.
        if record.next_check_at is not None and record.direction is Direction.FORWARD and record.error != error:
            self.store.save(record, replace(record, error=error))

    def _renew(self, saga_id: str, name: str, owner: str) -> bool:
        next_ = self.change(saga_id, lambda case: transitions.renew(case, name, owner), step=name)
        return next_.verdict is Verdict.ACT

    @staticmethod
    def _insist(write: Callable[[], Next], patience: float) -> Next:
        """Try again while the database does not answer, for a while."""
        give_up, pause = time.monotonic() + patience, 0.05
        while True:
            try:
                return write()
            except StoreUnavailable:
                if time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 1.0)


def _digest(case: Case, name: str, digest: str) -> str | None:
    """Return the hash of a token if the step may give one out."""
    return digest if name in case.record.steps and case.node(case.record.step(name)).gives_token else None


def _recorded(case: Case, attempt: _Attempt, owner: str, outcome: str | Failure | Waiting | Skipped | None) -> Change:
    """Decide what an attempt that has ended does to its saga."""
    match outcome:
        case Failure():
            return transitions.fail(case, attempt.name, owner, attempt.direction, outcome)
        case Waiting():
            return transitions.wait(case, attempt.name, owner, outcome.until)
        case Skipped():
            return transitions.skip(case, attempt.name, owner)
        case _:
            return transitions.succeed(case, attempt.name, owner, attempt.direction, outcome)


class _Fenced(Exception):
    """The transaction of a step found that the saga has moved on without it. What else the step did is not known."""


class _Attempt:
    """One attempt at an action or a compensation."""

    def __init__(self, orchestrator: Orchestrator, claim: Claim, resources: ExitStack) -> None:
        record, name = claim.record, claim.name
        self.saga = orchestrator.definition(record, name)
        self.step: BoundStep = self.saga.steps[record.step(name).node]
        self.record = record
        self.name = name
        self.direction = record.direction
        self.resources = resources
        self.session: Session | None = None
        self.messages: list[Mapping[str, Any]] = []  #: rows of the outbox, for when it succeeds
        self._token = claim.token if self.step.gives_token and self.direction is Direction.FORWARD else None
        self._orchestrator = orchestrator
        #: Whether its condition is to be asked in this attempt.
        self.is_undecided = self.direction is Direction.FORWARD and is_undecided(self.saga, record.step(name))

    @property
    def retry(self) -> Retry:
        return self.step.retry if self.direction is Direction.FORWARD else self.step.compensation_retry

    @property
    def polls(self) -> bool:
        return self.direction is Direction.FORWARD and self.step.step.poll_timeout is not None

    def decide(self) -> bool:
        """Ask the condition of the step, unless it has been answered. True where there is none."""
        return not self.is_undecided or bool(self._call(self.step.when))

    def act(self) -> str | Waiting | None:
        """Call the function with what it asks for; return its result as JSON, or until when the step waits."""
        bound = self.step.action if self.direction is Direction.FORWARD else self.step.compensation
        returned = self._call(bound)
        if self.direction is Direction.BACKWARD:
            refuse_unfinished(returned)  # whatever else it returns is of no use to anybody
            return None
        if self.step.step.waits:
            return Waiting(self._until(returned))
        assert bound is not None
        try:
            refuse_unfinished(returned)
            text = dump(returned, bound.returns)
        except TypeError as error:
            raise UnserialisableResult(f"what step {self.name!r} returned cannot be kept: {error}") from error
        if (size := len(text.encode())) > self._orchestrator.max_payload:
            raise UnserialisableResult(
                f"what step {self.name!r} returned is {size:,} bytes, more than "
                f"max_payload={self._orchestrator.max_payload:,}; keep large things elsewhere and return a reference"
            )
        return text

    def _until(self, returned: Any) -> datetime:
        try:
            until = self.step.step.until(returned, self._orchestrator.store.now())
        except TypeError as error:
            raise TerminalError(str(error)) from error
        if isinstance(self.step.step, Sleep) and self.step.step.jitter:
            until += timedelta(seconds=self.step.step.jitter * random.random())  # noqa: S311 - it spreads load
        return until

    def _call(self, bound: Any) -> Any:
        assert bound is not None
        try:
            values = {name: self._value(source) for name, source in bound.sources.items()}
            arguments = {name: value for name, value in values.items() if value is not ABSENT}
        except Exception as error:
            told = explain(error) if isinstance(error, ValueError) else describe(error)  # without what it was given
            raise TerminalError(f"its arguments cannot be read from what is stored: {told}") from error
        return bound(**arguments)

    def _value(self, source: Any) -> Any:
        match source.kind:
            case "context":
                return self._context()
            case "input":
                return load(self.record.input, self.saga.input)
            case "field":
                value = load(self.record.input, self.saga.input)
                return field_of(value, source.name, ABSENT if source.has_default else None)
            case "step" if self.record.step(source.name).status is StepStatus.SKIPPED:
                return None
            case "step":
                stored, declared = self.record.step(source.name).result, self.saga.steps[source.name].action.returns
            case _:
                stored, declared = self.record.step(self.name).result, self.step.action.returns
        if stored is None:
            return None
        # What the producer declares is what was kept; without that, what the consumer asks for is the best guess.
        return load(stored, source.type if declared is NO_TYPE else declared)

    def _context(self) -> StepContext:
        return StepContext(
            saga=self.record.name,
            saga_id=self.record.id,
            key=self.record.key,
            step=self.name,
            attempt=self.record.step(self.name).attempt,
            correlation_id=self.record.correlation_id,
            started_at=self.record.step(self.name).started_at or self._orchestrator.store.now(),
            _now=self._orchestrator.store.now,
            _open_session=self.open_session,
            _token=self._token,
            _emit=self._emit,
        )

    def _emit(self, message: Any, key: str | None) -> None:
        events, record = self._orchestrator.events, self.record
        if events is None:
            raise ConfigurationError(
                f"saga {record.name!r}, step {self.name!r} emits {type(message).__qualname__}, but there is nothing to "
                "publish through: Sagas(..., events=Events(...))"
            )
        self.messages.append(
            events.prepare(
                message,
                key=record.key if key is None else key,
                cause=record.cause(self.name),
            )
        )

    def open_session(self) -> Session:
        if self.session is None:
            who = f"saga {self.saga.name!r}, step {self.name!r}"
            limit = self.step.step.timeout + self._orchestrator.timing.lease
            self.session = self.resources.enter_context(self._orchestrator.store.transaction(who, limit))
        return self.session


def _said(reason: str) -> str:
    return clean(reason, _LONGEST_ERROR)


def _named(actor: str | None) -> str | None:
    return None if actor is None else clean(actor, _LONGEST_KEY)


def _failure(error: BaseException, redaction: Redaction, attempt: _Attempt) -> Failure:
    """Say how an attempt failed from what it raised."""
    error = meant(error)
    said = clean(redaction.text(describe(error)), _LONGEST_ERROR)
    text = clean(f"{type(error).__name__}: {said}", _LONGEST_ERROR)
    match error:
        case TerminalError():
            return Failure(Outcome.TERMINAL, said or text)
        case RetryableError() if attempt.polls and error.after is not None:
            return Failure(Outcome.NOT_YET, said or text, error.after)
        case RetryableError():
            return Failure(Outcome.FAILED, said or text, error.after, attempt.retry.policy_for(error))
        case UnserialisableResult() | _Fenced():
            return Failure(Outcome.IN_DOUBT, said)
        case _:
            return Failure(Outcome.FAILED, text, retry=attempt.retry.policy_for(error))
