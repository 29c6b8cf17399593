"""Rates that are shared in Redis: what several processes take together, and what happens when it is away."""

from __future__ import annotations

import logging
import time

import pytest

from sagas.events import Envelope, Service, event
from sagas.events.guards import Decision, StormGuard
from tests.servers import Redis


@event("orders.order.placed")
class OrderPlaced:
    order_id: str = "o-1"


billing = Service("billing")


@billing.on(OrderPlaced)
def bill(event: OrderPlaced) -> None: ...


[BILL] = billing.subscriptions


def test_a_rate_is_shared(redis_server: Redis) -> None:
    redis_server.flush()
    message = Envelope.wrap(OrderPlaced(), source="orders")
    one, other = (StormGuard(rate="4/minute", storage=redis_server.url) for _ in range(2))
    verdicts = [guards.admit(message, BILL).decision for guards in (one, other, one, other, one, other)]
    assert verdicts == [Decision.ADMIT] * 4 + [Decision.THROTTLE] * 2
    assert 50 < one.admit(message, BILL).seconds <= 60


def test_a_storage_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Redis() as server:
        guards = StormGuard(rate="1/minute", storage=server.url)
        message = Envelope.wrap(OrderPlaced(), source="orders")
        assert guards.admit(message, BILL).decision is Decision.ADMIT
        assert guards.admit(message, BILL).decision is Decision.THROTTLE
        server.kill()
        with caplog.at_level(logging.WARNING):
            began = time.monotonic()
            assert {guards.admit(message, BILL).decision for _ in range(1000)} == {Decision.ADMIT}
    assert time.monotonic() - began < 5
    assert len(caplog.records) == 1  # it is not asked, and nothing is said, for each message
