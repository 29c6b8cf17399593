"""Real workers, watched: what they count, the traces that they share, and what their logs say."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import forks
from tests.conftest import Rig
from tests.event_rig import EventRig
from tests.rig import ROOT, Worker
from tests.servers import Postgres, Redis, free_port, wait_for
from tests.spans import spans, trace

Key = tuple[str, frozenset[tuple[str, str]]]


def scraped(port: int) -> dict[Key, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(metrics: dict[Key, float], name: str, **labels: str) -> float:
    """The sum of what has these labels."""
    wanted = set(labels.items())
    return sum(value for (found, has), value in metrics.items() if found == name and wanted <= has)


def watched(rig: Rig, monkeypatch: pytest.MonkeyPatch, *, pool: str = "prefork", name: str = "a") -> tuple[Worker, int]:
    port = free_port()
    if pool == "prefork":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(rig.folder / f"metrics-{name}"))
    return rig.worker("--metrics-address", str(port), pool=pool, module="tests.observed"), port


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_counts_traces_and_says_what_it_does(rig: Rig, monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    trace(rig.sagas.observers, rig.folder)
    worker, port = watched(rig, monkeypatch, pool=pool)
    good, bad = rig.start("full"), rig.start("full", four="terminal", one="error:1")
    rig.assert_done(good)
    rig.assert_undone(bad)

    wait_for(lambda: of(scraped(port), "sagas_ended_total", saga="full") == 2, 10, "both are counted")
    metrics = scraped(port)
    assert of(metrics, "sagas_ended_total", saga="full", status="COMPLETED") == 1
    assert of(metrics, "sagas_compensations_started_total", saga="full") == 1
    attempts = "sagas_attempt_seconds_count"
    assert of(metrics, attempts, step="one", direction="FORWARD", outcome="succeeded") == 2
    assert of(metrics, attempts, step="one", direction="FORWARD", outcome="failed") == 1
    assert of(metrics, attempts, step="four", outcome="terminal") == 1
    assert of(metrics, attempts, direction="BACKWARD") == len([s for s in rig.ledger.story(bad.id) if s[0] == "-"])
    assert of(metrics, "sagas_retries_total", step="one") == 1
    assert of(metrics, "sagas_recovery_passes_total") > 0
    assert of(metrics, "sagas_snapshot_up") == 1
    assert of(metrics, "sagas_unfinished", saga="full") == 0

    for handle in (good, bad):
        mine = [span for span in spans(rig.folder) if span["sagas.saga.id"] == handle.id]
        [start] = [span for span in mine if span["name"] == "start full"]
        assert start["pid"] == os.getpid()
        assert {span["trace"] for span in mine} == {start["trace"]}
        assert {span["parent"] for span in mine if span is not start} == {start["id"]}
        assert os.getpid() not in {span["pid"] for span in mine if span is not start}
        names = [span["name"] for span in mine]
        assert names.count(f"full {handle.status}") == 1
        assert names.count("full.one") == (1 if handle is good else 2)

    output = worker.output()
    assert f"INFO [full {good.id} left 1] do left" in output  # what user code says
    assert f"INFO [full {bad.id} one 2] do one" in output
    assert f"INFO [full {bad.id} one 1] saga {bad.id}, step one: attempt failed" in output  # and the engine
    assert f"INFO [full {bad.id} one.compensate 1] undo one.compensate" in output
    assert "INFO [- - - -] metrics: http://127.0.0.1" in output


def test_a_killed_child_and_a_killed_worker_leave_one_trace(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    trace(rig.sagas.observers, rig.folder)
    first, port = watched(rig, monkeypatch)
    handle = rig.start("long", one="kill_before:1", two="slow:1")
    rig.begun(handle, "two")
    wait_for(lambda: of(scraped(port), "sagas_recovery_total", action="takeover") == 1, 10, "the loss is counted")
    counted = scraped(port)
    assert of(counted, "sagas_retries_total", saga="long", step="one") == 1  # by the child that came after
    first.kill()
    second, port = watched(rig, monkeypatch, name="a")  # the folder of the first, which is cleaned
    rig.go(handle)
    rig.assert_done(handle)
    wait_for(lambda: of(scraped(port), "sagas_ended_total", saga="long") == 1, 10, "its end is counted")
    metrics = scraped(port)
    assert of(metrics, "sagas_attempt_seconds_count", step="one") == 0
    assert of(metrics, "sagas_attempt_seconds_count", step="two", outcome="succeeded") == 1
    mine = [span for span in spans(rig.folder) if span["sagas.saga.id"] == handle.id]
    assert len({span["trace"] for span in mine}) == 1
    assert [span["name"] for span in mine].count("long lost") == 2
    # The attempts that were killed could not say anything.
    attempts = [(span["name"], span["sagas.attempt"]) for span in mine if span["name"] in ("long.one", "long.two")]
    assert attempts == [("long.one", 2), ("long.two", 2)]
    assert second.running


def test_workers_that_would_spoil_each_others_metrics_do_not_start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="set PROMETHEUS_MULTIPROC_DIR to its own folder"):
        rig.worker("--metrics-address", str(free_port()), module="tests.observed")
    _, port = watched(rig, monkeypatch)
    with pytest.raises(RuntimeError, match="is in use by another worker"):
        watched(rig, monkeypatch)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(rig.folder / "metrics-b"))
    with pytest.raises(RuntimeError, match="Give each worker of a machine its own port"):
        rig.worker("--metrics-address", str(port), module="tests.observed")
    assert of(scraped(port), "sagas_snapshot_up") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_messages_are_counted_and_carry_the_trace_through_workers(
    redis_server: Redis, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    rig, port = EventRig(redis_server.url, redis_server.url, postgres.database(), tmp_path), free_port()
    monkeypatch.setenv("SAGAS_METRICS_ADDRESS", str(port))
    if pool == "prefork":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    trace(rig.events.observers, tmp_path)
    rig.settings["observed"] = True
    try:
        rig.worker("-P", pool, "-c", "2")
        rig.publish(1)
        rig.publish(2, fault="fail")
        wait_for(
            lambda: of(scraped(port), "sagas_event_deliveries_total", end="dead_lettered") == 1, 30, "the dead letter"
        )
        rig.wait_for_done("billing.charge", 1)
        wait_for(lambda: of(scraped(port), "sagas_event_deliveries_total", end="handled") == 4, 10, "all is counted")
        metrics = scraped(port)
        deliveries = "sagas_event_deliveries_total"
        assert of(metrics, deliveries, queue="inventory.reserve_stock", end="failed") == 3
        assert of(metrics, "sagas_event_handling_seconds_count", queue="inventory.reserve_stock", outcome="failed") == 3
        assert of(metrics, "sagas_events_relayed_total") == 3
        assert of(metrics, "sagas_breaker_open", queue="inventory.reserve_stock") == 0
        told = spans(tmp_path)
        [reserved] = [s for s in told if s["name"] == "handle inventory.reserve_stock" and s["error"] is None]
        [charged] = [s for s in told if s["name"] == "handle billing.charge"]
        assert (charged["trace"], charged["parent"]) == (reserved["trace"], reserved["id"])
        broken = [s for s in told if s["name"] == "handle inventory.reserve_stock" and s["error"]]
        assert [s["sagas.attempt"] for s in broken] == [1, 2, 3]
        assert os.getpid() not in {s["pid"] for s in told}
    finally:
        rig.close()


def test_flower_shows_what_the_database_says(rig: Rig, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "BROKER_URL": rig.settings["broker"],
        "SAGAS_DATABASE_URL": rig.settings["database"],
        "PYTHONPATH": str(ROOT),
    }
    log = (tmp_path / "flower.log").open("wb")
    command = [
        sys.executable, "-m", "celery", "-A", "config", "flower", "--conf=config/flowerconfig.py",
        f"--port={port}", "--address=127.0.0.1",
    ]  # fmt: skip
    flower = forks.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:

        def up() -> bool:
            assert flower.poll() is None, (tmp_path / "flower.log").read_text()
            try:
                return of(scraped(port), "sagas_snapshot_up") == 1
            except OSError:
                return False

        wait_for(up, 30, "Flower answers")
        metrics = scraped(port)
        assert ("sagas_unfinished", frozenset({("saga", "place_order"), ("status", "STUCK")})) in metrics
        assert any(name.startswith("flower_") for name, _ in metrics) or "python_info" in {name for name, _ in metrics}
    finally:
        flower.kill()
        flower.wait()
        log.close()
