"""Check, act, record: what a step's task does when its message arrives."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import uuid_utils

from sagas import family, tokens, transitions
from sagas.causes import within
from sagas.checkpoints import Direction, SagaRecord, StepStatus, replace
from sagas.endings import ends_process
from sagas.engine import CLAIM_PATIENCE, Engine, Next, insist
from sagas.errors import KeyConflict, TerminalError
from sagas.execution import Claim, Execution, Fenced, Turn, failure_of
from sagas.heartbeats import Report
from sagas.leases import ClaimStatus, Leases
from sagas.observers import SUCCEEDED, Attempt
from sagas.redaction import Redaction
from sagas.transitions import SKIPPED, Begun, Case, Change, Failure, Outcome, Skipped, Verdict, Waiting

__all__ = ["Attempts"]

logger = logging.getLogger(__name__)


class _AwaitChild:
    """What an attempt says that has told a child saga to compensate."""


_AWAIT_CHILD = _AwaitChild()

#: What comes of an attempt: a result as JSON, or one of these.
_Outcome = str | Failure | Waiting | Begun | Skipped | _AwaitChild | None


class Attempts:
    """Makes attempts at steps. Safe to use from any thread. `leases`: what renews their claims meanwhile."""

    def __init__(self, engine: Engine, leases: type[Leases] = Leases) -> None:
        self._engine = engine
        self._leases = leases(engine.timing.lease, self._renew)

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

            claimed = insist(lambda: self._engine.change(saga_id, check, step=name), CLAIM_PATIENCE)
            if claimed.verdict is not Verdict.ACT:
                return claimed
            claim = Claim(claimed.record, name, owner, token)
        return self._act_and_record(claim, following, turn)

    def _act_and_record(self, claim: Claim, following: str | None, turn: Turn) -> Next:
        saga_id, name, owner = claim.record.id, claim.name, claim.owner
        seen, resources = Attempt(claim.record, name), ExitStack()
        attempt = Execution(
            claim,
            self._engine.definition(claim.record, name),
            resources,
            self._engine.store,
            self._engine.events,
            limits=self._engine.limits,
            lease=self._engine.timing.lease,
            turn=turn,
        )
        with (
            self._leases.held(saga_id, name, owner, attempt.reports),
            within(claim.record.cause(name)),
            resources,
            self._engine.observers.during(seen),
        ):
            try:
                resources.enter_context(self._engine.store.attempt(attempt.open_session))
                result = self._act(attempt, claim)
                if isinstance(result, Next):
                    return result
                if attempt.session is not None:
                    return self._record_within(attempt, owner, result, seen)
                resources.close()  # where that fails the step has failed
            except BaseException as error:
                if ends_process(error):
                    raise
                resources.__exit__(type(error), error, error.__traceback__)
                return self._record_failure(attempt, claim, seen, error)
            seen.end(SUCCEEDED)
            return self._record(attempt, owner, result, following)

    def _act(self, attempt: Execution, claim: Claim) -> _Outcome | Next:
        """Do what the claim is for. Return what came of it; `Next` where the answer of a condition did not count."""
        if not attempt.decide():
            return SKIPPED
        if attempt.is_undecided:
            kept = self._keep_decision(attempt, claim)
            if kept.verdict is not Verdict.ACT:
                return kept
            attempt.record = kept.record
        if attempt.undoes_child:
            family.undo(self._engine, attempt)
            return _AWAIT_CHILD
        result = attempt.act()
        return family.traced(self._engine, result) if isinstance(result, Begun) else result

    def _record_failure(self, attempt: Execution, claim: Claim, seen: Attempt, error: BaseException) -> Next:
        redaction = self._masking(claim.record)
        failure = failure_of(error, redaction, attempt)
        seen.end(failure.outcome.value, error, redaction)
        if failure.outcome not in (Outcome.TERMINAL, Outcome.NOT_YET):
            told = "\n" + redaction.text("".join(traceback.format_exception(error))) if redaction else ""
            about, shown = (claim.record.id, claim.name, told), None if told else error
            logger.info("saga %s, step %s: attempt failed%s", *about, exc_info=shown)
        return replace(self._record(attempt, claim.owner, failure), error=error)

    def _masking(self, record: SagaRecord) -> Redaction:
        payloads = record.input, *(step.result for step in record.steps.values() if step.result is not None)
        return Redaction(self._engine.redact, payloads)

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
            next_ = insist(
                lambda: self._engine.change(
                    attempt.record.id, record, loaded=attempt.record, emitted=emitted, children=children
                ),
                self._engine.timing.lease,
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
            return insist(lambda: self._engine.change(saga_id, keep), self._engine.timing.lease)
        next_ = self._engine.change(saga_id, keep, session=session, told=told)
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
        next_ = self._engine.change(
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
                return transitions.await_items(case, name, owner, self._engine.store.items.count(case.record.id, name))
            case _:
                return transitions.await_child(case, name, owner, family.children(self._engine.store, case))

    def _renew(self, saga_id: str, name: str, owner: str, report: Report | None) -> ClaimStatus:
        next_ = self._engine.change(saga_id, lambda case: transitions.renew(case, name, owner, report), step=name)
        if next_.verdict is not Verdict.ACT:
            return ClaimStatus.LOST
        acts = next_.record.step(name).status is StepStatus.RUNNING
        return ClaimStatus.UNWANTED if acts and next_.record.direction is Direction.BACKWARD else ClaimStatus.WANTED


def _digest(case: Case, name: str, digest: str) -> str | None:
    """Return the hash of a token if the step may give one out."""
    return digest if name in case.record.steps and case.node(case.record.step(name)).gives_token else None
