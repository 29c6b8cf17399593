"""Options that commands share: which sagas, durations, the actor and the reason."""

from __future__ import annotations

import functools
import getpass
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from typing import IO, Any

import click
from celery.bin.base import CeleryOption

from sagas.checkpoints import SagaStatus
from sagas.cli.command import Refusal
from sagas.operations import LONGEST_REASON
from sagas.stores import Filter
from sagas.values import parse

__all__ = ["DURATION", "JSON_FILE", "TEXT", "Where", "filters", "json_object", "signed", "who"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: Longer than any saga is kept; it keeps date arithmetic within its limits.
_LONGEST = timedelta(days=36_500)
#: The size of the column.
_LONGEST_NAME = 200


class _Duration(click.ParamType[timedelta]):
    """A number and its unit: 90s, 10m, 2h, 3d, 1w."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", value.strip())
        if found is None:
            self.fail(f"{value!r} is not a duration. Write 90s, 10m, 2h, 3d or 1w", param, ctx)
        duration = timedelta(**{_UNITS[found[2]]: float(found[1])})
        if duration > _LONGEST:
            self.fail(f"{value!r} is longer than a hundred years", param, ctx)
        return duration


class _Text(click.ParamType[str]):
    """Text that is not empty: an empty shell variable must not become a filter that matches everything."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail("it is empty", param, ctx)
        return str(value)


DURATION = _Duration()
TEXT = _Text()
JSON_FILE = click.File(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The filters of a command as they were typed. False if there are none."""

    status: tuple[SagaStatus, ...] = ()
    saga: str | None = None
    version: int | None = None
    key: str | None = None
    correlation_id: str | None = None
    step: str | None = None
    error: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    idle_for: timedelta | None = None
    attention: bool = False

    def __bool__(self) -> bool:
        return self != Where()

    def at(self, now: datetime) -> Filter:
        """Return the filter, relative to a time."""

        def ago(duration: timedelta | None) -> datetime | None:
            return None if duration is None else now - duration

        return Filter(
            statuses=frozenset(self.status),
            name=self.saga,
            version=self.version,
            key=self.key,
            correlation_id=self.correlation_id,
            step=self.step,
            error=self.error,
            created_before=ago(self.older_than),
            created_after=ago(self.newer_than),
            updated_before=ago(self.idle_for),
            attention=self.attention,
        )


_option = partial(click.option, cls=CeleryOption, help_group="Which sagas")
_FILTERS = (
    _option("--status", multiple=True, type=click.Choice(SagaStatus, case_sensitive=False), help="May be repeated."),
    _option("--saga", type=TEXT, metavar="NAME", help="With this definition."),
    _option("--version", type=click.IntRange(min=1), metavar="N", help="With this version of it."),
    _option("--key", type=TEXT, help="With exactly this business key."),
    _option("--correlation-id", type=TEXT, metavar="ID", help="With this correlation id."),
    _option("--step", type=TEXT, metavar="NAME", help="Currently at this step."),
    _option("--error", type=TEXT, help="With this text in their error; case does not matter."),
    _option("--older-than", type=DURATION, help="Started longer ago than 90s, 10m, 2h, 3d, 1w."),
    _option("--newer-than", type=DURATION, help="Started in this time."),
    _option("--idle-for", type=DURATION, help="Not changed for this time."),
    _option("--attention", is_flag=True, help="In need of a person: stuck, with a dead letter, or not progressing."),
)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters to a command, as its argument `where`."""
    names = [field.name for field in fields(Where)]

    @functools.wraps(command)
    def gathered(*args: Any, **options: Any) -> Any:
        where = Where(**{name: options.pop(name) for name in names})
        return command(*args, where=where, **options)

    for option in reversed(_FILTERS):
        gathered = option(gathered)
    return gathered


def signed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that are recorded with every action of an operator: `reason` and `actor`."""
    command = click.option("--actor", type=TEXT, callback=who, metavar="NAME", help="Who; by default you.")(command)
    reason = click.option(
        "--reason", type=TEXT, required=True, callback=_why, help="Why; it is recorded with the saga."
    )  # fmt: skip
    return reason(command)


def _why(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if len(value) > LONGEST_REASON:
        raise click.BadParameter(f"it has {len(value):,} characters; the limit is {LONGEST_REASON:,}")
    return value


def who(_context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """Return the name that is given, or that of the user of this system."""
    if value is None:
        try:
            value = getpass.getuser()
        except (OSError, KeyError, ImportError):  # in a container without a named user
            raise click.UsageError(f"this system does not know your name. Pass it with {parameter.opts[-1]}") from None
    if len(value) > _LONGEST_NAME:
        raise click.BadParameter(f"a name has at most {_LONGEST_NAME} characters")
    return value


def json_object(file: IO[str]) -> dict[str, Any]:
    """Read a saga's input from a file. Raises `Refusal` for anything but a JSON object."""
    try:
        given = parse(file.read())
    except ValueError as error:  # also for bytes that are not text
        raise Refusal(f"{file.name} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refusal(f"{file.name} must contain a JSON object with the fields of the saga's input type")
    return given
