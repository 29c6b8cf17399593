"""What a saga takes over from the message that led to it, in one process."""

from __future__ import annotations

from sagas import Saga, Step, StepContext
from sagas.causes import CURRENT, Cause, within
from sagas.events import Envelope, event
from sagas.testing import Inline


@event("orders.order.placed")
class OrderPlaced: ...


def nothing() -> None: ...


SAGA = Saga("order", Step("a", nothing, compensation=None))


def test_a_saga_of_nothing_begins_a_story() -> None:
    record = Inline().start(SAGA).record
    assert (record.correlation_id, record.caused_by) == (record.id, None)


def test_a_correlation_id_that_is_given_comes_first_and_the_cause_stays() -> None:
    placed = Envelope.wrap(OrderPlaced(), source="orders")
    with within(placed.cause):
        record = Inline().start(SAGA, correlation_id="mine").record
    assert record.correlation_id == "mine"
    assert record.caused_by == placed.cause
    assert record.cause("a") == Cause(f"{record.id}:a", "mine", hops=1, path=("orders.order.placed",))


def test_a_correlation_id_of_others_never_keeps_a_saga_from_starting() -> None:
    for given, kept in ((" blanks ", "blanks"), ("x" * 200, "x" * 200), ("   ", None)):
        placed = Envelope.wrap(OrderPlaced(), source="others", metadata={"correlationId": given, "path": ["p" * 500]})
        with within(placed.cause):
            record = Inline().start(SAGA).record
        assert record.correlation_id == (kept or record.id)
        assert record.caused_by is not None
        assert record.caused_by.path == ("p" * 100, "orders.order.placed")


def test_a_compensation_has_the_step_as_its_cause_and_nothing_is_left_behind() -> None:
    seen: list[Cause | None] = []

    def look(step: StepContext) -> None:
        seen.append(CURRENT.get())

    def fail() -> None:
        raise RuntimeError("no")

    saga = Saga("back", Step("a", look, compensation=look), Step("b", fail, compensation=None))
    record = Inline().start(saga).record
    assert seen == [record.cause("a")] * 2
    assert CURRENT.get() is None


def test_what_is_no_cause_is_none() -> None:
    cause = Cause("e", "c", hops=3, path=("a", "b"), trace={"traceparent": "t"})
    assert Cause.decode(cause.encode()) == cause
    for text in ("", "{}", "[1]", '{"id": 1}', "nonsense", "[" * 5000):
        assert Cause.decode(text) is None
