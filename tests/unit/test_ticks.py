"""What becomes of ticks: the rules of schedules, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagas import Saga, SagaStatus, Schedule, Step
from sagas.ticks import Decision, Running, ScheduleState, TickOutcome, decide, decide_now, redefined

BILL = Saga("bill_all", Step("bill", lambda: None, compensation=None))
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
RUNS = Running("the-saga", SagaStatus.RUNNING)


def hourly(**options: Any) -> Schedule:
    return Schedule("hourly", BILL, **{"cron": "0 * * * *", **options})


def state(**changes: Any) -> ScheduleState:
    start: dict[str, Any] = {
        "name": "hourly", "saga": "bill_all", "cron": "0 * * * *", "timezone": "UTC", "next_at": NOON, "seen_at": NOON,
    }  # fmt: skip
    return ScheduleState(**{**start, **changes})


def all_of(schedule: Schedule, at: ScheduleState, now: datetime, running: Running | None = None) -> list[str]:
    """Decide until nothing is left, as a pass does; a saga that was started runs. What became of which hour."""
    told: dict[datetime, str] = {}
    for _ in range(1_000):
        decision = decide(schedule, at, now, running)
        if decision is None:
            break
        at = decision.state
        told |= {tick.at: f"{tick.at:%H} {tick.outcome}" for tick in decision.ticks}
        if decision.start is not None:
            running = RUNS
    return [told[tick] for tick in sorted(told)]


def one(decision: Decision | None) -> tuple[str, str]:
    assert decision is not None
    [tick] = decision.ticks
    return tick.outcome.value, tick.why


def test_nothing_is_due_before_its_time() -> None:
    assert decide(hourly(), state(), NOON - SECOND, None) is None
    decision = decide(hourly(), state(), NOON, None)
    assert decision is not None
    assert (decision.start, decision.state.next_at, one(decision)) == (NOON, NOON + HOUR, ("STARTED", ""))


def test_jitter_delays_the_start_and_not_the_tick() -> None:
    spread = hourly(jitter=timedelta(minutes=30))
    due = spread.due_at(NOON)
    assert decide(spread, state(), due - SECOND, None) is None
    decision = decide(spread, state(), due, None)
    assert decision is not None
    assert (decision.start, one(decision)) == (NOON, ("STARTED", ""))


@pytest.mark.parametrize(
    ("options", "hours", "expected"),
    [
        ({"catch_up": "latest"}, 3, ["12 MISSED", "13 MISSED", "14 MISSED", "15 STARTED"]),
        ({"catch_up": "none"}, 3, ["12 MISSED", "13 MISSED", "14 MISSED", "15 STARTED"]),
        ({"catch_up": "none"}, 2.5, ["12 MISSED", "13 MISSED", "14 MISSED"]),
        ({"catch_up": "latest"}, 2.5, ["12 MISSED", "13 MISSED", "14 STARTED"]),
        ({"catch_up": "all"}, 3, ["12 STARTED"]),  # the others wait for it: nothing was decided
        ({"catch_up": "all", "overlap": "queue"}, 3, ["12 STARTED"]),
        ({"catch_up": "all", "overlap": "cancel"}, 3, ["12 STARTED"]),
        ({"catch_up": "all", "overlap": "allow"}, 2, ["12 STARTED", "13 STARTED", "14 STARTED"]),
        ({"catch_up": "all", "catch_up_window": 2 * HOUR, "overlap": "allow"}, 3.2,
         ["12 MISSED", "13 MISSED", "14 STARTED", "15 STARTED"]),
        ({"catch_up": "latest", "catch_up_window": 600}, 2.5, ["12 MISSED", "13 MISSED", "14 MISSED"]),
        ({"catch_up": "latest", "catch_up_window": 600}, 2.1, ["12 MISSED", "13 MISSED", "14 STARTED"]),
    ],
)  # fmt: skip
def test_ticks_that_no_worker_looked_at(options: dict[str, Any], hours: float, expected: list[str]) -> None:
    assert all_of(hourly(**options), state(), NOON + hours * HOUR) == expected


def test_a_year_without_workers_leaves_a_row_for_each_tick() -> None:
    minutely = hourly(cron="* * * * *")
    now = NOON + timedelta(days=2)
    told = all_of(minutely, state(cron="* * * * *"), now)
    assert len(told) == 2 * 24 * 60 + 1
    assert [each for each in told if "MISSED" not in each] == ["12 STARTED"]


def test_caught_up_ticks_run_one_after_another() -> None:
    schedule, at, now = hourly(catch_up="all"), state(), NOON + 2.5 * HOUR
    for hour in (0, 1, 2):
        assert decide(schedule, at, now, RUNS) is None
        decision = decide(schedule, at, now, None)
        assert decision is not None
        assert decision.start == NOON + hour * HOUR
        at = decision.state
    assert decide(schedule, at, now, None) is None
    # From then on they overlap as they should.
    assert all_of(schedule, at, NOON + 3 * HOUR, RUNS) == ["15 SKIPPED"]


@pytest.mark.parametrize("status", [SagaStatus.PENDING, SagaStatus.RUNNING, SagaStatus.COMPENSATING, SagaStatus.STUCK])
def test_a_tick_beside_a_saga_that_runs(status: SagaStatus) -> None:
    runs = Running("the-saga", status)
    assert one(decide(hourly(), state(), NOON, runs)) == ("SKIPPED", f"saga the-saga of an earlier tick is {status}")
    assert one(decide(hourly(overlap="allow"), state(), NOON, runs)) == ("STARTED", "")
    for overlap in ("queue", "cancel"):
        decision = decide(hourly(overlap=overlap), state(), NOON, runs)
        assert decision is not None
        assert one(decision)[0] == "QUEUED"
        assert (decision.start, decision.state.waiting, decision.state.next_at) == (None, NOON, NOON + HOUR)
        assert decision.cancel == ("the-saga" if overlap == "cancel" else None)


def test_one_tick_waits_and_later_ones_do_not() -> None:
    queue, waits = hourly(overlap="queue"), state(waiting=NOON - HOUR)
    decision = decide(queue, waits, NOON, RUNS)
    outcome, why = one(decision)
    assert (outcome, decision and decision.state.waiting) == ("SKIPPED", NOON - HOUR)
    assert "the tick 2026-05-01T11:00:00+00:00 waits already" in why
    # When the saga has ended, the one that waits is the first.
    decision = decide(queue, waits, NOON, None)
    assert decision is not None
    assert (decision.start, decision.state.waiting, decision.state.next_at) == (NOON - HOUR, None, NOON)


def test_the_latest_tick_takes_the_place_of_one_that_waits_for_a_cancellation() -> None:
    decision = decide(hourly(overlap="cancel"), state(waiting=NOON - HOUR), NOON, RUNS)
    assert decision is not None
    assert [(tick.at, tick.outcome) for tick in decision.ticks] == [
        (NOON - HOUR, TickOutcome.SKIPPED), (NOON, TickOutcome.QUEUED),
    ]  # fmt: skip
    assert (decision.state.waiting, decision.cancel) == (NOON, "the-saga")


def test_a_later_tick_takes_its_place_also_when_it_could_start() -> None:
    """No worker ran when the cancelled saga had ended: what starts would be cancelled by the next tick at once."""
    waits = state(waiting=NOON - HOUR)
    decision = decide(hourly(overlap="cancel"), waits, NOON, None)
    assert decision is not None
    assert [(tick.at, tick.outcome) for tick in decision.ticks] == [
        (NOON - HOUR, TickOutcome.SKIPPED), (NOON, TickOutcome.STARTED),
    ]  # fmt: skip
    assert (decision.start, decision.state.waiting, decision.state.next_at) == (NOON, None, NOON + HOUR)
    for other in (hourly(overlap="cancel", catch_up="all"), hourly(overlap="queue")):
        decision = decide(other, waits, NOON, None)
        assert decision is not None
        assert decision.start == NOON - HOUR


def test_a_paused_schedule_skips_its_ticks_and_says_who_paused_it() -> None:
    paused = state(paused_at=NOON, paused_by="ann", paused_why="audit", waiting=NOON - HOUR)
    decision = decide(hourly(), paused, NOON + 2 * HOUR, None)
    assert decision is not None
    assert {tick.outcome for tick in decision.ticks} == {TickOutcome.SKIPPED}
    assert decision.ticks[0].why == "the schedule is paused by ann: audit"
    assert len(decision.ticks) == 3
    assert decision.state.waiting == NOON - HOUR  # it starts when the schedule is resumed
    resumed = replace(decision.state, paused_at=None)
    assert all_of(hourly(), resumed, NOON + 2 * HOUR) == ["11 STARTED"]


def test_a_start_by_hand_overlaps_as_any_other() -> None:
    by = {"actor": "ann", "reason": "month end"}
    now = NOON - HOUR / 2
    started = decide_now(hourly(), state(), now, None, **by)
    assert (started.start, started.state, one(started)) == (now, state(), ("STARTED", "by hand: month end"))
    assert started.ticks[0].actor == "ann"
    assert one(decide_now(hourly(), state(), now, RUNS, **by))[0] == "SKIPPED"
    assert one(decide_now(hourly(overlap="allow"), state(), now, RUNS, **by))[0] == "STARTED"
    replaced = decide_now(hourly(overlap="cancel"), state(waiting=NOON - HOUR), now, RUNS, **by)
    assert [tick.actor for tick in replaced.ticks] == [None, "ann"]


def test_a_changed_expression_loses_what_was_due_by_the_old_one() -> None:
    now = NOON + 2.5 * HOUR
    after, lost = redefined(hourly(cron="30 * * * *"), state(waiting=NOON - HOUR), now)
    assert [f"{tick.at:%H} {tick.outcome}" for tick in lost] == ["12 MISSED", "13 MISSED", "14 MISSED"]
    assert "changed from '0 * * * *' in UTC" in lost[0].why
    assert (after.cron, after.next_at, after.waiting) == ("30 * * * *", NOON + 3.5 * HOUR, NOON - HOUR)
    # Another saga at the same times loses nothing.
    after, lost = redefined(hourly(), state(saga="old"), now)
    assert (after.saga, after.next_at, list(lost)) == ("bill_all", NOON, [])
