"""The storm of `python -m tests.faults.long`, in short: one of each blow, and the same judge."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sagas import SagaStatus
from sagas.checkpoints import HistoryEntry, HistoryKind, SagaRecord
from sagas.errors import SagaNotFound
from tests.conftest import WAYS
from tests.faults.long.judge import judge
from tests.faults.long.storm import Settings, report, storm

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_short_storm() -> None:
    plan = (
        (2.0, "child killed"),
        (4.0, "worker killed"),
        (6.0, "worker stopped"),
        (11.0, "flushed"),
        (13.0, "connections cut"),
        (15.0, "database hangs"),
        (19.0, "broker cut"),
    )
    play(Settings(sagas=120, seconds=20, seed=1, workers=2, plan=plan, calm=100, at_once=10))


def test_a_shorter_storm_with_a_message_and_a_commit_for_each() -> None:
    plan = (
        (1.0, "child killed"),
        (3.0, "worker killed"),
        (5.0, "flushed"),
        (6.0, "connections cut"),
        (7.0, "database killed"),
    )
    options = WAYS["a message and a commit for each"]
    play(Settings(sagas=60, seconds=9, seed=1, workers=2, plan=plan, calm=100, options=options))


def play(settings: Settings) -> None:
    outcome = storm(settings)
    print(report(outcome))
    assert outcome.ok, report(outcome)
    assert set(outcome.blows) == {kind for _, kind in settings.plan}


@pytest.mark.parametrize(
    ("status", "told", "takeovers", "ids", "found"),
    [
        ("COMPLETED", ["do"], 0, ["s"], []),
        ("COMPLETED", ["do", "do"], 1, ["s"], []),
        ("COMPENSATED", ["do", "undo"], 0, ["s"], []),
        ("COMPENSATED", ["do", "undo", "do"], 1, ["s"], ["left standing"]),
        ("COMPLETED", [], 0, ["s"], ["completed without its effects"]),
        ("COMPLETED", ["do", "do"], 0, ["s"], ["doubled without a takeover"]),
        ("RUNNING", ["do"], 0, ["s"], ["not at its end"]),
        ("COMPLETED", ["do"], 0, ["s", "t"], ["several sagas of one key"]),
        (None, [], 0, ["s"], ["lost"]),
    ],
)
def test_the_judge_sees_what_is_wrong(
    tmp_path: Path, status: str | None, told: list[str], takeovers: int, ids: list[str], found: list[str]
) -> None:
    lines = [
        {"saga": "s", "event": event, "step": "one", "attempt": 1, "key": "s:one", "pid": 1, "at": at, "known": None}
        for at, event in enumerate(told)
    ]
    (tmp_path / "ledger").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = SagaRecord(
        id="s", name="line", version=1, key="k", outline="[]", correlation_id="s", input='{"faults": {}}',
        status=SagaStatus(status or "PENDING"), created_at=NOW, updated_at=NOW, stage_ready_at=NOW,
    )  # fmt: skip
    entries = [HistoryEntry(at=NOW, what=HistoryKind.LOST, epoch=1, step="one")] * takeovers

    def find(name: str, key: str) -> SagaRecord:
        if status is None:
            raise SagaNotFound("gone")
        return record

    definition = SimpleNamespace(steps={"one": None})
    sagas = SimpleNamespace(
        find=find,
        load=lambda _: record,
        store=SimpleNamespace(queries=SimpleNamespace(history=lambda _: entries)),
        orchestrator=SimpleNamespace(definition=lambda _: definition),
    )
    verdict = judge(cast("Any", sagas), tmp_path, {("line", "k"): ids}, [])
    assert [violation.kind for violation in verdict.violations] == found
