"""What the Celery tasks of sagas are called."""

from __future__ import annotations

from sagas.checkpoints import Direction
from sagas.definition import Saga

__all__ = ["BATCH", "FAIL", "JOIN", "task_id", "task_name"]

JOIN = "sagas.join"
FAIL = "sagas.fail"
BATCH = "sagas.batch"


def task_name(saga: Saga, step: str, direction: Direction) -> str:
    """Return the name of the Celery task that runs a step, or undoes it."""
    return f"{saga.name}.{step}" if direction is Direction.FORWARD else f"{saga.name}.{step}.compensate"


def task_id(saga_id: str, step: str, direction: Direction, dispatch: int, helper: str | None = None) -> str:
    """Return the id of the Celery task of a step, or with `helper` of the `JOIN` or `FAIL` that goes with it.

    A message keeps its id when it is delivered again. Each dispatch has ids of its own, so that a task which somebody
    revoked can be sent anew.

    >>> task_id("0198", "pay", Direction.BACKWARD, 2)
    '0198:pay:compensate:2'
    """
    if helper is not None:
        return f"{saga_id}:{helper}:{step}:{dispatch}"
    return (
        f"{saga_id}:{step}:{dispatch}" if direction is Direction.FORWARD else f"{saga_id}:{step}:compensate:{dispatch}"
    )
