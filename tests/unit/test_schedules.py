"""The times of a schedule, also where clocks change, and what its definition refuses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagas import DefinitionError, Saga, Schedule, Step
from sagas.schedules import CatchUp, Overlap


@dataclass
class Month:
    number: int


BILL = Saga("bill_all", Step("bill", lambda: None, compensation=None))
CLOSE = Saga("close", Step("close", lambda number: None, compensation=None), input=Month)


def schedule(cron: str, zone: str = "Europe/Vienna", **options: Any) -> Schedule:
    return Schedule("nightly", BILL, cron=cron, timezone=zone, **options)


# What the local clocks of a place show, and which times of day a schedule has then. In Vienna, 02:00 to 03:00 is skipped on
# 29 March 2026 and repeated on 25 October 2026.
MOMENTS = st.integers(0, 365 * 86_400).map(lambda second: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second))
SPRING, AUTUMN = datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "cron", "after", "expected"),
    [
        # A fixed time that is skipped runs when the clocks have been changed; one that is repeated runs once, the first.
        ("Europe/Vienna", "30 2 * * *", SPRING, "29T03:00+02:00 30T02:30+02:00"),
        ("Europe/Vienna", "30 2 * * *", AUTUMN, "25T02:30+02:00 26T02:30+01:00"),
        # Several that are skipped are one tick, also together with one at the end of the gap.
        ("Europe/Vienna", "0,30 2 * * *", SPRING, "29T03:00+02:00 30T02:00+02:00 30T02:30+02:00"),
        ("Europe/Vienna", "0 2,3 * * *", SPRING, "29T03:00+02:00 30T02:00+02:00"),
        ("Europe/Vienna", "0 3 * * *", SPRING, "29T03:00+02:00 30T03:00+02:00"),
        ("Europe/Vienna", "59 1 * * *", SPRING, "29T01:59+01:00 30T01:59+02:00"),
        # With a star in the minutes or hours it runs by elapsed time: skipped times are none, repeated ones are two.
        ("Europe/Vienna", "0 * * * *", SPRING, "29T01:00+01:00 29T03:00+02:00 29T04:00+02:00"),
        ("Europe/Vienna", "0 * * * *", AUTUMN, "25T01:00+02:00 25T02:00+02:00 25T02:00+01:00 25T03:00+01:00"),
        ("Europe/Vienna", "*/30 2 * * *", SPRING, "30T02:00+02:00 30T02:30+02:00"),
        ("Europe/Vienna", "*/30 2 * * *", AUTUMN, "25T02:00+02:00 25T02:30+02:00 25T02:00+01:00 25T02:30+01:00"),
        # Between the two 02:30 of a night, the first one has been.
        ("Europe/Vienna", "30 2 * * *", datetime(2026, 10, 25, 1, 10, tzinfo=UTC), "26T02:30+01:00"),
        ("UTC", "30 2 * * *", SPRING, "29T02:30+00:00 30T02:30+00:00"),
        # Half an hour, at midnight, and a whole day that never was.
        ("Australia/Lord_Howe", "15 2 * * *", datetime(2026, 10, 2, 20, tzinfo=UTC), "04T02:30+11:00 05T02:15+11:00"),
        ("Asia/Beirut", "0 0 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), "29T01:00+03:00 30T00:00+03:00"),
        ("Pacific/Apia", "0 12 * * *", datetime(2011, 12, 29, 12, tzinfo=UTC), "29T12:00-10:00 31T00:00+14:00"),
    ],
)  # fmt: skip
def test_local_times_are_those_of_cron(zone: str, cron: str, after: datetime, expected: str) -> None:
    times = schedule(cron, zone).next_times(after, len(expected.split()))
    assert [f"{time:%dT%H:%M}{time.isoformat()[-6:]}" for time in times] == expected.split()


@given(
    cron=st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 0-4 * * *", "15 1,2,3 * * SUN", "* 2 * * *", "0 3 29 3 *"]),
    zone=st.sampled_from(["Europe/Vienna", "America/New_York", "Asia/Beirut", "Australia/Lord_Howe", "Pacific/Apia"]),
    after=MOMENTS,
    ahead=st.timedeltas(timedelta(0), timedelta(days=3)),
)
def test_ticks_only_go_on(cron: str, zone: str, after: datetime, ahead: timedelta) -> None:
    """Whenever it is asked, the next tick is the same one until it has come: else it would be lost, or come twice."""
    nightly = schedule(cron, zone)
    following = nightly.next_after(after)
    assert following > after
    between = min(after + ahead, following - timedelta(microseconds=1))
    assert nightly.next_after(between) == following
    assert nightly.next_after(following) > following


@given(MOMENTS)
def test_a_fixed_time_runs_once_a_day(moment: datetime) -> None:
    times = schedule("30 2 * * *").next_times(moment, 10)
    days = [time.date() for time in times]
    assert days == [days[0] + timedelta(days=number) for number in range(10)]


def test_jitter_is_the_same_in_every_worker() -> None:
    spread = schedule("0 * * * *", jitter=timedelta(minutes=10))
    ticks = [spread.next_after(datetime(2026, 1, 1, hour, tzinfo=UTC)) for hour in range(20)]
    delays = [(spread.due_at(tick) - tick).total_seconds() for tick in ticks]
    assert delays == [(schedule("0 * * * *", jitter=600).due_at(tick) - tick).total_seconds() for tick in ticks]
    assert all(0 <= delay <= 600 for delay in delays)
    assert len(set(delays)) > 10
    assert [schedule("0 * * * *").due_at(tick) for tick in ticks] == ticks


def test_the_input_may_depend_on_the_tick() -> None:
    tick = datetime(2026, 3, 31, 23, tzinfo=UTC)  # 1 April, 01:00 in Vienna
    closes = Schedule("close", CLOSE, cron="0 1 1 * *", timezone="Europe/Vienna", input=lambda at: Month(at.month))
    assert closes.input_of(tick) == Month(4)
    assert Schedule("close", CLOSE, cron="0 1 1 * *", input={"number": 2}).input_of(tick) == {"number": 2}
    assert closes.key_of(tick) == "close@2026-03-31T23:00:00Z"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cron": "0 2 * *"}, "five fields"),
        ({"cron": "0 0 2 * * *"}, "five fields"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 25 * * *"}, "Bad hour"),
        ({"cron": "0 0 31 2 *"}, "day-of-month"),
        ({"cron": "* * */20 * 1L"}, "never comes"),
        ({"timezone": "Europe/Wien"}, "no timezone 'Europe/Wien'"),
        ({"timezone": "../etc/passwd"}, "not a name such as"),
        ({"overlap": "never"}, "one of 'skip', 'queue', 'allow', 'cancel'"),
        ({"catch_up": "some"}, "one of 'latest', 'all', 'none'"),
        ({"catch_up_window": -1}, "more than zero"),
        ({"jitter": timedelta(hours=25)}, "jitter is 90000 s, and its ticks are 86400 s apart"),
        ({"input": 3}, "takes no input"),
        ({"saga": CLOSE}, "does not fit saga 'close'"),
        ({"saga": CLOSE, "input": {"nummer": 1}}, "does not fit saga 'close'"),
        ({"saga": len}, "not a Saga"),
        ({"name": "nightly billing"}, "must match"),
        ({"name": "n" * 101}, "must match"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(options: dict[str, Any], says: str) -> None:
    given = {"name": "nightly", "saga": BILL, "cron": "0 2 * * *", **options}
    with pytest.raises(DefinitionError, match=says):
        Schedule(given.pop("name"), given.pop("saga"), **given)


def test_defaults() -> None:
    made = Schedule("nightly", BILL, cron=" 0  2 * * * ")
    assert (made.cron, made.timezone, made.overlap, made.catch_up) == (
        "0 2 * * *", "UTC", Overlap.SKIP, CatchUp.LATEST,
    )  # fmt: skip
    assert repr(made) == "Schedule('nightly', Saga('bill_all', version=1), cron='0 2 * * *', timezone='UTC')"
