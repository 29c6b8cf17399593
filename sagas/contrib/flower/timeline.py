"""When each step of a saga was running: the bars on its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sagas.checkpoints import HistoryEntry, HistoryKind, SagaSummary, StepRecord, StepStatus
from sagas.drawing import Look, look_of

__all__ = ["Bar", "Mark", "Row", "timeline"]

_BACK = frozenset({StepStatus.COMPENSATING, StepStatus.COMPENSATED})


@dataclass(frozen=True, slots=True)
class Bar:
    """A period of time; `left` and `width` are percentages of the whole."""

    left: float
    width: float
    look: Look
    words: str


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry in the history of a step."""

    left: float
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    """A step with its bars."""

    step: str
    seconds: float  #: from its first claim to its end, or until now
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


def timeline(record: SagaSummary, history: Sequence[HistoryEntry], now: datetime) -> list[Row]:
    """Return the steps that have started, in that order.

    A step has one start and one end, so attempts are marks on its bar. Its compensation is shown from the time when
    the saga last started compensating.
    """
    begun = sorted((step for step in record.steps.values() if step.started_at), key=lambda step: step.started_seq)
    if not begun:
        return []
    ends = [_end(step, record, now) for step in begun]
    first, last = min(record.created_at, *(_start(step) for step in begun)), max(ends)
    whole = max((last - first).total_seconds(), 0.001)

    def share(moment: datetime) -> float:
        return min(max((moment - first).total_seconds() / whole * 100, 0.0), 100.0)

    compensating_at = max(
        (entry.at for entry in history if entry.what == HistoryKind.COMPENSATION_STARTED), default=None
    )
    rows = []
    for step, end in zip(begun, ends, strict=True):
        start = _start(step)
        action, undo = look_of(step, record.direction)
        stretches = [(start, end, action.look, f"{step.name}: {action.words}")]
        undone = step.status in _BACK or (undo.look == "stuck")
        if undone and compensating_at is not None and start < compensating_at < end:
            stretches = [
                (start, compensating_at, action.look, f"{step.name}: {action.words}"),
                (compensating_at, end, undo.look, f"{step.name}, compensation: {undo.words}"),
            ]
        bars = tuple(Bar(share(a), max(share(b) - share(a), 0.4), look, words) for a, b, look, words in stretches)
        marks = tuple(
            Mark(share(entry.at), f"{entry.what}: {entry.detail}" if entry.detail else entry.what)
            for entry in history
            if entry.step == step.name
        )
        rows.append(Row(step.name, (end - start).total_seconds(), bars, marks))
    return rows


def _start(step: StepRecord) -> datetime:
    assert step.started_at is not None
    return step.started_at


def _end(step: StepRecord, record: SagaSummary, now: datetime) -> datetime:
    """Return the end of a step. A step that is running or waits for its next attempt lasts until now."""
    goes_on = step.held or step.status in (StepStatus.PENDING, StepStatus.COMPENSATING)
    if step.finished_at is not None and not goes_on:
        return max(step.finished_at, _start(step))
    return max(record.updated_at if record.next_check_at is None else now, _start(step))
