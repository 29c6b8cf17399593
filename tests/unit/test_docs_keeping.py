"""docs/retention.md and docs/doctor.md: their code runs, and the table has every finding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sagas.checkpoints import SagaRecord
from sagas.stores.archive import Archive, Archived
from tests.rig import ROOT

DOCS, DOCTOR = ROOT / "docs", ROOT / "sagas" / "doctor"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(page: str) -> dict[str, Any]:
    source = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, page, "exec", dont_inherit=True), names)
    return names


def test_retention() -> None:
    page = run("retention.md")
    page["store"].upgrade()
    page["FOLDER"].mkdir()
    assert page["purge_sagas"]() == 0
    assert list(page["FOLDER"].iterdir()) == []  # an archive of nothing is none
    now = page["store"].now()
    record = SagaRecord(
        id="i", name="n", version=1, key="k", outline='[{"step": "a"}]', correlation_id="c", input="{}", created_at=now, updated_at=now,
        stage_ready_at=now,
    )  # fmt: skip
    with Archive(page["FOLDER"] / "x.jsonl.gz") as archive:
        archive.write([Archived(record=record, history=(), dead_letters=())])
    assert page["find"]("k") == ["i"]


def test_doctor() -> None:
    page = run("doctor.md")
    page["store"].upgrade()
    assert page["strands"]() == []
    assert [found.partition(":")[0] for found in page["ill"]()] == ["no-workers"]


def test_every_finding_is_in_the_table() -> None:
    made = r'(?:ok|warning|problem|level)\(\s*(?:"([a-z-]+)"|(\w+),)'
    sources = {file: file.read_text() for file in DOCTOR.glob("*.py") if file.name != "findings.py"}
    codes = {code for text in sources.values() for code, _ in re.findall(made, text) if code}
    codes |= {code for text in sources.values() for code in re.findall(r'^[A-Z_]+ = "([a-z-]+)"$', text, re.MULTILINE)}
    assert len(codes) > 40
    page = (DOCS / "doctor.md").read_text()
    told = page[page.index("| Finding") : page.index("What it cannot see")]
    assert set(re.findall(r"`([a-z-]+)`", told)) >= codes
