"""docs/flower.md: its code runs, and what it says of options and paths is so."""

from __future__ import annotations

import re
from pathlib import Path

import flower.command
import pytest
from flower.app import Flower

from sagas.contrib.flower import SagasFlower
from sagas.contrib.flower.listing import AGES, Asked
from sagas.contrib.flower.routes import routes

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "flower.md").read_text()


def test_its_code_shows_sagas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower.command, "Flower", Flower)
    for source in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(source, {})
    assert flower.command.Flower is SagasFlower


def test_its_paths_and_words_are_known() -> None:
    patterns = [route.regex for route in routes(None)]
    for path in re.findall(r"`(?:GET|POST) (/api[^ ?`]*)", PAGE):
        assert any(pattern.match(path) for pattern in patterns), path
    assert re.findall(r"`(\d+[mhd])`", PAGE) == list(AGES)
    for word in ("saga", "step", "error", "correlation", "age", "view", "before", "status"):
        assert word in Asked.__slots__
        assert word in PAGE
    assert (DOCS / "flower.png").stat().st_size < 150_000
