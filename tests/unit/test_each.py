"""`Each`: definitions, results, failures of items, and their rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sagas import (
    DefinitionError,
    Each,
    NotAllowed,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    SagaStatus,
    Step,
    StepContext,
    TerminalError,
)
from sagas.testing import Inline, Judgement, Rehearsal, rehearse
from sagas.testing.memory import MemoryStore


@dataclass
class Order:
    lines: list[str]


class Stock:
    """Keeps what was taken, by idempotency key; and what was called, in order."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}
        self.put_back: set[str] = set()
        self.calls: list[str] = []

    def take(self, item: str, step: StepContext) -> str:
        self.calls.append(f"take {item}")
        if step.idempotency_key in self.put_back:
            raise TerminalError("it was put back before it was taken")
        self.taken[step.idempotency_key] = item
        return item.upper()

    def undo(self, item: str, result: str | None, step: StepContext) -> None:
        self.calls.append(f"put back {item} {result}")
        self.put_back.add(step.idempotency_key)
        self.taken.pop(step.idempotency_key, None)

    def each(self, **options: Any) -> Each:
        return Each("take", self.take, **{"compensation": self.undo, "over": "lines", **options})

    def state(self) -> object:
        return sorted(self.taken.values())


LINES = Order(["tea", "cup", "pot"])


@pytest.fixture
def stock() -> Stock:
    return Stock()


def sell(each: Each, count: Callable[..., Any] = lambda take: len(take)) -> Saga[Order]:
    return Saga("sell", each, Step("count", count, compensation=None), Pivot("pay", lambda: None), input=Order)


def found(rehearsal: Rehearsal, verdict: Judgement) -> set[tuple[str, str]]:
    return {(row.step, row.failure) for row in rehearsal.rows if row.verdict is verdict}


