"""The examples of the README do what it says, as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import fences
from tests.rig import ROOT

EXAMPLES = [fence.source for fence in fences(ROOT / "README.md", "python") if fence.script]
TOLD = [
    [
        "COMPLETED captured 4.50 of authorization-1",
        "released: reservation of gold under",
        "COMPENSATED",
        "card declined",
    ],
    ["capturing 4.50", "confirmed: o-1"],
]


@pytest.mark.parametrize(("number", "told"), list(enumerate(TOLD)))
def test_an_example_runs_as_it_is(number: int, told: list[str], tmp_path: Path) -> None:
    assert len(EXAMPLES) == len(TOLD)
    (tmp_path / "example.py").write_text(EXAMPLES[number])
    run = subprocess.run(  # noqa: PLW1510 - what it printed says more
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    for line in told:
        assert line in run.stdout
