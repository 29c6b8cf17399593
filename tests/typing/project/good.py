"""A user's project. Type checkers have nothing to say about it, in their strictest modes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypedDict, assert_type

from celery import Celery
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sagas import (
    NEVER,
    Parallel,
    Pivot,
    Retry,
    RetryableError,
    Saga,
    SagaHandle,
    SagaRecord,
    Sagas,
    SagaStatus,
    SagaSummary,
    SqlStore,
    StartResult,
    Step,
    StepContext,
    StepRecord,
    TerminalError,
)
from sagas.contrib.flask import AppSagas, FlaskSagas, current_sagas, status_blueprint
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.stores import Filter
from sagas.testing import Inline


@dataclass
class Order:
    sku: str
    amount: Decimal


class Transfer(TypedDict):
    cents: int


class Stay(BaseModel):
    nights: int


@event("orders.order.placed")
class OrderPlaced:
    order_id: str
    amount: Decimal = Decimal(0)


def reserve(sku: str, step: StepContext) -> str:
    if step.attempt > 3 and step.now - step.started_at > timedelta(hours=1):
        raise TerminalError("no more")
    session: Session = step.session
    session.flush()
    step.emit(OrderPlaced(order_id=step.key), key=sku)
    return step.idempotency_key


def capture(amount: Decimal) -> Decimal:
    return amount


def release(result: str | None) -> None: ...


async def ask(amount: Decimal, step: StepContext | None = None) -> Decimal:
    return amount


class Answer:
    async def __call__(self, result: Decimal | None) -> None: ...


asynchronous = Saga(
    "asynchronous",
    Step("ask", ask, compensation=Answer(), timeout=timedelta(seconds=5), retry=Retry(delay=timedelta(seconds=1))),
    Pivot("tell", lambda: RetryableError(after=timedelta(seconds=1)).after),
    input=Order,
)

place_order = Saga(
    "place_order",
    Step("reserve", reserve, compensation=release, retry=Retry(on={TimeoutError: NEVER}), poll_timeout=60),
    Parallel(Step("a", release, compensation=None), Step("b", release, compensation=None)),
    Pivot("capture", capture),
    input=Order,
    timeout=60,
)
transfer = Saga("transfer", Step("a", release, compensation=None), input=Transfer)
book = Saga("book", Step("a", release, compensation=None), input=Stay)
tick = Saga("tick", Step("a", release, compensation=None))
assert_type(place_order, Saga[Order])
assert_type(transfer, Saga[Transfer])
assert_type(book, Saga[Stay])
everything: list[Saga] = [place_order, transfer, book, tick]

app = Celery("shop", broker="memory://")
store = SqlStore("sqlite:///shop.db")
orders = Service("orders", publishes=[OrderPlaced])


@orders.on(OrderPlaced)
def look(event: OrderPlaced, context: HandlerContext) -> None:
    assert_type(context.session, Session)
    assert_type(event.amount, Decimal)


events = Events([orders], engine=store.engine, broker=MemoryBroker())
sagas = Sagas(app, store, everything, events=events, lease=10)
assert_type(sagas, Sagas[SqlStore])
assert_type(sagas.store.queries.count(Filter(statuses=frozenset({SagaStatus.STUCK}))), int)


def start(session: Session) -> None:
    handle = place_order.start(Order("tea", Decimal(1)), key="o-1", session=session)
    assert_type(handle, SagaHandle)
    assert_type(handle.wait(timeout=1), SagaStatus)
    assert_type(handle.record, SagaRecord)
    assert_type(handle.record.step("reserve"), StepRecord)
    place_order.start({"sku": "tea", "amount": "1"})
    transfer.start({"cents": 1})
    book.start(Stay(nights=2))
    tick.start()
    sagas.start(book, Stay(nights=2), session=session)
    events.publish(OrderPlaced(order_id="1"), session, key="1")


async def astart(session: AsyncSession) -> None:
    handle = await place_order.astart(Order("tea", Decimal(1)), key="o-1", session=session)
    assert_type(handle, SagaHandle)
    assert_type(await handle.await_end(timeout=timedelta(seconds=1)), SagaStatus)
    assert_type(await handle.arecord(), SagaRecord)
    results = await place_order.astart_many([(Order("tea", Decimal(1)), "o-1")])
    assert_type(results, Sequence[StartResult])
    assert_type(
        place_order.start_many([Order("tea", Decimal(1)), {"sku": "tea", "amount": "1"}]), Sequence[StartResult]
    )
    assert_type(place_order.start_many((Order("tea", Decimal(n)), str(n)) for n in range(3)), Sequence[StartResult])
    tick.start_many([None, (None, "k")])
    transfer.start_many([{"cents": 1}])
    assert_type(results[0].handle, SagaHandle | None)
    assert_type(await sagas.to_thread(lambda: sagas.handle("id")), SagaHandle)


def any_sagas(sagas: Sagas) -> SagaSummary:
    """A bare annotation takes the sagas of any store."""
    return Operations(sagas).act(Action.RETRY, "id", actor="ann", reason="why")


any_sagas(sagas)
Inline(store).start(place_order, Order("tea", Decimal(1)))

db = SQLAlchemy()


def make_events(engine: Engine) -> Events:
    return Events([orders], engine=engine, broker=MemoryBroker())


flask_sagas = FlaskSagas(db, everything, events=make_events)


def mine(record: SagaRecord) -> bool:
    return record.key == "mine"


def create_app(settings: dict[str, Any]) -> Flask:
    flask = Flask("shop")
    flask.config.update(settings)
    db.init_app(flask)
    assert_type(flask_sagas.init_app(flask), AppSagas)
    assert_type(current_sagas().store, SqlStore)
    flask.register_blueprint(status_blueprint(mine, show_error=mine))
    place_order.start(Order("tea", Decimal(1)), session=db.session)
    return flask
