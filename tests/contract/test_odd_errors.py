"""What an action may raise, through every database: what cannot be written changes nothing of what happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from sagas import Pivot, Retry, RetryableError, Saga, Sagas, SagaStatus, SqlStore, Step, StepStatus, TerminalError
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.stores import Filter, schema
from sagas.stores.encryption import AesGcm
from sagas.stores.reencryption import reencrypt
from sagas.testing import Inline
from sagas.text import is_clean
from tests.databases import migrated_store


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


class Numbered(Exception):
    def __str__(self) -> Any:
        return 7  # noqa: PLE0307 - that is the point


ODD: dict[str, Any] = {
    "a NUL": lambda kind: kind("declined: \x00"),
    "half a character": lambda kind: kind("declined: \udcff"),
    "megabytes": lambda kind: kind("x" * 3_000_000),
    "nothing": lambda kind: kind(""),
}


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    with migrated_store(request, request.param, tmp_path_factory.mktemp("odd")) as store:
        yield store


def run(store: SqlStore, error: BaseException) -> tuple[Any, int]:
    """Run a saga whose pivot raises `error` each time. Return its record, and how often it did."""
    calls = []

    def pay() -> None:
        calls.append(1)
        raise error

    saga = Saga(
        "odd",
        Step("first", lambda: 1, compensation=lambda: None),
        Pivot("pay", pay, retry=Retry(max_attempts=2, delay=0.1)),
    )
    return Inline(store).start(saga).record, len(calls)


@pytest.mark.parametrize("how", ODD)
def test_terminal_turns_back_whatever_it_says(store: SqlStore, how: str) -> None:
    record, calls = run(store, ODD[how](TerminalError))
    assert (record.status, calls) == (SagaStatus.COMPENSATED, 1)
    assert record.step("pay").status is StepStatus.FAILED
    assert record.error is not None
    assert is_clean(record.error)


@pytest.mark.parametrize("how", ODD)
@pytest.mark.parametrize("kind", [RuntimeError, RetryableError])
def test_a_failure_is_counted_whatever_it_says(store: SqlStore, how: str, kind: Any) -> None:
    record, calls = run(store, ODD[how](kind))
    assert (record.status, calls) == (SagaStatus.STUCK, 2)
    assert (record.step("pay").failures, record.step("pay").lost) == (2, 0)


@pytest.mark.parametrize("error", [Unreadable(), Numbered()], ids=lambda error: type(error).__name__)
def test_a_failure_is_counted_when_nobody_can_read_it(store: SqlStore, error: Exception) -> None:
    record, calls = run(store, error)
    assert (record.status, calls) == (SagaStatus.STUCK, 2)
    assert type(error).__name__ in (record.step("pay").error or "")


@pytest.mark.parametrize("text", ["why\x00", "why \udcff"])
def test_what_operators_say_is_kept(store: SqlStore, text: str) -> None:
    record, _ = run(store, RuntimeError("x"))
    operations = operations_of(store)
    operations.sagas.orchestrator.register(
        Saga("odd", Step("first", lambda: 1, compensation=lambda: None), Pivot("pay", lambda: 1))
    )
    operations.act(Action.SKIP, record.id, actor=text, reason=text)
    told = [entry for entry in store.queries.history(record.id) if entry.actor]
    assert told
    assert all(is_clean(entry.detail) and is_clean(entry.actor or "") for entry in told)


def operations_of(store: SqlStore) -> Operations:
    app = Celery("odd", broker="memory://", set_as_current=False)
    return Operations(Sagas(app, store, []))


def test_why_it_turned_back_stays_its_error(store: SqlStore) -> None:
    def declined() -> None:
        raise TerminalError("card declined")

    def refused() -> None:
        raise TerminalError("refund refused")

    saga = Saga("order", Step("book", lambda: 1, compensation=refused), Pivot("pay", declined))
    inline = Inline(store)
    handle = inline.start(saga)
    record = store.queries.summary(handle.id)
    assert record.status is SagaStatus.STUCK
    assert record.error == "step 'pay' failed: card declined"
    assert record.trouble == "step 'book' is stuck: refund refused"
    operations = operations_of(store)
    operations.sagas.orchestrator.register(saga)
    operations.act(Action.SKIP, handle.id, actor="ann", reason="written off")
    record = store.queries.summary(handle.id)
    assert record.status is SagaStatus.COMPENSATED
    assert record.error == record.trouble == "step 'pay' failed: card declined"


def test_one_payload_that_cannot_be_read_costs_that_saga_alone(store: SqlStore) -> None:
    old, new = {"old": bytes(32)}, {"new": bytes(range(32))}
    sealed = SqlStore(store.engine, codec=AesGcm(old, current="old"))
    saga = Saga(
        "sealed",
        Step("hello", lambda: "hi", compensation=None),
        Pivot("pay", lambda: 1 / 0, retry=Retry(max_attempts=1)),
    )
    bad, good = (Inline(sealed).start(saga) for _ in range(2))
    with store.engine.begin() as connection:
        connection.execute(schema.sagas.update().where(schema.sagas.c.id == bad.id).values(input="~aesgcm:old:broken"))
    both = SqlStore(store.engine, codec=AesGcm(old | new, current="new"))
    operations = operations_of(both)
    operations.sagas.orchestrator.register(saga)
    where = Filter(name="sealed", ids=(bad.id, good.id))
    found = {
        one.record.id: one.error
        for one in operations.act_on_all(Action.COMPENSATE, where, actor="a", reason="r", limit=9)
    }
    assert "is not what was encrypted" in (found[bad.id] or "")
    assert found[good.id] is None
    progress = list(reencrypt(both, reason="rotation"))
    named = [str(error) for one in progress for error in one.unreadable]
    assert any(f"{bad.id}:input" in text for text in named)
    assert not any(good.id in text for text in named)
    only_new = SqlStore(store.engine, codec=AesGcm(new, current="new"))
    assert only_new.load(good.id).step("hello").result == '"hi"'
    assert only_new.queries.payloads(bad.id).results["hello"] == '"hi"'


def test_rotation_names_what_it_cannot_read(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'x.db'}", codec=AesGcm({"k": bytes(32)}, current="k"))
    store.upgrade()
    handle = Inline(store).start(Saga("s", Step("a", lambda: 1, compensation=None)))
    with store.engine.begin() as connection:
        connection.execute(schema.sagas.update().values(input="~aesgcm:gone:x"))
    [progress] = reencrypt(store, reason="x")
    [error] = progress.unreadable
    assert f"{handle.id}:input" in str(error)
    assert progress.written == 0
    store.engine.dispose()
