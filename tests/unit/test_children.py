"""Child sagas, inline: what they receive and give, how they fail, and how they are undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from sagas import (
    COMPENSATE,
    Child,
    DefinitionError,
    NotAllowed,
    Parallel,
    Pivot,
    Saga,
    SagaHandle,
    SagaStatus,
    Sleep,
    Step,
    StepContext,
    StepStatus,
    TerminalError,
    Wait,
    signals,
)
from sagas.testing import Inline, rehearse
from sagas.testing.rehearsal import Judgement
from sagas.transitions import Repair


@dataclass
class Trip:
    traveller: str
    nights: int


@dataclass
class Stay:
    guest: str
    nights: int


@dataclass
class Room:
    number: int


class Log:
    """What was done, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, name: str, **options: Any) -> Step:
        def do() -> str:
            self.lines.append(name)
            return name

        def undo() -> None:
            self.lines.append(f"-{name}")

        return Step(name, do, compensation=undo, **options)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def inline() -> Inline:
    return Inline()


def reserve(guest: str, nights: int) -> Room:
    return Room(nights * 100 + len(guest))


hotel = Saga("hotel", Step("reserve", reserve, compensation=None), input=Stay)


def stay_of(traveller: str, nights: int) -> Stay:
    return Stay(traveller, nights)


def children_of(inline: Inline, saga_id: str) -> list[Any]:
    return [each for each in inline.store.family(saga_id) if each.parent_id is not None]


# -- what it receives and gives -----------------------------------------------------------------------------------


def test_input_is_made_by_name_and_the_result_is_that_of_its_steps_by_name(inline: Inline) -> None:
    seen: list[Any] = []

    def confirm(stay: dict[str, Any]) -> int:
        seen.append(stay["reserve"])
        return int(stay["reserve"].number)

    trip = Saga("trip", Child("stay", hotel, input=stay_of), Step("confirm", confirm, compensation=None), input=Trip)
    handle = inline.start(trip, Trip("ann", 2))
    assert handle.status is SagaStatus.COMPLETED
    assert seen == [Room(203)]
    assert handle.result == {"stay": {"reserve": Room(203)}, "confirm": 203}


def test_parent_and_child_are_two_sagas_with_a_link_both_ways(inline: Inline) -> None:
    trip = Saga("trip", Child("stay", hotel, input=stay_of), input=Trip)
    handle = inline.start(trip, Trip("ann", 2), correlation_id="c-1")
    [child] = children_of(inline, handle.id)
    assert (child.parent_id, child.parent_step, child.root_id) == (handle.id, "stay", handle.id)
    assert handle.record.step("stay").child_id == child.id
    assert (child.key, child.correlation_id) == (f"{handle.id}:stay", "c-1")
    assert child.caused_by is not None
    assert child.caused_by.id == f"{handle.id}:stay"
    assert inline.store.load(child.id).input == '{"guest":"ann","nights":2}'


def test_input_may_be_a_mapping_or_that_of_the_parent_or_nothing(inline: Inline) -> None:
    def mapping(traveller: str) -> Mapping[str, Any]:
        return {"guest": traveller, "nights": 1}

    trip = Saga("trip", Child("stay", hotel, input=mapping), input=Trip)
    assert inline.start(trip, Trip("bob", 9)).result["stay"]["reserve"] == Room(103)
    same = Saga("same", Child("stay", hotel), input=Stay)
    assert inline.start(same, Stay("bob", 3)).result["stay"]["reserve"] == Room(303)
    none = Saga("none", Child("greet", Saga("greet", Step("hello", lambda: "hi", compensation=None))))
    assert inline.start(none).result["greet"] == {"hello": "hi"}


def test_key_is_the_authors_or_the_parents_id_and_the_step(inline: Inline) -> None:
    def key(traveller: str) -> str:
        return f"stay of {traveller}"

    trip = Saga("trip", Child("stay", hotel, input=stay_of, key=key), input=Trip)
    handle = inline.start(trip, Trip("ann", 2))
    assert inline.store.find("hotel", "stay of ann").parent_id == handle.id


def test_child_never_takes_over_a_saga_that_was_there(inline: Inline, log: Log) -> None:
    def key(traveller: str) -> str:
        return traveller

    inline.start(hotel, Stay("ann", 1), key="ann")
    trip = Saga("trip", log.step("a"), Child("stay", hotel, input=stay_of, key=key), input=Trip)
    handle = inline.start(trip, Trip("ann", 2))
    assert handle.status is SagaStatus.COMPENSATED
    assert "the key 'ann'" in (handle.error or "")
    assert log.lines == ["a", "-a"]
    assert children_of(inline, handle.id) == []


