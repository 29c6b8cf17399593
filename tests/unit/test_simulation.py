"""The safety nets, cut one at a time: each cut must be seen by the tests that look for it.

A test that passes whatever the code does proves nothing. Here the code is broken on purpose, and the rules' own
simulation, or the store's own contract, has to notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sagas import SagaStatus, StepStatus, transitions
from sagas.checkpoints import StepRecord
from sagas.heartbeats import Report
from sagas.transitions import Case, ends, messages, waits
from tests.unit.simulation import Violation, World, simulate

Patch = Callable[[pytest.MonkeyPatch], None]


def no_epoch(patch: pytest.MonkeyPatch) -> None:
    """Messages of any epoch are welcome."""
    patch.setattr(messages, "_stale", lambda case, epoch: None)


def no_lease(patch: pytest.MonkeyPatch) -> None:
    """A second delivery takes over from a living one."""
    patch.setattr(Case, "dead", lambda self, step: True)


def no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """Whoever saves, wins."""
    patch.setattr(World, "save", lambda self, before, after: self.keep(after))


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    """The first branch closes its stage, the join does not look, and the next step does not ask whose turn it is."""
    go = transitions.Verdict.CONTINUE
    patch.setattr(Case, "over", lambda self, stage: True)
    patch.setattr(transitions, "join", lambda case, name, epoch: case.refuse("", go))
    patch.setattr(Case, "is_turn_of", lambda self, step: True)


def no_late_undo(patch: pytest.MonkeyPatch) -> None:
    """An action that lands after its saga turned back is forgotten."""
    for module in (messages, ends):
        patch.setattr(module, "late_success", lambda case, *rest: case.refuse("forgotten"))


def no_late_doubt(patch: pytest.MonkeyPatch) -> None:
    """An action that ends late, and not well, is forgotten."""
    patch.setattr(messages, "late_failure", lambda case, *rest: case.refuse("forgotten"))


def no_owner(patch: pytest.MonkeyPatch) -> None:
    """Whoever reports a success is believed, whether or not the claim is still its own."""
    succeed = transitions.succeed

    def believe(case: Case, name: str, owner: str, *rest: Any) -> Any:
        return succeed(case, name, case.record.step(name).owner or owner, *rest)

    patch.setattr(transitions, "succeed", believe)


def no_sweep(patch: pytest.MonkeyPatch) -> None:
    """Recovery looks, and does nothing."""
    patch.setattr(transitions, "examine", lambda case: case.refuse("nothing"))


def no_doubt(patch: pytest.MonkeyPatch) -> None:
    """What was between two attempts when the saga turned back is taken for never begun."""
    to_undo = ends._to_undo

    def forget(case: Case, step: StepRecord) -> StepRecord:
        return replace(step, started_seq=0) if step.status is StepStatus.PENDING else to_undo(case, step)

    patch.setattr(ends, "_to_undo", forget)


def no_early_signal(patch: pytest.MonkeyPatch) -> None:
    """A signal that comes before its wait has begun is acknowledged, and forgotten."""
    signal = transitions.signal

    def forget(case: Case, name: str, sent: Any) -> Any:
        return signal(case, name, sent) if name in case.record.steps else case.refuse("")

    patch.setattr(transitions, "signal", forget)


def no_memory_of_a_beginning(patch: pytest.MonkeyPatch) -> None:
    """A wait whose signal came before it began is taken for one that has asked."""
    signal = transitions.signal

    def begun(case: Case, name: str, sent: Any) -> Any:
        change = signal(case, name, sent)
        step = change.record.step(name)
        record = change.record.with_step(replace(step, started_seq=step.started_seq or 99))
        return change if change.record is case.record else replace(change, record=record)

    patch.setattr(transitions, "signal", begun)


def no_end_of_a_wait(patch: pytest.MonkeyPatch) -> None:
    """A deferred step that has ended, or has been answered while its action is at work, can be completed again."""
    complete = transitions.complete

    def again(case: Case, name: str, result: str) -> Any:
        change = complete(case, name, result)
        is_open = case.record.status is SagaStatus.RUNNING and change.verdict is transitions.Verdict.SETTLED
        changed = case.set(replace(case.record.step(name), result=result))
        return changed.done(transitions.Verdict.GO_AWAY) if is_open else change

    patch.setattr(transitions, "complete", again)


def no_memory_of_an_answer(patch: pytest.MonkeyPatch) -> None:
    """What a condition said is not kept."""
    patch.setattr(transitions, "decided", lambda case, name, owner: case.refuse("", transitions.Verdict.ACT))


def no_late_completion(patch: pytest.MonkeyPatch) -> None:
    """A completion that comes after the saga has given the step up is forgotten."""
    patch.setattr(waits, "late_success", lambda case, *rest: case.refuse("forgotten"))


def done_by_the_answer(patch: pytest.MonkeyPatch) -> None:
    """A completion ends a step whose action is at work: if its worker dies, what it wrote is never there."""
    complete = transitions.complete

    def end(case: Case, name: str, result: str) -> Any:
        step = case.record.step(name)
        if case.forward and step.status in (StepStatus.PENDING, StepStatus.RUNNING):
            return waits.ended(case, step, result=result)
        return complete(case, name, result)

    patch.setattr(transitions, "complete", end)


def answer_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A completion that is kept until the action has returned is forgotten then: the step waits for another one."""
    wait = transitions.wait

    def forget(case: Case, name: str, *rest: Any) -> Any:
        return wait(case.set(replace(case.record.step(name), result=None)) if case.forward else case, name, *rest)

    patch.setattr(transitions, "wait", forget)


