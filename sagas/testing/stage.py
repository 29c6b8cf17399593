"""Where a rehearsal plays: it runs a saga with faults, answers what waits, and judges what is left behind."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from sagas import tokens
from sagas.checkpoints import AT_REST, Direction, SagaRecord, SagaStatus, SagaSummary, StepRecord, StepStatus
from sagas.children import descendants
from sagas.definition import Saga
from sagas.errors import InvalidInput, NotAllowed, SagaNotFound, SignalRefused
from sagas.handle import SagaHandle
from sagas.kinds import type_name
from sagas.plan import Plan
from sagas.testing.faults import Fault
from sagas.testing.inline import Inline
from sagas.testing.scenarios import Reply, Scenario
from sagas.transitions import Case, Change, Verdict
from sagas.values import NO_TYPE

__all__ = ["Judgement", "Row", "Stage", "answers_of"]

_LONGEST_DETAIL = 300


class Judgement(enum.StrEnum):
    """What a rehearsal found in one run."""

    OK = "ok"
    WRONG_END = "WRONG END"  #: it did not end as a saga that fails there should
    NOT_COVERED = "NOT COVERED"  #: it was compensated, but something is left
    NOT_IDEMPOTENT = "NOT IDEMPOTENT"  #: a second call with the same idempotency key had a second effect


@dataclass(frozen=True, slots=True)
class Row:
    """One run: what failed in which step, how the saga ended, and the verdict."""

    step: str
    failure: str
    status: SagaStatus
    verdict: Judgement
    detail: str = ""


def answers_of(saga: Saga, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the nodes of a saga that wait are answered. Raises `InvalidInput` where that is not known."""
    waits = {
        step.name: step.action.returns
        for each in (saga, *descendants(saga))
        for step in each.steps.values()
        if step.step.patience is not None
    }
    if unknown := [name for name in given if name not in waits]:
        raise InvalidInput(
            f"saga {saga.name!r}: answers= names {unknown[0]!r}, which waits for no answer. What waits: "
            f"{', '.join(waits) or 'nothing'}"
        )
    answers = dict(given)
    for name, declared in waits.items():
        if name in answers:
            continue
        if declared not in (bool, NO_TYPE, None, Any):
            raise InvalidInput(
                f"saga {saga.name!r}: what is {name!r} answered, with which the saga completes? Pass a "
                f"{type_name(declared)}: rehearse(..., answers={{{name!r}: ...}})"
            )
        answers[name] = True if declared is bool else None
    return answers


