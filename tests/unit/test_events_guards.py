"""Storm guards and breakers, by a clock of the tests' own."""

from __future__ import annotations

import logging
import threading
from typing import Any

import limits.storage.memory
import pytest
from sqlalchemy import create_engine

from sagas import rates
from sagas.errors import ConfigurationError
from sagas.events import Envelope, Events, Service, breakers, event
from sagas.events.breakers import BreakerState, CircuitBreaker, CircuitBreakers
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.guards import Decision, StormGuard


@event("orders.order.placed")
class OrderPlaced:
    order_id: str = "o-1"


@event("stock.item.reserved")
class ItemReserved:
    order_id: str = "o-1"


service = Service("billing")


@service.on(OrderPlaced, ItemReserved, breaker=3, breaker_pause=30)
def bill(event: OrderPlaced | ItemReserved) -> None: ...


@service.on(OrderPlaced)
def file_away(event: OrderPlaced) -> None: ...


@service.on(OrderPlaced, compensates=[OrderPlaced], breaker=1)
def give_back(event: OrderPlaced) -> None: ...


BILL, FILE_AWAY, GIVE_BACK = service.subscriptions


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (breakers, rates, limits.storage.memory):
        monkeypatch.setattr(module, "time", clock)
    return clock


def message(cls: type = OrderPlaced, source: str = "orders", **metadata: Any) -> Envelope:
    return Envelope.wrap(cls(), source=source, metadata=metadata)


def chain(*types: type) -> Envelope:
    """A message of the last of these types, led to by the others."""
    cause = None
    for cls in types:
        cause = Envelope.wrap(cls(), source="orders", cause=cause)
    assert cause is not None
    return cause


# -- guards -------------------------------------------------------------------------------------------------------


def test_without_any_limit_all_is_admitted() -> None:
    guard = StormGuard()
    assert {guard.admit(message(), BILL).decision for _ in range(1000)} == {Decision.ADMIT}
    assert guard.snapshot() == {"billing.bill": {"admitted": 1000, "throttled": 0, "dead_lettered": 0, "repeated": 0}}


def test_what_is_over_the_rate_waits_until_there_is_room(clock: Clock) -> None:
    guard = StormGuard(rate="2/second")
    assert guard.admit(message(), BILL).decision is Decision.ADMIT
    clock.now += 0.4
    assert guard.admit(message(), BILL).decision is Decision.ADMIT
    held = guard.admit(message(), BILL)
    assert held.decision is Decision.THROTTLE
    assert held.seconds == pytest.approx(0.6)  # when the first leaves the window
    clock.now += held.seconds + 0.001
    assert guard.admit(message(), BILL).decision is Decision.ADMIT
    assert guard.admit(message(), BILL).decision is Decision.THROTTLE
    assert guard.snapshot()["billing.bill"] == {"admitted": 3, "throttled": 2, "dead_lettered": 0, "repeated": 0}


def test_each_type_source_and_queue_has_its_own_rate(clock: Clock) -> None:
    guard = StormGuard(rate="1/minute")
    for sent, queue in (
        (message(), BILL),
        (message(ItemReserved), BILL),
        (message(source="imports"), BILL),
        (message(), FILE_AWAY),
    ):
        assert guard.admit(sent, queue).decision is Decision.ADMIT
        assert guard.admit(sent, queue).decision is Decision.THROTTLE


def test_compensations_are_not_held(clock: Clock) -> None:
    guard = StormGuard(rate="1/minute")
    assert {guard.admit(message(), GIVE_BACK).decision for _ in range(10)} == {Decision.ADMIT}


def test_a_long_chain_is_quarantined_with_its_path() -> None:
    guard = StormGuard(max_hops=2)
    assert guard.admit(chain(OrderPlaced, ItemReserved, ItemReserved), BILL).decision is Decision.ADMIT
    admission = guard.admit(chain(ItemReserved, ItemReserved, ItemReserved, OrderPlaced), BILL)
    assert admission.decision is Decision.DEAD_LETTER
    assert "3 messages led to this one" in admission.reason
    assert "stock.item.reserved -> orders.order.placed" in admission.reason
    assert guard.snapshot()["billing.bill"]["dead_lettered"] == 1
    assert guard.admit(chain(*[OrderPlaced] * 5), GIVE_BACK).decision is Decision.DEAD_LETTER  # else it never ended


def test_a_type_that_led_to_itself_is_reported_once_a_chain(caplog: pytest.LogCaptureFixture) -> None:
    guard = StormGuard()
    with caplog.at_level(logging.WARNING):
        for length in range(1, 7):
            assert guard.admit(chain(*[OrderPlaced, ItemReserved] * length), BILL).decision is Decision.ADMIT
    assert len(caplog.records) == 1
    assert "orders.order.placed -> stock.item.reserved -> orders.order.placed" in caplog.text
    assert guard.snapshot()["billing.bill"]["repeated"] == 5


