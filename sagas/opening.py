"""How a saga comes to its steps: a stage of the definition opens them when it is reached.

From then on the record owns them. They are what runs, what is undone, and what tools show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from sagas.checkpoints import AT_REST, Direction, SagaSummary, StepRecord, StepStatus
from sagas.definition import Saga

__all__ = ["current_stage", "opened", "settled"]

RecordT = TypeVar("RecordT", bound=SagaSummary)

#: With these a step needs nothing more, going forward.
_FORWARD_SETTLED = frozenset({StepStatus.DONE, StepStatus.SKIPPED})

#: With these a step has something to undo, if it has a compensation.
_TO_UNDO = frozenset(
    {StepStatus.DONE, StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.COMPENSATING, StepStatus.STUCK}
)


def opened(saga: Saga, record: RecordT) -> RecordT:
    """Return the record with the steps of the stage that it is at; the same record if it has them."""
    if record.direction is Direction.BACKWARD or record.status in AT_REST:
        return record
    number = max((step.stage for step in record.steps.values()), default=0)
    steps = dict(record.steps)
    while number < len(saga.stages):
        for node in saga.stages[number]:
            if node.name not in steps:
                seq = 1 + max((step.seq for step in steps.values()), default=0)
                steps[node.name] = StepRecord(node=node.name, seq=seq, stage=number)
        if not all(settled(saga, step, record.direction) for step in steps.values() if step.stage == number):
            break
        number += 1
    return record if len(steps) == len(record.steps) else replace(record, steps=steps)


def current_stage(saga: Saga, record: SagaSummary) -> tuple[StepRecord, ...]:
    """Return the steps of the stage that the saga is at. Empty when nothing is left in its direction."""
    left = [step.stage for step in record.steps.values() if not settled(saga, step, record.direction)]
    if not left:
        return ()
    number = min(left) if record.direction is Direction.FORWARD else max(left)
    return tuple(step for step in record.steps.values() if step.stage == number)


def settled(saga: Saga, step: StepRecord, direction: Direction) -> bool:
    """Tell whether a step needs nothing more in this direction."""
    if direction is Direction.FORWARD:
        return step.status in _FORWARD_SETTLED
    if step.status is StepStatus.RUNNING:
        return False  # its action is still at work: what it leaves behind is not known yet
    never_began = step.status is StepStatus.FAILED and not step.started_seq
    return saga.steps[step.node].compensation is None or never_began or step.status not in _TO_UNDO