def test_condition_of_a_child(inline: Inline) -> None:
    def is_long(nights: int) -> bool:
        return nights > 1

    def after(stay: dict[str, Any] | None) -> str:
        return "stays" if stay else "drives home"

    trip = Saga(
        "trip", Child("stay", hotel, input=stay_of, when=is_long), Step("after", after, compensation=None), input=Trip
    )
    assert inline.start(trip, Trip("ann", 1)).result == {"stay": None, "after": "drives home"}
    assert inline.start(trip, Trip("ann", 2)).result["after"] == "stays"


def test_input_that_the_child_refuses_compensates_the_parent(inline: Inline, log: Log) -> None:
    def wrong() -> dict[str, Any]:
        return {"guest": "ann"}

    trip = Saga("trip", log.step("a"), Child("stay", hotel, input=wrong))
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPENSATED
    assert "its child saga cannot be started" in (handle.error or "")
    assert handle.record.step("stay").status is StepStatus.COMPENSATED
    assert children_of(inline, handle.id) == []


def test_input_function_that_breaks_is_retried_and_then_fails_without_an_effect(inline: Inline) -> None:
    calls: list[int] = []

    def breaks() -> Stay:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        return Stay("ann", 1)

    assert inline.start(Saga("trip", Child("stay", hotel, input=breaks))).status is SagaStatus.COMPLETED
    assert len(calls) == 3


# -- failure, and compensation ------------------------------------------------------------------------------------


def two_nights(log: Log) -> Saga:
    return Saga("stay", log.step("room"), log.step("dinner"))


def test_failure_of_a_child_is_that_of_its_node(inline: Inline, log: Log) -> None:
    trip = Saga("trip", log.step("a"), Child("stay", two_nights(log)), log.step("z"))
    inline.fail_at("dinner", TerminalError("the cook is ill"))
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPENSATED
    assert log.lines == ["a", "room", "-dinner", "-room", "-a"]
    [child] = children_of(inline, handle.id)
    assert child.status is SagaStatus.COMPENSATED
    assert "its child saga 'stay'" in (handle.error or "")
    assert "the cook is ill" in (handle.error or "")


def test_child_that_is_completed_is_undone_last_first_when_its_parent_compensates(inline: Inline, log: Log) -> None:
    trip = Saga("trip", log.step("a"), Child("stay", two_nights(log)), log.step("m"), log.step("z"))
    inline.fail_at("z", TerminalError("no"))
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPENSATED
    assert log.lines == ["a", "room", "dinner", "m", "-z", "-m", "-dinner", "-room", "-a"]
    [child] = children_of(inline, handle.id)
    assert child.status is SagaStatus.COMPENSATED
    assert f"its parent 'trip' ({handle.id}) compensates" in (child.error or "")


def test_nested_children_are_undone_too(inline: Inline, log: Log) -> None:
    inner = Saga("inner", log.step("i"))
    middle = Saga("middle", log.step("m"), Child("inner", inner), log.step("n"))
    outer = Saga("outer", log.step("o"), Child("middle", middle), log.step("z"))
    inline.fail_at("z", TerminalError("no"))
    handle = inline.start(outer)
    assert handle.status is SagaStatus.COMPENSATED
    assert log.lines == ["o", "m", "i", "n", "-z", "-n", "-i", "-m", "-o"]
    assert {each.status for each in inline.store.family(handle.id)} == {SagaStatus.COMPENSATED}
    assert {each.root_id for each in children_of(inline, handle.id)} == {handle.id}


def test_children_side_by_side(inline: Inline, log: Log) -> None:
    one, two = Saga("one", log.step("a")), Saga("two", log.step("b"))
    trip = Saga("trip", Parallel(Child("one", one), Child("two", two)), log.step("z"))
    assert inline.start(trip).status is SagaStatus.COMPLETED
    log.lines.clear()
    inline.fail_at("b", TerminalError("no"))
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPENSATED
    assert {each.status for each in inline.store.family(handle.id)} == {SagaStatus.COMPENSATED}
    assert sorted(log.lines) == ["-a", "-b", "a"]


