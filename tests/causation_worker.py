"""What the processes of test_causation import: messages that lead to sagas that lead to messages."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

from celery import Celery

from sagas import Pivot, Saga, Sagas, SqlStore, StepContext
from sagas.events import Events, HandlerContext, Service, command, event
from sagas.events.brokers.rabbitmq import RabbitBroker


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


@event("billing.order.paid")
class OrderPaid:
    order_id: str


@event("billing.alarm.raised")
class AlarmRaised:
    number: int


@command("mailing.send_receipt")
class SendReceipt:
    order_id: str


orders = Service("orders", publishes=[OrderPlaced])
billing = Service("billing", publishes=[OrderPaid, AlarmRaised])
mailing = Service("mailing")


def charge(step: StepContext) -> None:
    audit.start(key=f"audit-{step.key}")
    step.emit(OrderPaid(order_id=step.key))


def note() -> None:
    pass


def alarm(step: StepContext) -> None:
    step.emit(AlarmRaised(number=1))


pay_order = Saga("pay_order", Pivot("charge", charge))
audit = Saga("audit", Pivot("note", note))
archive = Saga("archive", Pivot("note", note))
echo = Saga("echo", Pivot("alarm", alarm))


@billing.on(OrderPlaced)
def begin_payment(event: OrderPlaced, context: HandlerContext) -> None:
    pay_order.start(key=event.order_id, session=context.session)


@mailing.on(OrderPaid, emits=[SendReceipt])
def ask_for_receipt(event: OrderPaid, context: HandlerContext) -> None:
    context.emit(SendReceipt(order_id=event.order_id))


@mailing.handles(SendReceipt)
def send_receipt(command: SendReceipt) -> None:
    file_away.delay(command.order_id)


@billing.on(AlarmRaised)
def answer_alarm(event: AlarmRaised, context: HandlerContext) -> None:
    echo.start(key=str(uuid.uuid4()), session=context.session)


settings: dict[str, Any] = json.loads(os.environ["RIG"])
app = Celery("causation", broker=settings["broker"], set_as_current=False)
app.conf.task_default_queue = settings["queue"]


@app.task(name="file_away")  # type: ignore[untyped-decorator]
def file_away(order_id: str) -> None:
    archive.start(key=f"archive-{order_id}")


store = SqlStore(settings["database"])
events = Events(
    [orders, billing, mailing],
    engine=store.engine,
    broker=RabbitBroker(settings["broker"]),
    exchange=f"{settings['queue']}.events",
    relay_interval=0.02,
)
sagas = Sagas(app, store, [pay_order, audit, archive, echo], events=events)
