"""A worker's report about itself, for queries through Celery: `app.control.inspect()`."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command

__all__ = ["COMMAND", "report"]

COMMAND = "sagas"


@inspect_command(name=COMMAND)  # type: ignore[untyped-decorator]
def report(state: Any) -> dict[str, Any]:
    """Return the sagas that this worker can run, the event queues it consumes, and its settings."""
    sagas, worker = getattr(state.app, "sagas", None), state.consumer.controller
    if sagas is None:  # an app without sagas, in a process that has imported them
        return {}
    queues = [queue for step in worker.steps for queue in getattr(step, "event_queues", ())]
    return {
        "app": state.app.main,
        "definitions": {
            f"{name} {version}": saga.outline for (name, version), saga in sagas.orchestrator.sagas.items()
        },
        "event_queues": queues,
        "pool": getattr(worker.pool_cls, "__module__", "").rpartition(".")[2],
        "time_limit": worker.time_limit,
        "soft_time_limit": worker.soft_time_limit,
        "lease": sagas.orchestrator.timing.lease,
        "redispatch_after": sagas.orchestrator.timing.redispatch_after,
    }
