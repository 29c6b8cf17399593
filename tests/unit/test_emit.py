"""What steps emit, and what a saga publishes of its life, leaves with the checkpoint or not at all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sagas import (
    ConfigurationError,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaStatus,
    SqlStore,
    Step,
    StepContext,
    TerminalError,
    Wait,
)
from sagas.events import event
from sagas.events.lifecycle import (
    SagaCompensated,
    SagaCompensationStarted,
    SagaCompleted,
    SagaGotStuck,
    SagaStarted,
    StepCompensated,
    StepCompleted,
)
from sagas.testing import Inline

ONCE = Retry(max_attempts=1)


@event("stock.stock.reserved")
class StockReserved:
    attempt: int


@event("stock.stock.released")
class StockReleased:
    actor: str


def reserve(step: StepContext) -> None:
    step.emit(StockReserved(attempt=step.attempt))


def release(step: StepContext) -> None:
    step.emit(StockReleased(actor=step.step))


def nothing() -> None:
    pass


def refuse() -> None:
    raise TerminalError("no")


def test_a_step_emits_when_it_is_done() -> None:
    inline = Inline()
    inline.start(Saga("order", Step("reserve", reserve, compensation=release)))
    assert inline.emitted == [StockReserved(attempt=1)]


def test_a_deferred_step_emits_when_it_has_asked() -> None:
    inline = Inline()
    step = Step("reserve", reserve, compensation=release, deferred=True, deadline=60)
    handle = inline.start(Saga("order", step, Step("next", nothing, compensation=None)))
    assert inline.emitted == [StockReserved(attempt=1)]
    inline.advance(handle, timedelta(minutes=1))
    assert inline.emitted == [StockReserved(attempt=1), StockReleased(actor="reserve")]


def test_what_a_failed_attempt_emitted_is_forgotten() -> None:
    def flaky(step: StepContext) -> None:
        step.emit(StockReserved(attempt=step.attempt))
        if step.attempt == 1:
            raise RuntimeError("not yet")

    inline = Inline()
    inline.start(Saga("order", Step("reserve", flaky, compensation=None)))
    assert inline.emitted == [StockReserved(attempt=2)]


def test_an_action_that_was_refused_emits_nothing_and_its_compensation_does() -> None:
    def refused(step: StepContext) -> None:
        step.emit(StockReserved(attempt=step.attempt))
        raise TerminalError("no")

    inline = Inline()
    handle = inline.start(Saga("order", Step("reserve", refused, compensation=release)))
    assert handle.status is SagaStatus.COMPENSATED
    assert inline.emitted == [StockReleased(actor="reserve")]


def test_an_action_whose_workers_all_die_emits_nothing() -> None:
    inline = Inline()
    inline.crash_after("reserve", times=None)
    handle = inline.start(Saga("order", Step("reserve", reserve, compensation=release)))
    assert handle.status is SagaStatus.COMPENSATED
    assert inline.emitted == [StockReleased(actor="reserve")]


def test_a_success_that_comes_after_the_saga_turned_back_emits_nothing() -> None:
    inline = Inline()
    inline.overtake("reserve")
    inline.fail_at("reserve", TerminalError("no"))
    handle = inline.start(Saga("order", Step("reserve", reserve, compensation=release)))
    assert handle.status is SagaStatus.COMPENSATED
    assert StockReserved(attempt=1) not in inline.emitted
    assert StockReleased(actor="reserve") in inline.emitted


def test_siblings_of_a_stage_each_emit() -> None:
    inline = Inline()
    inline.start(Saga("order", Parallel(Step("a", reserve, compensation=None), Step("b", reserve, compensation=None))))
    assert inline.emitted == [StockReserved(attempt=1)] * 2


def test_something_that_was_never_declared_is_refused() -> None:
    def wrong(step: StepContext) -> None:
        step.emit("stock reserved")

    inline = Inline()
    handle = inline.start(Saga("order", Step("reserve", wrong, compensation=None, retry=ONCE)))
    assert handle.status is SagaStatus.COMPENSATED
    assert "Declare it with @event or @command" in (handle.error or "")


def _names(messages: list[Any]) -> list[str]:
    return [type(m).__name__ + (f" {m.step}" if hasattr(m, "step") else "") for m in messages]


def test_the_life_of_a_saga_that_completes() -> None:
    inline = Inline()
    saga = Saga("order", Step("a", nothing, compensation=None), Pivot("b", nothing), publish_lifecycle=True)
    handle = inline.start(saga, key="o-1")
    assert _names(inline.emitted) == ["SagaStarted", "StepCompleted a", "StepCompleted b", "SagaCompleted"]
    assert inline.emitted[0] == SagaStarted(saga_id=handle.id, name="order", version=1, key="o-1")
    assert inline.emitted[-1] == SagaCompleted(saga_id=handle.id, name="order", key="o-1")


def test_the_life_of_a_saga_that_is_undone() -> None:
    inline = Inline()
    saga = Saga(
        "order", Step("a", nothing, compensation=nothing), Step("b", refuse, compensation=None), publish_lifecycle=True
    )
    handle = inline.start(saga, key="o-1")
    assert _names(inline.emitted) == [
        "SagaStarted",
        "StepCompleted a",
        "SagaCompensationStarted",
        "StepCompensated a",
        "SagaCompensated",
    ]
    turned_back, undone, compensated = inline.emitted[2:]
    assert isinstance(turned_back, SagaCompensationStarted)
    assert isinstance(undone, StepCompensated)
    assert isinstance(compensated, SagaCompensated)
    assert turned_back.error == compensated.error == "step 'b' failed: no"
    assert compensated.saga_id == handle.id


@pytest.mark.parametrize("options", [{}, {"begin": nothing, "compensation": None}])
def test_the_life_of_a_saga_that_begins_with_a_wait(options: dict[str, Any]) -> None:
    inline = Inline()
    wait = Wait("paid", bool, timeout=1000, **options)
    handle = inline.start(Saga("order", wait, Pivot("a", nothing), publish_lifecycle=True))
    inline.advance(handle, timedelta(seconds=90))
    handle.signal("paid", True)
    assert _names(inline.emitted) == ["SagaStarted", "StepCompleted paid", "StepCompleted a", "SagaCompleted"]


def test_the_life_of_a_saga_that_gets_stuck() -> None:
    inline = Inline()
    saga = Saga("order", Pivot("a", nothing), Step("b", refuse), publish_lifecycle=True)
    inline.start(saga, key="o-1")
    assert _names(inline.emitted) == ["SagaStarted", "StepCompleted a", "SagaGotStuck"]
    assert isinstance(inline.emitted[1], StepCompleted)
    assert isinstance(inline.emitted[2], SagaGotStuck)


def test_a_saga_says_nothing_unless_it_is_asked_to() -> None:
    inline = Inline()
    inline.start(Saga("order", Step("a", nothing, compensation=None)))
    assert inline.emitted == []


def test_a_store_with_an_outbox_needs_somebody_who_fills_it() -> None:
    store = SqlStore("sqlite://")
    store.upgrade()
    inline = Inline(store)
    handle = inline.start(Saga("order", Step("reserve", reserve, compensation=None, retry=ONCE)))
    assert "events=Events(...)" in (handle.error or "")
    with pytest.raises(ConfigurationError, match="outbox"):
        inline.emitted  # noqa: B018 - it is read, and refused
