"""What a Celery worker does for sagas beside running their tasks: it looks at what is due."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps

from sagas.errors import ConfigurationError
from sagas.recovery import Recovery

__all__ = [
    "RecoveryStep",
    "pool_of",
    "refuse_memory",
    "warn_of_eagerness",
    "warn_of_ignored_limits",
    "warn_of_silence",
]

logger = logging.getLogger(__name__)

#: The pools on which Celery's time limits do nothing; the timeouts of steps, being kept in SQL, do.
_WITHOUT_LIMITS = ("threads", "solo")


class RecoveryStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs recovery in a thread of the worker's main process, through reconnects, until the worker stops."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        import sagas.control  # noqa: F401, PLC0415 - a worker has all of it loaded; others would take 0.1 s for it

        self._recovery: Recovery = parent.app.sagas.recovery
        parent.app.sagas.check()
        if parent.app.sagas.orchestrator.sagas:
            refuse_memory(parent)
        warn_of_eagerness(parent.app)
        warn_of_ignored_limits(parent)
        warn_of_silence(parent.app)
        # Celery's time limits are for one task: with them each step is one.
        if parent.app.sagas.run_next_inline and not (parent.time_limit or parent.soft_time_limit):
            queues = parent.app.amqp.queues.consume_from
            parent.app.sagas.canvas.prepare(queues=queues, sends_events=parent.task_events)

    def start(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.stop()

    terminate = stop


def refuse_memory(worker: Any) -> None:
    """Refuse a broker in the memory of one process for a pool of several: what a child sends reaches nobody."""
    with worker.app.connection_for_write() as connection:
        if connection.transport.driver_type == "memory" and pool_of(worker) == "prefork":
            raise ConfigurationError(
                "the broker memory:// is within one process, and the prefork pool has several: start the worker with "
                "--pool threads or solo, or use a real broker"
            )


def warn_of_ignored_limits(worker: Any) -> None:
    """Say so when the app sets Celery's time limits on a pool that ignores them."""
    pool = pool_of(worker)
    limits = {"task_time_limit": worker.time_limit, "task_soft_time_limit": worker.soft_time_limit}
    ignored = [f"{name}={value}" for name, value in limits.items() if value]
    if ignored and pool in _WITHOUT_LIMITS:
        logger.warning(
            "%s: the %s pool ignores Celery's time limits. Use Step(timeout=...): it holds on every pool",
            ", ".join(ignored),
            pool,
        )


def warn_of_eagerness(app: Celery) -> None:
    """Say so when nothing that is started would ever come to the worker."""
    if app.conf.task_always_eager:
        logger.warning(
            "task_always_eager is on: sagas run where they are started, and those that this worker recovers in its "
            "main process. It is for tests"
        )


def warn_of_silence(app: Celery) -> None:
    """Say so when a Redis that falls silent would hold a worker, and its recovery, for ever."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type == "redis" and not connection.transport_options.get("socket_timeout"):
            logger.warning(
                "broker_transport_options has no socket_timeout: whoever publishes on a connection to Redis that hangs "
                "waits for ever. Set it, for example to 30 (seconds)"
            )


def pool_of(worker: Any) -> str:
    """Return what the worker's pool is called with `--pool`."""
    module = getattr(worker.pool_cls, "__module__", "").rpartition(".")[2]
    return "threads" if module == "thread" else module