def test_cancelling_the_parent_compensates_a_child_that_waits(inline: Inline, log: Log) -> None:
    asks = Saga("asks", log.step("a"), Wait("answer", bool, timeout=60, on_timeout=COMPENSATE), log.step("b"))
    trip = Saga("trip", log.step("o"), Child("ask", asks), log.step("z"))
    handle = inline.start(trip)
    assert handle.status is SagaStatus.RUNNING
    assert handle.record.step("ask").status is StepStatus.WAITING
    handle.cancel("changed my mind")
    assert inline.load(handle.id).status is SagaStatus.COMPENSATED
    [child] = children_of(inline, handle.id)
    assert child.status is SagaStatus.COMPENSATED
    assert log.lines == ["o", "a", "-a", "-o"]


def test_end_of_a_child_brings_its_parent_on_at_once(inline: Inline, log: Log) -> None:
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    trip = Saga("trip", Child("ask", asks), log.step("z"))
    handle = inline.start(trip)
    began = inline.now
    [child] = children_of(inline, handle.id)
    inline.send_signal(child.id, "answer", payload=True)
    assert handle.status is SagaStatus.COMPLETED
    assert inline.now - began < timedelta(seconds=1)
    assert handle.result["ask"] == {"answer": True}


def test_timeout_of_the_parent_is_that_of_its_children(inline: Inline, log: Log) -> None:
    asks = Saga("asks", log.step("a"), Wait("answer", bool, timeout=3600, on_timeout=COMPENSATE))
    trip = Saga("trip", Child("ask", asks), log.step("z"), timeout=60)
    handle = inline.start(trip)
    inline.advance(handle, timedelta(seconds=61))
    assert handle.status is SagaStatus.COMPENSATED
    assert log.lines == ["a", "-a"]


def test_timeout_of_a_wait_in_a_child_reaches_the_parent(inline: Inline, log: Log) -> None:
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    handle = inline.start(Saga("trip", log.step("a"), Child("ask", asks)))
    inline.advance(handle, timedelta(seconds=61))
    assert handle.status is SagaStatus.COMPENSATED
    assert "no signal within 60 s" in (handle.error or "")
    assert log.lines == ["a", "-a"]


def test_child_that_was_deleted_is_in_doubt(inline: Inline, log: Log) -> None:
    asks = Saga("asks", Wait("answer", bool, timeout=10**6, on_timeout=COMPENSATE))
    handle = inline.start(Saga("trip", log.step("a"), Child("ask", asks)))
    [child] = children_of(inline, handle.id)
    del inline.store._records[child.id]  # type: ignore[attr-defined]
    inline.advance(handle, timedelta(minutes=2))
    assert handle.status is SagaStatus.STUCK
    assert f"its child saga {child.id} is gone" in (handle.record.step("ask").error or "")
    assert log.lines == ["a"], "nobody knows what the child left, so nothing before it is undone"


def test_late_outcome_in_a_child_reopens_the_child_alone(inline: Inline, log: Log) -> None:
    inline.fail_at("dinner", TerminalError("no"), times=None)
    failed = inline.start(Saga("trip", Child("stay", two_nights(log)), log.step("z")))
    child = SagaHandle(children_of(inline, failed.id)[0].id, inline)
    log.lines.clear()
    inline.undo_again(child, "room")
    assert log.lines == ["-room"]
    assert (child.status, failed.status) == (SagaStatus.COMPENSATED, SagaStatus.COMPENSATED)


def test_child_that_sleeps(inline: Inline, log: Log) -> None:
    naps = Saga("naps", Sleep("nap", timedelta(days=3)), log.step("a"))
    assert inline.start(Saga("trip", Child("nap", naps), log.step("z"))).status is SagaStatus.COMPLETED


def test_stuck_child_leaves_the_parent_waiting_and_the_parent_says_why(inline: Inline, log: Log) -> None:
    trip = Saga("trip", log.step("a"), Child("stay", two_nights(log)), log.step("z"))
    inline.fail_at("z", TerminalError("no"))
    inline.fail_at("room", RuntimeError("the desk is closed"), times=None, undo=True)
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPENSATING
    [child] = children_of(inline, handle.id)
    assert child.status is SagaStatus.STUCK
    step = handle.record.step("stay")
    assert step.status is StepStatus.WAITING
    assert f"its child saga 'stay' ({child.id}) is STUCK: step 'room' is stuck" in (step.error or "")
    assert "the desk is closed" in (step.error or "")

    inline.heal()
    inline.orchestrator.repair(child.id, "room", Repair.RETRY, reason="the desk is open")
    inline.finish(child.id)
    assert inline.load(handle.id).status is SagaStatus.COMPENSATED
    assert log.lines[-2:] == ["-room", "-a"]


