"""`python -m benchmarks.messages`: what one message costs in this process, in microseconds; the best of five rounds."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

from sagas.events import Envelope, Service, event, type_of
from sagas.events.cloudevents import from_structured, to_structured
from sagas.events.guards import StormGuard
from sagas.events.local import LocalBus

_CALLS = 20_000


@event("orders.order.placed")
class OrderPlaced:
    order_id: str
    sku: str
    quantity: int


def main() -> None:
    placed = OrderPlaced(order_id="o-1", sku="tea", quantity=2)
    envelope = Envelope.wrap(placed, source="orders", key="o-1")
    bus, billing = LocalBus(), Service("billing")
    for _ in range(3):
        bus.subscribe(OrderPlaced, lambda event: event.quantity)
    billing.on(OrderPlaced, name="bill")(lambda event: event.quantity)
    [subscription] = billing.subscriptions
    hops, rate = StormGuard(), StormGuard(rate="1000000/second")
    for what, call in {
        "wrap an event, its data checked": lambda: Envelope.wrap(placed, source="orders", key="o-1"),
        "encode and decode an envelope": lambda: Envelope.decode(envelope.encode()),
        "open an envelope": lambda: envelope.open(type_of(OrderPlaced)),
        "write and read a CloudEvent": lambda: from_structured(to_structured(envelope)),
        "publish in this process, 3 handlers": lambda: bus.publish(placed),
        "admit, by hops": lambda: hops.admit(envelope, subscription),
        "admit, by hops and a rate in memory": lambda: rate.admit(envelope, subscription),
    }.items():
        print(f"{what:<40}{_best(call):8.1f} us")


def _best(call: Callable[[], Any]) -> float:
    return min(timeit.repeat(call, number=_CALLS, repeat=5)) / _CALLS * 1e6


if __name__ == "__main__":
    main()
