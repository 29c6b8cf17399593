"""Spans of sagas and of messages, with the real SDK, in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select
from sqlalchemy.orm import Session

from sagas import Pivot, Retry, Saga, Sagas, SqlStore, Step, StepContext, TerminalError
from sagas.contrib.opentelemetry import Tracing
from sagas.events import Envelope, Events, HandlerContext, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End
from sagas.starts import start
from sagas.stores import schema
from sagas.testing import Inline
from sagas.transitions import Repair


@event("stock.stock.reserved")
class StockReserved:
    sku: str


@event("billing.invoice.sent")
class InvoiceSent:
    sku: str


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def names(self) -> list[str]:
        return [span.name for span in self.all()]

    def one(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.all() if span.name == name]
        return span

    def traces(self) -> set[int]:
        return {span.context.trace_id for span in self.all()}


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def nothing() -> None:
    pass


def decline() -> None:
    raise TerminalError("declined")


def refuse() -> None:
    raise ValueError("the bank is away")


def traced(spans: Spans, store: SqlStore | None = None, events: Events | None = None) -> Inline:
    inline = Inline(store, events=events)
    inline.orchestrator.observers.add(Tracing(spans.provider))
    return inline


def test_a_saga_is_one_trace_that_continues_the_callers(spans: Spans, store: SqlStore) -> None:
    inline = traced(spans, store)
    saga = Saga("order", Step("a", nothing, compensation=nothing), Step("b", decline, compensation=None))
    with spans.tracer.start_as_current_span("POST /orders") as request:
        handle = inline.start(saga, key="o-1", correlation_id="story")
    start = spans.one("start order")
    assert parent(start) == request.get_span_context().span_id
    assert spans.traces() == {start.context.trace_id}
    below = [
        "order.a",
        "order.b",
        "order step failed",
        "order compensation started",
        "order.a.compensate",
        "order COMPENSATED",
    ]
    assert sorted(spans.names()) == sorted(["POST /orders", "start order", *below])
    assert {parent(spans.one(name)) for name in below} == {start.context.span_id}
    assert (spans.one("order.b").attributes or {}) == {
        "sagas.saga": "order",
        "sagas.saga.id": handle.id,
        "sagas.saga.version": 1,
        "sagas.saga.key": "o-1",
        "sagas.correlation_id": "story",
        "sagas.step": "b",
        "sagas.direction": "FORWARD",
        "sagas.attempt": 1,
        "sagas.epoch": 1,
        "sagas.outcome": "terminal",
    }


def test_a_failed_attempt_has_its_error_and_the_whole_its_length(spans: Spans, store: SqlStore) -> None:
    inline = traced(spans, store)
    saga = Saga("order", Step("a", refuse, compensation=None, retry=Retry(max_attempts=2, delay=5, jitter=0)))
    handle = inline.start(saga)
    attempts = [span for span in spans.all() if span.name == "order.a"]
    assert [(span.attributes or {})["sagas.attempt"] for span in attempts] == [1, 2]
    assert {span.status.status_code for span in attempts} == {trace.StatusCode.ERROR}
    assert attempts[0].events[0].name == "exception"
    whole = spans.one("order COMPENSATED")
    assert whole.start_time is not None
    assert whole.end_time is not None
    assert whole.start_time == int(handle.record.created_at.timestamp() * 1_000_000) * 1000
    assert (whole.end_time - whole.start_time) / 1e9 > 5  # the wait between the two, by the clock that moves itself
    assert "the bank is away" in (whole.status.description or "")


def test_without_an_active_span_the_start_is_the_root(spans: Spans) -> None:
    traced(spans).start(Saga("order", Step("a", nothing, compensation=None)))
    assert parent(spans.one("start order")) is None
    assert len(spans.traces()) == 1


def test_what_a_step_calls_and_starts_belongs_to_its_attempt(spans: Spans) -> None:
    inline = traced(spans)
    inner = Saga("inner", Step("x", nothing, compensation=None))

    def call() -> None:
        with spans.tracer.start_as_current_span("GET /stock"):
            inline.start(inner)

    inline.start(Saga("outer", Step("a", call, compensation=None)))
    assert parent(spans.one("GET /stock")) == spans.one("outer.a").context.span_id
    assert parent(spans.one("start inner")) == spans.one("GET /stock").context.span_id
    assert len(spans.traces()) == 1


def test_what_an_operator_does_is_in_the_trace(spans: Spans, store: SqlStore) -> None:
    inline = traced(spans, store)
    once = Retry(max_attempts=1)
    handle = inline.start(Saga("order", Step("a", nothing, compensation=nothing), Pivot("pay", refuse, retry=once)))
    inline.orchestrator.repair(handle.id, "pay", Repair.DONE, reason="seen at the bank", actor="ann")
    told = spans.one("order operator: done").attributes or {}
    assert (told["sagas.operator"], told["sagas.step"], told["sagas.detail"]) == ("ann", "pay", "seen at the bank")
    assert {"order STUCK", "order COMPLETED"} <= set(spans.names())
    assert len(spans.traces()) == 1


def test_a_saga_that_was_started_untraced_continues_what_is_active(spans: Spans) -> None:
    inline = Inline()
    saga = Saga("order", Step("a", nothing, compensation=None))
    inline.orchestrator.register(saga)
    next_ = start(inline.orchestrator, saga, None, key=None, correlation_id=None, session=None)
    inline.orchestrator.observers.add(Tracing(spans.provider))
    with spans.tracer.start_as_current_span("task") as task:
        inline.orchestrator.perform(next_.record.id, "a", 1)
    assert parent(spans.one("order.a")) == task.get_span_context().span_id


def test_events_of_steps_and_handlers_carry_the_trace_on(spans: Spans, store: SqlStore) -> None:
    stock, billing = Service("stock", publishes=[StockReserved]), Service("billing")

    @billing.on(StockReserved, emits=[InvoiceSent])
    def bill(event: StockReserved, context: HandlerContext) -> None:
        context.emit(InvoiceSent(sku=event.sku))

    def reserve(step: StepContext) -> None:
        step.emit(StockReserved(sku="tea"))

    events = Events([stock, billing], engine=store.engine, broker=MemoryBroker())
    events.observers.add(Tracing(spans.provider))
    inline = traced(spans, store, events)
    inline.start(Saga("order", Step("reserve", reserve, compensation=None), publish_lifecycle=True))

    def sent(type_: str) -> str:
        with store.engine.connect() as connection:
            query = select(schema.outbox.c.body).where(schema.outbox.c.type == type_)
            body: str = connection.execute(query).scalar_one()
            return body

    def named(span: ReadableSpan) -> str:
        return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"

    # A step's event is caused by its attempt; the life of the saga, told where no span is active, by its start.
    body = sent("stock.stock.reserved")
    assert Envelope.decode(body).metadata["traceparent"] == named(spans.one("order.reserve"))
    assert Envelope.decode(sent("sagas.saga.started")).metadata["traceparent"] == named(spans.one("start order"))
    call = Call("billing.bill", "stock.stock.reserved.v1", body.encode(), attempt=1, redelivered=False)
    assert events.handle(call).end is End.HANDLED
    handling = spans.one("handle billing.bill")
    assert parent(handling) == spans.one("order.reserve").context.span_id
    assert Envelope.decode(sent("billing.invoice.sent")).metadata["traceparent"] == named(handling)
    assert len(spans.traces()) == 1


def test_a_process_without_tracing_hands_the_trace_on(spans: Spans, store: SqlStore) -> None:
    def reserve(step: StepContext) -> None:
        step.emit(StockReserved(sku="tea"))

    stock = Service("stock", publishes=[StockReserved])
    inline = Inline(store, events=Events([stock], engine=store.engine, broker=MemoryBroker()))
    saga = Saga("order", Step("reserve", reserve, compensation=None))
    inline.orchestrator.register(saga)
    with spans.tracer.start_as_current_span("web"):
        orchestrator = traced(spans, store).orchestrator
        record = start(orchestrator, saga, None, key=None, correlation_id=None, session=None).record
    inline.orchestrator.perform(record.id, "reserve", 1)
    with store.engine.connect() as connection:
        [body] = connection.execute(select(schema.outbox.c.body)).scalars()
    assert record.traceparent is not None
    assert Envelope.decode(body).metadata["traceparent"] == record.traceparent


def test_a_handler_that_fails_has_its_error(spans: Spans, store: SqlStore) -> None:
    stock, billing = Service("stock", publishes=[StockReserved]), Service("billing")

    @billing.on(StockReserved)
    def bill(event: StockReserved) -> None:
        raise TerminalError("too dear")

    events = Events([stock, billing], engine=store.engine, broker=MemoryBroker())
    Sagas(
        Celery("x", broker="memory://", set_as_current=False), store, events=events, observers=[Tracing(spans.provider)]
    )
    with Session(store.engine) as session, spans.tracer.start_as_current_span("request"):
        envelope = events.publish(StockReserved(sku="tea"), session)
    call = Call("billing.bill", envelope.topic, envelope.encode(), attempt=1, redelivered=False)
    assert events.handle(call).end is End.REJECTED
    handling = spans.one("handle billing.bill")
    assert handling.status.status_code is trace.StatusCode.ERROR
    assert parent(handling) == spans.one("request").context.span_id
