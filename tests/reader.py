"""A reader who types a page: writes its files, types its commands in order, and compares what comes with what it says.

Nothing is prepared: the reader starts in an empty folder, with what the page has installed (`tests/bare.py`). What a
page says in its fences, in their order:

- `title="shop.py"`: the file is written at that moment; with `<!-- add -->` before the fence, at the end of the file.
- `console`: lines behind `$ ` are typed, the others are what they print, where `...` stands for anything. A command that
  says nothing on the page must succeed.
- `console title="another terminal"`: what goes on while the reader types in the first. It is up before that is done.
- Python without a title goes into one module, in its order, which is imported in the end.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bare import start
from tests.pages import Fence, fences

__all__ = ["read"]

#: What programs say that are up: Celery's worker, Flask, Uvicorn, Gunicorn, Django, Flower.
_UP = r"\[queues\]|ready\.$|Running on|Uvicorn running|Listening at|Quit the server|Visit me at|consumes"
_BEGIN = """
set -m; trap 'kill -9 -- $(jobs -p | sed s/^/-/) 2>/dev/null' EXIT
up() {
    for _ in $(seq 600); do grep -qE "$2" "$1" && return; kill -0 $! || break; sleep 0.1; done
    echo "it is not up"; cat -v "$1"; exit 1
}
"""
_MODULE = "page.py"
_VENV = "python -m venv .venv && . .venv/bin/activate"


def read(
    page: Path,
    folder: Path,
    wheel: Path,
    instead: Mapping[str, str] | None = None,
    *,
    before: Mapping[str, str] | None = None,
    after: Sequence[str] = (),
    **environment: str,
) -> None:
    """Type a page.

    `instead`: what to type for addresses of servers that the page takes for granted. `before`: files that it takes for
    granted. `after`: commands that succeed where the page has led to what it says.
    """
    programs = start(folder / "programs", wheel)
    (folder / "desk").mkdir()
    for name, source in (before or {}).items():
        (folder / "desk" / name).write_text(source)
    known = fences(page)
    session = [_BEGIN, "cd desk"]
    if not any(_VENV in fence.source for fence in known):
        session.append(_VENV)
    said: list[tuple[int, str, list[str]]] = []  # the line of each command, itself, and what it prints
    for fence in known:
        session += _typed(fence, said)
    if any(f"> {_MODULE}" in line for line in session):
        after = [f"python -c 'import {Path(_MODULE).stem}'", *after]
    session += _typed(Fence("console", "\n".join(f"$ {command}" for command in after), 10_000), said)
    text = "\n".join([*session, "exit 0"])
    for address, real in (instead or {}).items():
        assert address in text, f"{page.name} does not speak of {address}"
        text = text.replace(address, real)
    printed = _terminal(text, folder, {**environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    _compare(page, said, printed)


def _typed(fence: Fence, said: list[tuple[int, str, list[str]]]) -> list[str]:
    if fence.language != "console":
        file, add = fence.title, fence.add
        if file is None and fence.language == "python" and not fence.skip:
            file, add = _MODULE, True
        # What is a file on the page is written at that moment, not before.
        return [f"printf %s {shlex.quote(fence.source)} {'>>' if add else '>'} {file}"] if file else []
    commands: list[str] = []
    for number, line in enumerate(fence.source.splitlines(), fence.line + 1):
        if not line.startswith("$ "):
            said[-1][2].append(line)
            continue
        said.append((number, line[2:], []))
        if fence.title:
            log = f"../{number}.log"
            commands += [f"{line[2:]} > {log} 2>&1 &", f"echo '=== {number}'; up {log} '{_UP}'; echo '--- 0'"]
        else:
            commands += [f"echo '=== {number}'; echo '=== {number}' >&2", line[2:], 'printf "\\n--- %s\\n" $?']
    return commands


def _compare(page: Path, said: list[tuple[int, str, list[str]]], printed: str) -> None:
    parts = {
        int(number): (text, code)
        for number, text, code in re.findall(r"^=== (\d+)\n(.*?)^--- (\d+)$", printed, re.MULTILINE | re.DOTALL)
    }
    checker = doctest.OutputChecker()
    for number, command, lines in said:
        assert number in parts, f"{page.name}:{number} was not reached, or did not end: {command}\n{printed[-3000:]}"
        got, code = parts[number]
        want, got = "\n".join(lines).strip(), got.strip()
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert not lines or checker.check_output(want, got, options), (
            f"{page.name}:{number} says\n{want}\nbut it was\n{got}"
        )
        assert lines or code == "0", f"{page.name}:{number} failed: {command}\n{got}"


def _terminal(session: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run all of it in one terminal; return what it printed."""
    mine = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with subprocess.Popen(
        ["bash", "-c", session],
        cwd=folder,
        env={**mine, **environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=(folder / "errors.log").open("w"),
        text=True,
        start_new_session=True,
    ) as terminal:
        try:
            printed, _ = terminal.communicate(timeout=500)
        except subprocess.TimeoutExpired:
            terminal.terminate()
            printed, _ = terminal.communicate()
    # Shown when it fails.
    sys.stdout.write("\n".join(f"{log.name}\n{log.read_text()}" for log in sorted(folder.rglob("*.log"))))
    return printed
