"""What the doctor says."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Level", "ok", "problem", "warning"]


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  #: works, and will cost time, or work for people
    PROBLEM = "problem"  #: sagas do not run as they should


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and what to do about it."""

    level: Level
    code: str  #: its name, which stays the same: see docs/doctor.md
    says: str
    do: str = ""  #: empty where nothing is to be done


def ok(code: str, says: str) -> Finding:
    """Say what is in order."""
    return Finding(Level.OK, code, says)


def warning(code: str, says: str, do: str) -> Finding:
    """Say what will cost time, or work for people."""
    return Finding(Level.WARNING, code, says, do)


def problem(code: str, says: str, do: str) -> Finding:
    """Say what keeps sagas from running as they should."""
    return Finding(Level.PROBLEM, code, says, do)
