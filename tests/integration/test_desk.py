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
from sagas.desk import Action, Choice, Desk
from sagas.errors import ConfigurationError, InvalidInput
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
def desk(tmp_path: Path) -> Iterator[Desk]:
    app = Celery("desk", broker="memory://", set_as_current=False)
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}")
    store.upgrade()
    yield Desk(Sagas(app, store, [plain(), at_pivot(), two_undos()], redact=["card"]))
    app.close()
    store.engine.dispose()


def stuck(desk: Desk, saga: Callable[[], Saga]) -> str:
    """Leave one of them stuck, and return its id."""
    handle = Inline(desk.store).start(saga())
    assert handle.status is SagaStatus.STUCK
    return handle.id


def waiting(desk: Desk) -> str:
    return desk.sagas.start_by_name("plain").id


def test_what_may_be_done(desk: Desk) -> None:
    def choices(saga_id: str) -> set[Choice]:
        return set(desk.choices(desk.store.load(saga_id)))

    assert choices(waiting(desk)) == {Choice(Action.CANCEL), Choice(Action.RESUME)}
    on_step = (Action.RETRY, Action.SKIP, Action.DONE)
    assert choices(stuck(desk, at_pivot)) == {*(Choice(each, "b") for each in on_step), Choice(Action.COMPENSATE)}
    assert choices(stuck(desk, two_undos)) == {Choice(each, step) for each in on_step for step in ("a", "b")}
    assert choices(Inline(desk.store).start(plain()).id) == set()
    running = waiting(desk)
    desk.sagas.orchestrator.perform(running, "a", 1)
    desk.store.save(desk.store.load(running), with_pivot_at_work(desk, running))
    assert choices(running) == set()  # its pivot is at work: no way back, and nothing to dispatch
    other_code = desk.store.load(waiting(desk))
    desk.sagas.orchestrator.sagas.pop(("plain", 1))
    assert desk.choices(other_code) == ()


def with_pivot_at_work(desk: Desk, saga_id: str) -> SagaRecord:
    saga, record = desk.sagas.orchestrator.sagas["plain", 1], desk.store.load(saga_id)
    timing = desk.sagas.orchestrator.timing
    return transitions.claim(
        transitions.Case.of(saga, record, desk.store.now(), timing), "b", record.epoch, "me"
    ).record


def test_each_leaves_who_and_why(desk: Desk) -> None:
    for saga, action, ends in (
        (waiting(desk), Action.CANCEL, SagaStatus.COMPENSATED),
        (waiting(desk), Action.COMPENSATE, SagaStatus.COMPENSATED),
        (waiting(desk), Action.RESUME, SagaStatus.PENDING),
        (stuck(desk, at_pivot), Action.RETRY, SagaStatus.RUNNING),
        (stuck(desk, at_pivot), Action.SKIP, SagaStatus.COMPLETED),
        (stuck(desk, at_pivot), Action.DONE, SagaStatus.COMPLETED),
        (stuck(desk, at_pivot), Action.COMPENSATE, SagaStatus.COMPENSATING),
    ):
        assert desk.act(action, saga, by="ann", reason="so it is").status is ends, action
        last = [entry for entry in desk.store.history(saga) if entry.by]
        assert [entry.by for entry in last] == ["ann"] * len(last) != []
        assert "so it is" in last[-1].detail
        assert desk.store.dead_letters(saga) == []


def test_all_stuck_steps_are_meant_unless_one_is_named(desk: Desk) -> None:
    both, one = stuck(desk, two_undos), stuck(desk, two_undos)
    assert desk.act(Action.SKIP, both, by="ann", reason="written off").status is SagaStatus.COMPENSATED
    assert desk.act(Action.SKIP, one, by="ann", reason="written off", step="a").status is SagaStatus.STUCK
    with pytest.raises(NotAllowed, match="its stuck step is 'b', not 'a'"):
        desk.act(Action.SKIP, one, by="ann", reason="again", step="a")
    assert desk.act(Action.DONE, one, by="ann", reason="by hand").status is SagaStatus.COMPENSATED
    with pytest.raises(NotAllowed, match="stuck at a, b: say which"):
        desk.act(Action.DONE, stuck(desk, two_undos), by="ann", reason="by hand")


