"""A worker that has done a step runs the next one too: without the broker, and as the task that it is."""

from __future__ import annotations

from typing import Any

import pytest
from celery.events.receiver import EventReceiver

from sagas import SagaStatus
from tests.conftest import MakeRig, Rig
from tests.servers import Redis, wait_for


def test_steps_of_one_queue_need_one_message(rig: Rig) -> None:
    worker = rig.worker()
    handle = rig.start("line")
    rig.assert_done(handle)
    assert len({e.pid for e in rig.ledger.of(handle.id)}) == 1
    output = worker.output()
    for step in ("one", "two", "three"):
        assert output.count(f"Task line.{step}[{handle.id}:{step}:1] succeeded") == 1
    assert output.count("received") == 1


def test_it_can_be_turned_off(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(follow_on=False)
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
    handle = rig.start("nobody")
    rig.assert_done(handle)
    assert "nobody.one[" in here.output()
    assert "nobody.two[" in there.output()
    assert "nobody.two[" not in here.output()


@pytest.mark.parametrize("follow_on", [True, False])
def test_flower_sees_every_step(make_rig: MakeRig, redis_server: Redis, follow_on: bool) -> None:
    rig = make_rig()
    rig.configure(follow_on=follow_on)
    rig.worker("-E")
    seen: list[tuple[str, str]] = []
    with rig.sagas.app.connection_for_read() as connection:

        def note(event: dict[str, Any]) -> None:
            seen.append((event["type"], event["uuid"].split(":", 1)[1]))

        kinds = ("received", "started", "succeeded", "failed", "retried")
        receiver = EventReceiver(connection, handlers={f"task-{kind}": note for kind in kinds}, app=rig.sagas.app)
        with receiver.consumer_context():
            done, failed = rig.start("line"), rig.start("line", three="terminal")

            def all_seen() -> bool:
                receiver.capture(limit=1, timeout=1, wakeup=False)
                return (
                    done.status is SagaStatus.COMPLETED and failed.status is SagaStatus.COMPENSATED and len(seen) >= 27
                )

            wait_for(lambda: _quietly(all_seen), 20, "all events")
    for kind in ("received", "started", "succeeded"):
        for step in ("one:1", "two:1", "three:1", "three:undo:2", "two:undo:2", "one:undo:2"):
            assert (f"task-{kind}", step) in seen
    assert ("task-failed", "three:1") in seen


def _quietly(look: Any) -> bool:
    try:
        return bool(look())
    except TimeoutError:  # no event within its time
        return False
