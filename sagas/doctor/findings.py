"""The doctor's findings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Level", "ok", "problem", "warning"]


class Level(enum.StrEnum):
    """How severe a finding is."""

    OK = "ok"
    WARNING = "warning"  #: sagas work, but it will cost time or manual work
    PROBLEM = "problem"  #: sagas do not run as they should


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it."""

    level: Level
    code: str  #: a stable name: see docs/doctor.md
    says: str
    do: str = ""  #: empty if there is nothing to do


def ok(code: str, says: str) -> Finding:
    """Report that something is in order."""
    return Finding(Level.OK, code, says)


def warning(code: str, says: str, do: str) -> Finding:
    """Report something that will cost time or manual work."""
    return Finding(Level.WARNING, code, says, do)


def problem(code: str, says: str, do: str) -> Finding:
    """Report something that keeps sagas from running as they should."""
    return Finding(Level.PROBLEM, code, says, do)
