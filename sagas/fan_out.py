"""What the engine does between a saga and the items of its `Each` nodes, beside the rules."""

from __future__ import annotations

from sagas import transitions
from sagas.checkpoints import AT_REST, Direction, Items, SagaRecord, SagaStatus, SagaSummary, StepStatus
from sagas.each import Each
from sagas.engine import Engine
from sagas.errors import SagaNotFound
from sagas.plan import plan
from sagas.stores import CheckpointStore
from sagas.transitions import Case, Counts, Verdict

__all__ = ["counts", "tell_items", "undo_items"]


def counts(store: CheckpointStore, case: Case) -> Counts:
    """Return how the items of steps stand that a rule has to know of."""
    return {name: store.items.count(case.record.id, name) for name in transitions.due_items(case)}


def tell_items(engine: Engine, item: SagaRecord) -> None:
    """An item came to rest: begin the next, or have the one before it compensated; after the last, look at the saga."""
    assert item.parent_id is not None
    assert item.parent_step is not None
    completed = item.status is SagaStatus.COMPLETED
    if completed and _begin(engine, item):  # as a rule, without a look at the parent
        return
    parent, name = _parent(engine, item.parent_id), item.parent_step
    failed = parent.direction is Direction.FORWARD and item.status is SagaStatus.COMPENSATED
    if failed or item.status is SagaStatus.STUCK:
        parent = _look(engine, parent.id, name)
    going_on = parent.step(name).status is StepStatus.WAITING and item.status is not SagaStatus.STUCK
    if going_on and parent.direction is Direction.FORWARD:
        going_on = not completed and _begin(engine, item)
    elif going_on:
        going_on = _undo_next(engine, parent, name, 1)
    if not going_on:
        _look(engine, parent.id, name)
    engine.store.items.told(item.id)


def _parent(engine: Engine, parent_id: str) -> SagaSummary:
    """Return a parent without its payloads: its input may hold all the items, and each of them asks for it."""
    for parent in engine.store.summaries([parent_id]):
        return parent
    raise SagaNotFound(f"there is no saga with the id {parent_id!r}")


def undo_items(engine: Engine, parent: SagaRecord, name: str) -> None:
    """Have the items of a step compensate: at once those that are on their way, then the others, last first."""
    engine.store.items.close(parent.id, name)
    for item_id in engine.store.items.unfinished(parent.id, name):
        _undo(engine, parent, item_id)
    _undo_next(engine, parent, name, _concurrency(engine, parent, name))


def _concurrency(engine: Engine, record: SagaRecord, name: str) -> int:
    node = engine.definition(record).steps[record.step(name).node].step
    assert isinstance(node, Each)
    return node.max_concurrency


def _begin(engine: Engine, ended: SagaRecord) -> bool:
    """Begin the next item in the place of one that has ended. False where there is none."""
    begun = engine.store.items.begin_next(ended, engine.timing.redispatch_after)
    if begun is None:
        return False
    engine.send(plan(engine.definition(begun), begun))
    return True


def _undo_next(engine: Engine, parent: SagaSummary, name: str, count: int) -> bool:
    """Have the last items compensate, until so many are at it. False where there are none."""
    at_it = 0
    while at_it < count and (ids := engine.store.items.undo_next(parent.id, name, count - at_it)):
        at_it += sum(_undo(engine, parent, item_id) for item_id in ids)
    return at_it > 0


def _undo(engine: Engine, parent: SagaSummary, item_id: str) -> bool:
    """Have an item compensate, whatever it has come to. Return whether that takes more than this."""
    why = f"its parent {parent.name!r} ({parent.id}) compensates: {parent.error}"
    try:
        undone = engine.change(item_id, lambda case: transitions.undo(case, why))
    except SagaNotFound:
        return False
    if undone.verdict is Verdict.DISPATCH and undone.plan:
        engine.send(undone.plan)
    return undone.record.status not in AT_REST


def _look(engine: Engine, parent_id: str, name: str) -> SagaSummary:
    """See whether the items of a step are at their ends."""
    items: Items = engine.store.items.count(parent_id, name)
    seen = engine.change(parent_id, lambda case: transitions.items_ended(case, name, items))
    if seen.verdict is Verdict.DISPATCH and seen.plan:
        engine.send(seen.plan)
    return seen.record
