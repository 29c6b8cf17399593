"""Async actions and compensations in real workers, of each pool."""

from __future__ import annotations

import pytest

from tests.conftest import Rig


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_async_steps_run_and_are_undone(rig: Rig, pool: str) -> None:
    with rig.worker("-c", "4", pool=pool):
        through = [rig.start("awaits") for _ in range(4)]
        back = [rig.start("awaits", two="terminal") for _ in range(4)]
        for handle in through:
            rig.assert_done(handle)
        for handle in back:
            rig.assert_undone(handle)
            undone = {effect.step for effect in rig.ledger.of(handle.id, "undo")}
            assert undone == {"one", "left", "right", "two"}
