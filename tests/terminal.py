"""Commands, run in a terminal of their own or in this process."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.testing import CliRunner, Result

from sagas.cli.command import Group
from tests import forks
from tests.rig import ROOT

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def invoke(command: click.Command, words: Sequence[str], obj: Any) -> Result:
    """Run a command of the group `sagas`, which tells of errors, in this process."""
    group = Group("sagas")
    group.add_command(command)
    return CliRunner().invoke(group, [command.name or "", *words], obj=obj)


def in_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    answers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run it in a terminal so wide; return its exit code and all that it wrote there.

    `answers`: what to type once some text is there.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = forks.Popen(
        command, cwd=ROOT, env={**env, "TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    waiting = dict(answers or {})
    written, give_up = b"", time.monotonic() + 60
    try:
        while time.monotonic() < give_up:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                some = os.read(ours, 65_536)
            except OSError:  # what Linux says at the end
                some = b""
            if not some:
                return process.wait(10), written.decode()
            written += some
            for text in [text for text in waiting if text in written.decode(errors="replace")]:
                os.write(ours, waiting.pop(text).encode())
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    raise TimeoutError(f"it has not ended, and wrote: {written.decode(errors='replace')}")


def plain(written: str) -> str:
    """Return what was written without colours and with plain ends of lines."""
    return _ESCAPES.sub("", written).replace("\r\n", "\n")