@pytest.mark.parametrize("action", list(Action))
def test_nothing_is_done_without_a_reason(desk: Desk, action: Action) -> None:
    for saga in (waiting(desk), stuck(desk, at_pivot)):
        before = desk.store.load(saga)
        with pytest.raises(NotAllowed, match="say why"):
            desk.act(action, saga, by="ann", reason="  ")
        assert desk.store.load(saga) == before


def test_a_resumed_saga_does_not_wait_for_its_retry(desk: Desk) -> None:
    handle = desk.sagas.start(desk.sagas.orchestrator.sagas["at_pivot", 1])
    desk.sagas.orchestrator.perform(handle.id, "a", 1)
    record = handle.record
    later = desk.store.now().replace(year=2100)
    step = record.step("b").move(record.step("b").status, due_at=later, failures=1, position=2)
    desk.store.save(record, record.with_step(step))
    resumed = desk.act(Action.RESUME, handle.id, by="ann", reason="the bank is back")
    due_at = resumed.step("b").due_at
    assert due_at is not None
    assert due_at <= desk.store.now()
    assert (resumed.epoch, resumed.idle_checks) == (record.epoch, 0)
    assert desk.store.history(handle.id)[-1].what == "operator: resume"


def test_what_cannot_be_resumed(desk: Desk) -> None:
    ended = Inline(desk.store).start(plain()).id
    for saga, why in ((ended, "nothing is left"), (stuck(desk, at_pivot), "retry, skip or mark its stuck step")):
        with pytest.raises(NotAllowed, match=why):
            desk.act(Action.RESUME, saga, by="ann", reason="x")


def test_all_that_fit_a_filter(desk: Desk) -> None:
    first, second = stuck(desk, at_pivot), stuck(desk, at_pivot)
    untouched = stuck(desk, two_undos)
    running = waiting(desk)
    outcomes = list(desk.act_on_all(Action.SKIP, Filter(name="at_pivot"), by="ann", reason="all", limit=10))
    assert [(each.record.id, each.error) for each in outcomes] == [(first, None), (second, None)]
    outcomes = list(desk.act_on_all(Action.RETRY, EVERYTHING, by="ann", reason="all", limit=3))
    assert [each.record.id for each in outcomes] == [first, second, untouched]
    assert [each.error is None for each in outcomes] == [False, False, True]
    assert desk.store.load(running).status is SagaStatus.PENDING


def test_reasons_and_results_have_limits(desk: Desk) -> None:
    saga = stuck(desk, at_pivot)
    for refusal, action, reason, result in (
        (InvalidInput, Action.RETRY, "x" * 2_001, None),
        (NotAllowed, Action.RETRY, " ", None),
        (InvalidInput, Action.DONE, "x", {"a": float("nan")}),
        (InvalidInput, Action.DONE, "x", [float("inf")]),
        (InvalidInput, Action.DONE, "x", "\ud800"),
    ):
        with pytest.raises(refusal):
            desk.act(action, saga, by="ann", reason=reason, result=result)
    assert desk.store.load(saga).status is SagaStatus.STUCK
    desk.act(Action.RETRY, saga, by="ann", reason="x" * 2_000)
    assert desk.store.select(Filter(ids=())) == []
    assert desk.store.select(Filter(ids=(saga,)))[0].id == saga


def test_masked_fields_are_not_shown(desk: Desk) -> None:
    given = {"card": {"number": 1}, "lines": [{"card": "x", "sku": "y"}]}
    assert desk.shown(json.dumps(given)) == {"card": "•••", "lines": [{"card": "•••", "sku": "y"}]}
    assert desk.shown(None) is None
    assert desk.shown("null") is None


def test_a_store_without_lists_has_no_desk() -> None:
    app = Celery("desk", broker="memory://", set_as_current=False)
    with pytest.raises(ConfigurationError, match=r"MemoryStore\(\) has no lists"):
        Desk(Sagas(app, MemoryStore()))
