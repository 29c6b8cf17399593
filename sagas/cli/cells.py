"""Values as text, in the output of commands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

__all__ = ["ago", "plain", "readable"]

#: Characters that would control a terminal, or cannot be printed at all.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def readable(value: Any) -> str:
    """Return a cell as text that cannot control a terminal."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ",".join(map(readable, value))
    text = json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict) else str(plain(value))
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def plain(value: Any) -> Any:
    """Return a value with its datetimes as ISO 8601 text."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def ago(duration: timedelta) -> str:
    """Return a duration in a short form: 42s, 7m, 30h, 12d."""
    seconds = max(0, int(duration.total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
