"""Lines that are logged in steps and handlers say which."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from celery import Celery, signals

from sagas import Saga, Sagas, SqlStore, Step, StepContext, logs
from sagas.events import Events, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.envelope import Envelope
from sagas.events.inbox import Call, End
from sagas.testing import Inline

FORMAT = "%(saga)s %(saga_id)s %(step)s %(attempt)s %(correlation_id)s %(queue)s %(event_id)s: %(message)s"


@event("stock.stock.reserved")
class StockReserved:
    sku: str


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("shop")
    handler.addFilter(logs.Fields())
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)


@pytest.fixture
def sagas(tmp_path: Path) -> Iterator[Sagas]:
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}")
    store.upgrade()
    app = Celery("x", broker="memory://", set_as_current=False)
    stock, billing = Service("stock", publishes=[StockReserved]), Service("billing")

    @billing.on(StockReserved)
    def bill(event: StockReserved) -> None:
        logging.getLogger("shop.billing").info("billing")

    events = Events([stock, billing], engine=store.engine, broker=MemoryBroker())
    sagas = Sagas(app, store, events=events)
    logs.install(sagas)
    yield sagas
    app.close()
    store.engine.dispose()


def run(sagas: Sagas, saga: Saga) -> str:
    inline = Inline(sagas.store)
    inline.orchestrator.observers = sagas.observers
    return inline.start(saga, correlation_id="story").id


def test_a_step_and_its_undo_are_in_each_line(sagas: Sagas, out: io.StringIO) -> None:
    log = logging.getLogger("shop.stock")

    def reserve(step: StepContext) -> None:
        log.info("reserving", extra={"queue": "of the caller"})  # a name of ours is no error, and stays

    def release() -> None:
        log.info("releasing")

    def fail() -> None:
        raise ValueError("broken")

    saga = Saga("order", Step("reserve", reserve, compensation=release), Step("pay", fail, compensation=None))
    saga_id = run(sagas, saga)
    log.info("outside")
    assert out.getvalue().splitlines() == [
        f"order {saga_id} reserve 1 story of the caller -: reserving",
        f"order {saga_id} reserve.compensate 1 story - -: releasing",
        "- - - - - - -: outside",
    ]
    assert logs.current() == {}


def test_a_handler_is_in_each_line(sagas: Sagas, out: io.StringIO) -> None:
    envelope = Envelope.wrap(StockReserved(sku="tea"), source="stock", correlation_id="story")
    call = Call("billing.bill", envelope.topic, envelope.encode(), attempt=2, redelivered=False)
    assert sagas.events is not None
    assert sagas.events.handle(call).end is End.HANDLED
    assert out.getvalue() == f"- - - 2 story billing.bill {envelope.event_id}: billing\n"


def test_celery_gets_the_filter_once(sagas: Sagas) -> None:
    logger = logging.getLogger("as-celery-makes-it")
    logger.addHandler(logging.NullHandler())
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.send(sender=None, logger=logger)
    assert [type(found) for found in logger.handlers[0].filters] == [logs.Fields]


def test_structlog_says_it_too(sagas: Sagas) -> None:
    stream = io.StringIO()
    log = structlog.wrap_logger(
        structlog.PrintLogger(stream), processors=[logs.processor, structlog.processors.JSONRenderer()]
    )

    def reserve() -> None:
        log.info("reserving", step="as I call it")

    saga_id = run(sagas, Saga("order", Step("reserve", reserve, compensation=None)))
    log.info("outside")
    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert inside == {
        "event": "reserving", "saga": "order", "saga_id": saga_id, "step": "as I call it", "attempt": 1,
        "correlation_id": "story",
    }  # fmt: skip
    assert outside == {"event": "outside"}
