"""The examples of docs/events.md run, and lead to what they say."""

import re
from pathlib import Path

import pytest

from tests.rig import ROOT


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "events.md").read_text()
    names: dict[str, object] = {"__name__": "docs"}
    # Annotations are looked up in the module, so everything runs in one.
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/events.md", "exec"), names)
    events, store = names["events"], names["store"]
    assert events.outbox_unsent() == 1  # type: ignore[attr-defined]
    events.relay.send()  # type: ignore[attr-defined]
    assert events.broker.depth("inventory.reserve_stock") == 1  # type: ignore[attr-defined]
    store.engine.dispose()  # type: ignore[attr-defined]
