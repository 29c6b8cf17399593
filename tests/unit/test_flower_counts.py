"""How long the numbers on Flower's page are reused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sagas import SqlStore
from sagas.contrib.flower.counts import Counts
from sagas.stores import StatusCount

SECONDS = 100.0


@pytest.mark.parametrize(("takes", "fresh"), [(0.01, 5.0), (1.0, 20.0), (10.0, 200.0)])
def test_the_longer_it_takes_to_count_the_longer_the_numbers_are_reused(
    monkeypatch: pytest.MonkeyPatch, takes: float, fresh: float
) -> None:
    store, now, counted = SqlStore("sqlite:///:memory:"), [SECONDS], [0]

    def tally(*_: Any) -> Sequence[StatusCount]:
        counted[0] += 1
        now[0] += takes
        return []

    monkeypatch.setattr("sagas.contrib.flower.counts.time.monotonic", lambda: now[0])
    monkeypatch.setattr(store.queries, "tally", tally)
    monkeypatch.setattr(store.queries, "count", lambda *_: 0)
    monkeypatch.setattr(store.queries, "ended", lambda *_, **__: 0)
    counts = Counts(store)

    def ask() -> int:
        asyncio.run(counts.get())
        return counted[0]

    assert ask() == 1
    now[0] += fresh - 0.1
    assert ask() == 1
    now[0] += 0.2
    assert ask() == 2
