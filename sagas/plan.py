"""What is left of a saga. Start, resume, compensation, sweep and an operator's retry all begin here."""

from __future__ import annotations

from dataclasses import dataclass

from sagas.checkpoints import AT_REST, Direction, SagaSummary, StepRecord, StepStatus
from sagas.definition import BoundStep, Saga

__all__ = ["Plan", "plan", "settled"]

#: With these a step needs nothing more, going forward.
_FORWARD_SETTLED = frozenset({StepStatus.DONE, StepStatus.SKIPPED})

#: With these a step has something to undo, if it has a compensation.
_TO_UNDO = frozenset({StepStatus.DONE, StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.UNDOING, StepStatus.STUCK})


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages that are left, in the order in which they run. Without stages there is nothing to launch now."""

    saga: Saga
    saga_id: str
    epoch: int
    dispatch: int  #: +1 each time that what is left is sent anew
    direction: Direction
    stages: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stages)


def plan(saga: Saga, record: SagaSummary) -> Plan:
    """Decide what is left to do. Pure: the same record gives the same plan.

    Steps that somebody is already at work on are left out of the first stage: whoever closes the stage goes on with
    the rest. When all of the first stage is at work, there is nothing to launch.
    """
    nothing = Plan(saga, record.id, record.epoch, record.dispatches, record.direction)
    if record.status in AT_REST:
        return nothing
    stages = saga.stages if record.direction is Direction.FORWARD else saga.stages[::-1]
    left = [rest for stage in stages if (rest := _unsettled(stage, record))]
    if not left:
        return nothing
    first = tuple(
        step.name
        for step in left[0]
        if not (state := record.step(step.name)).held and state.status is not StepStatus.STUCK
    )
    if not first:
        return nothing
    later = [tuple(step.name for step in stage) for stage in left[1:]]
    return Plan(saga, record.id, record.epoch, record.dispatches, record.direction, (first, *later))


def settled(step: BoundStep, record: StepRecord, direction: Direction) -> bool:
    """Tell whether a step needs nothing more in this direction."""
    if direction is Direction.FORWARD:
        return record.status in _FORWARD_SETTLED
    if record.status is StepStatus.RUNNING:
        return False  # its action is still at work: what it leaves behind is not known yet
    never_began = record.status is StepStatus.FAILED and not record.position
    return step.compensation is None or never_began or record.status not in _TO_UNDO


def _unsettled(stage: tuple[BoundStep, ...], record: SagaSummary) -> list[BoundStep]:
    return [step for step in stage if not settled(step, record.step(step.name), record.direction)]
