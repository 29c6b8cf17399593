"""Messages are lost, doubled, stale, corrupt, revoked, expired; link_error is silent. None of it ends in silence."""

import json
from typing import Any

import pytest
from celery import Celery

from sagas import Direction
from sagas.plan import Plan, Stage, plan
from sagas.starts import start
from tests.conftest import MakeRig, Rig
from tests.rig import Faults
from tests.servers import Redis


def unlaunched(rig: Rig, name: str, **faults: str) -> Any:
    """A saga that is stored, and whose message was never sent: a crash between commit and publish."""
    orchestrator = rig.sagas.orchestrator
    next_ = start(orchestrator, rig.saga(name), Faults(faults), key=None, correlation_id=None, session=None)
    return rig.sagas.handle(next_.record.id)


def test_a_saga_never_launched_is_launched(rig: Rig) -> None:
    handle = unlaunched(rig, "line")
    rig.worker()
    rig.assert_done(handle)


@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_redis_flushed_in_mid_flight(make_rig: MakeRig, redis_server: Redis, database: str) -> None:
    rig = make_rig("redis", database)
    handles = [rig.start("line") for _ in range(10)]
    redis_server.flush()
    rig.worker()
    for handle in handles:
        rig.assert_done(handle)


def test_every_message_doubled(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = rig.sagas.canvas
    send = canvas.dispatch

    doubled: list[Any] = []

    def twice(plan: Any, **options: Any) -> None:
        send(plan, **options)
        send(plan, **options)
        doubled.append(plan)

    monkeypatch.setattr(canvas, "dispatch", twice)
    good, bad = rig.start("full"), rig.start("full", four="terminal")
    assert len(doubled) == 2
    rig.worker(concurrency=4)
    rig.assert_done(good)
    rig.assert_undone(bad)
    assert sorted(rig.ledger.story(good.id)) == sorted(["one", "left", "right", "free", "four", "pivot", "last"])
    assert len(rig.ledger.of(bad.id)) == len({(e.event, e.step) for e in rig.ledger.of(bad.id)})


def test_doubled_headers_are_joined_once(rig: Rig) -> None:
    rig.configure(redispatch_after=120)  # no redispatch on a slow machine: that would be another epoch
    worker = rig.worker(concurrency=4)
    handle = rig.start("full", one="slow")
    rig.begun(handle, "one")
    rig.go(handle)
    stages = (Stage(("left", "right", "free"), joined=True), *(Stage((name,)) for name in ("four", "pivot", "last")))
    chord = Plan(rig.saga("full"), handle.id, 1, 1, Direction.FORWARD, stages)
    for _ in range(20):  # the messages of the chord's header, before their turn, in it and after
        rig.sagas.canvas.dispatch(chord)
    rig.assert_done(handle)
    assert sorted(rig.ledger.story(handle.id)) == sorted(["one", "left", "right", "free", "four", "pivot", "last"])
    assert handle.record.epoch == 1
    assert worker.output().count("Task sagas.join[") == 2  # received, succeeded


def test_a_message_of_an_old_epoch_changes_nothing(rig: Rig) -> None:
    handle = rig.start("line", two="terminal")
    old = plan(rig.saga("line"), handle.record)
    rig.worker()
    rig.assert_undone(handle)
    before = handle.record
    rig.sagas.canvas.dispatch(old)
    other = rig.start("line")
    rig.assert_done(other)  # the queue is first in, first out: the old message has been handled
    assert handle.record == before


def test_without_link_error_the_sweep_turns_back(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(task_routes={"sagas.fail": {"queue": "nobody"}})
    rig.worker()
    line, full = rig.start("line", two="terminal"), rig.start("full", right="terminal")
    rig.assert_undone(line)
    rig.assert_undone(full)


def test_link_error_is_the_fast_path(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(redispatch_after=60.0, lease=60.0)
    rig.worker()
    line, full = rig.start("line", two="terminal"), rig.start("full", right="terminal")
    rig.assert_undone(line, timeout=15)
    rig.assert_undone(full, timeout=15)


def test_wrong_arguments_and_corrupt_messages(rig: Rig) -> None:
    rig.worker()
    app: Celery = rig.sagas.app
    bad_kwargs, corrupt = unlaunched(rig, "line"), unlaunched(rig, "line")
    canvas = rig.sagas.canvas
    signature = canvas._step(plan(rig.saga("line"), bad_kwargs.record), "one")
    app.send_task(signature.task, kwargs={"saga": "?"}, link_error=signature.options["link_error"])
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(
            "{not json", routing_key=app.conf.task_default_queue, content_type="application/json",
            content_encoding="utf-8", headers={"task": "line.one", "id": corrupt.id},
        )  # fmt: skip
        producer.publish(
            b"\x80\x04N.", routing_key=app.conf.task_default_queue, content_type="application/x-python-serialize",
            content_encoding="binary", headers={"task": "line.one", "id": corrupt.id},
        )  # fmt: skip
    rig.assert_done(bad_kwargs)
    rig.assert_done(corrupt)


def test_a_step_that_celery_can_never_run(make_rig: MakeRig) -> None:
    """Every message of it has wrong arguments: link_error reports each, until its deliveries are used up."""
    rig = make_rig()
    rig.configure(broken=["line.two", "arguments"], redispatch_after=60.0)
    worker = rig.worker()
    handle = rig.start("line")
    rig.assert_undone(handle)
    assert "lost 5 of 5 times: Celery could not run it" in (handle.error or "")
    assert worker.output().count("TypeError") >= 5
    assert rig.ledger.story(handle.id) == ["one", "-one"]


@pytest.mark.parametrize("how", ["unregistered", "expired", "revoked"])
def test_a_step_whose_messages_vanish(make_rig: MakeRig, how: str) -> None:
    """No errback fires for these. The step may wait for a second, then the saga turns back."""
    rig = make_rig()
    rig.configure(broken=["waits.two", how], run_next_inline=False)
    worker = rig.worker()
    handle = rig.start("waits")
    rig.assert_undone(handle)
    assert "no worker began it within 1 s" in (handle.error or "")
    assert rig.ledger.story(handle.id) == ["one", "-one"]
    seen = {"unregistered": "Received unregistered task", "expired": "Discarding", "revoked": "Discarding"}[how]
    assert seen in worker.output()


def test_an_unencodable_result_is_in_doubt(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", two="unencodable")
    rig.assert_undone(handle)
    assert "cannot be kept" in (handle.error or "")
    assert rig.ledger.story(handle.id) == ["one", "two", "-two", "-one"]


def test_only_json_is_on_the_wire(rig: Rig, redis_server: Redis) -> None:
    handle = rig.start("full")
    queue = rig.settings["options"]["task_default_queue"]
    with redis_server.client() as client:
        [message] = client.lrange(queue, 0, -1)
    assert json.loads(message)["content-type"] == "application/json"
    rig.worker()
    rig.assert_done(handle)
