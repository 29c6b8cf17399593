"""Adds the saga, step and attempt to every log line that is written for it, by any code.

::

    from sagas import logs

    logs.install(sagas)  # next to the app, so that it runs in every process
    app.conf.worker_log_format = "%(levelname)s %(saga)s %(saga_id)s %(step)s %(attempt)s: %(message)s"
    app.conf.worker_task_log_format = app.conf.worker_log_format

For structlog, add `logs.processor` to its processors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from celery import signals

from sagas.app import Sagas
from sagas.observers import Attempt, Handling, Observer, Start

__all__ = ["FIELDS", "Fields", "current", "install", "processor"]

#: The attributes that the filter adds to each record; "-" if one does not apply.
FIELDS = ("saga", "saga_id", "step", "attempt", "correlation_id", "queue", "event_id")

_NOTHING: Mapping[str, str | int] = {}
_CURRENT: ContextVar[Mapping[str, str | int]] = ContextVar("sagas_logs", default=_NOTHING)


def current() -> Mapping[str, str | int]:
    """Return the `FIELDS` of the work in this thread. Empty outside steps and handlers.

    Threads that a step starts do not inherit them: pass them on with `contextvars.copy_context().run`.
    """
    return _CURRENT.get()


def install(sagas: Sagas) -> None:
    """Add fields to all log lines in steps and handlers, whether from user code, libraries or the engine.

    This adds the filter `Fields` to the handlers that Celery creates when a worker sets up logging. Add it to other
    handlers yourself: `handler.addFilter(logs.Fields())`, or in `dictConfig`
    `"filters": {"sagas": {"()": "sagas.logs.Fields"}}`.
    """
    sagas.observers.add(_Logs())
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.connect(_add_fields, weak=False)


def processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the fields of the current work to a structlog event. Values in the event itself take precedence."""
    for name, value in _CURRENT.get().items():
        event.setdefault(name, value)
    return event


class Fields(logging.Filter):
    """Passes every record, with `FIELDS` as attributes. Values from the record's own `extra` take precedence.

    It is a filter of handlers rather than a record factory, with which user code that has one of these names in `extra`
    would fail.

    >>> handler = logging.StreamHandler()
    >>> handler.addFilter(Fields())
    >>> handler.setFormatter(logging.Formatter("%(saga)s %(step)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        about = _CURRENT.get()
        for name in FIELDS:
            record.__dict__.setdefault(name, about.get(name, "-"))
        return True


def _add_fields(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        if not any(isinstance(known, Fields) for known in handler.filters):
            handler.addFilter(Fields())


class _Logs(Observer):
    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        match work:
            case Attempt():
                record = work.record
                return _at_work(
                    saga=record.name,
                    saga_id=record.id,
                    step=f"{work.step}.compensate" if work.undoes else work.step,
                    attempt=work.number,
                    correlation_id=record.correlation_id,
                )
            case Handling():
                return _at_work(
                    queue=work.queue,
                    event_id=work.event_id,
                    attempt=work.attempt,
                    correlation_id=work.correlation_id,
                )
            case _:
                return nullcontext()


@contextmanager
def _at_work(**about: str | int) -> Iterator[None]:
    before = _CURRENT.set(about)
    try:
        yield
    finally:
        _CURRENT.reset(before)