def test_operator_may_not_undo_a_completed_child_by_itself(inline: Inline, log: Log) -> None:
    handle = inline.start(Saga("trip", Child("stay", two_nights(log)), log.step("z")))
    [child] = children_of(inline, handle.id)
    with pytest.raises(NotAllowed, match="COMPLETED"):
        inline.cancel(child.id)


def test_cancelled_child_is_a_failure_of_its_node(inline: Inline, log: Log) -> None:
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    handle = inline.start(Saga("trip", log.step("a"), Child("ask", asks)))
    [child] = children_of(inline, handle.id)
    inline.cancel(child.id, "no longer wanted")
    assert handle.status is SagaStatus.COMPENSATED
    assert "no longer wanted" in (handle.error or "")


# -- after the pivot ----------------------------------------------------------------------------------------------


def test_child_after_the_pivot_may_have_one(inline: Inline, log: Log) -> None:
    deliver = Saga("deliver", log.step("load"), Pivot("drive", lambda: None))
    order = Saga("order", Pivot("pay", lambda: None), Child("deliver", deliver))
    assert inline.start(order).status is SagaStatus.COMPLETED


def test_child_that_fails_after_the_pivot_is_stuck_and_a_retry_starts_another(inline: Inline, log: Log) -> None:
    deliver = Saga("deliver", log.step("load"))
    order = Saga("order", Pivot("pay", lambda: None), Child("deliver", deliver), Step("thank", lambda: None))
    inline.fail_at("load", TerminalError("no van"))
    handle = inline.start(order)
    assert handle.status is SagaStatus.STUCK
    assert "no van" in (handle.record.step("deliver").error or "")

    inline.orchestrator.repair(handle.id, "deliver", Repair.RETRY, reason="there is a van")
    assert inline.finish(handle.id).status is SagaStatus.COMPLETED
    first, second = children_of(inline, handle.id)
    assert (first.status, second.status) == (SagaStatus.COMPENSATED, SagaStatus.COMPLETED)
    assert (first.key, second.key) == (f"{handle.id}:deliver", f"{handle.id}:deliver:2")


# -- workers that die ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_worker_that_dies_at_the_node_leaves_one_child(inline: Inline, log: Log, when: str) -> None:
    trip = Saga("trip", Child("stay", two_nights(log)), log.step("z"))
    (inline.crash_before if when == "before" else inline.crash_after)("stay", times=2)
    handle = inline.start(trip)
    assert handle.status is SagaStatus.COMPLETED
    assert len(children_of(inline, handle.id)) == 1
    assert log.lines == ["room", "dinner", "z"]


def test_process_that_dies_before_it_tells_the_parent_loses_nothing(inline: Inline, log: Log) -> None:
    """The write that ends the child makes the parent due: recovery finds it so."""
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    handle = inline.start(Saga("trip", Child("ask", asks), log.step("z")))
    [child] = children_of(inline, handle.id)
    engine = inline.orchestrator
    sent, engine.examine = engine.examine, lambda saga_id: pytest.fail("dead")  # type: ignore[method-assign]
    with pytest.raises(BaseException, match="dead"):
        signals.send(engine, child.id, "answer", True, id="1")
    engine.examine = sent  # type: ignore[method-assign]
    assert inline.store.load(child.id).status is SagaStatus.COMPLETED
    parent = inline.store.load(handle.id)
    assert parent.next_check_at is not None
    assert parent.next_check_at <= inline.now
    assert handle.record.step("ask").status is StepStatus.WAITING
    inline.finish(handle.id)
    assert handle.status is SagaStatus.COMPLETED


# -- definitions --------------------------------------------------------------------------------------------------


def test_child_with_a_pivot_before_that_of_its_parent() -> None:
    pays = Saga("pays", Pivot("pay", lambda: None))
    with pytest.raises(DefinitionError, match="'pays' has the pivot 'pay'.*Put the child after a pivot of 'order'"):
        Saga("order", Child("pay", pays), Pivot("commit", lambda: None))
    with pytest.raises(DefinitionError, match="has the pivot"):
        Saga("order", Child("pay", pays))
    nested = Saga("nested", Pivot("p", lambda: None), Child("pay", pays))
    with pytest.raises(DefinitionError, match="has the pivot 'p'"):
        Saga("order", Child("nested", nested))


