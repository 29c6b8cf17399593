"""What observers are told, and that nothing they do matters to a saga."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sagas import Parallel, Pivot, Retry, Saga, SagaRecord, SagaStatus, SqlStore, Step, StepContext, TerminalError
from sagas.checkpoints import HistoryEntry
from sagas.observers import Attempt, Handling, Observer, Start
from sagas.starts import start
from sagas.testing import Inline


class Recorder(Observer):
    def __init__(self) -> None:
        self.told: list[Any] = []

    @contextmanager
    def _around(self, work: Start | Attempt | Handling) -> Iterator[None]:
        if isinstance(work, Attempt):
            self.told.append(("begin", work.step, work.number))
            yield
            self.told.append(("end", work.step, work.outcome, type(work.error).__name__))
        else:
            yield

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        return self._around(work)

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        self.told.append(
            ("changed", None if before is None else before.status, after.status, [e.what for e in history])
        )


class Broken(Observer):
    """Raises wherever it is asked, and at the end of what it surrounds, too."""

    def __init__(self, when: str) -> None:
        self.when = when

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        if self.when == "asked":
            raise RuntimeError("I am broken")
        return self._around()

    @contextmanager
    def _around(self) -> Iterator[None]:
        if self.when == "entered":
            raise RuntimeError("I am broken")
        try:
            yield
        finally:
            if self.when == "left":
                raise RuntimeError("I am broken")

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        raise RuntimeError("I am broken")

    def carry(self) -> Mapping[str, str]:
        raise RuntimeError("I am broken")


class Swallows(Observer):
    """Would like to keep errors to itself."""

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        class Swallow(AbstractContextManager[None]):
            def __exit__(self, *raised: object) -> bool:
                return True

        return Swallow()


def nothing() -> None:
    pass


def decline() -> None:
    raise TerminalError("declined")


def order() -> Saga:
    return Saga("order", Step("a", nothing, compensation=nothing), Step("b", decline, compensation=None))


def test_what_an_observer_is_told_of_a_saga_that_turns_back() -> None:
    inline, seen = Inline(), Recorder()
    inline.orchestrator.observers.add(seen)
    inline.start(order())
    assert seen.told == [
        ("changed", None, "PENDING", []),
        ("changed", "PENDING", "RUNNING", []),
        ("begin", "a", 1),
        ("changed", "RUNNING", "RUNNING", []),
        ("end", "a", "succeeded", "NoneType"),
        ("changed", "RUNNING", "RUNNING", []),
        ("begin", "b", 1),
        ("changed", "RUNNING", "COMPENSATING", ["step failed", "compensation started"]),
        ("end", "b", "terminal", "TerminalError"),
        ("changed", "COMPENSATING", "COMPENSATING", []),
        ("begin", "a", 1),
        ("changed", "COMPENSATING", "COMPENSATED", []),
        ("end", "a", "succeeded", "NoneType"),
    ]


def test_attempts_are_numbered_and_say_how_they_failed() -> None:
    inline, seen = Inline(), Recorder()
    inline.orchestrator.observers.add(seen)
    inline.fail_at("a", ValueError("broken"), times=1)
    inline.start(Saga("once", Step("a", nothing, compensation=None, retry=Retry(max_attempts=2))))
    ends = [told for told in seen.told if told[0] in ("begin", "end")]
    assert ends == [
        ("begin", "a", 1),
        ("end", "a", "failed", "ValueError"),
        ("begin", "a", 2),
        ("end", "a", "succeeded", "NoneType"),
    ]


@pytest.mark.parametrize("when", ["asked", "entered", "left"])
def test_an_observer_that_raises_fails_no_step_and_is_blamed_once(when: str, caplog: pytest.LogCaptureFixture) -> None:
    inline, seen = Inline(), Recorder()
    inline.orchestrator.observers.add(Broken(when), seen)
    two = Saga("two", Step("a", nothing, compensation=None), Step("b", nothing, compensation=None))
    with caplog.at_level(logging.ERROR):
        assert [inline.start(two).status for _ in range(2)] == [SagaStatus.COMPLETED] * 2
    blamed = sorted(str(record.args[1]) for record in caplog.records if isinstance(record.args, tuple))
    assert blamed == ["changed", "during"]
    assert "I am broken" in caplog.text  # with its traceback
    assert len([told for told in seen.told if told[0] == "end"]) == 4  # the others are told all the same


def test_an_observer_cannot_keep_an_error_to_itself() -> None:
    inline = Inline()
    inline.orchestrator.observers.add(Swallows())
    with pytest.raises(ZeroDivisionError), inline.orchestrator.observers.during(Start(record=None)):  # type: ignore[arg-type]
        raise ZeroDivisionError


def test_a_start_in_the_callers_transaction_is_told_when_that_commits(store: SqlStore) -> None:
    inline, seen = Inline(store), Recorder()
    orchestrator = inline.orchestrator
    orchestrator.observers.add(seen)
    saga = order()
    orchestrator.register(saga)
    for commits in (False, True):
        with Session(store.engine) as session:
            start(orchestrator, saga, None, key=None, correlation_id=None, session=session)
            assert seen.told == []
            session.commit() if commits else session.rollback()
        assert len(seen.told) == commits


def test_a_step_with_a_session_is_told_when_its_transaction_has_committed(store: SqlStore) -> None:
    class Looks(Observer):
        def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
            # A transaction that is open would hold SQLite's lock, or show the revision before.
            stored.append(store.load(after.id).revision - after.revision)

    def write(step: StepContext) -> None:
        _ = step.session

    stored: list[int] = []
    inline = Inline(store)
    inline.orchestrator.observers.add(Looks())
    assert inline.start(Saga("s", Step("a", write, compensation=None))).status is SagaStatus.COMPLETED
    assert stored == [0, 0, 0]


def test_a_saga_keeps_the_traceparent_that_an_observer_names(store: SqlStore) -> None:
    class Names(Observer):
        @contextmanager
        def _named(self, work: Start | Attempt | Handling) -> Iterator[None]:
            if isinstance(work, Start):
                work.traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
            yield

        def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
            return self._named(work)

    inline = Inline(store)
    inline.orchestrator.observers.add(Names())
    handle = inline.start(order())
    assert handle.status is SagaStatus.COMPENSATED
    assert store.load(handle.id).traceparent == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_siblings_and_pivots_are_attempts_as_any() -> None:
    inline, seen = Inline(), Recorder()
    inline.orchestrator.observers.add(seen)
    sides = Parallel(Step("left", nothing, compensation=nothing), Step("right", nothing, compensation=None))
    inline.start(Saga("full", sides, Pivot("pay", nothing), Step("tell", nothing)))
    assert [told[1] for told in seen.told if told[0] == "end"] == ["left", "right", "pay", "tell"]
