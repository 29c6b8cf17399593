"""A saga as data: a row of a list, and all of its details."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sagas.checkpoints import FINISHED, Direction, SagaStatus, SagaSummary, StepRecord, StepStatus
from sagas.commands import command
from sagas.errors import DefinitionMissing
from sagas.operations import Operations
from sagas.operator_actions import AllowedAction
from sagas.outline import steps_of
from sagas.plan import plan

__all__ = ["described", "in_order", "row", "stands_at"]

_AT_WORK = (StepStatus.RUNNING, StepStatus.WAITING, StepStatus.COMPENSATING)


def row(operations: Operations, record: SagaSummary) -> dict[str, Any]:
    """Return the fields of a saga in lists, for programs. `record`: with its steps."""
    return {
        "id": record.id,
        "saga": record.name,
        "version": record.version,
        "key": record.key,
        "correlation_id": record.correlation_id,
        "status": record.status.value,
        "step": stands_at(operations, record),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "error": record.trouble,
    }


def stands_at(operations: Operations, record: SagaSummary) -> list[str]:
    """Return a saga's current steps: those that are stuck or running, or else those that come next."""
    if record.status in FINISHED:
        return []
    wanted = (StepStatus.STUCK,) if record.status is SagaStatus.STUCK else _AT_WORK
    begun = [step.name for step in in_order(record) if step.status in wanted]
    if begun:
        return begun
    try:
        left = plan(operations.sagas.orchestrator.definition(record), record)
    except DefinitionMissing:
        return [step.name for step in in_order(record) if step.status is StepStatus.PENDING]
    return list(left.stages[0].steps) if left else []


def described(operations: Operations, record: SagaSummary) -> dict[str, Any]:
    """Return all details of a saga for operators: what `show --json` prints."""
    payloads = operations.queries.payloads(record.id)
    record = operations.sagas.orchestrator.sagas.foreseen(record)
    missing, relatives = None, operations.relatives(record)
    try:
        operations.sagas.orchestrator.definition(record)
    except DefinitionMissing as error:
        missing = str(error)
    return {
        **row(operations, record),
        "direction": record.direction.value,
        "deadline": record.deadline,
        "parent": None if relatives.parent is None else _relative(relatives.parent, record),
        "definition_missing": missing,
        "allowed_actions": [
            {"action": allowed.action.value, "step": allowed.step, "command": _command(allowed, record)}
            for allowed in operations.allowed_actions(record)
        ],
        "steps": [_step(step, operations.shown(payloads.results.get(step.name))) for step in steps_of(record)],
        "children": [_relative(child, child) for child in relatives.children],
        "input": operations.shown(payloads.input),
        "dead_letters": [
            {
                "step": letter.step,
                "direction": letter.direction.value,
                "created_at": letter.created_at,
                "error": letter.error,
            }
            for letter in operations.queries.dead_letters(record.id)
        ],
    }


def _relative(saga: SagaSummary, child: SagaSummary) -> dict[str, Any]:
    return {
        "step": child.parent_step,
        "id": saga.id,
        "saga": saga.name,
        "key": saga.key,
        "status": saga.status.value,
        "error": saga.trouble,
    }


def _step(step: StepRecord, result: Any) -> Mapping[str, Any]:
    return {
        "step": step.name,
        "status": step.status.value,
        "failures": step.failures,
        "lost": step.lost,
        "started_at": step.started_at,
        "finished_at": step.finished_at,
        "due_at": step.due_at,
        "owner": step.owner,
        "lease_until": step.lease_until,
        "heartbeat_at": step.heartbeat_at,
        "progress": step.progress and asdict(step.progress),
        "result": result,
        "error": step.error,
    }


def _command(allowed: AllowedAction, record: SagaSummary) -> str:
    words = [allowed.action.value, record.id]
    if allowed.step is not None:
        words += ["--step", allowed.step]
    if allowed.info.takes_result and record.direction is Direction.FORWARD:
        words += ["--result", "JSON"]
    return f"{command(*words)} --reason WHY"


def in_order(record: SagaSummary) -> list[StepRecord]:
    """Return the steps in the order in which they were opened."""
    return list(record.steps.values())
