"""Traces with OpenTelemetry: a saga is one trace, whoever runs its steps. `pip install celery-sagas[opentelemetry]`.

::

    sagas = Sagas(app, store, [place_order], observers=[Tracing()])

Where spans go is up to the SDK: this module asks for nothing but its API. docs/monitoring.md says how to set it up in
workers.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sagas.checkpoints import AT_REST, HistoryEntry, SagaRecord, SagaStatus
from sagas.observers import NOT_YET, SUCCEEDED, Attempt, Handling, Observer, Start
from sagas.redaction import Redaction
from sagas.text import describe

__all__ = ["Tracing"]

_W3C = TraceContextTextMapPropagator()


class Tracing(Observer):
    """Makes spans of what happens to sagas and to messages.

    - `start place_order`, where it is started: a child of the span that is active there. The saga keeps its name, and
      everything below is its child, in whatever process and however much later.
    - `place_order.reserve_stock`, `place_order.reserve_stock.compensate`: one an attempt. It is active while the step's
      function runs, so that what that calls is its child.
    - `place_order lost`, `... turned back`, `... operator: retry`: what the saga's history says, without a duration.
    - `place_order COMPLETED`, or COMPENSATED or STUCK: from when it was stored until then.
    - `handle inventory.reserve_stock`: one an attempt of a handler, a child of what published the message.

    A saga that was started by a process without this observer has no trace of its own: each of its spans begins one,
    or continues the one that is active. `sagas.saga.id` finds them.

    `tracer_provider`: left out, the global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("sagas", tracer_provider=tracer_provider)

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        match work:
            case Start():
                return self._start(work)
            case Attempt():
                return self._attempt(work)
            case Handling():
                return self._handle(work)

    @contextmanager
    def _start(self, work: Start) -> Iterator[None]:
        name, about = f"start {work.record.name}", _about(work.record)
        with self._tracer.start_as_current_span(name, kind=SpanKind.PRODUCER, attributes=about):
            work.traceparent = self.carry().get("traceparent")
            yield

    @contextmanager
    def _attempt(self, attempt: Attempt) -> Iterator[None]:
        record = attempt.record
        about: dict[str, str | int] = {
            **_about(record),
            "sagas.step": attempt.step,
            "sagas.direction": record.direction.value,
            "sagas.attempt": attempt.number,
            "sagas.epoch": record.epoch,
        }
        name = f"{record.name}.{attempt.step}" + (".compensate" if attempt.undoes else "")
        parent = _context({"traceparent": record.traceparent})
        with self._tracer.start_as_current_span(
            name,
            parent,
            kind=SpanKind.CONSUMER,
            attributes=about,
            # An instrumentation of Celery may have spans of its own, in another trace.
            links=_current_link() if parent is not None else (),
        ) as span:
            yield
            span.set_attribute("sagas.outcome", attempt.outcome or "cut off")
            if attempt.outcome not in (SUCCEEDED, NOT_YET):
                _fail(span, attempt.error, attempt.redaction)

    @contextmanager
    def _handle(self, work: Handling) -> Iterator[None]:
        about: dict[str, str | int] = {
            "messaging.system": "sagas",
            "messaging.operation.type": "process",
            "messaging.destination.name": work.queue,
            "messaging.message.id": work.event_id,
            "messaging.message.conversation_id": work.correlation_id,
            "sagas.event.type": work.type,
            "sagas.attempt": work.attempt,
        }
        parent = _context(work.metadata)
        links = _current_link() if parent is not None else ()
        with self._tracer.start_as_current_span(
            f"handle {work.queue}", parent, kind=SpanKind.CONSUMER, attributes=about, links=links
        ) as span:
            yield
            span.set_attribute("sagas.outcome", work.outcome or "")

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        if before is None:
            return
        parent = _context({"traceparent": after.traceparent})
        for entry in history:
            self._mark(after, entry, parent)
        if after.status in AT_REST and before.status is not after.status:
            name, begun = f"{after.name} {after.status}", _nanoseconds(after.created_at)
            whole = self._tracer.start_span(name, parent, attributes=_about(after), start_time=begun)
            if after.status is not SagaStatus.COMPLETED:
                whole.set_status(Status(StatusCode.ERROR, after.error))
            whole.end(_nanoseconds(after.updated_at))

    def _mark(self, record: SagaRecord, entry: HistoryEntry, parent: Context | None) -> None:
        """Put a line of the history into the trace."""
        about: dict[str, str | int] = {**_about(record), "sagas.epoch": entry.epoch}
        # What landed late is told with its result.
        detail = None if entry.what == "late outcome" else entry.detail
        told = {"sagas.step": entry.step, "sagas.operator": entry.actor, "sagas.detail": detail}
        about |= {name: value for name, value in told.items() if value is not None}
        at = _nanoseconds(entry.at)
        self._tracer.start_span(f"{record.name} {entry.what}", parent, attributes=about, start_time=at).end(at)

    def carry(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier


def _about(record: SagaRecord) -> dict[str, str | int]:
    """Return what tells a saga. Not its input and results: a trace is read by many."""
    return {
        "sagas.saga": record.name,
        "sagas.saga.id": record.id,
        "sagas.saga.version": record.version,
        "sagas.saga.key": record.key,
        "sagas.correlation_id": record.correlation_id,
    }


def _context(carrier: Mapping[str, object]) -> Context | None:
    """Return what a carrier says as the parent of a span. None where it says nothing: what is active is the parent."""
    told = {name: value for name in ("traceparent", "tracestate") if isinstance(value := carrier.get(name), str)}
    context = _W3C.extract(told, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def _current_link() -> Sequence[Link]:
    current = trace.get_current_span().get_span_context()
    return (Link(current),) if current.is_valid else ()


def _fail(span: Span, error: BaseException | None, redaction: Redaction | None) -> None:
    if error is None:
        span.set_status(Status(StatusCode.ERROR))
        return
    text, trace_ = describe(error), "".join(traceback.format_exception(error))
    if redaction:
        text, trace_ = redaction.text(text), redaction.text(trace_)
    name = type(error).__qualname__
    # As `span.record_exception` does, which has no way to leave something out.
    about = {"exception.type": name, "exception.message": text, "exception.stacktrace": trace_}
    span.add_event("exception", about)
    span.set_status(Status(StatusCode.ERROR, f"{name}: {text}"))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