class Stage:
    """The environment for the runs of one rehearsal."""

    def __init__(
        self,
        inline: Inline,
        saga: Saga,
        given: Any,
        state: Callable[[], object] | None,
        answers: Mapping[str, Any],
        correlation_id: str,
    ) -> None:
        self.inline = inline
        self.correlation_id = correlation_id
        self.saga = saga
        self.given = given
        self.state = state
        self.answers = answers
        self.runs = 0
        self._findings: list[str] = []
        self._scenario = Scenario(step="-", failure="", ends=frozenset())
        self._unanswered: list[tuple[str, StepRecord]] = []
        self._cancelled = False
        inline.around = self._watch
        inline.meanwhile = self._interfere

    def run(self, scenario: Scenario) -> Row:
        """Start the saga with a scenario, and judge how it ended."""
        self._prepare(scenario)
        before = self._snapshot()
        given = self.given() if callable(self.given) else self.given
        self.runs += 1
        handle = self.inline.start(self.saga, given, key=self._key, correlation_id=self.correlation_id)
        self._answer(handle)
        for saga_id, step in self._unanswered if scenario.reply is Reply.LATE else ():
            with suppress(SignalRefused):
                self._send(saga_id, step)
        self._undo_again(handle)
        return self._judge(handle, before)

    def items_of(self, node: str) -> int:
        """Return how many items a node had in the last run."""
        return self.inline.store.items.count(self.record.id, node).total

    @property
    def record(self) -> SagaRecord:
        """The saga of the last run."""
        return self.inline.store.find(self.saga.name, self._key)

    def settle(self) -> None:
        """Finish an interrupted run, so that it leaves nothing half done."""
        try:
            record = self.record
        except SagaNotFound:
            return
        if record.status not in AT_REST:
            self._prepare(Scenario(step="-", failure="interrupted", ends=frozenset()))
            with suppress(NotAllowed):  # after its pivot, or already compensating: it only has to continue
                self.inline.cancel(record.id, "the rehearsal was interrupted")
            self.inline.finish(record.id)

    @property
    def _key(self) -> str:
        return f"{self.correlation_id}-{self.runs}"

    def _prepare(self, scenario: Scenario) -> None:
        faults = self.inline.faults
        faults.heal()
        faults.lost.clear()
        faults.raised.clear()
        faults.happened = 0
        self._findings, self._unanswered, self._scenario, self._cancelled = [], [], scenario, False
        faults.decisions.update(scenario.decisions)
        if scenario.empty:
            faults.empty.add(scenario.empty)
        for fault in scenario.faults:
            if fault.error is None:
                fault.before = self.inline.carry_on
            faults.pending.append(fault)
        if scenario.reply is Reply.EARLY and not self.saga.steps[scenario.node].step.is_open_at_once:
            node = scenario.node
            early = Fault(node, self.saga.name, after=lambda saga_id: self._send(saga_id, StepRecord(node=node)))
            faults.pending.append(early)

    # -- what waits -----------------------------------------------------------------------------------------------

    def _answer(self, handle: SagaHandle) -> None:
        """Answer what waits until nothing does, as the scenario says."""
        seen: set[tuple[str, str]] = set()
        while left := [(saga, step) for saga, step in self._waiting(handle) if (saga.id, step.name) not in seen]:
            saga, step = left[0]
            seen.add((saga.id, step.name))
            self._compensate(saga.id)
            if self._still_waits(saga.id, step):
                self._reply(handle, saga, step)

    def _waiting(self, handle: SagaHandle) -> Iterator[tuple[SagaSummary, StepRecord]]:
        for saga in self.inline.store.family(handle.id):
            if saga.status not in AT_REST and saga.direction is Direction.FORWARD:
                for step in saga.steps.values():
                    if step.status is StepStatus.WAITING and step.kind in ("step", "wait"):
                        yield saga, step

    def _still_waits(self, saga_id: str, step: StepRecord) -> bool:
        return self.inline.store.load(saga_id).step(step.name).status is StepStatus.WAITING

    def _reply(self, handle: SagaHandle, saga: SagaSummary, step: StepRecord) -> None:
        mine = saga.id == handle.id and step.node == self._scenario.node
        match self._scenario.reply if mine else Reply.ONCE:
            case Reply.NEVER | Reply.LATE:
                self._unanswered.append((saga.id, step))
                assert step.due_at is not None
                self.inline.advance(handle, step.due_at - self.inline.now)
            case Reply.CANCEL:
                self.inline.cancel(saga.id, "cancelled while it waits, in rehearsal")
            case Reply.FAILED:
                self.inline.fail_deferred(self._token(saga.id, step.name), "declined, in rehearsal")
            case Reply.TWICE:
                self._send(saga.id, step)
                self._send(saga.id, step)
            case _:
                self._send(saga.id, step)

    def _send(self, saga_id: str, step: StepRecord) -> None:
        """Send the signal that a node waits for, or the callback."""
        saga = self.inline.store.load(saga_id)
        node, answer = self.inline.orchestrator.definition(saga).steps[step.node], self.answers[step.node]
        if node.step.kind == "wait":
            self.inline.send_signal(saga_id, step.node, answer, id="rehearsal")
        else:
            self.inline.complete(self._token(saga_id, step.node), answer)

    def _token(self, saga_id: str, name: str) -> str:
        """Return a token of a deferred step, as its action could have handed one out."""
        token, digest = tokens.new(saga_id, name)

        def keep(case: Case) -> Change:
            step = case.record.step(name)
            return case.set(replace(step, input=tokens.with_hash(step.input, digest))).done(Verdict.GO_AWAY)

        self.inline.orchestrator.change(saga_id, keep)
        return token

    # -- in between -----------------------------------------------------------------------------------------------

    @contextmanager
    def _watch(self, plan: Plan) -> Iterator[None]:
        """Compare the state around each delivery: an effect that happened before must not happen again."""
        self._compensate(plan.saga_id)
        self._send_early(plan.saga_id)
        lost, before = self.inline.faults.lost.copy(), self._snapshot()
        yield
        for call, times in self.inline.faults.lost.items():
            # Only if a result was lost: writes through step.session were rolled back with it, so the attempt that
            # succeeds may well be the first to change anything.
            if 0 < lost[call] < times:
                self._expect_no_change("compensation" if call.undo else "action", before)
        self._compensate(plan.saga_id)

    def _interfere(self, record: SagaSummary) -> bool:
        """Do what the scenario says before time passes: cancel a saga that sleeps."""
        if self._compensate(record.id):
            return True
        asleep = record.step(self._scenario.node).kind == "timer" and self._is_root(record.id)
        if self._scenario.reply is not Reply.CANCEL or not asleep or record.direction is Direction.BACKWARD:
            return False
        if record.step(self._scenario.node).status is not StepStatus.WAITING:
            return False
        self.inline.cancel(record.id, "cancelled while it sleeps, in rehearsal")
        return True

    def _is_root(self, saga_id: str) -> bool:
        return self.inline.store.load(saga_id).key == self._key

    def _send_early(self, saga_id: str) -> None:
        """Send the signal of a wait that has not been reached."""
        node = self._scenario.node
        if self._scenario.reply is not Reply.EARLY or not self._is_root(saga_id):
            return
        if self.saga.steps[node].step.kind == "wait" and node not in self.inline.store.load(saga_id).steps:
            self._send(saga_id, StepRecord(node=node))

    def _compensate(self, saga_id: str) -> bool:
        """Cancel the saga if the scenario says so, and it has come so far. True where that was done."""
        node = self._scenario.compensate_after
        if not node:
            return False
        family = self.inline.store.load(saga_id).family
        root = self.inline.store.load(family)
        stage = [each.name for each in self.saga.stages[self.saga.steps[node].stage]]
        done = all(root.step(name).status in (StepStatus.DONE, StepStatus.SKIPPED) for name in stage)
        if not done or root.direction is Direction.BACKWARD or root.status in AT_REST:
            return False
        self.inline.cancel(family, "cancelled, in rehearsal")
        self._cancelled = True
        return True

    # -- judging --------------------------------------------------------------------------------------------------

    def _judge(self, handle: SagaHandle, before: object) -> Row:
        scenario, raised = self._scenario, self.inline.faults.raised
        after = self._snapshot()
        status, error = self._end(handle)

        def row(verdict: Judgement, detail: str) -> Row:
            return Row(scenario.step, scenario.failure, status, verdict, detail)

        if self._is_missed:
            return row(Judgement.WRONG_END, f"the run did not come to this failure: {error or 'no error'}")
        if status not in scenario.ends:
            wanted = " or ".join(sorted(scenario.ends))
            return row(Judgement.WRONG_END, f"it should end {wanted}: {error or 'no error'}")
        if scenario.varies and raised:
            return row(Judgement.WRONG_END, f"{raised[0]}; to refuse, raise TerminalError")
        if self._findings:
            return row(Judgement.NOT_IDEMPOTENT, self._findings[0])
        if status is SagaStatus.COMPENSATED and after != before:
            left = f"compensated, but the state was {_short(before)} and is {_short(after)}"
            return row(Judgement.NOT_COVERED, left)
        return row(Judgement.OK, error or "")

    def _end(self, handle: SagaHandle) -> tuple[SagaStatus, str | None]:
        """Return how the saga ended. It is stuck if anything below it is."""
        record = handle.record
        for each in self.inline.store.family(handle.id):
            if each.status is SagaStatus.STUCK:
                return each.status, each.trouble
        return record.status, record.error

    def _undo_again(self, handle: SagaHandle) -> None:
        """Compensate once more what the scenario names, where it is compensated."""
        if self._scenario.undo_again is None or self._is_missed:
            return
        step, item = self._scenario.undo_again
        if item is not None:
            [found] = self.inline.store.items.page(handle.id, step, item, 1)
            handle = SagaHandle(found.id, self.inline)
        if handle.status is SagaStatus.COMPENSATED:
            once = self._snapshot()
            self.inline.undo_again(handle, step)
            self._expect_no_change("compensation", once)

    @property
    def _is_missed(self) -> bool:
        """Whether the saga ended before what the scenario is about: it then says nothing about that."""
        scenario = self._scenario
        if scenario.compensate_after and not self._cancelled:
            return True
        return bool(scenario.faults) and not self.inline.faults.happened

    def _expect_no_change(self, what: str, before: object) -> None:
        if (after := self._snapshot()) != before:
            changed = f"changed the state from {_short(before)} to {_short(after)}"
            self._findings.append(f"its {what}, called again with the same key, {changed}")

    def _snapshot(self) -> object:
        # A copy: the caller may return the very object that the actions change.
        return None if self.state is None else copy.deepcopy(self.state())


def _short(state: object) -> str:
    text = repr(state)
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]}..."
