"""`task_always_eager`: a saga runs to its end within `start()`, as test suites expect that switch this on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task, current_task, signals
from sqlalchemy import text
from sqlalchemy.orm import Session

from sagas import (
    ConfigurationError,
    Parallel,
    Pivot,
    Retry,
    RetryableError,
    Saga,
    Sagas,
    SagaStatus,
    SqlStore,
    Step,
    StepContext,
    StoreUnavailable,
    TerminalError,
)
from sagas.checkpoints import StepStatus

Make = Callable[..., Sagas]


@pytest.fixture
def make(store: SqlStore) -> Make:
    def make(*definitions: Saga, task_cls: Any = None, **conf: Any) -> Sagas:
        # No such broker: whatever is sent would be an error.
        app = Celery("eager", broker="redis://127.0.0.1:1/0", set_as_current=False, task_cls=task_cls)
        app.conf.update(task_always_eager=True, **conf)
        return Sagas(app, store, definitions)

    return make


class Diary:
    """What was called, in order, and what goes wrong."""

    def __init__(self, **faults: BaseException) -> None:
        self.calls: list[str] = []
        self.faults = faults

    def step(self, name: str, kind: type[Step] = Step, **options: Any) -> Step:
        def action(step: StepContext) -> str:
            self.calls.append(name)
            if (error := self.faults.get(name)) is not None:
                raise error
            return f"{name} {step.attempt}"

        def undo(step: StepContext, result: str | None) -> None:
            self.calls.append(f"-{name}")
            if (error := self.faults.get(f"-{name}")) is not None:
                raise error

        if kind is Step:
            options.setdefault("compensation", undo)
        return kind(name, action, **options)

    def saga(self) -> Saga:
        return Saga(
            "order",
            self.step("one"),
            Parallel(self.step("left"), self.step("right")),
            self.step("two"),
            self.step("pay", Pivot),
            self.step("tell", compensation=None),
        )


def test_it_runs_through(make: Make) -> None:
    diary = Diary()
    make(saga := diary.saga())
    handle = saga.start()
    assert handle.status is SagaStatus.COMPLETED
    assert diary.calls == ["one", "left", "right", "two", "pay", "tell"]
    assert handle.result["tell"] == "tell 1"
    assert handle.wait(0) is SagaStatus.COMPLETED


def test_it_turns_back(make: Make) -> None:
    diary = Diary(pay=TerminalError("declined"))
    make(saga := diary.saga())
    handle = saga.start()
    assert handle.status is SagaStatus.COMPENSATED
    assert diary.calls == ["one", "left", "right", "two", "pay", "-two", "-left", "-right", "-one"]
    assert handle.error == "step 'pay' failed: declined"


def test_a_branch_that_fails_lets_its_sibling_be(make: Make) -> None:
    diary = Diary(left=TerminalError("no"))
    make(saga := diary.saga())
    handle = saga.start()
    assert handle.status is SagaStatus.COMPENSATED
    assert diary.calls == ["one", "left", "-left", "-one"]


def test_retries_do_not_wait(make: Make) -> None:
    diary = Diary(two=RetryableError("busy", after=86_400), **{"-one": ValueError("away")})
    made = make(saga := diary.saga())
    handle = saga.start()
    assert handle.status == "STUCK"
    assert diary.calls.count("two") == 3
    assert diary.calls.count("-one") == 10
    diary.faults.clear()
    made.retry(handle.id, "one", reason="it is back")
    assert handle.status is SagaStatus.COMPENSATED


def test_each_step_is_the_task_that_it_is(make: Make) -> None:
    """With its name and its id, the base class of the app, and Celery's signals."""
    names, ran, done = [], [], []

    class Context(Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            ran.append(self.name)
            return self.run(*args, **kwargs)

    def hello() -> None:
        names.append((current_task.name, current_task.request.is_eager))

    def note(sender: Task, **_: Any) -> None:
        done.append(sender.name)

    saga = Saga("greet", Step("hello", hello, compensation=None))
    make(saga, task_cls=Context)
    signals.task_postrun.connect(note)
    try:
        saga.start()
    finally:
        signals.task_postrun.disconnect(note)
    assert names == [("greet.hello", True)]
    assert ran == done == ["greet.hello"]


def test_what_keeps_a_task_from_running_is_said(make: Make) -> None:
    class Broken(Task):  # type: ignore[misc]
        def before_start(self, *_: Any) -> None:
            raise RuntimeError("no tenant")

    class Silent(Task):  # type: ignore[misc]
        def __call__(self, *_: Any, **__: Any) -> str:
            return "skipped"

    saga = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    make(saga, task_cls=Broken)
    with pytest.raises(RuntimeError, match="no tenant"):
        saga.start()
    other = Saga("greet2", Step("hello", lambda: "hi", compensation=None))
    make(other, task_cls=Silent)
    with pytest.raises(ConfigurationError, match="returned 'skipped' instead"):
        other.start()


def test_a_database_that_is_away_is_said(make: Make, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saga = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    make(saga)
    monkeypatch.setattr("sagas.attempts.CLAIM_PATIENCE", 0.1)

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "save", away)
    with pytest.raises(StoreUnavailable, match="away"):
        saga.start()


@pytest.mark.parametrize("propagates", [True, False])
def test_a_flaw_propagates_when_it_is_to(make: Make, propagates: bool) -> None:
    diary = Diary(two=KeyError("sku"))
    saga = diary.saga()
    made = make(saga, task_eager_propagates=propagates)
    if propagates:
        with pytest.raises(KeyError, match="sku"):
            saga.start(key="7")
    else:
        saga.start(key="7")
    assert made.find("order", "7").status is SagaStatus.COMPENSATED  # to its end, first
    assert diary.calls[-1] == "-one"


def test_what_a_step_means_to_say_does_not_propagate(make: Make) -> None:
    """A decline is a case that a test wants to see, and what a retry mended is no flaw."""
    diary = Diary(two=TerminalError("declined"))
    make(saga := diary.saga(), task_eager_propagates=True)
    assert saga.start().status is SagaStatus.COMPENSATED


def test_what_a_retry_mended_does_not_propagate(make: Make) -> None:
    def flaky(step: StepContext) -> None:
        if step.attempt == 1:
            raise ValueError("once")

    def decline() -> None:
        raise TerminalError("declined")

    saga = Saga("healed", Step("a", flaky, compensation=None), Pivot("b", decline))
    make(saga, task_eager_propagates=True)
    assert saga.start().status is SagaStatus.COMPENSATED


def test_in_a_session_it_runs_after_the_commit(make: Make, store: SqlStore) -> None:
    diary = Diary()
    made = make(saga := diary.saga())
    with Session(store.engine) as session:
        with session.begin():
            handle = saga.start(session=session)
            assert diary.calls == []
        assert handle.status is SagaStatus.COMPLETED
        with session.begin():
            saga.start(session=session, key="never")
            session.rollback()
        assert session.execute(text("select count(*) from sagas_saga")).scalar() == 1
    assert len(diary.calls) == 6
    assert made.find("order", handle.record.key).id == handle.id


def test_on_a_connection_it_runs_after_the_commit(make: Make, store: SqlStore) -> None:
    diary = Diary()
    make(saga := diary.saga())
    with store.engine.connect() as connection:
        with connection.begin():
            saga.start(session=connection, key="never")
            connection.rollback()
        with connection.begin():
            with connection.begin_nested():
                handle = saga.start(session=connection)
            assert diary.calls == []
        assert handle.status is SagaStatus.COMPLETED
        diary.faults["one"] = KeyError("sku")
        saga.start(session=connection)
        connection.commit()
    assert len(diary.calls) == 6 + 4


def test_what_propagates_after_a_commit_leaves_the_session_usable(make: Make, store: SqlStore) -> None:
    diary = Diary(one=KeyError("sku"))
    make(saga := diary.saga(), task_eager_propagates=True)
    with Session(store.engine) as session:
        saga.start(session=session)
        other = saga.start(session=session)
        with pytest.raises(KeyError, match="sku"):
            session.commit()
        assert other.status is SagaStatus.COMPENSATED
        assert session.execute(text("select status from sagas_saga")).scalar() == "COMPENSATED"


def test_a_step_that_starts_a_saga(make: Make) -> None:
    inner = Diary()
    nested = Saga("nested", inner.step("in"))
    outer = Saga("outer", Step("begin", lambda: str(nested.start().status), compensation=None))
    make(nested, outer)
    assert outer.start().result["begin"] == "COMPLETED"


def test_a_step_with_a_session(make: Make, store: SqlStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n integer)"))

    def write(step: StepContext) -> None:
        step.session.execute(text("insert into effect values (1)"))
        if step.attempt == 1:
            raise ValueError("the first time")

    saga = Saga("write", Step("a", write, compensation=None))
    make(saga)
    assert saga.start().status is SagaStatus.COMPLETED
    with store.engine.begin() as connection:
        assert connection.execute(text("select count(*) from effect")).scalar() == 1


def test_cancel_and_operators_run_it_too(make: Make) -> None:
    diary = Diary(tell=ValueError("away"))
    made = make(saga := diary.saga())
    handle = saga.start()
    assert handle.status == "STUCK"
    diary.faults.clear()
    made.retry(handle.id, "tell", reason="it is back")
    assert handle.status is SagaStatus.COMPLETED
    assert handle.record.steps["tell"].status is StepStatus.DONE


def test_switched_on_after_the_app_was_made(store: SqlStore) -> None:
    """As `override_settings` and pytest fixtures do it."""
    diary = Diary()
    app = Celery("late", broker="redis://127.0.0.1:1/0", set_as_current=False)
    saga = diary.saga()
    Sagas(app, store, [saga])
    app.conf.task_always_eager = True
    assert saga.start().status is SagaStatus.COMPLETED


def test_attempts_that_are_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary(two=TerminalError("declined"))
    make(saga := diary.saga())
    with caplog.at_level(logging.ERROR):
        saga.start()
    assert not caplog.records  # a decline is none of Celery's errors


def test_a_long_way(make: Make) -> None:
    diary = Diary()
    saga = Saga("long", *(diary.step(f"s{n}", retry=Retry(max_attempts=1)) for n in range(60)))
    make(saga)
    assert saga.start().status is SagaStatus.COMPLETED
    assert diary.calls == [f"s{n}" for n in range(60)]
