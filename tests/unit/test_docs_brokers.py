"""The code on the page about brokers runs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "brokers.md"


def test_the_code_runs_and_connects_to_nothing() -> None:
    blocks = re.findall("^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert {"memory", "rabbitmq", "redis", "kafka"} <= names.keys()
