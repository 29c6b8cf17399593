"""What is left of a saga. A start, compensation, recovery, and an operator's retry all begin here."""

from __future__ import annotations

from dataclasses import dataclass

from sagas.checkpoints import AT_REST, Direction, SagaSummary, StepRecord, StepStatus
from sagas.definition import Saga
from sagas.opening import current_stage, goes_back, goes_on, opened, settled

__all__ = ["Plan", "Stage", "plan"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that run at the same time."""

    steps: tuple[str, ...]
    joined: bool = False  #: whether the stage has, or had, other steps: a join then finds out when all of them are done


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages that are left, in the order in which they run. Without stages there is nothing to dispatch now."""

    saga: Saga
    saga_id: str
    epoch: int
    dispatch: int  #: +1 each time that what is left is sent anew
    direction: Direction
    stages: tuple[Stage, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stages)


def plan(saga: Saga, record: SagaSummary) -> Plan:
    """Decide what is left to do. Pure: the same record gives the same plan.

    The first stage leaves out the steps that a worker is already running: the worker that ends the stage goes on with
    the rest. When workers run all of the first stage, there is nothing to dispatch.
    """
    nothing = Plan(saga, record.id, record.epoch, record.dispatches, record.direction)
    record = opened(saga, record)
    stage = current_stage(saga, record)
    if record.status in AT_REST or not stage:
        return nothing
    unsettled = [step for step in stage if not settled(saga, step, record.direction)]
    idle = (StepStatus.STUCK, StepStatus.WAITING)
    first = tuple(step.name for step in unsettled if not step.held and step.status not in idle)
    if not first:
        return nothing
    number = stage[0].stage
    later = _ahead(saga, number) if record.direction is Direction.FORWARD else _behind(saga, record, stage)
    stages = (Stage(first, joined=len(stage) > 1), *later)
    return Plan(saga, record.id, record.epoch, record.dispatches, record.direction, stages)


def _ahead(saga: Saga, number: int) -> list[Stage]:
    """Return the stages that have not been opened yet, up to the first one that the chain does not lead to."""
    stages = []
    while number + 1 < len(saga.stages) and goes_on(saga, number):
        number += 1
        nodes = saga.stages[number]
        stages.append(Stage(tuple(node.name for node in nodes), joined=len(nodes) > 1))
    return stages


def _behind(saga: Saga, record: SagaSummary, stage: tuple[StepRecord, ...]) -> list[Stage]:
    """Return the earlier stages with something to compensate, last first, up to one that the chain does not leave."""
    stages = []
    on = goes_back(stage)
    for earlier in range(stage[0].stage - 1, -1, -1):
        if not on:
            break
        steps = [step for step in record.steps.values() if step.stage == earlier]
        left: list[StepRecord] = [step for step in steps if not settled(saga, step, record.direction)]
        if left:
            stages.append(Stage(tuple(step.name for step in left), joined=len(steps) > 1))
            on = goes_back(steps)
    return stages
