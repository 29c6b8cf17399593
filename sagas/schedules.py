"""A schedule as its author writes it: which saga, at which times, and what happens when ticks collide or are missed.

The times of a cron expression are those of Debian's cron, also where clocks change: see docs/how-to/schedules.md.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from sagas.definition import Saga
from sagas.durations import seconds
from sagas.errors import DefinitionError
from sagas.values import convert, dump

__all__ = ["CatchUp", "Overlap", "Schedule", "next_tick"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")

#: What the table holds.
_LONGEST_CRON = 200

#: Where the search begins for whether an expression has ticks at all, and how far apart they are.
_ANY_TIME = datetime(2024, 1, 1, tzinfo=UTC)
_SAMPLE = 100

_EnumT = TypeVar("_EnumT", bound=enum.StrEnum)


class Overlap(enum.StrEnum):
    """What happens to a tick while the saga of an earlier tick runs."""

    SKIP = "skip"  #: it is skipped
    QUEUE = "queue"  #: it waits until that saga has ended; while one tick waits, later ones are skipped
    ALLOW = "allow"  #: it starts beside that saga
    CANCEL = "cancel"  #: that saga is cancelled, and the tick starts once it has ended


class CatchUp(enum.StrEnum):
    """What happens to ticks that passed while no worker ran."""

    LATEST = "latest"  #: the latest one starts
    ALL = "all"  #: all of them start, one after another
    NONE = "none"  #: none of them starts


class Schedule:
    """Starts a saga at the times of a cron expression, from any worker and without a beat.

    `name`: unique in the app. `saga`: the saga, which is registered with the same `Sagas`.
    `cron`: minute, hour, day of month, month and day of week: "0 2 * * *". `timezone`: where these are local times,
        such as "Europe/Vienna".
    `input`: the saga's input, or a function that returns it. The function is called with the nominal time of the tick
        in the schedule's time zone. It runs in the thread that recovers sagas, so it should only calculate.
    `overlap`: "skip", "queue", "allow" or "cancel": what happens to a tick while the saga of an earlier tick runs. See
        `Overlap`. A saga that is STUCK or COMPENSATING counts as running.
    `catch_up`: "latest", "all" or "none": what happens to ticks that passed while no worker ran. See `CatchUp`.
    `catch_up_window`: seconds (or a timedelta) after which a tick is too late to start. None: it never is.
    `jitter`: seconds (or a timedelta) by up to which each start is delayed.

    Raises `DefinitionError` for a schedule that cannot work.

    >>> from sagas import Saga, Step
    >>> bill_all = Saga("bill_all", Step("bill", lambda: None, compensation=None))
    >>> nightly = Schedule("nightly_billing", bill_all, cron="0 2 * * *", timezone="Europe/Vienna")
    >>> nightly.next_times(datetime(2026, 7, 1, tzinfo=UTC), 1)[0].isoformat()
    '2026-07-02T02:00:00+02:00'
    """

    def __init__(
        self,
        name: str,
        saga: Saga[Any],
        *,
        cron: str,
        timezone: str = "UTC",
        input: Any | Callable[[datetime], Any] = None,  # noqa: A002
        overlap: str = Overlap.SKIP,
        catch_up: str = CatchUp.LATEST,
        catch_up_window: float | timedelta | None = None,
        jitter: float | timedelta = 0.0,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"schedule name {name!r} must match {_NAME.pattern}")
        where = f"schedule {name!r}"
        if not isinstance(saga, Saga):
            raise DefinitionError(f"{where} starts {saga!r}, which is not a Saga")
        self.name = name
        self.saga = saga
        self.timezone = timezone
        self._zone = _zone(timezone, where)
        self.cron = " ".join(cron.split())
        _check_cron(self.cron, where)
        self.input = input
        _check_input(input, saga, where)
        self.overlap = _one_of(Overlap, overlap, f"{where}: overlap")
        self.catch_up = _one_of(CatchUp, catch_up, f"{where}: catch_up")
        window = catch_up_window
        self.catch_up_window = None if window is None else seconds(window, f"{where}: catch_up_window", DefinitionError)
        self.jitter = seconds(jitter, f"{where}: jitter", DefinitionError, zero=True)
        self._check_jitter(where)

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {self.saga!r}, cron={self.cron!r}, timezone={self.timezone!r})"

    def next_times(self, after: datetime, count: int = 5) -> list[datetime]:
        """Return the nominal times of the next ticks after a moment, as local times of the schedule's zone."""
        found: list[datetime] = []
        for _ in range(count):
            after = self.next_after(after)
            found.append(self.local(after))
        return found

    def next_after(self, after: datetime) -> datetime:
        """Return the nominal time of the first tick after a moment, in UTC."""
        return next_tick(self.cron, self._zone, after)

    def local(self, moment: datetime) -> datetime:
        """Return a moment as local time of the schedule's zone."""
        return moment.astimezone(self._zone)

    def due_at(self, tick: datetime) -> datetime:
        """Return when a tick is to start: its nominal time, delayed by its share of the jitter."""
        if not self.jitter:
            return tick
        share = random.Random(f"{self.name}@{tick.timestamp()}").random()  # noqa: S311 - the same in every worker
        return tick + timedelta(seconds=self.jitter * share)

    def input_of(self, tick: datetime) -> Any:
        """Return the input of the saga of a tick. Raises whatever the author's function raises."""
        return self.input(self.local(tick)) if callable(self.input) else self.input

    def key_of(self, tick: datetime) -> str:
        """Return the key of the saga of a tick."""
        return f"{self.name}@{tick.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"

    def _check_jitter(self, where: str) -> None:
        if not self.jitter:
            return
        times = [_ANY_TIME]
        times += (local.astimezone(UTC) for local in self.next_times(_ANY_TIME, _SAMPLE))
        shortest = min((later - earlier).total_seconds() for earlier, later in pairwise(times[1:]))
        if self.jitter >= shortest:
            raise DefinitionError(
                f"{where}: jitter is {self.jitter:g} s, and its ticks are {shortest:g} s apart: a tick could start "
                "after the next one. Make it shorter than that"
            )


