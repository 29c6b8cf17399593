"""Records as rows of the tables, and rows as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import RowMapping

from sagas.checkpoints import (
    DeadLetter,
    Direction,
    HistoryEntry,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    StepRecord,
    StepStatus,
    step_name,
)
from sagas.stores.codecs import STEP_PAYLOADS, Codec, decoded, input_of

__all__ = [
    "FIXED_FIELDS",
    "HISTORY_FIELDS",
    "LETTER_FIELDS",
    "MUTABLE_FIELDS",
    "Row",
    "SAGA_FIELDS",
    "STEP_FIELDS",
    "entry_of",
    "letter_of",
    "row_of",
    "saga_of",
    "summary_of",
]


class Row(Protocol):
    """What a database returned: values by the names of columns."""

    def __getitem__(self, name: str, /) -> Any: ...


def _fields(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


SAGA_FIELDS = tuple(name for name in _fields(SagaRecord) if name != "steps")
#: What a saga is started with, and keeps; its outline it may change, rarely. A save may change everything else.
FIXED_FIELDS = frozenset(
    {
        "id",
        "name",
        "version",
        "key",
        "outline",
        "correlation_id",
        "input",
        "caused_by",
        "traceparent",
        "created_at",
        "parent_id",
        "parent_step",
        "parent_item",
        "root_id",
    }
)
MUTABLE_FIELDS = tuple(name for name in SAGA_FIELDS if name not in FIXED_FIELDS)
STEP_FIELDS = _fields(StepRecord)
HISTORY_FIELDS = _fields(HistoryEntry)
LETTER_FIELDS = _fields(DeadLetter)
_SUMMARY_FIELDS = tuple(name for name in SAGA_FIELDS if name != "input")
_SUMMARY_STEP_FIELDS = tuple(name for name in STEP_FIELDS if name not in STEP_PAYLOADS)


def row_of(record: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Return these fields of a record by name."""
    return {name: getattr(record, name) for name in fields}


def _pick(row: Row, fields: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in fields}


def summary_of(row: RowMapping, step_rows: Iterable[RowMapping]) -> SagaSummary:
    """Return what lists show of a saga: its rows without payloads."""
    values = _pick(row, _SUMMARY_FIELDS)
    values["status"], values["direction"] = SagaStatus(row["status"]), Direction(row["direction"])
    steps = [
        StepRecord(**{**_pick(step, _SUMMARY_STEP_FIELDS), "status": StepStatus(step["status"])}) for step in step_rows
    ]
    return SagaSummary(**values, steps={step.name: step for step in steps})


def saga_of(row: Row, step_rows: Iterable[Row], codec: Codec) -> SagaRecord:
    """Return the record of a saga from its row and the rows of its steps."""
    values = _pick(row, SAGA_FIELDS)
    values["status"], values["direction"] = SagaStatus(row["status"]), Direction(row["direction"])
    values["input"] = codec.decode(row["input"], input_of(row["id"]))
    steps = [_step_of(row["id"], step, codec) for step in step_rows]
    return SagaRecord(**values, steps={step.name: step for step in steps})


def _step_of(saga_id: str, row: Row, codec: Codec) -> StepRecord:
    values = _pick(row, STEP_FIELDS)
    values["status"] = StepStatus(row["status"])
    name = step_name(row["node"], row["item"])
    return StepRecord(**values | decoded(values, saga_id, name, codec))


def entry_of(row: RowMapping) -> HistoryEntry:
    """Return the history entry in a row."""
    return HistoryEntry(**_pick(row, HISTORY_FIELDS))


def letter_of(row: RowMapping) -> DeadLetter:
    """Return the dead letter in a row."""
    return DeadLetter(**{**_pick(row, LETTER_FIELDS), "direction": Direction(row["direction"])})
