"""Recovery in a Celery worker: it examines sagas that are due."""

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

#: The pools that ignore Celery's time limits. They do support the timeouts of steps, which are stored in SQL.
_WITHOUT_LIMITS = ("threads", "solo")


class RecoveryStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs recovery in a thread of the worker's main process, through reconnects, until the worker stops."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        import sagas.control  # noqa: F401, PLC0415 - a worker has Celery loaded; elsewhere it would take 0.1 s

        self._recovery: Recovery = parent.app.sagas.recovery
        parent.app.sagas.check()
        if parent.app.sagas.orchestrator.sagas:
            refuse_memory(parent)
        warn_of_eagerness(parent.app)
        warn_of_ignored_limits(parent)
        warn_of_silence(parent.app)
        # Celery's time limits apply to a whole task: with them, each step runs as its own task.
        if parent.app.sagas.run_next_inline and not (parent.time_limit or parent.soft_time_limit):
            queues = parent.app.amqp.queues.consume_from
            parent.app.sagas.canvas.inline.prepare(queues=queues, sends_events=parent.task_events)

    def start(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.stop()

    terminate = stop


def refuse_memory(worker: Any) -> None:
    """Refuse a broker in one process's memory with a pool of several processes: child processes reach nobody."""
    with worker.app.connection_for_write() as connection:
        if connection.transport.driver_type == "memory" and pool_of(worker) == "prefork":
            raise ConfigurationError(
                "the broker memory:// works inside one process, but the prefork pool has several. Start the worker "
                "with --pool threads or solo, or use a real broker"
            )


def warn_of_ignored_limits(worker: Any) -> None:
    """Warn if the app sets Celery's time limits on a pool that ignores them."""
    pool = pool_of(worker)
    limits = {"task_time_limit": worker.time_limit, "task_soft_time_limit": worker.soft_time_limit}
    ignored = [f"{name}={value}" for name, value in limits.items() if value]
    if ignored and pool in _WITHOUT_LIMITS:
        logger.warning(
            "%s: the %s pool ignores Celery's time limits. Use Step(timeout=...), which works on every pool",
            ", ".join(ignored),
            pool,
        )


def warn_of_eagerness(app: Celery) -> None:
    """Warn if started sagas would never reach the worker."""
    if app.conf.task_always_eager:
        logger.warning(
            "task_always_eager is on: sagas run where they are started, and those that this worker recovers run in its "
            "main process. It is only for tests"
        )


def warn_of_silence(app: Celery) -> None:
    """Warn if a silent Redis would block a worker and its recovery forever."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type == "redis" and not connection.transport_options.get("socket_timeout"):
            logger.warning(
                "broker_transport_options has no socket_timeout: publishing on a Redis connection that hangs waits "
                "forever. Set it, for example to 30 (seconds)"
            )


def pool_of(worker: Any) -> str:
    """Return the name of the worker's pool, as in `--pool`."""
    module = getattr(worker.pool_cls, "__module__", "").rpartition(".")[2]
    return "threads" if module == "thread" else module
