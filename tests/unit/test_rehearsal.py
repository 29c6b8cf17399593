"""Rehearsals of nodes that choose, wait, sleep and nest, with bugs that they find in sample sagas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sagas import (
    COMPENSATE,
    Child,
    Each,
    InvalidInput,
    NotAllowed,
    Parallel,
    Pivot,
    Saga,
    SagaStatus,
    Sleep,
    SqlStore,
    Step,
    StepContext,
    TerminalError,
    Wait,
)
from sagas.testing import Inline, Judgement, Rehearsal, rehearse

DAY = timedelta(days=1)


@dataclass
class Approval:
    ok: bool


class World:
    """Keeps what stands, by idempotency key."""

    def __init__(self) -> None:
        self.stands: set[str] = set()
        self.gone: set[str] = set()

    def do(self, step: StepContext) -> str:
        if step.idempotency_key in self.gone:
            raise TerminalError("it was undone before it came")
        self.stands.add(step.idempotency_key)
        return step.step

    def undo(self, step: StepContext) -> None:
        self.gone.add(step.idempotency_key)
        self.stands.discard(step.idempotency_key)

    def step(self, name: str, **options: Any) -> Step:
        return Step(name, self.do, **{"compensation": self.undo, **options})

    def ask(self, **options: Any) -> Step:
        return self.step("ask", deferred=True, deadline=DAY, **{"result": int, **options})

    def state(self) -> object:
        return self.stands


@pytest.fixture
def world() -> World:
    return World()


def found(rehearsal: Rehearsal, verdict: Judgement) -> set[tuple[str, str]]:
    return {(row.step, row.failure) for row in rehearsal.rows if row.verdict is verdict}


def ends(rehearsal: Rehearsal, step: str) -> dict[str, SagaStatus]:
    return {row.failure: row.status for row in rehearsal.rows if row.step == step}


COMPLETED, COMPENSATED, STUCK = SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.STUCK


# -- waits ----------------------------------------------------------------------------------------------------------


def approved(approval: Approval) -> None:
    if not approval.ok:
        raise TerminalError("not approved")


def expense(world: World, check: Callable[..., Any] = approved, **options: Any) -> Saga:
    wait = Wait("approval", options.pop("type", Approval), timeout=DAY, **{"on_timeout": COMPENSATE, **options})
    return Saga("expense", world.step("first"), wait, Step("check", check, compensation=None))


YES = {"approval": Approval(ok=True)}


def test_a_wait_is_answered_early_twice_late_and_not_at_all(world: World) -> None:
    rehearsal = rehearse(expense(world), state=world.state, answers=YES)
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "approval") == {
        "signal early": COMPLETED,
        "signal twice": COMPLETED,
        "no signal": COMPENSATED,
        "signal late": COMPENSATED,
        "compensated while it waits": COMPENSATED,
    }


def test_a_wait_that_goes_on_with_a_value_may_lead_to_both_ends(world: World) -> None:
    for value, end in ((Approval(ok=True), COMPLETED), (Approval(ok=False), COMPENSATED)):
        rehearsal = rehearse(expense(world, on_timeout=value), state=world.state, answers=YES)
        assert rehearsal.ok, rehearsal.table()
        assert ends(rehearsal, "approval")["no signal"] is ends(rehearsal, "approval")["signal late"] is end


def test_an_action_that_forgets_what_a_wait_goes_on_with_is_named(world: World) -> None:
    def forgetful(approval: Approval | None) -> None:
        if not approval.ok:  # type: ignore[union-attr]  # the bug
            raise TerminalError("not approved")

    saga = expense(world, forgetful, type=Approval | None, on_timeout=None)
    rehearsal = rehearse(saga, state=world.state, answers=YES)
    assert found(rehearsal, Judgement.WRONG_END) == {("approval", "no signal"), ("approval", "signal late")}
    assert "the action of 'check' raised AttributeError" in rehearsal.table()
    assert "to refuse, raise TerminalError" in rehearsal.table()


def test_a_wait_that_asks_is_undone(world: World) -> None:
    good = rehearse(expense(world, begin=world.do, compensation=world.undo), state=world.state, answers=YES)
    assert good.ok, good.table()
    assert {"refused", "crash after its effect", "compensated twice", "no signal"} <= ends(good, "approval").keys()
    bad = rehearse(expense(world, begin=world.do, compensation=None), state=world.state, answers=YES)
    assert {("approval", "no signal"), ("approval", "compensated while it waits")} <= found(bad, Judgement.NOT_COVERED)


def test_a_wait_after_the_pivot_goes_on(world: World) -> None:
    wait = Wait("parcel", str, timeout=DAY, on_timeout="lost")
    saga = Saga("s", Pivot("pay", world.do), wait, Step("z", lambda parcel: parcel))
    rehearsal = rehearse(saga, answers={"parcel": "p-1"})
    assert rehearsal.ok, rehearsal.table()
    assert set(ends(rehearsal, "parcel").values()) == {COMPLETED}


def test_a_saga_of_waits_alone() -> None:
    saga = Saga("s", Parallel(Wait("a", bool, timeout=DAY), Wait("b", bool, timeout=2 * DAY)))
    rehearsal = rehearse(saga)
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "b")["no signal"] is COMPENSATED


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (None, r"what is 'approval' answered.*Pass a Approval: rehearse\(..., answers=\{'approval': ...\}\)"),
        ({**YES, "first": 1}, "answers= names 'first', which waits for no answer. What waits: approval"),
    ],
)
def test_an_answer_that_is_missing_or_unknown_is_said_at_once(world: World, answers: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        rehearse(expense(world), answers=answers)
    assert not world.stands


def test_an_answer_with_which_the_saga_does_not_complete_is_said(world: World) -> None:
    rehearsal = rehearse(expense(world), answers={"approval": Approval(ok=False)})
    assert [row.verdict for row in rehearsal.rows] == [Judgement.WRONG_END]
    assert "not rehearsed: anything else" in rehearsal.table()


# -- deferred steps -------------------------------------------------------------------------------------------------


def test_a_callback_comes_early_twice_late_failed_and_never(world: World) -> None:
    rehearsal = rehearse(Saga("s", world.ask(), world.step("z")), state=world.state, answers={"ask": 7})
    assert rehearsal.ok, rehearsal.table()
    said = ends(rehearsal, "ask")
    assert said["callback early"] is said["callback twice"] is said["crash after its effect"] is COMPLETED
    assert said["callback says failed"] is said["no callback"] is said["callback late"] is COMPENSATED
    assert said["compensated while it waits"] is said["effect after compensation"] is COMPENSATED


def test_a_compensation_that_needs_the_result_of_a_callback_is_named(world: World) -> None:
    def undo(result: int | None, step: StepContext) -> None:
        if result is not None:
            world.undo(step)

    rehearsal = rehearse(
        Saga("s", world.ask(compensation=undo), world.step("z")), state=world.state, answers={"ask": 7}
    )
    wrong = found(rehearsal, Judgement.NOT_COVERED)
    assert {("ask", "no callback"), ("ask", "compensated while it waits")} <= wrong
    assert ("ask", "compensated twice") not in wrong


def test_a_deferred_step_after_the_pivot_is_stuck(world: World) -> None:
    ask = Step("ask", world.do, deferred=True, deadline=DAY)
    rehearsal = rehearse(Saga("s", Pivot("pay", lambda: None), ask), answers={})
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "ask")["callback says failed"] is ends(rehearsal, "ask")["no callback"] is STUCK


# -- sleep, polling, conditions -------------------------------------------------------------------------------------


def test_a_sleep_is_interrupted(world: World) -> None:
    saga = Saga("s", world.step("a"), Sleep("rest", 30 * DAY), world.step("b"))
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    [row] = [row for row in rehearsal.rows if row.step == "rest"]
    assert (row.failure, row.status) == ("compensated while it sleeps", COMPENSATED)
    assert "cancelled while it sleeps" in row.detail


def test_a_sleep_until_what_a_function_says_can_fail(world: World) -> None:
    saga = Saga("s", world.step("a"), Sleep("rest", until=lambda: DAY), world.step("b"))
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "rest")["refused"] is COMPENSATED


def test_a_sleep_that_begins_a_saga() -> None:
    rehearsal = rehearse(Saga("s", Sleep("rest", DAY), Step("a", lambda: None, compensation=None)))
    assert rehearsal.ok, rehearsal.table()


def test_a_step_that_polls_gives_up(world: World) -> None:
    saga = Saga("s", world.step("a", poll_timeout=60), world.step("b"))
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "a")["not ready in time"] is COMPENSATED


def test_a_condition_says_both(world: World) -> None:
    def last(extra: str | None) -> str:
        return extra or "nothing"

    for usual, other in ((True, "condition says no"), (False, "condition says yes")):
        saga = Saga("s", world.step("extra", when=lambda usual=usual: usual), Step("last", last, compensation=None))
        rehearsal = rehearse(saga, state=world.state)
        assert rehearsal.ok, rehearsal.table()
        assert ends(rehearsal, "extra")[other] is COMPLETED
        assert ends(rehearsal, "extra")["refused"] is ends(rehearsal, "extra")["compensated twice"] is COMPENSATED
        assert not rehearsal.not_rehearsed


def test_a_later_step_that_forgets_that_one_was_skipped_is_named(world: World) -> None:
    def last(extra: str | None) -> str:
        return extra.upper()  # type: ignore[union-attr]  # the bug

    saga = Saga("s", world.step("extra", when=lambda: True), Step("last", last, compensation=None))
    rehearsal = rehearse(saga, state=world.state)
    assert found(rehearsal, Judgement.WRONG_END) == {("extra", "condition says no")}
    assert "the action of 'last' raised AttributeError" in rehearsal.table()


def test_a_step_that_cannot_run_with_this_input_is_not_rehearsed(world: World) -> None:
    def broken() -> None:
        raise LookupError("there is no coupon")

    saga = Saga("s", world.step("a"), Step("coupon", broken, compensation=None, when=lambda: False))
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    assert rehearsal.not_rehearsed == ("'coupon', which is skipped with this input: use one for which it runs",)


def test_an_each_that_is_skipped_is_rehearsed(world: World) -> None:
    each = Each("e", lambda item: item, compensation=None, over=lambda: [1, 2], when=lambda: False)
    rehearsal = rehearse(Saga("s", each, world.step("b")), state=world.state)
    assert rehearsal.ok, rehearsal.table()
    assert ends(rehearsal, "e:1")["refused"] is COMPENSATED


# -- children -------------------------------------------------------------------------------------------------------


def test_a_child_fails_crashes_and_is_compensated(world: World) -> None:
    inner = Saga("inner", world.step("i"), Wait("sign", bool, timeout=DAY), world.step("j"))
    rehearsal = rehearse(Saga("s", world.step("a"), Child("c", inner), world.step("z")), state=world.state)
    assert rehearsal.ok, rehearsal.table()
    said = ends(rehearsal, "c")
    assert said["child fails"] is said["compensated when completed"] is COMPENSATED
    assert said["crash in the child"] is COMPLETED
    assert rehearsal.not_rehearsed == ("each step of the saga 'inner' at 'c': rehearse that saga by itself",)


def test_a_step_of_a_child_may_have_the_name_of_one_of_its_parent(world: World) -> None:
    inner = Saga("inner", world.step("a"))
    rehearsal = rehearse(Saga("s", world.step("a"), Child("c", inner), world.step("z")), state=world.state)
    assert rehearsal.ok, rehearsal.table()
    detail = next(row.detail for row in rehearsal.rows if row.failure == "child fails")
    assert "its child saga 'inner'" in detail


def test_what_a_rehearsal_does_not_try_is_said(world: World) -> None:
    saga = Saga("s", Parallel(world.step("l"), world.step("r")), world.step("z"))
    rehearsal = rehearse(saga)
    assert rehearsal.not_rehearsed == (
        "what the runs leave behind, since there is no state to compare",
        "l and r at the same time: here they run one after the other",
    )
    assert "not rehearsed: l and r at the same time" in rehearsal.table()


def test_a_fault_at_a_node_that_only_waits_is_refused(world: World) -> None:
    inline = Inline()
    inline.fail_at("rest")
    with pytest.raises(NotAllowed, match="'rest' calls no function that could fail"):
        inline.start(Saga("s", Sleep("rest", DAY)))


def test_all_kinds_of_nodes_in_a_database(world: World, tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 's.db'}")
    store.upgrade()
    saga = Saga(
        "s",
        Each("e", lambda item: item, compensation=None, over=lambda: [1]),
        Wait("approval", bool, timeout=DAY),
        Sleep("rest", DAY),
        Child("c", Saga("inner", world.step("i"))),
    )
    rehearsal = rehearse(saga, state=world.state, store=store)
    assert rehearsal.ok, rehearsal.table()
    assert store.queries.count() == 0
    store.engine.dispose()


def test_runs_that_do_not_come_to_their_failure_say_nothing_about_it(world: World) -> None:
    """What the saga needs is used up after three runs: the others are compensated before their failure."""
    left = [0] * 3

    def take() -> None:
        if not left:
            raise TerminalError("sold out")
        left.pop()

    each = Each("e", lambda item: item, compensation=lambda: None, over=lambda: [1])
    saga = Saga("s", Step("take", take, compensation=None), each, world.step("later"))
    rehearsal = rehearse(saga)
    assert {row.verdict for row in rehearsal.rows if row.step in ("e:0", "later")} == {Judgement.WRONG_END}
    assert (
        "e:0, compensated twice: the run did not come to this failure: step 'take' failed: sold out"
        in rehearsal.table()
    )
