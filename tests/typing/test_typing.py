"""What type checkers tell a user of the library: nothing where it is used well, and each mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.rig import ROOT

PROJECT = Path(__file__).parent / "project"
GOOD, BAD = "good.py", "bad.py"
#: What mypy knows of the libraries that everybody uses; without it a run takes a minute.
CACHE = ROOT / ".mypy_cache" / "typing"

#: By file: the lines that are complained about, and what is said.
Complaints = dict[str, dict[int, str]]


def mypy(folder: Path) -> Complaints:
    # Celery and what is below it have no types; that is not for their users to be told.
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-celery.*,kombu.*]\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(CACHE), GOOD, BAD]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert done.returncode == 1, done.stdout + done.stderr
    return _by_file((file, int(line), text) for file, line, text in found)


def pyright(folder: Path) -> Complaints:
    """As basedpyright brings it along, in pyright's own strictest mode."""
    unknown = {"reportMissingTypeStubs": False, "reportUnknownMemberType": False, "reportUnknownLambdaType": False}
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", **unknown}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, GOOD, BAD]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return _by_file(
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, f"{each['message']} ({each.get('rule')})")
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    )


def _by_file(found: Iterable[tuple[str, int, str]]) -> Complaints:
    complaints: Complaints = {}
    for file, line, text in found:
        complaints.setdefault(file, {})[line] = text
    return complaints


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_nothing_but_mistakes_is_complained_about(checker: Callable[[Path], Complaints], tmp_path: Path) -> None:
    for file in (GOOD, BAD):
        shutil.copy(PROJECT / file, tmp_path)
    complaints = checker(tmp_path)
    told = complaints.pop(BAD)
    assert complaints == {}
    lines = dict(enumerate((PROJECT / BAD).read_text().splitlines(), 1))
    wrong = {number for number, line in lines.items() if "# wrong: " in line}
    assert {number: lines[number] for number in wrong - told.keys()} == {}, "not reported"
    assert {number: text for number, text in told.items() if number not in wrong} == {}, "reported, and right"
