"""What sagas and their nodes returned, as it is stored."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sagas.binding import BoundStep
from sagas.checkpoints import SagaRecord, SagaStatus, StepRecord, StepStatus
from sagas.each import Each

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore

__all__ = ["has_result", "result_of", "results_of"]

#: Items whose results one query reads.
_PAGE = 200


def has_result(step: StepRecord) -> bool:
    """Tell whether a step has a result that others may ask for."""
    return step.status in (StepStatus.DONE, StepStatus.SKIPPED) and step.kind != "timer"


def result_of(store: CheckpointStore, node: BoundStep, record: SagaRecord, name: str) -> str | None:
    """Return what a step returned, as JSON. None where that is not known, or the step was skipped."""
    step = record.step(name)
    if step.status is StepStatus.SKIPPED:
        return None
    if isinstance(node.step, Each) and step.status is StepStatus.DONE and step.result is None:
        return "[" + ",".join(_of_items(store, node, record)) + "]"
    return step.result


def results_of(store: CheckpointStore, record: SagaRecord, nodes: Mapping[str, BoundStep]) -> str:
    """Return what the steps of a saga returned, as JSON by name."""
    texts = {
        step.name: result_of(store, nodes[step.node], record, step.name)
        for step in record.steps.values()
        if has_result(step)
    }
    return "{" + ",".join(f"{json.dumps(name)}:{text or 'null'}" for name, text in texts.items()) + "}"


def _of_items(store: CheckpointStore, node: BoundStep, parent: SagaRecord) -> Iterator[str]:
    """Yield the results of all items, in order. That of an item that failed is null."""
    for first in itertools.count(0, _PAGE):
        page = store.items.page(parent.id, node.name, first, _PAGE)
        for item in page:
            yield _of_item(store, node, item) if item.status is SagaStatus.COMPLETED else "null"
        if len(page) < _PAGE:
            return


def _of_item(store: CheckpointStore, node: BoundStep, item: SagaRecord) -> str:
    assert isinstance(node.step, Each)
    if node.step.saga is None:
        return item.step(node.name).result or "null"
    return results_of(store, item, node.step.saga.steps)
