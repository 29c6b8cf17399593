"""The items of an `Each`, on every database and in memory: what `ItemStore` promises, also to workers that race."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagas import (
    Direction,
    KeyConflict,
    SagaNotFound,
    SagaRecord,
    SagaStatus,
    SqlStore,
    StepRecord,
    StepStatus,
)
from sagas.checkpoints import Items
from sagas.stores import schema
from sagas.testing.memory import MemoryStore
from tests.databases import database_url

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
COMPLETED, COMPENSATED, RUNNING = SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.RUNNING

Store = Any  # a `SqlStore` or a `MemoryStore`: what both have is what is tested here


DATABASES = ("sqlite", "postgres", "mariadb")


@pytest.fixture(scope="module")
def migrated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], SqlStore]]:
    """Return a store on a database of a kind, emptied: migrating takes longer than the tests do."""
    stores: dict[str, SqlStore] = {}

    def of(kind: str) -> SqlStore:
        if kind not in stores:
            stores[kind] = SqlStore(database_url(request, kind, tmp_path_factory.mktemp("items")))
            stores[kind].upgrade()
        with stores[kind].engine.begin() as connection:
            for table in (schema.fan_outs, schema.sagas):
                connection.execute(table.delete())
        return stores[kind]

    yield of
    for store in stores.values():
        store.engine.dispose()


@pytest.fixture(params=[*DATABASES, "memory"])
def store(request: pytest.FixtureRequest, migrated: Callable[[str], SqlStore]) -> Store:
    return MemoryStore() if request.param == "memory" else migrated(request.param)


@pytest.fixture(params=DATABASES)
def sql(request: pytest.FixtureRequest, migrated: Callable[[str], SqlStore]) -> SqlStore:
    return migrated(request.param)


def saga(id_: str, **changes: Any) -> SagaRecord:
    values: dict[str, Any] = {
        "id": id_, "name": "order", "version": 1, "key": id_, "outline": '[{"step": "e", "kind": "each"}]',
        "correlation_id": "c", "input": "null", "created_at": NOW, "updated_at": NOW, "stage_ready_at": NOW,
        "next_check_at": NOW,
    }  # fmt: skip
    return SagaRecord(**{**values, **changes})


def item(number: int, *, begun: bool, id_: str | None = None) -> SagaRecord:
    made = saga(id_ or f"item-{number:03}", name="order.e", parent_id="parent", parent_step="e", root_id="parent")
    due = NOW if begun else None
    return replace(made, parent_item=number, dispatches=int(begun), next_check_at=due)


def fan_out(store: Store, total: int, begun: int) -> list[SagaRecord]:
    """Store a saga whose step waits for items, some of which have begun. Return the items."""
    parent = store.insert(saga("parent"))
    step = StepRecord(node="e", seq=1, kind="each", status=StepStatus.WAITING, started_seq=1, due_at=NOW)
    items = [item(number, begun=number < begun) for number in range(total)]
    waiting = replace(parent.with_step(step), status=RUNNING)
    assert store.save(parent, waiting, children=items) is not None
    return items


def change(store: Store, saga_id: str, **changes: Any) -> SagaRecord:
    while True:
        record = store.load(saga_id)
        saved: SagaRecord | None = store.save(record, replace(record, **changes))
        if saved is not None:
            return saved


def end(store: Store, number: int, status: SagaStatus = COMPLETED, error: str | None = None) -> SagaRecord:
    direction = Direction.BACKWARD if status is COMPENSATED else Direction.FORWARD
    return change(store, f"item-{number:03}", status=status, direction=direction, error=error)


def turn(store: Store) -> None:
    """Have the saga compensate."""
    change(store, "parent", direction=Direction.BACKWARD, status=SagaStatus.COMPENSATING, epoch=2)


# -- counting and reading -------------------------------------------------------------------------------------------


def test_items_are_counted_by_how_they_stand(store: Store) -> None:
    fan_out(store, 7, 5)
    assert store.items.count("parent", "e") == Items(waiting=2, working=5)
    end(store, 0)
    end(store, 1, COMPENSATED, "sold out")
    change(store, "item-002", status=RUNNING)
    assert store.items.count("parent", "e") == Items(
        waiting=2, working=3, completed=1, failed=1, trouble="item 1 (item-001) is COMPENSATED: sold out"
    )
    end(store, 3, SagaStatus.STUCK, "no answer")
    counted = store.items.count("parent", "e")
    assert (counted.working, counted.failed, counted.total) == (3, 1, 7)
    assert counted.trouble == "item 3 (item-003) is STUCK: no answer", "who is stuck needs a person"
    assert store.items.count("parent", "other") == store.items.count("nobody", "e") == Items()


def test_items_are_read_in_pages(store: Store) -> None:
    fan_out(store, 5, 2)
    pages = [store.items.page("parent", "e", first, 2) for first in (0, 2, 4, 6)]
    assert [[each.parent_item for each in page] for page in pages] == [[0, 1], [2, 3], [4], []]
    step = StepRecord(node="e", seq=1, status=StepStatus.DONE, started_seq=1, result='"tea"')
    record = store.load("item-003")
    assert store.save(record, record.with_step(step)) is not None
    [read] = store.items.page("parent", "e", 3, 1)
    assert (read.step("e").result, read.input) == ('"tea"', "null")
    assert store.items.page("parent", "other", 0, 10) == []


def test_failed_items_are_known_by_number(store: Store) -> None:
    assert store.items.failed("parent", "e") is None, "the step has made no items"
    fan_out(store, 4, 4)
    assert store.items.failed("parent", "e") == {}
    end(store, 1, COMPENSATED)
    end(store, 3, COMPENSATED)
    end(store, 0)
    assert store.items.failed("parent", "e") == {1: "item-001", 3: "item-003"}


def test_new_items_take_the_place_of_those_that_failed(store: Store) -> None:
    fan_out(store, 3, 3)
    for number, status in enumerate((COMPLETED, COMPENSATED, COMPENSATED)):
        end(store, number, status)
    parent = store.load("parent")
    anew = [item(number, begun=True, id_=f"again-{number}") for number in (1, 2)]
    assert store.save(parent, parent, children=anew) is not None
    assert [each.id for each in store.items.page("parent", "e", 0, 10)] == ["item-000", "again-1", "again-2"]
    assert store.items.count("parent", "e") == Items(working=2, completed=1)
    assert store.load("item-001").parent_item is None


def test_a_key_of_another_saga_stores_no_item(store: Store) -> None:
    store.insert(saga("other", name="order.e", key="item-001"))
    with pytest.raises(KeyConflict):
        fan_out(store, 3, 3)
    assert store.load("parent").steps == {}


# -- going forward --------------------------------------------------------------------------------------------------


def test_the_end_of_an_item_begins_the_next_one_once(store: Store) -> None:
    fan_out(store, 4, 2)
    first, second = end(store, 0), end(store, 1)
    begun = store.items.begin_next(first, 30)
    assert begun == store.load("item-002")
    assert store.items.begin_next(first, 30) is None, "its place was passed on"
    assert begun.dispatches == 1
    assert begun.next_check_at - begun.stage_ready_at == timedelta(seconds=30)
    assert begun.updated_at == begun.stage_ready_at
    assert begun.revision == 2, "whoever read it before has to read it anew"
    assert store.items.begin_next(second, 30).id == "item-003"
    assert store.items.begin_next(end(store, 2), 30) is None, "there are no more"
    assert store.items.count("parent", "e").waiting == 0
    due = [store.load(f"item-{number:03}").next_check_at is not None for number in range(4)]
    assert due == [False, False, True, True], "whose place was passed on is told; of the last, the saga has to know"


def test_an_item_that_is_not_at_rest_stays_due(store: Store) -> None:
    fan_out(store, 2, 1)
    ended = end(store, 0, COMPENSATED)
    change(store, "item-000", status=SagaStatus.COMPENSATING)  # its action came late, and is undone once more
    assert store.items.begin_next(ended, 30) is not None
    assert store.load("item-000").next_check_at is not None


def test_no_item_begins_where_the_saga_compensates_or_is_gone(store: Store) -> None:
    fan_out(store, 3, 1)
    ended = end(store, 0)
    turn(store)
    assert store.items.begin_next(ended, 30) is None
    assert store.items.count("parent", "e").waiting == 2
    change(store, "parent", direction=Direction.FORWARD, status=RUNNING)
    step = store.load("parent").step("e")
    change(store, "parent", steps={"e": replace(step, status=StepStatus.FAILED)})  # a sibling of it is at work still
    assert store.items.begin_next(ended, 30) is None
    stranger = replace(ended, id="stranger", parent_id="nobody")
    assert store.items.begin_next(stranger, 30) is None


def test_an_item_at_rest_is_told_once(store: Store) -> None:
    fan_out(store, 2, 2)
    end(store, 0)
    store.items.told("item-000")
    store.items.told("item-001")
    store.items.told("nobody")
    assert store.load("item-000").next_check_at is None
    assert store.load("item-001").next_check_at is not None, "it is not at rest"


# -- compensating ---------------------------------------------------------------------------------------------------


def test_closing_ends_what_has_not_begun(store: Store) -> None:
    fan_out(store, 5, 2)
    store.items.close("parent", "e")
    assert store.items.count("parent", "e").waiting == 3, "the saga goes forward"
    end(store, 0)
    turn(store)
    store.items.close("parent", "e")
    assert store.items.count("parent", "e") == Items(
        working=1, completed=1, failed=3, trouble="item 2 (item-002) is COMPENSATED: it was never begun"
    )
    assert store.load("item-004").next_check_at is None
    assert store.items.unfinished("parent", "e") == ["item-001"]
    store.items.close("nobody", "e")


def test_unfinished_items_are_those_that_go_forward_last_first(store: Store) -> None:
    fan_out(store, 4, 4)
    end(store, 1)
    change(store, "item-002", status=RUNNING)
    end(store, 3, SagaStatus.STUCK)
    assert store.items.unfinished("parent", "e") == ["item-002", "item-000"]
    assert store.items.unfinished("parent", "other") == []


def test_items_are_undone_last_first_each_once(store: Store) -> None:
    fan_out(store, 6, 5)
    for number in range(5):
        end(store, number)
    assert store.items.undo_next("parent", "e", 2) == [], "the saga goes forward"
    turn(store)
    store.items.close("parent", "e")
    assert store.items.undo_next("parent", "e", 2) == ["item-004", "item-003"]
    end(store, 2, COMPENSATED)
    assert store.items.undo_next("parent", "e", 2) == ["item-001", "item-000"]
    assert store.items.undo_next("parent", "e", 2) == []
    assert store.items.undo_next("nobody", "e", 2) == []
    store.items.close("parent", "e")  # who was to undo them is gone: all are to be told once more
    assert store.items.undo_next("parent", "e", 9) == ["item-004", "item-003", "item-001", "item-000"]


def test_items_of_another_step_are_left_alone(store: Store) -> None:
    fan_out(store, 2, 1)
    other = replace(item(0, begun=True, id_="other"), parent_step="f")
    parent = store.load("parent")
    step = StepRecord(node="f", seq=2, kind="each", status=StepStatus.WAITING, started_seq=2, due_at=NOW)
    assert store.save(parent, parent.with_step(step), children=[other]) is not None
    turn(store)
    store.items.close("parent", "e")
    assert store.items.count("parent", "f") == Items(working=1)
    assert store.items.undo_next("parent", "f", 5) == ["other"]


# -- workers that race ----------------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Any]) -> Sequence[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(call) for call in calls]]


def test_two_ends_begin_two_items(sql: SqlStore) -> None:
    fan_out(sql, 12, 6)
    ended = [end(sql, number) for number in range(6)]
    begun = at_once(*(lambda each=each: sql.items.begin_next(each, 30) for each in ended))
    assert sorted(each.id for each in begun) == [f"item-{number:03}" for number in range(6, 12)]


def test_one_end_that_two_workers_report_begins_one_item(sql: SqlStore) -> None:
    fan_out(sql, 12, 1)
    ended = end(sql, 0)
    begun = at_once(*(lambda: sql.items.begin_next(ended, 30) for _ in range(4)))
    assert [each.id for each in begun if each is not None] == ["item-001"]
    assert sql.items.count("parent", "e") == Items(waiting=10, working=1, completed=1)


def test_an_item_has_begun_or_never_will(sql: SqlStore) -> None:
    """While items end, the saga turns: what begins is undone, and what is closed does not begin."""
    fan_out(sql, 40, 20)
    ended = [end(sql, number) for number in range(20)]

    def compensate() -> None:
        turn(sql)
        sql.items.close("parent", "e")

    def begin(mine: list[SagaRecord]) -> list[str]:
        return [begun.id for each in mine if (begun := sql.items.begin_next(each, 30)) is not None]

    *begun, _ = at_once(lambda: begin(ended[::2]), lambda: begin(ended[1::2]), compensate)
    ids = [each for some in begun for each in some]
    assert len(set(ids)) == len(ids)
    closed = {each.id for each in sql.items.page("parent", "e", 0, 40) if each.error == "it was never begun"}
    assert closed | set(ids) == {f"item-{number:03}" for number in range(20, 40)}
    assert not closed & set(ids)
    assert set(sql.items.unfinished("parent", "e")) == set(ids)


def test_two_workers_undo_different_items(sql: SqlStore) -> None:
    fan_out(sql, 20, 20)
    for number in range(20):
        end(sql, number)
    turn(sql)

    def undo() -> list[str]:
        found: list[str] = []
        while ids := sql.items.undo_next("parent", "e", 3):
            found += ids
        return found

    told = [each for some in at_once(undo, undo) for each in some]
    assert sorted(told) == [f"item-{number:03}" for number in range(20)]


def test_what_is_gone_is_not_there(store: Store) -> None:
    with pytest.raises(SagaNotFound):
        store.load("parent")
    assert store.items.unfinished("parent", "e") == store.items.page("parent", "e", 0, 5) == []
