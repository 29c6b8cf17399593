"""The lifecycle of a saga as events that any service may subscribe to: `Saga(..., publish_lifecycle=True)`.

Each event is stored with the change it reports, belongs to the context `sagas`, and has the saga's id as its key: the
events of one saga stay in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sagas.checkpoints import Direction, SagaRecord, SagaStatus, StepStatus
from sagas.events.messages import event

__all__ = [
    "SagaCompensated",
    "SagaCompleted",
    "SagaGotStuck",
    "SagaStarted",
    "SagaCompensationStarted",
    "StepCompleted",
    "StepCompensated",
    "lifecycle_events",
]


@event("sagas.saga.started")
class SagaStarted:
    """The first step of a saga has started."""

    saga_id: str
    name: str
    version: int
    key: str


@event("sagas.step.completed")
class StepCompleted:
    """The action of a step is done. Its result stays in the saga's record."""

    saga_id: str
    name: str
    key: str
    step: str


@event("sagas.saga.compensation_started", failure=True)
class SagaCompensationStarted:
    """The saga started compensating."""

    saga_id: str
    name: str
    key: str
    error: str | None


@event("sagas.step.compensated")
class StepCompensated:
    """A step has been compensated."""

    saga_id: str
    name: str
    key: str
    step: str


@event("sagas.saga.completed")
class SagaCompleted:
    """Every step of the saga is done."""

    saga_id: str
    name: str
    key: str


@event("sagas.saga.compensated")
class SagaCompensated:
    """Every step that had started is compensated."""

    saga_id: str
    name: str
    key: str
    error: str | None


@event("sagas.saga.got_stuck", failure=True)
class SagaGotStuck:
    """The saga is stuck and needs a person to decide."""

    saga_id: str
    name: str
    key: str
    error: str | None


_ENDS: Mapping[SagaStatus, Callable[..., Any]] = {
    SagaStatus.COMPENSATED: SagaCompensated,
    SagaStatus.STUCK: SagaGotStuck,
}
_STEP_ENDS: Mapping[StepStatus, Callable[..., Any]] = {
    StepStatus.DONE: StepCompleted,
    StepStatus.COMPENSATED: StepCompensated,
}


def lifecycle_events(before: SagaRecord, after: SagaRecord) -> Iterator[Any]:
    """Yield the events for a change of a saga's record, in order. Pure."""
    of: dict[str, Any] = {"saga_id": after.id, "name": after.name, "key": after.key}
    has_begun = after.direction is Direction.FORWARD or any(step.started_seq for step in after.steps.values())
    if before.status is SagaStatus.PENDING and after.status is not before.status and has_begun:
        yield SagaStarted(**of, version=after.version)
    for step in after.steps.values():
        if step.status in _STEP_ENDS and step.status is not before.step(step.name).status:
            yield _STEP_ENDS[step.status](**of, step=step.name)
    if after.direction is not before.direction:
        yield SagaCompensationStarted(**of, error=after.error)
    if after.status is before.status:
        return
    if after.status is SagaStatus.COMPLETED:
        yield SagaCompleted(**of)
    elif after.status in _ENDS:
        yield _ENDS[after.status](**of, error=after.error)
