"""Tracing with OpenTelemetry: a saga is one trace across processes. `pip install celery-sagas[opentelemetry]`.

::

    sagas = Sagas(app, store, [place_order], observers=[Tracing()])

The SDK decides where spans go: this module needs only the API. docs/monitoring.md shows how to set up the SDK in
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

from sagas.checkpoints import AT_REST, HistoryEntry, HistoryKind, SagaRecord, SagaStatus
from sagas.observers import NOT_YET, SUCCEEDED, Attempt, Handling, Observer, Start
from sagas.redaction import Redaction
from sagas.text import describe

__all__ = ["Tracing"]

_W3C = TraceContextTextMapPropagator()


class Tracing(Observer):
    """Creates spans for sagas and messages.

    - `start place_order`: a child of the span that is active at the start. The saga stores its span context, and all
      spans below are its children, in whichever process and however much later.
    - `place_order.reserve_stock`, `place_order.reserve_stock.compensate`: one for each attempt. It is active while the
      step's function runs, so spans created there are its children.
    - `place_order lost`, `... compensation started`, `... operator: retry`: the saga's history, without durations.
    - `place_order COMPLETED`, or COMPENSATED or STUCK: from the start of the saga to its end.
    - `handle inventory.reserve_stock`: one for each attempt of a handler, a child of the span that published the
      message.

    A saga that was started in a process without this observer has no trace of its own: each of its spans starts a new
    trace, or continues the active one. Find them by `sagas.saga.id`.

    `tracer_provider`: by default the global one.
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
            # Instrumentation of Celery may have its own spans, in another trace.
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
        """Record a history entry in the trace."""
        about: dict[str, str | int] = {**_about(record), "sagas.epoch": entry.epoch}
        # A late outcome's detail contains its result.
        detail = None if entry.what == HistoryKind.LATE_OUTCOME else entry.detail
        optional = {"sagas.step": entry.step, "sagas.operator": entry.actor, "sagas.detail": detail}
        about |= {name: value for name, value in optional.items() if value is not None}
        at = _nanoseconds(entry.at)
        self._tracer.start_span(f"{record.name} {entry.what}", parent, attributes=about, start_time=at).end(at)

    def carry(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier


def _about(record: SagaRecord) -> dict[str, str | int]:
    """Return attributes that identify a saga, but not its input and results: traces have many readers."""
    return {
        "sagas.saga": record.name,
        "sagas.saga.id": record.id,
        "sagas.saga.version": record.version,
        "sagas.saga.key": record.key,
        "sagas.correlation_id": record.correlation_id,
    }


def _context(carrier: Mapping[str, object]) -> Context | None:
    """Return the parent of a span from a carrier. None if it has none: then the active span is the parent."""
    found = {name: value for name in ("traceparent", "tracestate") if isinstance(value := carrier.get(name), str)}
    context = _W3C.extract(found, Context())
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
    # The same as `span.record_exception`, which cannot redact anything.
    about = {"exception.type": name, "exception.message": text, "exception.stacktrace": trace_}
    span.add_event("exception", about)
    span.set_status(Status(StatusCode.ERROR, f"{name}: {text}"))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
