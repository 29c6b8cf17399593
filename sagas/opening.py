"""How a saga comes to its steps: a stage of the definition opens them when it is reached.

From then on the record owns them. They are what runs, what is undone, and what tools show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar

from sagas.binding import BoundStep
from sagas.changes import Place, is_new_at
from sagas.checkpoints import AT_REST, Direction, SagaSummary, StepRecord, StepStatus, replace
from sagas.definition import Saga

__all__ = [
    "ENDED_EARLY",
    "current_stage",
    "goes_back",
    "goes_on",
    "is_early",
    "is_undecided",
    "opened",
    "place_of",
    "settled",
]

RecordT = TypeVar("RecordT", bound=SagaSummary)

#: With these a step needs nothing more, going forward.
_FORWARD_SETTLED = frozenset({StepStatus.DONE, StepStatus.SKIPPED})

#: What becomes of a wait whose signal came before it began.
ENDED_EARLY = frozenset({StepStatus.DONE, StepStatus.COMPENSATED})

#: With these a step that has begun has something to undo, if it has a compensation.
_TO_UNDO = frozenset(
    {StepStatus.DONE, StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.COMPENSATING, StepStatus.STUCK}
)


def opened(saga: Saga, record: RecordT) -> RecordT:
    """Return the record with the steps of the stage that it is at; the same record if it has them.

    Where the definition has changed ahead of the saga, the record takes its outline together with the first stage that
    differs: from then on only this definition can go on with it.
    """
    if record.direction is Direction.BACKWARD or record.status in AT_REST:
        return record
    # A wait whose signal came early has its step before its stage is reached.
    steps = dict(record.steps)
    early = {name: _in_its_stage(saga, step) for name, step in steps.items() if is_early(step)}
    steps |= early
    has_moved = bool(early) and steps != record.steps
    number = max((step.stage for name, step in steps.items() if name not in early), default=0)
    while number < len(saga.stages):
        for node in saga.stages[number]:
            if node.name not in steps:
                steps[node.name] = _opened(node, steps, record.stage_ready_at)
        if not all(settled(saga, step, record.direction) for step in steps.values() if step.stage == number):
            break
        number += 1
    if len(steps) == len(record.steps) and not has_moved:
        return record
    is_new = has_moved or is_new_at(record.outline, saga.outline, number)
    return replace(record, steps=steps, outline=saga.outline if is_new else record.outline)


def _in_its_stage(saga: Saga, step: StepRecord) -> StepRecord:
    """Return the step of a wait whose signal came early with the stage that the definition has it in now."""
    stage = saga.steps[step.node].stage
    return step if step.stage == stage else replace(step, stage=stage)


def place_of(record: SagaSummary) -> Place:
    """Return where a saga stands. `record`: with its steps."""
    steps = record.steps.values()
    begun = 0 if record.dispatches else -1  # the message of its first stage is on the way
    stage = max((step.stage for step in steps if not is_early(step)), default=begun)
    return Place(stage, frozenset(step.node for step in steps if is_early(step) and step.stage > stage))


def _opened(node: BoundStep, steps: Mapping[str, StepRecord], now: datetime) -> StepRecord:
    """Return the step of a node that is reached. Where no function has to be asked, it begins to wait at once."""
    seq = 1 + max((step.seq for step in steps.values()), default=0)
    step = StepRecord(node=node.name, seq=seq, stage=node.stage, kind=node.step.kind)
    if not node.step.is_open_at_once:
        return step
    return step.move(
        StepStatus.WAITING,
        started_seq=1 + max((each.started_seq for each in steps.values()), default=0),
        opened_at=now,
        started_at=now,
        due_at=node.step.until(node.action.function(), now),
    )


def is_early(step: StepRecord) -> bool:
    """Tell whether a step is a wait that never began, because its signal had come before."""
    return step.kind == "wait" and not step.started_seq and step.status in ENDED_EARLY


def goes_on(saga: Saga, number: int) -> bool:
    """Tell whether the chain of messages goes on from a stage to the next one.

    It ends at a step that waits after its function has returned, and before a node that begins to wait without a
    message. Whoever ends such a stage dispatches the rest.
    """
    if any(node.step.waits for node in saga.stages[number]):
        return False
    following = saga.stages[number + 1] if number + 1 < len(saga.stages) else ()
    return not any(node.step.is_open_at_once for node in following)


def goes_back(stage: Iterable[StepRecord]) -> bool:
    """Tell whether the chain of messages goes on from a stage to the one before it, while the saga compensates.

    It ends at child sagas: they compensate by messages of their own, and their end dispatches the rest.
    """
    return not any(step.kind in ("child", "each") for step in stage)


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
    if step.status is StepStatus.WAITING:
        return False  # its child saga compensates
    never_began = not step.started_seq or is_undecided(saga, step)
    return saga.steps[step.node].compensation is None or never_began or step.status not in _TO_UNDO


def is_undecided(saga: Saga, step: StepRecord) -> bool:
    """Tell whether the condition of a step has not been answered: then its action has not been called."""
    return saga.steps[step.node].when is not None and step.opened_at is None