def test_a_type_that_led_to_itself_is_quarantined_when_asked() -> None:
    guard = StormGuard(on_repeat="dead_letter")
    assert guard.admit(chain(OrderPlaced, ItemReserved), BILL).decision is Decision.ADMIT
    admission = guard.admit(chain(OrderPlaced, ItemReserved, OrderPlaced), BILL)
    assert admission.decision is Decision.DEAD_LETTER
    assert "a message of the same type led to this one" in admission.reason
    assert guard.snapshot()["billing.bill"] == {"admitted": 1, "throttled": 0, "dead_lettered": 1, "repeated": 1}


def test_what_is_quarantined_takes_nothing_from_the_rate(clock: Clock) -> None:
    guard = StormGuard(rate="1/minute", max_hops=1)
    for _ in range(5):
        assert guard.admit(chain(*[OrderPlaced] * 4), BILL).decision is Decision.DEAD_LETTER
    assert guard.admit(message(), BILL).decision is Decision.ADMIT


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": "quick"}, "100/second"),
        ({"max_hops": 0}, "at least 1"),
        ({"on_repeat": "panic"}, "dead_letter"),
        ({"storage": "tape://"}, "redis://"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        StormGuard(**settings)


# -- breakers -----------------------------------------------------------------------------------------------------


def test_a_breaker_opens_tries_one_and_closes(clock: Clock) -> None:
    breaker = CircuitBreaker(failures=3, pause=30)
    breaker.failed()
    breaker.failed()
    breaker.succeeded()  # in a row, or they do not count
    breaker.failed()
    breaker.failed()
    assert (breaker.state, breaker.wait()) == (BreakerState.CLOSED, 0)
    breaker.failed()
    assert (breaker.state, breaker.wait(), breaker.openings) == (BreakerState.OPEN, 30, 1)
    clock.now += 29
    assert breaker.wait() == 1
    clock.now += 1
    assert (breaker.state, breaker.wait()) == (BreakerState.HALF_OPEN, 0)
    breaker.failed()  # one is enough now
    assert (breaker.state, breaker.wait(), breaker.openings) == (BreakerState.OPEN, 30, 2)
    clock.now += 30
    assert breaker.wait() == 0
    breaker.succeeded()
    assert (breaker.state, breaker.wait()) == (BreakerState.CLOSED, 0)
    breaker.failed()
    breaker.failed()
    assert breaker.state is BreakerState.CLOSED  # it counts from nought again


def test_a_half_open_breaker_lets_one_thread_through(clock: Clock) -> None:
    breaker = CircuitBreaker(failures=1, pause=30)
    breaker.failed()
    clock.now += 30
    assert breaker.wait() == 0
    assert _elsewhere(breaker.wait) == 30
    assert breaker.wait() == 0  # it had found nothing to try with, and asks again
    clock.now += 31
    assert _elsewhere(breaker.wait) == 0  # the first was never heard of again
    assert breaker.wait() == 30


def test_what_began_before_the_breaker_opened_changes_nothing(clock: Clock) -> None:
    breaker = CircuitBreaker(failures=1, pause=30)
    breaker.failed()
    clock.now += 10
    breaker.failed()
    breaker.succeeded()
    assert (breaker.wait(), breaker.openings) == (20, 1)


def test_the_breakers_are_those_of_the_subscriptions() -> None:
    all_of_them = CircuitBreakers()
    assert all_of_them.of(BILL) is all_of_them.of(BILL)
    for subscription in (BILL, FILE_AWAY, GIVE_BACK):
        for _ in range(3):
            all_of_them.of(subscription).failed()
    assert all_of_them.of(BILL).wait() > 29
    assert all_of_them.of(FILE_AWAY).wait() == 0  # it declares none
    assert all_of_them.of(GIVE_BACK).wait() == 0  # it declares one, but it compensates
    assert all_of_them.snapshot() == {
        "billing.bill": {"state": "open", "openings": 1},
        "billing.file_away": {"state": "closed", "openings": 0},
        "billing.give_back": {"state": "closed", "openings": 0},
    }


def _elsewhere(function: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_events_are_guarded_unless_told_otherwise() -> None:
    engine = create_engine("sqlite://")
    default = Events([], engine=engine, broker=MemoryBroker()).guards
    assert isinstance(default, StormGuard)
    assert (default.max_hops, default.max_repeats) == (32, 8)
    assert Events([], engine=engine, broker=MemoryBroker(), guards=None).guards is None


def test_a_message_that_repeats_too_often_in_its_chain_is_quarantined() -> None:
    guard = StormGuard(max_hops=100, max_repeats=2)
    assert guard.admit(chain(*[OrderPlaced] * 3), BILL).decision is Decision.ADMIT
    stopped = guard.admit(chain(*[OrderPlaced, ItemReserved] * 3, OrderPlaced), BILL)
    assert stopped.decision is Decision.DEAD_LETTER
    assert "max_repeats=2" in stopped.reason
    with pytest.raises(ConfigurationError, match="at least 1"):
        StormGuard(max_repeats=0)