def test_saga_that_contains_itself(log: Log) -> None:
    inner = Saga("loop", log.step("a"))
    with pytest.raises(DefinitionError, match="'loop' version 1 would contain itself"):
        Saga("loop", Child("again", inner))
    middle = Saga("middle", Child("again", inner))
    with pytest.raises(DefinitionError, match="would contain itself"):
        Saga("loop", Child("middle", middle))
    Saga("loop", Child("again", inner), version=2)  # another version is another saga


def test_depth(log: Log) -> None:
    saga = Saga("s0", log.step("a"))
    for level in range(1, 10):
        saga = Saga(f"s{level}", Child("c", saga))
    with pytest.raises(DefinitionError, match="more than 10 levels"):
        Saga("s10", Child("c", saga))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Saga("trip", Child("stay", hotel), input=Trip), "takes Stay, and 'trip' Trip: give input="),
        (lambda: Saga("trip", Child("stay", hotel)), "takes Stay, and 'trip' nothing"),
        (
            lambda: Saga("trip", Child("stay", hotel, input=reserve), input=Stay),
            "returns Room, and the saga 'hotel' takes",
        ),
        (
            lambda: Saga("trip", Child("a", Saga("x", Step("s", lambda: 1, compensation=None)), input=lambda: 1)),
            "takes no input: drop input=",
        ),
        (lambda: Saga("trip", Child("stay", "hotel")), "'hotel' is no Saga"),  # type: ignore[arg-type]
        (lambda: Saga("trip", Child("stay", hotel, input=lambda nobody: nobody)), "nothing can fill the parameter"),
    ],
)
def test_definitions_that_cannot_work(make: Any, match: str) -> None:
    with pytest.raises(DefinitionError, match=match):
        make()


def test_outline_names_the_saga_and_its_version() -> None:
    trip = Saga("trip", Child("stay", hotel, input=stay_of), input=Trip)
    assert trip.outline == '[{"child": "stay", "saga": "hotel 1"}]'


def test_context_of_an_input_function(inline: Inline) -> None:
    def of(step: StepContext) -> Stay:
        return Stay(step.step, 1)

    assert inline.start(Saga("trip", Child("stay", hotel, input=of))).result["stay"]["reserve"] == Room(104)


def test_faults_of_a_childs_own_compensation_are_named(inline: Inline, log: Log) -> None:
    inline.fail_at("stay", undo=True)
    with pytest.raises(NotAllowed, match="fail at one of those"):
        inline.start(Saga("trip", Child("stay", two_nights(log)), log.step("z")))


# -- rehearsal ----------------------------------------------------------------------------------------------------


def test_rehearsal_fails_a_child_and_undoes_it_when_it_is_completed() -> None:
    rooms: set[str] = set()

    def reserve_room(step: StepContext) -> str:
        rooms.add(step.idempotency_key)
        return "room"

    def cancel_room(step: StepContext) -> None:
        rooms.discard(step.idempotency_key)

    def forget_room() -> None: ...

    def trip(cancel: Any) -> Saga:
        child = Saga("stay", Step("room", reserve_room, compensation=cancel))
        return Saga("trip", Child("stay", child), Step("leave", lambda: None, compensation=None))

    good = rehearse(trip(cancel_room), state=lambda: rooms)
    assert good.ok, good.table()
    failures = {row.failure for row in good.rows if row.step == "stay"}
    assert {"refused", "crash after its effect", "child fails", "compensated when completed"} <= failures
    bad = rehearse(trip(forget_room), state=lambda: rooms)
    found = {row.failure for row in bad.rows if row.verdict is Judgement.NOT_COVERED}
    assert {"child fails", "compensated when completed"} & found


def test_rehearsal_of_a_child_after_the_pivot() -> None:
    child = Saga("deliver", Step("load", lambda: None, compensation=None))
    order = Saga("order", Pivot("pay", lambda: None), Child("deliver", child))
    rehearsal = rehearse(order)
    assert rehearsal.ok, rehearsal.table()
    assert next(row for row in rehearsal.rows if row.failure == "child fails").status is SagaStatus.STUCK
