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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import uuid_utils

from sagas import family, fan_out, tokens, transitions
from sagas.causes import within
from sagas.checkpoints import AT_REST, Direction, SagaRecord, SagaSummary, StepStatus, tells_parent
from sagas.creation import LONGEST_KEY, Limits
from sagas.definition import Saga
from sagas.endings import ends_process
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    InvalidInput,
    KeyConflict,
    NotAllowed,
    PayloadTooLarge,
    StoreUnavailable,
    TerminalError,
)
from sagas.execution import LONGEST_ERROR, Claim, Execution, Fenced, Publisher, Turn, failure_of
from sagas.heartbeats import Report
from sagas.leases import Leases, Standing
from sagas.observers import SUCCEEDED, Attempt, Observers
from sagas.plan import Plan, plan
from sagas.redaction import Redaction
from sagas.registry import Definitions
from sagas.results import has_result, result_of
from sagas.text import clean
from sagas.transitions import (
    SKIPPED,
    Begun,
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
from sagas.values import dump, load

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["Next", "Orchestrator"]

logger = logging.getLogger(__name__)

#: Seconds for which a message insists on a database that does not answer, before it is put off.
_CLAIM_PATIENCE = 3.0

#: A step that comes to one of these has done what it was asked for.
_SUCCEEDED = (StepStatus.DONE, StepStatus.COMPENSATED)

#: The verdicts whose messenger needs to know what is left.
_PLANNED = (Verdict.DISPATCH, Verdict.ACT, Verdict.OVERDUE)

_Decide = Callable[[Case], Change]


class _AwaitChild:
    """What an attempt says that has told a child saga to compensate."""


_AWAIT_CHILD = _AwaitChild()

#: What comes of an attempt: a result as JSON, or one of these.
_Outcome = str | Failure | Waiting | Begun | Skipped | _AwaitChild | None


@dataclass(frozen=True, slots=True)
class Next:
    """What the messenger does now."""

    verdict: Verdict
    note: str
    record: SagaRecord
    plan: Plan | None = None  #: what to dispatch, if the verdict is DISPATCH; what is waited for, if it is OVERDUE
    claim: Claim | None = None  #: the claim on the following step, if it was asked for and granted
    error: BaseException | None = None  #: what the attempt raised, if it failed


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
        self.limits = Limits(max_payload=max_payload, redispatch_after=timing.redispatch_after)
        #: Sends what is left of another saga than the one that was asked for: a child, or a parent.
        self.send: Callable[[Plan], object] = _leave
        #: Sends what is left of several.
        self.send_many: Callable[[Iterable[Plan]], object] = self._send_each
        #: Calls what a change leads to in other sagas: at once, or in another thread where this one must not block.
        self.follow_up: Callable[[Callable[[], None]], object] = _at_once
        self.sagas = Definitions()
        self._leases = Leases(timing.lease, self._renew)

    def _send_each(self, plans: Iterable[Plan]) -> None:
        for each in plans:
            self.send(each)

    # -- definitions --------------------------------------------------------------------------------------------

    def register(self, saga: Saga) -> None:
        if saga.publish_lifecycle and self.events is None:
            raise ConfigurationError(
                f"saga {saga.name!r} publishes its life, but there is nothing to publish through: "
                "Sagas(..., events=Events(...))"
            )
        self.sagas.add(saga)

    def definition(self, record: SagaSummary, step: str | None = None) -> Saga:
        """Return the definition that a saga goes on with; see `Definitions.of`. Raises `DefinitionMissing`."""
        return self.sagas.of(record, step)

    # -- a step's message: check, act, record -------------------------------------------------------------------

    def perform(
        self,
        saga_id: str,
        name: str,
        epoch: int,
        *,
        claim: Claim | None = None,
        following: str | None = None,
        turn: Turn = nullcontext,
    ) -> Next:
        """Do what the message of a step asks for, if it is still to be done.

        `following`: the step that the caller runs next if this one succeeds. It is claimed together with the
        checkpoint of this one, and the claim is handed to the next call.
        `turn`: what is entered around each function of the user's.
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
        return self._act_and_record(claim, following, turn)

    def _act_and_record(self, claim: Claim, following: str | None, turn: Turn) -> Next:
        saga_id, name, owner = claim.record.id, claim.name, claim.owner
        seen, resources = Attempt(claim.record, name), ExitStack()
        attempt = Execution(
            claim,
            self.definition(claim.record, name),
            resources,
            self.store,
            self.events,
            limits=self.limits,
            lease=self.timing.lease,
            turn=turn,
        )
        with (
            self._leases.held(saga_id, name, owner, attempt.reports),
            within(claim.record.cause(name)),
            resources,
            self.observers.during(seen),
        ):
            try:
                resources.enter_context(self.store.attempt(attempt.open_session))
                if not attempt.decide():
                    result: _Outcome = SKIPPED
                elif attempt.is_undecided and (kept := self._keep_decision(attempt, claim)).verdict is not Verdict.ACT:
                    return kept
                elif attempt.undoes_child:
                    family.undo(self, attempt)
                    result = _AWAIT_CHILD
                else:
                    attempt.record = kept.record if attempt.is_undecided else attempt.record
                    result = attempt.act()
                    result = family.traced(self, result) if isinstance(result, Begun) else result
                if attempt.session is not None:
                    return self._record_within(attempt, owner, result, seen)
                resources.close()  # where that fails the step has failed
            except BaseException as error:
                if ends_process(error):
                    raise
                resources.__exit__(type(error), error, error.__traceback__)
                redaction = self._masking(claim.record)
                failure = failure_of(error, redaction, attempt)
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
        attempt: Execution,
        owner: str,
        outcome: _Outcome,
        following: str | None = None,
    ) -> Next:
        epoch, next_owner = attempt.record.epoch, str(uuid_utils.uuid7())
        token, digest = tokens.new(attempt.record.id, following) if following is not None else ("", "")

        def record(case: Case) -> Change:
            done = self._recorded(case, attempt, owner, outcome)
            if following is None or done.verdict is not Verdict.CONTINUE:
                return done
            case = case.on(done.record)
            claimed = transitions.claim(case, following, epoch, next_owner, _digest(case, following, digest))
            if claimed.verdict is not Verdict.ACT:
                return done
            return replace(done, record=claimed.record, history=done.history + claimed.history)

        # The effect is there: it is worth insisting for as long as the claim may live.
        emitted = None if isinstance(outcome, Failure) else attempt
        children = outcome.children if isinstance(outcome, Begun) else ()
        try:
            next_ = self._insist(
                lambda: self.change(
                    attempt.record.id, record, loaded=attempt.record, emitted=emitted, children=children
                ),
                self.timing.lease,
            )
        except KeyConflict as error:
            return self._record(attempt, owner, Failure(Outcome.TERMINAL, str(error)))
        if following is not None and next_.record.step(following).owner == next_owner:
            return replace(next_, claim=Claim(next_.record, following, next_owner, token))
        return next_

    def _keep_decision(self, attempt: Execution, claim: Claim) -> Next:
        """Keep that the condition of a step said yes, before its action is called.

        A condition that used `step.session` shares its transaction with its answer. It ends here: on SQLite nobody else
        can write until then, and its locks should not outlive the question.
        """
        saga_id, session = claim.record.id, attempt.session
        told: list[Callable[[], object]] = []

        def keep(case: Case) -> Change:
            kept = transitions.decided(case, claim.name, claim.owner)
            if session is not None and kept.verdict is not Verdict.ACT:
                raise TerminalError(f"rolled back: {kept.note}")
            return kept

        if session is None:
            return self._insist(lambda: self.change(saga_id, keep), self.timing.lease)
        next_ = self.change(saga_id, keep, session=session, told=told)
        attempt.commit()
        for tell in told:
            tell()
        return next_

    def _record_within(self, attempt: Execution, owner: str, result: _Outcome, seen: Attempt) -> Next:
        """Record a success in the transaction of its effect, or undo both."""

        def record(case: Case) -> Change:
            if case.record.step(attempt.name).owner != owner or case.record.direction is not attempt.direction:
                raise Fenced(f"rolled back: the saga is {case.record.status} and no longer wants it")
            return self._recorded(case, attempt, owner, result)

        told: list[Callable[[], object]] = []
        next_ = self.change(
            attempt.record.id,
            record,
            loaded=attempt.record,
            session=attempt.session,
            emitted=attempt,
            children=result.children if isinstance(result, Begun) else (),
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
                if transitions.due_children(case) or transitions.due_items(case):
                    continue
                change = transitions.examine(case)
                after = change.record
                opened = replace(record, steps=case.record.steps, outline=case.record.outline)
                if after == replace(opened, idle_checks=after.idle_checks, next_check_at=after.next_check_at):
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
        found = self.change(
            saga_id,
            lambda case: transitions.examine(case, family.children(self.store, case), fan_out.counts(self.store, case)),
        )
        if found.record.parent_item is not None and found.record.status in AT_REST:
            fan_out.tell_items(self, found.record)
        return found

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
            else load(
                result_of(self.store, saga.steps[step.node], record, step.name) or "null",
                saga.steps[step.node].action.returns,
            )
            for step in record.steps.values()
            if has_result(step)
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
        emitted: Execution | None = None,
        children: Sequence[SagaRecord] = (),
        told: list[Callable[[], object]] | None = None,
    ) -> Next:
        """Load, decide, compare and set; again until nobody was quicker.

        `emitted`: an attempt that succeeded; what it emitted is stored if it counts.
        `children`: sagas that are stored too, if the change says that a step waits for them. Raises `KeyConflict`.
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
                begun = [child for child in children if family.waits_for(after, child)]
                saved = self.store.save(before, after, change.history, change.dead_letters, outbox, session, begun)
                if saved is None:
                    time.sleep(random.uniform(0, 0.005))  # noqa: S311 - siblings of a chord meet here; let them part
                    continue
                after = saved
                follow: list[Callable[[], object]] = []
                if self.observers:
                    follow.append(functools.partial(self.observers.changed, before, after, change.history))
                if begun or tells_parent(before, after):
                    follow.append(
                        functools.partial(self.follow_up, functools.partial(family.tell, self, before, after, begun))
                    )
                for tell in follow:
                    if told is None:
                        self.store.after_commit(session, tell)
                    else:
                        told.append(tell)
            dispatch = plan(saga, after) if change.verdict in _PLANNED else None
            return Next(change.verdict, change.note, after, dispatch)

    def _outbox(
        self, saga: Saga, before: SagaRecord, after: SagaRecord, emitted: Execution | None
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

    def _recorded(self, case: Case, attempt: Execution, owner: str, outcome: _Outcome) -> Change:
        """Decide what an attempt that has ended does to its saga."""
        case = transitions.reported(case, attempt.name, owner, attempt.heartbeats.latest)
        match outcome:
            case Failure():
                return transitions.fail(case, attempt.name, owner, attempt.direction, outcome)
            case Waiting():
                return transitions.wait(case, attempt.name, owner, outcome.until)
            case Begun() | _AwaitChild():
                return self._with_children(case, attempt, owner, outcome)
            case Skipped():
                return transitions.skip(case, attempt.name, owner)
            case _:
                return transitions.succeed(case, attempt.name, owner, attempt.direction, outcome)

    def _with_children(self, case: Case, attempt: Execution, owner: str, outcome: Begun | _AwaitChild) -> Change:
        """Decide what becomes of a step that has made its children, or has told them to compensate."""
        name, of_items = attempt.name, attempt.step.step.kind == "each"
        match outcome:
            case Begun() if of_items:
                return transitions.begin_items(case, name, owner, len(outcome.children))
            case Begun():
                return transitions.begin(case, name, owner, outcome.children[0].id)
            case _ if of_items:
                return transitions.await_items(case, name, owner, self.store.items.count(case.record.id, name))
            case _:
                return transitions.await_child(case, name, owner, family.children(self.store, case))

    def _note(self, record: SagaRecord, error: str) -> None:
        """Show on the saga itself why it stands still; a worker with other code may bring it on."""
        # While the saga compensates, its error says why, and that is worth more.
        if record.next_check_at is not None and record.direction is Direction.FORWARD and record.error != error:
            self.store.save(record, replace(record, error=error))

    def _renew(self, saga_id: str, name: str, owner: str, report: Report | None) -> Standing:
        next_ = self.change(saga_id, lambda case: transitions.renew(case, name, owner, report), step=name)
        if next_.verdict is not Verdict.ACT:
            return Standing.LOST
        acts = next_.record.step(name).status is StepStatus.RUNNING
        return Standing.UNWANTED if acts and next_.record.direction is Direction.BACKWARD else Standing.WANTED

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


def _at_once(do: Callable[[], None]) -> None:
    do()


def _leave(left: Plan) -> None:
    """Send nothing: recovery will."""


def _said(reason: str) -> str:
    return clean(reason, LONGEST_ERROR)


def _named(actor: str | None) -> str | None:
    return None if actor is None else clean(actor, LONGEST_KEY)
