"""When each step of a saga was at work: the bars of its page."""

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
    """A stretch of time; `left` and `width` are per cent of the whole."""

    left: float
    width: float
    look: Look
    words: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something in the history of a step."""

    left: float
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    """A step with its bars."""

    step: str
    seconds: float  #: from its first claim to its end, or to now
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


def timeline(record: SagaSummary, history: Sequence[HistoryEntry], now: datetime) -> list[Row]:
    """Return the steps that have begun, in the order in which they did.

    A step has one beginning and one end, so attempts are marks on its bar. Its undoing is taken to begin when the saga
    last turned back.
    """
    begun = sorted((step for step in record.steps.values() if step.started_at), key=lambda step: step.started_seq)
    if not begun:
        return []
    ends = [_end(step, record, now) for step in begun]
    first, last = min(record.created_at, *(_start(step) for step in begun)), max(ends)
    whole = max((last - first).total_seconds(), 0.001)

    def share(moment: datetime) -> float:
        return min(max((moment - first).total_seconds() / whole * 100, 0.0), 100.0)

    turned = max((entry.at for entry in history if entry.what == HistoryKind.COMPENSATION_STARTED), default=None)
    rows = []
    for step, end in zip(begun, ends, strict=True):
        start = _start(step)
        action, undo = look_of(step, record.direction)
        stretches = [(start, end, action.look, f"{step.name}: {action.words}")]
        undone = step.status in _BACK or (undo.look == "stuck")
        if undone and turned is not None and start < turned < end:
            stretches = [
                (start, turned, action.look, f"{step.name}: {action.words}"),
                (turned, end, undo.look, f"{step.name}, undo: {undo.words}"),
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
    """Return when it ended; one that is at work or waits for its next attempt goes on until now."""
    goes_on = step.held or step.status in (StepStatus.PENDING, StepStatus.COMPENSATING)
    if step.finished_at is not None and not goes_on:
        return max(step.finished_at, _start(step))
    return max(record.updated_at if record.next_check_at is None else now, _start(step))
