"""Checks for numbers and durations that users pass, so that errors appear here rather than far away later."""

from __future__ import annotations

import math
from datetime import timedelta

__all__ = ["LONGEST", "finite_number", "seconds", "whole_number"]

#: Ten years: every database, broker and `timedelta` can add it to the current time.
LONGEST = 3650 * 86_400.0


def seconds(
    value: float | timedelta,
    what: str,
    error: type[Exception] | None = None,
    *,
    zero: bool = False,
) -> float:
    """Return a duration in seconds. `zero`: whether zero is allowed.

    Raises `error`; without it, `TypeError` if the value is not a duration and `ValueError` if it is out of range.

    >>> seconds(timedelta(minutes=2), "timeout")
    120.0
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    given = finite_number(value, what, error, hint="a number of seconds or a timedelta")
    if given < 0 or (given == 0 and not zero):
        least = "zero seconds or more" if zero else "more than zero seconds"
        raise (error or ValueError)(f"{what} is {value!r}; it must be {least}")
    if given > LONGEST:
        raise (error or ValueError)(
            f"{what} is {value!r}; it must be at most {LONGEST:.0f} seconds, which is ten years"
        )
    return given


def finite_number(value: float, what: str, error: type[Exception] | None = None, *, hint: str = "a number") -> float:
    """Return a finite number as a float. Raises as `seconds` does."""
    if isinstance(value, str):
        raise (error or TypeError)(
            f"{what} is {value!r}, a str; it must be {hint}. Convert the text first{_advice(value)}"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise (error or TypeError)(f"{what} is {value!r}, a {type(value).__name__}; it must be {hint}")
    if isinstance(value, int) and abs(value) > 2**63:
        raise (error or ValueError)(
            f"{what} has {len(hex(value)) - 2} hexadecimal digits; it must be {hint}, and smaller"
        )
    if not math.isfinite(value):
        raise (error or ValueError)(f"{what} is {value!r}; it must be {hint}, and finite")
    return float(value)


def whole_number(value: int, what: str, error: type[Exception], *, why: str = "") -> int:
    """Return a whole number of at least 1. `why`: added to the error if the number is less."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{what} is {value!r}, a {type(value).__name__}; it must be a whole number, an int")
    if not 1 <= value < 2**31:
        raise error(f"{what} is {value!r}; it must be at least 1{f' ({why})' if why else ''} and less than 2**31")
    return value


def _advice(text: str) -> str:
    if text.strip().isdigit():
        return f", float({text!r})"
    # HTTP's Retry-After may be a date instead of a number of seconds.
    if text.strip().endswith("GMT"):
        return "; for an HTTP date: email.utils.parsedate_to_datetime(text) - datetime.now(UTC)"
    return ""
