"""docs/choreography.md and docs/in-process-bus.md: their code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

DOCS = Path(__file__).parent.parent.parent / "docs"


def run(page: str) -> dict[str, Any]:
    text = (DOCS / page).read_text()
    source = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, page, "exec", dont_inherit=True), names)
    return names


def test_choreography(capsys: pytest.CaptureFixture[str]) -> None:
    page = run("choreography.md")
    printed = capsys.readouterr().out.splitlines()
    # Orders are placed elsewhere; nothing else is wrong with it.
    assert printed == []
    assert page["guards"].max_hops == 16
    assert page["problems"](page["graph"]([page["payments"]]))[0].kind == "unhandled"


def test_in_process_bus(capsys: pytest.CaptureFixture[str]) -> None:
    page = run("in-process-bus.md")
    with Session(create_engine("sqlite://")) as session:
        assert page["place"](session) == "tea is reserved"
    assert capsys.readouterr().out == "placed: o-1\ncached: o-1\n"
