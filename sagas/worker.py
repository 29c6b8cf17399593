"""What a Celery worker does for sagas beside running their tasks."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps

from sagas.recovery import Recovery

__all__ = ["RecoveryStep", "warn_of_ignored_limits", "warn_of_silence"]

logger = logging.getLogger(__name__)

#: The pools on which Celery's time limits do nothing; the timeouts of steps, being kept in SQL, do.
_WITHOUT_LIMITS = ("threads", "solo")


class RecoveryStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs recovery in a thread of the worker's main process, through reconnects, until the worker stops."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._recovery: Recovery = parent.app.sagas.recovery
        warn_of_ignored_limits(parent)
        warn_of_silence(parent.app)
        # Celery's time limits are for one task: with them each step is one.
        if parent.app.sagas.follow_on and not (parent.time_limit or parent.soft_time_limit):
            queues = parent.app.amqp.queues.consume_from
            parent.app.sagas.canvas.prepare(queues=queues, sends_events=parent.task_events)

    def start(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.stop()

    terminate = stop


def warn_of_ignored_limits(worker: Any) -> None:
    """Say so when the app sets Celery's time limits on a pool that ignores them."""
    pool = getattr(worker.pool_cls, "__module__", "").rpartition(".")[2]
    limits = {"task_time_limit": worker.time_limit, "task_soft_time_limit": worker.soft_time_limit}
    ignored = [f"{name}={value}" for name, value in limits.items() if value]
    if pool == "thread":
        pool = "threads"
    if ignored and pool in _WITHOUT_LIMITS:
        logger.warning(
            "%s: the %s pool ignores Celery's time limits. Use Step(timeout=...): it holds on every pool",
            ", ".join(ignored),
            pool,
        )


def warn_of_silence(app: Celery) -> None:
    """Say so when a Redis that falls silent would hold a worker, and its recovery, for ever."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type == "redis" and not connection.transport_options.get("socket_timeout"):
            logger.warning(
                "broker_transport_options has no socket_timeout: whoever publishes on a connection to Redis that hangs "
                "waits for ever. Set it, for example to 30 (seconds)"
            )
