"""Steps that ask again: those that poll, those that retry by the kind of error, and those that look at the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from sagas import (
    NEVER,
    DefinitionError,
    Pivot,
    Retry,
    RetryableError,
    Saga,
    Sagas,
    SagaStatus,
    SqlStore,
    Step,
    StepContext,
    StepStatus,
    TerminalError,
    transitions,
)
from sagas.observers import Attempt, Handling, Observer, Start
from sagas.testing import Inline
from sagas.transitions import Case, Failure, Outcome, Repair, Timing, Verdict
from sagas.transitions.time import rewound
from tests.unit.simulation import START, World

HOUR = 3600.0


class Bank:
    """Answers in order; then it is paid."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[datetime, datetime, int]] = []
        self.refunds: list[object] = []

    def pay(self, step: StepContext) -> str:
        self.asked.append((step.now, step.started_at, step.attempt))
        if self.answers:
            raise self.answers.pop(0)
        return "paid"

    def refund(self, step: StepContext, result: str | None) -> None:
        self.refunds.append(result)

    def saga(self, **options: Any) -> Saga:
        options = {"retry": Retry(max_attempts=2, delay=1, jitter=0), **options}
        return Saga("pay", Step("pay", self.pay, compensation=self.refund, **options))


def not_yet(after: float = 60) -> RetryableError:
    return RetryableError("not booked yet", after=after)


def test_not_yet_is_no_failure() -> None:
    bank, inline = Bank(*(not_yet() for _ in range(30))), Inline()
    handle = inline.start(bank.saga(poll_timeout=timedelta(hours=1)))
    assert handle.status is SagaStatus.COMPLETED
    step = handle.record.step("pay")
    assert (step.failures, step.error) == (0, None)
    assert inline.store.queries.history(handle.id) == []
    first = bank.asked[0][0]
    assert [round((now - first).total_seconds() / 60) for now, *_ in bank.asked] == list(range(31))
    assert {(started, attempt) for _, started, attempt in bank.asked} == {(step.started_at, 1)}


def test_when_its_time_is_over_it_is_given_up_as_in_doubt() -> None:
    bank, inline = Bank(*(not_yet(50) for _ in range(99))), Inline()
    handle = inline.start(bank.saga(poll_timeout=120))
    assert handle.status is SagaStatus.COMPENSATED
    assert "step 'pay' is in doubt: not ready within 120 s: not booked yet" in str(handle.error)
    assert bank.refunds == [None]
    seconds = [round((now - started).total_seconds()) for now, started, _ in bank.asked]
    assert seconds == [0, 50, 100, 120], "it looks once more at the very end"
    assert [entry.what for entry in inline.store.queries.history(handle.id)] == ["step failed", "compensation started"]


def test_other_errors_are_failures_in_a_row() -> None:
    away = RuntimeError("the bank is away")
    bank = Bank(away, not_yet(), away, not_yet(), away)
    assert Inline().start(bank.saga(poll_timeout=HOUR)).status is SagaStatus.COMPLETED
    bank = Bank(not_yet(), away, away)
    handle = Inline().start(bank.saga(poll_timeout=HOUR))
    assert handle.status is SagaStatus.COMPENSATED
    assert "the bank is away" in str(handle.error)
    bank = Bank(RetryableError("no time is named"), RetryableError("no time is named"))
    assert Inline().start(bank.saga(poll_timeout=HOUR)).status is SagaStatus.COMPENSATED
    bank = Bank(not_yet(), TerminalError("declined"))
    assert Inline().start(bank.saga(poll_timeout=HOUR)).status is SagaStatus.COMPENSATED


def test_without_a_poll_timeout_it_is_a_failure_as_ever() -> None:
    bank = Bank(not_yet(), not_yet())
    assert Inline().start(bank.saga()).status is SagaStatus.COMPENSATED


def test_a_pivot_that_polls_is_stuck_then_and_polls_as_long_again_when_a_person_retries_it() -> None:
    bank, inline = Bank(*(not_yet(50) for _ in range(5))), Inline()
    pivot = Saga("pay", Pivot("pay", bank.pay, poll_timeout=60))
    handle = inline.start(pivot)
    assert handle.wait(0) is SagaStatus.STUCK
    assert len(bank.asked) == 3
    orchestrator = inline.orchestrator
    next_ = orchestrator.repair(handle.id, "pay", Repair.RETRY, reason="the bank says so")
    inline._runner.finish(handle.id, next_.plan)
    assert handle.status is SagaStatus.COMPLETED
    assert len(bank.asked) == 6


class Watching(Observer):
    def __init__(self) -> None:
        self.outcomes: list[str | None] = []

    @contextmanager
    def during(self, work: Start | Attempt | Handling) -> Iterator[None]:
        yield
        if isinstance(work, Attempt):
            self.outcomes.append(work.outcome)


