"""Says in every line of a log which saga, step and attempt it was written for, whoever writes it.

::

    from sagas import logs

    logs.install(sagas)  # beside the app, so that it is done in every process
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

#: What the filter gives each record. A "-" where it does not apply.
FIELDS = ("saga", "saga_id", "step", "attempt", "correlation_id", "queue", "event_id")

_NOTHING: Mapping[str, str | int] = {}
_CURRENT: ContextVar[Mapping[str, str | int]] = ContextVar("sagas_logs", default=_NOTHING)


def current() -> Mapping[str, str | int]:
    """Return what is at work in this thread: those of `FIELDS` that apply. Empty outside of steps and handlers.

    A thread that a step starts is not the step's: pass it on with `contextvars.copy_context().run`.
    """
    return _CURRENT.get()


def install(sagas: Sagas) -> None:
    """Have what is logged in a step or a handler say which: by user code, by libraries and by the engine.

    It adds the filter `Fields` to the handlers that Celery makes when a worker sets its logs up. Handlers of your own,
    or of another process, need it too: `handler.addFilter(logs.Fields())`, or in `dictConfig`
    `"filters": {"sagas": {"()": "sagas.logs.Fields"}}`.
    """
    sagas.observers.add(_Logs())
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.connect(_add_fields, weak=False)


def processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what is at work to an event of structlog. What the event says itself comes first."""
    for name, value in _CURRENT.get().items():
        event.setdefault(name, value)
    return event


class Fields(logging.Filter):
    """Lets every record pass, with `FIELDS` as attributes. What the line says itself, by `extra`, stays.

    A filter of handlers and no record factory: there, user code that has one of these names as `extra` would fail.

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
