"""What an attempt reports of itself while it runs: that it is alive, where it would resume, how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sagas.errors import PayloadTooLarge, StepCancelled
from sagas.values import NO_TYPE, dump

__all__ = ["LONGEST_DETAILS", "LONGEST_PAUSE", "Heartbeats", "Report"]

#: Bytes of JSON that the details of a heartbeat may have: they are stored with every heartbeat.
LONGEST_DETAILS = 65_536

#: Seconds after which a report is stored at the latest. What is reported more often than that is not stored each time.
LONGEST_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt last said of itself."""

    details: str | None = None  #: JSON; None where it gave none
    done: int | None = None
    total: int | None = None
    count: int = 0  #: of its reports so far


class Heartbeats:
    """The reports of one attempt. Its function makes them; the thread that keeps its claim alive stores them.

    `before`: the details that an earlier attempt reported last, as JSON. `about`: the saga and the step, for errors.
    `timeout`: the step's `heartbeat_timeout`, in seconds.
    """

    def __init__(self, before: str | None = None, *, about: str = "a step", timeout: float | None = None) -> None:
        self.before = before
        #: Seconds from a report until it is stored.
        self.pause = LONGEST_PAUSE if timeout is None else min(LONGEST_PAUSE, timeout / 4)
        self.latest: Report | None = None
        self._about = about
        self._cancelled: str | None = None

    def report(self, details: Any) -> None:
        """Note a heartbeat. Raises `StepCancelled`, `PayloadTooLarge`, and `TypeError` for what is no JSON."""
        if details is None:
            self._note()
            return
        text = dump(details, NO_TYPE)
        if (size := len(text.encode())) > LONGEST_DETAILS:
            raise PayloadTooLarge(
                f"{self._about}: the details of a heartbeat are {size:,} bytes, more than {LONGEST_DETAILS:,}; keep "
                "large things elsewhere, and report where they are"
            )
        self._note(details=text)

    def progress(self, done: int, total: int | None) -> None:
        """Note how far the attempt has come. Raises `StepCancelled`; `ValueError` for numbers that cannot be right."""
        for name, number in (("done", done), ("total", total)):
            if number is not None and not _is_count(number):
                raise ValueError(f"{self._about}: progress {name}={number!r} must be a whole number, 0 or more")
        self._note(done=done, total=total)

    def cancel(self, why: str) -> None:
        """Have the next report raise `StepCancelled`."""
        self._cancelled = why

    def _note(self, **changes: Any) -> None:
        if self._cancelled is not None:
            raise StepCancelled(f"{self._about}: {self._cancelled}")
        latest = self.latest or Report()
        self.latest = replace(latest, count=latest.count + 1, **changes)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63