def no_doubt_of_what_waits(patch: pytest.MonkeyPatch) -> None:
    """A step that has asked, and was not answered when the saga compensates, is taken for never begun."""
    to_undo = ends._to_undo

    def forget(case: Case, step: StepRecord) -> StepRecord:
        if step.status is not StepStatus.WAITING:
            return to_undo(case, step)
        return replace(step, status=StepStatus.FAILED, started_seq=0)

    patch.setattr(ends, "_to_undo", forget)


def no_patience(patch: pytest.MonkeyPatch) -> None:
    """A look of recovery ends a sleep, whatever the time is."""
    examine = transitions.examine

    def wake(case: Case) -> Any:
        for step in case.record.steps.values():
            if step.kind == "timer" and step.status is StepStatus.WAITING:
                return waits.elapse(case, step)
        return examine(case)

    patch.setattr(transitions, "examine", wake)


def polls_fail(patch: pytest.MonkeyPatch) -> None:
    """That something is not yet there counts as a failure."""
    patch.setattr(ends, "_not_yet", lambda case, step, failure: None)


def polls_for_ever(patch: pytest.MonkeyPatch) -> None:
    """The time of a step that polls is never over."""
    not_yet = ends._not_yet
    patch.setattr(
        ends, "_not_yet", lambda case, step, failure: not_yet(case, replace(step, started_at=case.now), failure)
    )


def no_limit_to_silence(patch: pytest.MonkeyPatch) -> None:
    """A function that has fallen silent keeps its claim for as long as its worker lives."""
    patch.setattr(Case, "silent_until", lambda self, step: None)


def renewed_is_heard(patch: pytest.MonkeyPatch) -> None:
    """That the worker lives counts as a heartbeat of the function."""
    renew = transitions.renew
    patch.setattr(transitions, "renew", lambda case, name, owner, report: renew(case, name, owner, report or Report()))


def no_details(patch: pytest.MonkeyPatch) -> None:
    """What an attempt reported is not kept for the next."""
    patch.setattr(messages, "reported", lambda case, name, owner, report: case)


CUTS: list[Patch] = [
    no_epoch, no_lease, no_compare_and_set, no_barrier, no_late_undo, no_late_doubt, no_owner, no_sweep, no_doubt,
    no_early_signal, no_memory_of_a_beginning, no_end_of_a_wait, no_memory_of_an_answer, no_late_completion, done_by_the_answer,
     answer_forgotten, no_doubt_of_what_waits, no_patience, polls_fail, polls_for_ever, no_limit_to_silence, renewed_is_heard, no_details,
]  # fmt: skip
ROUNDS = 3000


def test_nothing_is_seen_where_nothing_is_cut() -> None:
    for seed in range(ROUNDS):
        simulate(seed)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
def test_a_cut_is_seen(cut: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)
    with pytest.raises((Violation, AssertionError)) as seen:
        for seed in range(ROUNDS):
            simulate(seed)
    print(f"{cut.__name__}: {cut.__doc__}\n{seen.value}")
