"""What operators do, on a database; nobody reads the broker, so that sagas stay where they are put."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from sagas import (
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaRecord,
    Sagas,
    SagaStatus,
    SqlStore,
    Step,
    TerminalError,
    transitions,
)
from sagas.checkpoints import HistoryKind
from sagas.errors import ConfigurationError, InvalidInput
from sagas.operations import Operations
from sagas.operator_actions import Action, AllowedAction
from sagas.stores import EVERYTHING, Filter
from sagas.testing import Inline
from sagas.testing.memory import MemoryStore

ONCE = Retry(max_attempts=1)


def refuse() -> None:
    raise ValueError("the bank is away")


def decline() -> None:
    raise TerminalError("declined")


def nothing() -> None:
    pass


def plain() -> Saga:
    return Saga("plain", Step("a", nothing, compensation=nothing), Pivot("b", nothing), Step("c", nothing))


def at_pivot() -> Saga:
    return Saga("at_pivot", Step("a", nothing, compensation=nothing), Pivot("b", refuse, retry=ONCE))


def two_undos() -> Saga:
    broken = {"compensation": refuse, "compensation_retry": ONCE}
    return Saga(
        "two_undos",
        Parallel(Step("a", nothing, **broken), Step("b", nothing, **broken)),  # type: ignore[arg-type]
        Step("c", decline, compensation=None),
    )


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    app = Celery("desk", broker="memory://", set_as_current=False)
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}")
    store.upgrade()
    yield Operations(Sagas(app, store, [plain(), at_pivot(), two_undos()], redact=["card"]))
    app.close()
    store.engine.dispose()


def stuck(operations: Operations, saga: Callable[[], Saga]) -> str:
    """Leave one of them stuck, and return its id."""
    handle = Inline(operations.store).start(saga())
    assert handle.status is SagaStatus.STUCK
    return handle.id


def waiting(operations: Operations) -> str:
    return operations.sagas.start_by_name("plain").id


def test_what_may_be_done(operations: Operations) -> None:
    def choices(saga_id: str) -> set[AllowedAction]:
        return set(operations.allowed_actions(operations.store.load(saga_id)))

    assert choices(waiting(operations)) == {AllowedAction(Action.CANCEL), AllowedAction(Action.RESUME)}
    on_step = (Action.RETRY, Action.SKIP, Action.MARK_DONE)
    assert choices(stuck(operations, at_pivot)) == {
        *(AllowedAction(each, "b") for each in on_step),
        AllowedAction(Action.COMPENSATE),
    }
    assert choices(stuck(operations, two_undos)) == {
        AllowedAction(each, step) for each in on_step for step in ("a", "b")
    }
    assert choices(Inline(operations.store).start(plain()).id) == set()
    running = waiting(operations)
    operations.sagas.orchestrator.perform(running, "a", 1)
    operations.store.save(operations.store.load(running), with_pivot_at_work(operations, running))
    assert choices(running) == set()  # its pivot is at work: no way back, and nothing to dispatch
    other_code = operations.store.load(waiting(operations))
    operations.sagas.orchestrator.sagas.pop(("plain", 1))
    assert operations.allowed_actions(other_code) == ()


def with_pivot_at_work(operations: Operations, saga_id: str) -> SagaRecord:
    saga, record = operations.sagas.orchestrator.sagas["plain", 1], operations.store.load(saga_id)
    timing = operations.sagas.orchestrator.timing
    return transitions.claim(
        transitions.Case.of(saga, record, operations.store.now(), timing), "b", record.epoch, "me"
    ).record


def test_each_leaves_who_and_why(operations: Operations) -> None:
    for saga, action, ends in (
        (waiting(operations), Action.CANCEL, SagaStatus.COMPENSATED),
        (waiting(operations), Action.COMPENSATE, SagaStatus.COMPENSATED),
        (waiting(operations), Action.RESUME, SagaStatus.PENDING),
        (stuck(operations, at_pivot), Action.RETRY, SagaStatus.RUNNING),
        (stuck(operations, at_pivot), Action.SKIP, SagaStatus.COMPLETED),
        (stuck(operations, at_pivot), Action.MARK_DONE, SagaStatus.COMPLETED),
        (stuck(operations, at_pivot), Action.COMPENSATE, SagaStatus.COMPENSATING),
    ):
        assert operations.act(action, saga, actor="ann", reason="so it is").status is ends, action
        last = [entry for entry in operations.queries.history(saga) if entry.actor]
        assert [entry.actor for entry in last] == ["ann"] * len(last) != []
        assert "so it is" in last[-1].detail
        assert operations.queries.dead_letters(saga) == []


def test_all_stuck_steps_are_meant_unless_one_is_named(operations: Operations) -> None:
    both, one = stuck(operations, two_undos), stuck(operations, two_undos)
    assert operations.act(Action.SKIP, both, actor="ann", reason="written off").status is SagaStatus.COMPENSATED
    assert operations.act(Action.SKIP, one, actor="ann", reason="written off", step="a").status is SagaStatus.STUCK
    with pytest.raises(NotAllowed, match="its stuck step is 'b', not 'a'"):
        operations.act(Action.SKIP, one, actor="ann", reason="again", step="a")
    assert operations.act(Action.MARK_DONE, one, actor="ann", reason="by hand").status is SagaStatus.COMPENSATED
    with pytest.raises(NotAllowed, match="stuck at a, b: say which"):
        operations.act(Action.MARK_DONE, stuck(operations, two_undos), actor="ann", reason="by hand")


@pytest.mark.parametrize("action", list(Action))
def test_nothing_is_done_without_a_reason(operations: Operations, action: Action) -> None:
    for saga in (waiting(operations), stuck(operations, at_pivot)):
        before = operations.store.load(saga)
        with pytest.raises(NotAllowed, match="say why"):
            operations.act(action, saga, actor="ann", reason="  ")
        assert operations.store.load(saga) == before


def test_a_resumed_saga_does_not_wait_for_its_retry(operations: Operations) -> None:
    handle = operations.sagas.start(operations.sagas.orchestrator.sagas["at_pivot", 1])
    operations.sagas.orchestrator.perform(handle.id, "a", 1)
    record = handle.record
    later = operations.store.now().replace(year=2100)
    step = record.step("b").move(record.step("b").status, due_at=later, failures=1, started_seq=2)
    operations.store.save(record, record.with_step(step))
    resumed = operations.act(Action.RESUME, handle.id, actor="ann", reason="the bank is back")
    due_at = resumed.step("b").due_at
    assert due_at is not None
    assert due_at <= operations.store.now()
    assert (resumed.epoch, resumed.idle_checks) == (record.epoch, 0)
    assert operations.queries.history(handle.id)[-1].what == HistoryKind.OPERATOR_RESUME


def test_what_cannot_be_resumed(operations: Operations) -> None:
    ended = Inline(operations.store).start(plain()).id
    for saga, why in ((ended, "nothing is left"), (stuck(operations, at_pivot), "retry, skip or mark its stuck step")):
        with pytest.raises(NotAllowed, match=why):
            operations.act(Action.RESUME, saga, actor="ann", reason="x")


def test_all_that_fit_a_filter(operations: Operations) -> None:
    first, second = stuck(operations, at_pivot), stuck(operations, at_pivot)
    untouched = stuck(operations, two_undos)
    running = waiting(operations)
    outcomes = list(operations.act_on_all(Action.SKIP, Filter(name="at_pivot"), actor="ann", reason="all", limit=10))
    assert [(each.record.id, each.error) for each in outcomes] == [(first, None), (second, None)]
    outcomes = list(operations.act_on_all(Action.RETRY, EVERYTHING, actor="ann", reason="all", limit=3))
    assert [each.record.id for each in outcomes] == [first, second, untouched]
    assert [each.error is None for each in outcomes] == [False, False, True]
    assert operations.store.load(running).status is SagaStatus.PENDING


def test_reasons_and_results_have_limits(operations: Operations) -> None:
    saga = stuck(operations, at_pivot)
    for refusal, action, reason, result in (
        (InvalidInput, Action.RETRY, "x" * 2_001, None),
        (NotAllowed, Action.RETRY, " ", None),
        (InvalidInput, Action.MARK_DONE, "x", {"a": float("nan")}),
        (InvalidInput, Action.MARK_DONE, "x", [float("inf")]),
        (InvalidInput, Action.MARK_DONE, "x", "\ud800"),
    ):
        with pytest.raises(refusal):
            operations.act(action, saga, actor="ann", reason=reason, result=result)
    assert operations.store.load(saga).status is SagaStatus.STUCK
    operations.act(Action.RETRY, saga, actor="ann", reason="x" * 2_000)
    assert operations.queries.select(Filter(ids=())) == []
    assert operations.queries.select(Filter(ids=(saga,)))[0].id == saga


def test_masked_fields_are_not_shown(operations: Operations) -> None:
    given = {"card": {"number": 1}, "lines": [{"card": "x", "sku": "y"}]}
    assert operations.shown(json.dumps(given)) == {"card": "•••", "lines": [{"card": "•••", "sku": "y"}]}
    assert operations.shown(None) is None
    assert operations.shown("null") is None


def test_a_store_without_lists_has_no_desk() -> None:
    app = Celery("desk", broker="memory://", set_as_current=False)
    with pytest.raises(ConfigurationError, match=r"MemoryStore\(\) has no lists"):
        Operations(Sagas(app, MemoryStore()))