def next_tick(cron: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first time of a cron expression after a moment, in UTC. Raises `DefinitionError` if it has none."""
    # An expression with a fixed hour runs at the first of two equal local times. Asked between the two, the library
    # begins with one that has passed.
    for local in CronSim(cron, after.astimezone(zone)):
        moment = local.astimezone(UTC)
        if moment > after:
            return moment
    raise DefinitionError(f"cron {cron!r} has no tick in the 50 years after {after}")


def _zone(timezone: str, where: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (OSError, ValueError, TypeError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise DefinitionError(f"{where}: timezone {timezone!r} is not a name such as 'Europe/Vienna'") from error
    except KeyError as error:
        raise DefinitionError(
            f"{where}: this system has no timezone {timezone!r}. If the name is right, install tzdata"
        ) from error


def _check_cron(cron: str, where: str) -> None:
    says = "a cron expression has five fields: minute, hour, day of month, month, day of week"
    if len(cron.split()) != 5 or len(cron) > _LONGEST_CRON:
        raise DefinitionError(f"{where}: cron is {cron!r}; {says}, and at most {_LONGEST_CRON} characters")
    try:
        next(CronSim(cron, _ANY_TIME))
    except CronSimError as error:
        raise DefinitionError(f"{where}: cron is {cron!r}: {error}; {says}") from error
    except StopIteration as error:
        raise DefinitionError(f"{where}: cron {cron!r} never comes: no day fits it") from error


def _check_input(given: Any, saga: Saga[Any], where: str) -> None:
    if saga.input is None:
        if given is not None:
            raise DefinitionError(f"{where}: saga {saga.name!r} takes no input; leave input out")
        return
    if callable(given):
        return
    try:
        dump(convert(given, saga.input) if isinstance(given, Mapping) else given, saga.input)
    except TypeError as error:
        raise DefinitionError(f"{where}: its input does not fit saga {saga.name!r}: {error}") from error


def _one_of(kind: type[_EnumT], given: str, what: str) -> _EnumT:
    try:
        return kind(given)
    except ValueError:
        raise DefinitionError(
            f"{what} is {given!r}; it must be one of {', '.join(map(repr, map(str, kind)))}"
        ) from None
