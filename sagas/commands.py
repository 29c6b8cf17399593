"""How the library's commands are typed in this process, so that users can copy commands from messages."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["app_option", "command", "typed_as", "worker_command"]

_typed: str | None = None


def command(*words: str) -> str:
    """Return a command of the group `sagas` as it is typed in this process.

    >>> typed_as("manage.py sagas")
    >>> command("list", "--key", "order 1")
    "manage.py sagas list --key 'order 1'"
    >>> typed_as(None)
    """
    group = f"celery -A {_app() or 'yourapp'} sagas" if _typed is None else _typed
    return " ".join([group, *map(shlex.quote, words)])


def worker_command() -> str:
    """Return the command that starts a worker, as far as this process knows it."""
    app = _app()
    return "a Celery worker of this app" if app is None else f"celery -A {app} worker"


def typed_as(group: str | None) -> None:
    """Set how the group `sagas` is typed in this process: `manage.py sagas`, `flask -A shop sagas`.

    None: as a Celery plug-in, with the app of this process.
    """
    global _typed  # noqa: PLW0603 - a fact about the process
    _typed = group


def app_option(typed: Sequence[str]) -> list[str]:
    """Return only the option that names the app: other options may contain a password."""
    words = iter(typed)
    for word in words:
        if word in ("-A", "--app"):
            return ["-A", shlex.quote(next(words, ""))]
        if word.startswith(("--app=", "-A")):
            return ["-A", shlex.quote(word.removeprefix("--app=").removeprefix("-A"))]
        if word == "sagas":
            break
    return []


def _app() -> str | None:
    """Return the app of this Celery process, from its command line or its environment."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    if name != "celery":
        return None
    option = app_option(sys.argv[1:])
    return option[-1] if option else os.environ.get("CELERY_APP")
