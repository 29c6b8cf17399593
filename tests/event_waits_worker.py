"""What the processes of test_event_waits import: orders that wait for an event of the payments."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from sagas import Saga, Sagas, SqlStore, Step, StepContext, Wait
from sagas.events import Events, Service, event
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker


@event("payments.payment.confirmed")
class PaymentConfirmed:
    order_id: str
    cents: int


def reserve(step: StepContext) -> str:
    return f"reserved {step.key}"


def ship(payment: PaymentConfirmed) -> int:
    return payment.cents


place_order = Saga(
    "place_order",
    Step("reserve", reserve, compensation=None),
    Wait("payment", on=PaymentConfirmed, key="order_id", timeout=600),
    Step("ship", ship, compensation=None),
)
orders = Service("orders")
orders.forward_to(place_order)
payments = Service("payments", publishes=[PaymentConfirmed])

settings: dict[str, Any] = json.loads(os.environ["RIG"])
app = Celery("orders", broker=settings["broker"], set_as_current=False)
app.conf.task_default_queue = settings["queue"]
store = SqlStore(settings["database"])
broker = RabbitBroker if settings["broker"].startswith("amqp") else RedisBroker
events = Events(
    [orders, payments],
    engine=store.engine,
    broker=broker(settings["broker"]),
    exchange=f"{settings['queue']}.events",
    relay_interval=0.02,
)
sagas = Sagas(
    app, store, [place_order], events=events, lease=2, redispatch_after=2, recovery_interval=0.2
)  # fmt: skip
