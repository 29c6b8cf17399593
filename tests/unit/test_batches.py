"""Batches without a worker: which sagas travel together, and which leave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sagas import Saga, Step
from sagas.batches import Turns, as_message, grouped, plans_of, run
from sagas.checkpoints import Direction
from sagas.plan import Plan, Stage

SAGA = Saga("line", Step("a", lambda: None, compensation=None), Step("b", lambda: None, compensation=None))
PLAN = Plan(SAGA, "0", 1, 1, Direction.FORWARD, (Stage(("a",)), Stage(("b",))))


def plans(count: int, **changes: Any) -> list[Plan]:
    return [replace(PLAN, saga_id=str(number), **changes) for number in range(count)]


def quick() -> Turns:
    return Turns(1, {"line.a": 0.0})


def refuse(those: Sequence[Plan]) -> None:
    raise AssertionError(f"{those} were sent on")


def test_sagas_travel_together_that_have_the_same_way_to_go() -> None:
    others = plans(2, stages=PLAN.stages[1:])
    groups = list(grouped([*plans(5), *others, *plans(1)], 3))
    assert groups == [plans(5)[:3], plans(5)[3:], others, plans(1)]
    assert list(grouped([], 3)) == []


def test_a_message_tells_all_of_the_plans_and_is_small() -> None:
    many = [replace(PLAN, saga_id=f"{number:036}") for number in range(50)]
    message = json.loads(json.dumps(as_message(many, side_by_side=True)))
    assert plans_of(SAGA, message) == many
    assert len(json.dumps(message)) < 64_000


def test_the_first_is_alone_and_then_so_many_go_side_by_side() -> None:
    lock, at_it, seen = threading.Lock(), [0], []
    meet = threading.Barrier(4, timeout=30)

    def carry(plan: Plan, alone: bool) -> None:
        assert alone == (plan.saga_id == "0")
        with lock:
            at_it[0] += 1
            seen.append((plan.saga_id, at_it[0]))
        if plan.saga_id != "0":
            meet.wait()  # none goes on before four are here
        with lock:
            at_it[0] -= 1

    assert run(plans(9), carry, quick(), "line.a", refuse, threads=4) == 0
    assert seen[0] == ("0", 1)
    assert max(together for _, together in seen) == 4
    assert sorted(saga_id for saga_id, _ in seen) == [str(number) for number in range(9)]


def test_those_that_have_not_begun_leave_when_it_is_slow() -> None:
    carried: list[str] = []
    turns, left = Turns(1, {}), list[Plan]()

    def carry(plan: Plan, _alone: bool) -> None:
        carried.append(plan.saga_id)
        turns.took["line.a"] = 1.0

    assert run(plans(5), carry, turns, "line.a", left.extend, threads=4) == 4
    assert carried == ["0"]
    assert left == plans(5)[1:]


def test_nobody_waits_for_what_is_known_to_be_slow() -> None:
    left: list[Plan] = []

    def carry(plan: Plan, _alone: bool) -> None:
        assert plan == plans(5)[0]
        assert left == plans(5)[1:], "they are sent before it begins"

    assert run(plans(5), carry, Turns(1, {"line.a": 1.0}), "line.a", left.extend, threads=4) == 4


@pytest.mark.parametrize("slow", ["0", "1"])
def test_those_that_have_not_begun_leave_while_a_function_is_at_work(slow: str) -> None:
    """The first one is slow, which nobody knew; or one is slow that was quick until now."""
    turns, left, gone, in_time = Turns(1, {}), list[Plan](), threading.Event(), list[bool]()

    def send_on(those: Sequence[Plan]) -> None:
        left.extend(those)
        gone.set()

    def carry(plan: Plan, _alone: bool) -> None:
        with turns.of("line.a"):
            if plan.saga_id == slow:
                in_time.append(gone.wait(30))
        turns.took["line.a"] = 0.0

    assert run(plans(9), carry, turns, "line.a", send_on, threads=2) == len(left)
    assert in_time == [True], "the others did not wait for its end"
    assert {"5", "6", "7", "8"} <= {plan.saga_id for plan in left}


@pytest.mark.parametrize("threads", [1, 4])
def test_what_goes_wrong_with_one_is_its_own(threads: int) -> None:
    carried: list[str] = []

    def carry(plan: Plan, _alone: bool) -> None:
        if plan.saga_id in ("0", "3"):
            raise SystemExit(1)
        carried.append(plan.saga_id)

    assert run(plans(6), carry, quick(), "line.a", refuse, threads=threads) == 0
    assert sorted(carried) == ["1", "2", "4", "5"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_functions_run_at_a_time(concurrency: int) -> None:
    turns, lock, at_it, most = Turns(concurrency, {}), threading.Lock(), [0], [0]
    here = threading.Barrier(concurrency, timeout=30)

    def function() -> None:
        with turns.of("line.a"):
            with lock:
                at_it[0] += 1
                most[0] = max(most[0], at_it[0])
            here.wait()
            with lock:
                at_it[0] -= 1

    threads = [threading.Thread(target=function) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == concurrency


def test_only_what_was_quick_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sagas.batches.time.monotonic", lambda: now[0])
    turns = Turns(1, {})

    def take(task: str, seconds: float, end: Callable[[], object] = lambda: None) -> None:
        with turns.of(task):
            now[0] += seconds
            end()

    assert not turns.is_quick("line.a"), "nobody knows"
    assert turns.is_quick("line.a", alone=True), "and nobody is held up"
    take("line.a", 0.005)
    assert turns.is_quick("line.a")
    take("line.a", 0.5)
    assert not turns.is_quick("line.a")
    assert not turns.is_quick("line.a", alone=True)
    with pytest.raises(ZeroDivisionError):
        take("line.a", 0.005, lambda: 1 / 0)
    assert turns.is_quick("line.a"), "how it ends says nothing about how long it takes"
    now[0] += 10
    assert not turns.is_quick("line.a"), "the batch has been at it for long enough"
