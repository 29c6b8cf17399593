"""`celery -A app sagas events ...`, as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from sqlalchemy.orm import Session

from sagas.cli.events import events
from sagas.events import Events, Service
from tests import forks
from tests.event_rig import EventRig, OrderPlaced
from tests.rig import ROOT
from tests.servers import Redis, wait_for
from tests.terminal import invoke

Run = Callable[..., Result]


@pytest.fixture
def rig(redis_server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRig:
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))
    return EventRig(redis_server.url, "memory://", f"sqlite:///{tmp_path / 'e.db'}", tmp_path)


@pytest.fixture
def run(rig: EventRig) -> Run:
    return lambda *words: invoke(events, words, SimpleNamespace(app=rig.app))


def test_from_the_outbox_to_the_dead_letters(rig: EventRig, run: Run) -> None:
    shown = run("topology", "show")
    assert shown.stdout.splitlines()[0] == "queue\ttopics"
    assert "inventory.reserve_stock\torders.order.placed.*" in shown.stdout
    assert run("topology", "apply").stdout == "nothing was missing\n"  # the rig has done it

    rig.publish(1, fault="refuse", key="k")
    assert json.loads(run("outbox", "--json").stdout)[0]["unsent"] == 1

    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.event_worker",
        "sagas",
        "events",
        "consume",
        "--threads",
        "2",
    ]
    environment = {**os.environ, "RIG": json.dumps(rig.settings), "RIG_FOLDER": str(rig.folder)}
    with forks.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(rig.events.dead_letters, 30, "a dead letter")
        rig.wait_for_done("shipping.pack", 1)
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "events: consuming" in told
    assert run("outbox").stdout.splitlines()[1].startswith("0\t0")

    [letter] = json.loads(run("dlq", "list", "--queue", "inventory.reserve_stock", "--json").stdout)
    number = str(letter["id"])
    assert (letter["type"], letter["error"]) == ("orders.order.placed", "TerminalError: refused")
    assert '"number":1' in run("dlq", "show", number).stdout
    assert "no dead letters" in run("dlq", "list", "--key", "other").stderr

    refused = run("dlq", "replay", "--reason", "x")
    assert refused.exit_code == 2
    assert "pass IDS" in refused.stderr
    assert "would replay 1" in run("dlq", "replay", number, "--reason", "x", "--dry-run").stdout
    assert run("dlq", "replay", number, "--reason", "x").exit_code == 2  # nobody said yes
    assert rig.events.outbox_unsent() == 0
    assert "1 replayed" in run("dlq", "replay", number, "--reason", "mended", "--actor", "me", "--yes").stdout
    assert rig.events.outbox_unsent() == 1
    [replaying] = rig.events.dead_letters()
    assert (replaying.resolution, replaying.reason, replaying.actor) == ("replaying", "mended", "me")

    assert "1 discarded" in run("dlq", "discard", "--key", "k", "--reason", "no", "--yes").stdout
    assert "discarded" in run("dlq", "list", "--resolved").stdout
    assert "nothing to discard" in run("dlq", "discard", number, "--reason", "no", "--yes").stdout
    assert "there is no dead letter 77" in run("dlq", "show", "77").stderr
    assert run("outbox", "purge", "--older-than", "30d").stdout == "0 rows deleted\n"
    rig.close()


def test_a_queue_that_is_not_there(rig: EventRig, run: Run) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    done = run("consume", "--queues", "no.such")
    assert done.exit_code == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Error: there is no queue 'no.such'. The queues are: 'inventory.reserve_stock'" in done.stderr
    rig.close()


def test_what_is_declared_no_longer_is_shown_and_taken_away(rig: EventRig, run: Run) -> None:
    gone = Service("inventory")

    @gone.on(OrderPlaced, name="gone")
    def handle(event: OrderPlaced) -> None: ...

    before = Events([gone], engine=rig.events.engine, broker=rig.events.broker, exchange=rig.events.exchange)
    before.apply_topology()
    [row] = json.loads(run("topology", "diff", "--json").stdout)
    assert (row["queue"], row["what"], row["messages"]) == ("inventory.gone", "queue no longer declared", 0)
    assert run("topology", "apply").stdout == "nothing was missing\n"
    assert "--delete" in run("topology", "apply", "--discard").stderr
    deleted = run("topology", "apply", "--delete").stdout.splitlines()
    assert deleted == [
        "unbound orders.order.placed.* from inventory.gone",
        "deleted queue inventory.gone, which held 0 messages",
    ]
    assert "exactly what is declared" in run("topology", "diff").stderr


def test_what_reached_nobody_is_counted_and_sent_again(rig: EventRig, run: Run) -> None:
    alone = Events(
        [Service("orders", publishes=[OrderPlaced])],
        engine=rig.events.engine,
        broker=rig.events.broker,
        exchange=f"{rig.events.exchange}.alone",
    )
    with Session(alone.engine) as session, session.begin():
        alone.publish(OrderPlaced(number=1), session)
    alone.relay.send()
    assert json.loads(run("outbox", "--json").stdout)[0]["unheard"] == 1
    assert run("outbox", "resend", "--type", "orders.order.placed").stdout == "1 messages will be sent again\n"
    assert json.loads(run("outbox", "--json").stdout)[0]["unsent"] == 1