# -- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sell(Each("take", lambda item: 1, over="lines")), "say what undoes an item"),
        (lambda: sell(Each("take", lambda item: 1, over="rows", compensation=None)), "neither a field of the input"),
        (lambda: Each("take", lambda item: 1, over="lines", allow_failures=1.5), "allow_failures"),
        (lambda: Each("take", lambda item: 1, over="lines", allow_failures=-1), "allow_failures"),
        (lambda: Each("take", lambda item: 1, over="lines", max_concurrency=0), "max_concurrency"),
        (lambda: Each("take", lambda item: 1, over="lines", input=lambda item: item), "input= makes the input of a"),
        (lambda: sell(Each("take", lambda item, what: 1, over="lines", compensation=None)), "'what'"),
        (
            lambda: Saga(
                "s", Pivot("p", lambda: None), Each("e", lambda item: 1, over=lambda: [1], compensation=lambda: None)
            ),
            "never undone",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        make()


# -- results and failures -------------------------------------------------------------------------------------------


def test_results_are_in_order_whatever_the_window(stock: Stock) -> None:
    for window in (1, 2, 50):
        handle = Inline().start(sell(stock.each(max_concurrency=window)), LINES)
        assert handle.result["take"] == ["TEA", "CUP", "POT"]
        assert handle.result["count"] == 3


def test_no_items_is_fine(stock: Stock) -> None:
    handle = Inline().start(sell(stock.each()), Order([]))
    assert handle.result["take"] == []
    assert stock.calls == []


def test_one_item_fails_and_those_that_began_are_compensated_with_their_own_result(stock: Stock) -> None:
    inline = Inline()
    inline.fail_at("take", TerminalError("sold out"), item=1)
    handle = inline.start(sell(stock.each(max_concurrency=1)), LINES)
    assert handle.status is SagaStatus.COMPENSATED
    assert "1 of 3 items failed: item 1" in (handle.error or "")
    assert stock.calls == ["take tea", "put back cup None", "put back tea TEA"]


def test_an_item_that_is_tried_again_does_not_touch_the_others(stock: Stock) -> None:
    inline = Inline()
    inline.fail_at("take", item=2, times=2)
    handle = inline.start(sell(stock.each(retry=Retry(max_attempts=3, delay=1))), LINES)
    assert handle.status is SagaStatus.COMPLETED
    assert stock.calls == ["take tea", "take cup", "take pot"]


def test_failures_that_are_allowed_leave_the_rest(stock: Stock) -> None:
    inline = Inline()
    inline.fail_at("take", TerminalError("sold out"), item=0)
    handle = inline.start(sell(stock.each(allow_failures=1)), LINES)
    assert handle.result["take"] == [None, "CUP", "POT"]
    assert stock.state() == ["cup", "pot"]


def test_a_fault_for_an_item_needs_an_each(stock: Stock) -> None:
    inline = Inline()
    inline.fail_at("a", item=0)
    with pytest.raises(NotAllowed, match="has no Each, so it has no item 0"):
        inline.start(Saga("s", Step("a", lambda: 1, compensation=None)))


def test_a_fault_is_for_the_saga_of_an_item_too() -> None:
    packed: list[str] = []
    parcel = Saga("parcel", Step("pack", lambda sku: packed.append(sku), compensation=None), input=Parcel)
    each = Each("parcels", parcel, over="lines", input=lambda item: {"sku": item})
    inline = Inline()
    inline.fail_at("pack", TerminalError("no box"), item=2)
    assert inline.start(Saga("s", each, input=Order), LINES).status is SagaStatus.COMPENSATED
    assert packed == ["tea", "cup"]
    inline.fail_at("parcels")
    with pytest.raises(NotAllowed, match="'parcels' calls no function that could fail"):
        inline.start(Saga("t", each, input=Order), LINES)


@dataclass
class Parcel:
    sku: str


def test_the_end_of_an_item_does_not_read_the_input_of_its_parent(stock: Stock) -> None:
    """The input may hold all items: reading it for each of them would cost more for each, the more there are."""

    class Store(MemoryStore):
        loads: ClassVar[list[str]] = []

        def load(self, saga_id: str, session: Any = None) -> SagaRecord:
            record = super().load(saga_id, session)
            self.loads.append(record.name)
            return record

    counts = []
    for lines in (10, 40):
        Store.loads.clear()
        assert Inline(Store()).start(sell(stock.each(max_concurrency=1)), Order(["x"] * lines)).status == "COMPLETED"
        counts.append(Store.loads.count("sell"))
    assert counts[0] == counts[1], counts


# -- rehearsals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 1}, {"allow_failures": 1}, {"allow_failures": 0.99}])
def test_a_good_fan_out(stock: Stock, options: dict[str, Any]) -> None:
    rehearsal = rehearse(sell(stock.each(**options)), LINES, state=stock.state)
    assert rehearsal.ok, rehearsal.table()
    for item in range(3):
        failures = {row.failure for row in rehearsal.rows if row.step == f"take:{item}"}
        assert failures >= {
            "refused",
            "broken",
            "crash before its effect",
            "crash after its effect",
            "broken after its effect",
            "effect after compensation",
            "compensated twice",
            "crash after compensation",
        }
    ends = {(row.step, row.failure): row.status for row in rehearsal.rows}
    allowed = "allow_failures" in options
    assert ends["take:1", "refused"] is (SagaStatus.COMPLETED if allowed else SagaStatus.COMPENSATED)
    assert ends["take", "no items"] is SagaStatus.COMPLETED
    assert (("take", "more items fail than allowed") in ends) is allowed
    assert (("take:1", "broken, and then all compensated") in ends) is allowed


def test_two_items_are_not_taken_for_one_call(stock: Stock) -> None:
    """A result of each of two items is lost; that the second changes the state is no second call of the first."""
    rehearsal = rehearse(sell(stock.each(allow_failures=1)), LINES, state=stock.state)
    assert not found(rehearsal, Judgement.NOT_IDEMPOTENT), rehearsal.table()


def test_after_the_pivot_an_item_waits_for_a_person(stock: Stock) -> None:
    saga = Saga("s", Pivot("pay", lambda: None), Each("take", stock.take, over="lines"), input=Order)
    rehearsal = rehearse(saga, LINES, state=stock.state)
    assert rehearsal.ok, rehearsal.table()
    ends = {(row.step, row.failure): row.status for row in rehearsal.rows}
    assert ends["take:0", "refused"] is ends["take:2", "broken"] is SagaStatus.STUCK
    assert ends["take:0", "crash after its effect"] is SagaStatus.COMPLETED


def test_an_each_at_the_end_of_a_saga(stock: Stock) -> None:
    saga = Saga("s", stock.each(), input=Order)
    rehearsal = rehearse(saga, LINES, state=stock.state)
    assert rehearsal.ok, rehearsal.table()


def test_a_compensation_that_is_not_idempotent_for_one_item_is_named(stock: Stock) -> None:
    count = {"cup": 0}

    def undo(item: str, result: str | None, step: StepContext) -> None:
        was_there = step.idempotency_key in stock.taken or item == "cup"
        stock.undo(item, result, step)
        count["cup"] += item == "cup" and was_there and result is not None

    def take(item: str, step: StepContext) -> str:
        count["cup"] -= item == "cup" and step.idempotency_key not in stock.taken
        return stock.take(item, step)

    each = Each("take", take, compensation=undo, over="lines")
    rehearsal = rehearse(sell(each), LINES, state=lambda: count["cup"])
    wrong = found(rehearsal, Judgement.NOT_IDEMPOTENT)
    assert {("take:1", "compensated twice"), ("take:1", "crash after compensation")} <= wrong
    assert {step for step, _ in wrong} == {"take:1"}, rehearsal.table()


def test_a_compensation_that_ignores_the_item_is_named(stock: Stock) -> None:
    def undo(result: str | None) -> None:
        for key, item in list(stock.taken.items()):
            if item == "tea":
                del stock.taken[key]

    rehearsal = rehearse(sell(stock.each(compensation=undo)), LINES, state=stock.state)
    assert ("take:2", "broken after its effect") in found(rehearsal, Judgement.NOT_COVERED), rehearsal.table()


def test_a_compensation_that_an_allowed_failure_hides_is_named(stock: Stock) -> None:
    """The saga completes without the item. Only when all of it is undone can it be seen that the item stays."""

    def undo(item: str, result: str | None, step: StepContext) -> None:
        if result is not None:
            stock.undo(item, result, step)

    rehearsal = rehearse(sell(stock.each(compensation=undo, allow_failures=1)), LINES, state=stock.state)
    assert ("take:0", "broken, and then all compensated") in found(rehearsal, Judgement.NOT_COVERED)


def test_a_later_step_that_forgets_that_an_item_may_fail_is_named(stock: Stock) -> None:
    def longest(take: list[str | None]) -> int:
        return max(len(name) for name in take)  # type: ignore[arg-type]  # the bug

    rehearsal = rehearse(sell(stock.each(allow_failures=1), longest), LINES, state=stock.state)
    wrong = found(rehearsal, Judgement.WRONG_END)
    assert {("take:0", "refused"), ("take:2", "broken"), ("take", "no items")} <= wrong
    assert "the action of 'count' raised TypeError" in rehearsal.table()


def test_a_later_step_that_forgets_that_there_may_be_no_item_is_named(stock: Stock) -> None:
    rehearsal = rehearse(sell(stock.each(), lambda take: take[0]), LINES, state=stock.state)
    assert found(rehearsal, Judgement.WRONG_END) == {("take", "no items")}
    assert "raised IndexError" in rehearsal.table()


def test_a_later_step_may_refuse_an_empty_list(stock: Stock) -> None:
    def some(take: list[str]) -> None:
        if not take:
            raise TerminalError("nothing is ordered")

    rehearsal = rehearse(sell(stock.each(), some), LINES, state=stock.state)
    assert rehearsal.ok, rehearsal.table()


def test_a_saga_for_each_item_fails_as_a_whole(stock: Stock) -> None:
    def pack(sku: str, step: StepContext) -> str:
        return stock.take(sku, step)

    def unpack(sku: str, result: str | None, step: StepContext) -> None:
        stock.undo(sku, result, step)

    parcel = Saga("parcel", Step("pack", pack, compensation=unpack), input=Parcel)
    each = Each("parcels", parcel, over="lines", input=lambda item: {"sku": item})
    saga = Saga("s", each, Step("last", lambda: None, compensation=None), input=Order)
    rehearsal = rehearse(saga, LINES, state=stock.state)
    assert rehearsal.ok, rehearsal.table()
    failures = {row.failure for row in rehearsal.rows if row.step == "parcels:1"}
    assert failures == {"child fails", "crash in the child"}
    assert "each step of the saga 'parcel' at 'parcels': rehearse that saga by itself" in rehearsal.not_rehearsed


def test_of_many_items_the_first_and_the_last_ones_fail(stock: Stock) -> None:
    rehearsal = rehearse(sell(stock.each()), Order([f"line {number}" for number in range(8)]), state=stock.state)
    assert rehearsal.ok, rehearsal.table()
    steps = {row.step for row in rehearsal.rows}
    assert {f"take:{item}" for item in (0, 2, 5, 7)} <= steps
    assert not {f"take:{item}" for item in (3, 4)} & steps
    assert "failures of the 2 items in the middle of 'take'" in rehearsal.not_rehearsed


def test_no_items_are_said_to_be_not_rehearsed(stock: Stock) -> None:
    rehearsal = rehearse(sell(stock.each()), Order([]), state=stock.state)
    assert rehearsal.ok, rehearsal.table()
    assert "not rehearsed: the items of 'take': with this input there are none" in rehearsal.table()
