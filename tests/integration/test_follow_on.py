"""A worker that has done a step runs the next one too: without the broker, and as the task that it is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery.events.receiver import EventReceiver

from tests.conftest import MakeRig, Rig
from tests.servers import wait_for


def test_steps_of_one_queue_need_one_message(rig: Rig) -> None:
    worker = rig.worker()
    handle = rig.start("line")
    rig.assert_done(handle)
    assert len({e.pid for e in rig.ledger.of(handle.id)}) == 1
    succeeded = [f"Task line.{step}[{handle.id}:{step}:1] succeeded" for step in ("one", "two", "three")]
    wait_for(lambda: all(line in worker.output() for line in succeeded), 20, "the worker says so, after the saga's end")
    output = worker.output()
    assert [output.count(line) for line in succeeded] == [1, 1, 1]
    assert output.count("received") == 1


def test_it_can_be_turned_off(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(run_next_inline=False)
    worker = rig.worker()
    rig.assert_done(rig.start("line"))
    assert worker.output().count("received") == 3


def test_with_celerys_time_limits_each_step_is_one_task(rig: Rig) -> None:
    worker = rig.worker("--time-limit", "60")
    rig.assert_done(rig.start("line"))
    assert worker.output().count("received") == 3


def test_another_queue_is_left_to_its_workers(make_rig: MakeRig) -> None:
    rig = make_rig()
    here = rig.worker("-Q", rig.settings["options"]["task_default_queue"])
    there = rig.worker("-Q", "nobody")
    handle = rig.start("served")
    rig.assert_done(handle)
    assert "served.one[" in here.output()
    assert "served.two[" in there.output()
    assert "served.two[" not in here.output()


EXPECTED = {
    (f"task-{kind}", step)
    for kind in ("received", "started", "succeeded")
    for step in ("one:1", "two:1", "three:1", "three:compensate:2", "two:compensate:2", "one:compensate:2")
} | {("task-failed", "three:1")}


@pytest.mark.parametrize("run_next_inline", [True, False])
def test_flower_sees_every_step(make_rig: MakeRig, run_next_inline: bool) -> None:
    rig = make_rig()
    rig.configure(run_next_inline=run_next_inline)
    rig.worker("-E")
    seen: set[tuple[str, str]] = set()
    stop = threading.Event()

    def note(event: dict[str, Any]) -> None:
        seen.add((event["type"], event["uuid"].partition(":")[2]))

    def listen() -> None:
        with rig.sagas.app.connection_for_read() as connection:
            handlers = dict.fromkeys({kind for kind, _ in EXPECTED}, note)
            receiver = EventReceiver(connection, handlers=handlers, app=rig.sagas.app)
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                listening.set()
                if stop.is_set():
                    return

    listening = threading.Event()
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        # Events are not kept for who comes late: begin when the first one was heard.
        wait_for(lambda: (rig.start("line"), listening.wait(0.5))[1], 20, "it listens")
        done, failed = rig.start("line"), rig.start("line", three="terminal")
        rig.assert_done(done)
        rig.assert_undone(failed)
        wait_for(lambda: seen >= EXPECTED, 20, f"all events; missing {sorted(EXPECTED - seen)} seen {sorted(seen)}")
    finally:
        stop.set()
        rig.start("line").wait(10)
        listener.join(10)
