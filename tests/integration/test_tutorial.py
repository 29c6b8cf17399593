"""The tutorial, as its reader would go through it: the files are written, the commands typed, and it says what it says."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.pages import fences
from tests.rig import ROOT

#: Workers that are still there are ended with the terminal.
BEGIN, END = "set -m; trap 'kill -9 $(jobs -p)' EXIT", "exit 0"


PAGE = ROOT / "docs" / "tutorial.md"


def test_the_commands_say_what_the_page_says(tmp_path: Path) -> None:
    assert_said(PAGE, tmp_path, {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)})


def assert_said(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Type the commands of a page, and compare what they print with what the page says."""
    session = [BEGIN]
    said: list[tuple[int, list[str]]] = []  # the line of each command, and what the page says that it prints
    for fence in fences(page):
        if fence.title:
            # What is a file on the page is written at that moment, not before.
            session.append(f"printf %s {shlex.quote(fence.source)} > {fence.title}")
        elif fence.language == "console":
            for number, line in enumerate(fence.source.splitlines(), fence.line + 1):
                if not line.startswith("$ "):
                    said[-1][1].append(line)
                elif re.match(r"\$ (pip|python -m venv) ", line):
                    continue  # it is installed
                else:
                    session += [f"echo '=== {number}'", line[2:]]
                    said.append((number, []))
    printed = typed("\n".join([*session, END]), folder, environment)
    parts = dict(re.findall(r"^=== (\d+)\n(.*?)(?=^===|\Z)", printed, re.MULTILINE | re.DOTALL))
    checker = doctest.OutputChecker()
    for number, lines in said:
        want, got = "".join(f"{line}\n" for line in lines), parts.get(str(number), "it was not reached")
        assert checker.check_output(want, got, doctest.ELLIPSIS), f"{page.name}:{number} says\n{want}but it was\n{got}"


def typed(session: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run all of it in one terminal; return what it printed. `PATH` of the environment comes before our own."""
    path = f"{environment['PATH']}{os.pathsep}{os.environ['PATH']}"
    mine = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        ["bash", "-c", session],
        cwd=folder,
        env=mine | {**environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=(folder / "errors.log").open("w"),
        text=True,
    ) as terminal:
        try:
            printed, _ = terminal.communicate(timeout=165)
        except subprocess.TimeoutExpired:
            terminal.terminate()
            printed, _ = terminal.communicate()
    sys.stdout.write("\n".join(log.read_text() for log in sorted(folder.glob("*.log"))))  # shown when it fails
    return printed