def test_observers_and_the_log_are_told_of_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sagas")
    store = SqlStore(f"sqlite:///{tmp_path / 'x.db'}")
    store.upgrade()
    app = Celery("t", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    bank, watching = Bank(not_yet(), not_yet()), Watching()
    saga = bank.saga(poll_timeout=HOUR)
    Sagas(app, store, [saga], observers=[watching])
    handle = saga.start()
    assert handle.status is SagaStatus.COMPLETED
    assert watching.outcomes == ["not yet", "not yet", "succeeded"]
    assert "attempt failed" not in caplog.text
    assert store.queries.history(handle.id) == []
    store.engine.dispose()


# -- the rules --------------------------------------------------------------------------------------------------------


def asking(**changes: Any) -> tuple[Case, str]:
    world = World(0)
    saga = Bank().saga(poll_timeout=100)
    record = replace(world.record, name="pay", outline=saga.outline)
    case = Case.of(saga, record, START, Timing())
    claimed = transitions.claim(case, "pay", 1, "me")
    return replace(case, record=claimed.record, **changes), "me"


def late(case: Case, seconds: float) -> Case:
    return replace(case, now=START + timedelta(seconds=seconds))


NOT_YET = Failure(Outcome.NOT_YET, "not yet", 30.0)


def test_the_claim_is_let_go_and_the_next_look_is_kept_in_sql() -> None:
    case, owner = asking()
    change = transitions.fail(late(case, 10), "pay", owner, case.record.direction, NOT_YET)
    step = change.record.step("pay")
    assert change.verdict is Verdict.RETRY
    assert (step.status, step.owner, step.due_at) == (StepStatus.PENDING, None, START + timedelta(seconds=40))
    assert change.record.next_check_at == step.due_at
    assert change.history == ()


def test_who_lost_the_claim_asks_nothing() -> None:
    case, _ = asking()
    change = transitions.fail(case, "pay", "somebody else", case.record.direction, NOT_YET)
    assert change.record is case.record


def test_a_saga_that_is_going_back_waits_no_longer_for_it() -> None:
    case, owner = asking()
    back = case.on(transitions.cancel(case, "never mind").record)
    change = transitions.fail(back, "pay", owner, case.record.direction, NOT_YET)
    assert change.record.step("pay").status is StepStatus.IN_DOUBT
    assert change.verdict is Verdict.DISPATCH


def test_a_clock_that_was_set_back_has_it_poll_from_now() -> None:
    case, _ = asking()
    before = replace(case.record, updated_at=START + timedelta(hours=2)).with_step(
        replace(case.record.step("pay"), started_at=START + timedelta(hours=1))
    )
    assert rewound(before, START).step("pay").started_at == START


# -- retries by the kind of error -------------------------------------------------------------------------------------


class CardError(Exception): ...


class Busy(RetryableError): ...


POLICY = Retry(
    max_attempts=3, delay=1, jitter=0,
    on={CardError: NEVER, OSError: Retry(max_attempts=6, delay=9, factor=1, jitter=0), Busy: Retry(max_attempts=5)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "asked"),
    [
        ([CardError()] * 9, 1),
        ([ZeroDivisionError()] * 9, 3),
        ([ConnectionResetError()] * 9, 6),
        ([TimeoutError()] * 9, 6),
        ([Busy("busy")] * 9, 5),
        ([ConnectionResetError()] * 4 + [ZeroDivisionError()], 5),
        ([ConnectionResetError(), CardError()], 2),
        ([ExceptionGroup("", [CardError()])] * 9, 3),
    ],
)
def test_each_error_has_its_policy(errors: Sequence[Exception], asked: int) -> None:
    bank = Bank(*errors)
    handle = Inline().start(bank.saga(retry=POLICY))
    assert handle.status is SagaStatus.COMPENSATED
    assert len(bank.asked) == asked
    assert bank.refunds == [None], "nobody knows whether it had an effect"


def test_the_delay_is_that_of_the_error() -> None:
    bank = Bank(ConnectionResetError(), ConnectionResetError())
    assert Inline().start(bank.saga(retry=POLICY)).status is SagaStatus.COMPLETED
    first = bank.asked[0][0]
    assert [round((now - first).total_seconds()) for now, *_ in bank.asked] == [0, 9, 18]


def test_of_a_compensation_too() -> None:
    calls: list[str] = []

    def undo() -> None:
        calls.append("undo")
        raise CardError

    def refuse() -> None:
        raise TerminalError("no")

    saga = Saga(
        "back",
        Step("a", lambda: 1, compensation=undo, compensation_retry=POLICY),
        Step("b", refuse, compensation=None),
    )
    assert Inline().start(saga).status is SagaStatus.STUCK
    assert calls == ["undo"]


def test_an_attempt_that_takes_too_long_is_a_timeout_error() -> None:
    saga = Bank().saga(retry=Retry(on={TimeoutError: NEVER}), timeout=5)
    inline = Inline(lease=30)
    inline.crash_before("pay", times=None)
    handle = inline.start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert len(inline.store.queries.history(handle.id)) == 2
    assert "no answer within 5 s" in str(handle.error)


@pytest.mark.parametrize(
    ("on", "says"),
    [
        ({"CardError": NEVER}, "'CardError', which is not a class of exceptions"),
        ({TerminalError: Retry()}, "a TerminalError is never tried again"),
        ({CardError: None}, r"on\[CardError\] is None; it must be NEVER, or a Retry"),
        ({CardError: Retry(on={OSError: NEVER})}, "without an `on` of its own"),
    ],
)
def test_what_a_policy_cannot_be(on: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        Retry(on=on)


def test_what_a_poll_timeout_cannot_be() -> None:
    with pytest.raises(DefinitionError, match="step 'pay': poll_timeout"):
        Bank().saga(poll_timeout=0)


def test_the_time_is_the_databases() -> None:
    bank = Bank()
    Inline().start(bank.saga())
    now, started, _ = bank.asked[0]
    assert now.tzinfo is UTC
    assert timedelta() <= now - started < timedelta(seconds=5)
