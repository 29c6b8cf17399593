"""Sagas that travel in one message, on real workers."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from sagas import SagaHandle, SagaStatus
from sagas.checkpoints import HistoryKind
from tests.conftest import MakeRig, Rig
from tests.gathered import at_the_same_moment
from tests.rig import Faults, Worker
from tests.servers import at_once, wait_for


def start(rig: Rig, *faults: dict[str, str], name: str = "line") -> list[SagaHandle]:
    results = rig.saga(name).start_many(Faults(each) for each in faults)
    return [result.handle for result in results if result.handle is not None]


def messages(rig: Rig) -> list[str]:
    """The tasks of the messages that wait, on Redis."""
    with redis.Redis.from_url(rig.settings["broker"]) as client:
        waiting = client.lrange(rig.settings["options"]["task_default_queue"], 0, -1)
    return [json.loads(message)["headers"]["task"] for message in waiting]  # type: ignore[union-attr, unused-ignore]


def lines(rig: Rig) -> list[tuple[int, str, str]]:
    """Who did what in which order: the process, the event and the saga."""
    written, _, _unfinished = (rig.folder / "ledger").read_text().rpartition("\n")
    found = [json.loads(line) for line in written.splitlines()]
    return [(line["pid"], line["event"], line["saga"]) for line in found]


def assert_one_at_a_time(rig: Rig) -> None:
    """No function began in a process while another one of its was at work."""
    at_work: dict[int, str] = {}
    for pid, event, saga in lines(rig):
        if event == "begin":
            assert pid not in at_work, f"{saga} began while {at_work[pid]} was at work"
            at_work[pid] = saga
        else:
            assert at_work.pop(pid) == saga


@pytest.mark.parametrize(("broker", "database"), [("redis", "postgres"), ("rabbitmq", "sqlite"), ("redis", "mariadb")])
def test_all_are_run_and_no_two_functions_of_a_process_overlap(make_rig: MakeRig, broker: str, database: str) -> None:
    rig = make_rig(broker, database)
    rig.configure(lease=60.0)  # however slow the machine, nothing is taken over
    handles = start(rig, *[{}] * 120, name="calm")
    rig.worker(concurrency=2)
    for handle in handles:
        rig.assert_done(handle, 90)
        assert rig.ledger.story(handle.id) == ["one", "two", "three"]
    assert_one_at_a_time(rig)


def test_one_message_carries_many(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    start(rig, *[{}] * 120)
    assert messages(rig) == ["sagas.batch"] * 3
    start(rig, {})
    assert Counter(messages(rig)) == {"sagas.batch": 3, "line.one": 1}, "one alone has a message of its own"


def started_together(rig: Rig, number: int, name: str = "line") -> list[SagaHandle]:
    """Start so many in threads at the same moment, while the message of another one is being sent."""
    rig.start(name)  # the first one makes what they gather at
    start = partial(rig.start, name)
    handles = at_the_same_moment(rig.sagas.canvas.shared._meetings[f"{name}.one"], start, [start] * number)
    assert all(isinstance(handle, SagaHandle) for handle in handles)
    return handles[1:]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_threads_that_start_sagas_at_the_same_moment_share_a_message(make_rig: MakeRig, broker: str) -> None:
    rig = make_rig(broker, "postgres")
    rig.configure(redispatch_after=60.0)  # recovery sends nothing beside
    handles = started_together(rig, 30)
    if broker == "redis":
        assert Counter(messages(rig)) == {"line.one": 2, "sagas.batch": 1}
    worker = rig.worker()
    for handle in handles:
        rig.assert_done(handle)
        assert rig.ledger.story(handle.id) == ["one", "two", "three"]
        assert handle.record.dispatches == 1
        assert all(e.in_main for e in rig.ledger.of(handle.id, "begin")), "as of a saga that is started alone"
    received = Counter(re.findall(r"Task (\S+?)\[\S+\] received", worker.output()))
    assert received["sagas.batch"] == 1  # on a busy machine, sagas leave it


def test_each_is_sent_by_itself_where_the_message_of_all_is_not_taken(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig("redis", "postgres")

    def refused(*_: object, **__: object) -> None:
        raise OperationalError("no")

    monkeypatch.setattr(rig.sagas.canvas.shared, "send_one", refused)
    started_together(rig, 5)
    assert messages(rig) == ["line.one"] * 7


def test_nobody_waits_for_long_for_a_thread_whose_connection_hangs(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    rig.start("line")
    sending = rig.sagas.canvas.shared._meetings["line.one"]
    hangs, over, serve = threading.Event(), threading.Event(), sending._serve

    def hang(plans: Any) -> Any:
        hangs.set()
        assert over.wait(60)
        return serve(plans)

    sending._serve = hang
    with ThreadPoolExecutor(6) as pool:
        try:
            first = pool.submit(rig.start, "line")
            assert hangs.wait(30)
            others = [pool.submit(rig.start, "line") for _ in range(5)]
            handles = [other.result(30) for other in others]
            assert not first.done()
            assert messages(rig) == ["line.one"] * 6
        finally:
            over.set()
        rig.worker()
        for handle in [first.result(30), *handles]:
            rig.assert_done(handle)


def test_a_task_with_a_rate_limit_gets_a_message_for_each(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    rig.configure(task_annotations={"line.one": {"rate_limit": "100/s"}})
    at_once(8, lambda: rig.start("line"))
    assert messages(rig) == ["line.one"] * 8
    assert not rig.sagas.canvas.shared._meetings


def test_a_message_each_for_those_who_want_that(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    rig.configure(batch_size=1)
    handles = start(rig, *[{}] * 5)
    handles += at_once(8, lambda: rig.start("line"))
    assert messages(rig) == ["line.one"] * 13
    rig.worker()
    for handle in handles:
        rig.assert_done(handle)


def test_a_saga_that_fails_leaves_the_others_alone(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    kinds: Sequence[dict[str, str]] = [{}, {"two": "terminal"}, {"three": "error:1"}, {"one": "terminal"}, {}]
    handles = start(rig, *[kinds[number % 5] for number in range(40)])
    rig.worker(concurrency=2)
    for number, handle in enumerate(handles):
        if number % 5 in (1, 3):
            rig.assert_undone(handle, 90)
        else:
            rig.assert_done(handle, 90)
            assert rig.ledger.story(handle.id)[-1] == "three"


def test_slow_sagas_are_shared_among_the_processes(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    handles = start(rig, *[{"one": "second"}] * 8)
    assert messages(rig) == ["sagas.batch"]
    rig.worker(concurrency=4)
    for handle in handles:
        rig.assert_done(handle, 60)
    assert len({pid for pid, event, _ in lines(rig) if event == "begin"}) > 1


@pytest.mark.parametrize("first", [True, False], ids=["the first", "a later one"])
def test_nobody_waits_for_a_function_that_does_not_end(make_rig: MakeRig, first: bool) -> None:
    """It is at work in one process, and another one takes the sagas of its batch that have not begun."""
    rig = make_rig("redis", "postgres")
    rig.configure(redispatch_after=60.0)  # recovery does not help
    faults: list[dict[str, str]] = [{} for _ in range(40)]
    faults[0 if first else 4]["two"] = "slow"
    handles = start(rig, *faults, name="long")
    slow = handles.pop(0 if first else 4)
    rig.worker(concurrency=2)
    rig.begun(slow, "two")
    beside = handles if first else handles[20:]  # up to 15 others have claimed their next step, and wait for their turn
    for handle in beside:
        rig.assert_done(handle, 15)
    assert slow.status is SagaStatus.RUNNING
    rig.go(slow)
    for handle in [slow, *handles]:
        rig.assert_done(handle)


def test_a_saga_that_turns_slow_goes_on_by_a_message_of_its_own(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    handles = start(rig, *[{"two": "second"}] * 6, name="calm")
    rig.worker(concurrency=3)
    for handle in handles:
        rig.assert_done(handle, 60)
        assert rig.ledger.story(handle.id) == ["one", "two", "three"]
    twos = {e.pid for handle in handles for e in rig.ledger.of(handle.id, "begin") if e.step == "two"}
    assert len(twos) > 1


@pytest.mark.parametrize("moment", ["kill_before:1", "kill_after:1"])
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_child_that_is_killed_in_a_batch_loses_none_of_it(make_rig: MakeRig, broker: str, moment: str) -> None:
    rig = make_rig(broker, "postgres")
    faults: list[dict[str, str]] = [{} for _ in range(60)]
    faults[20]["two"] = moment
    handles = start(rig, *faults, name="long")
    rig.worker(concurrency=2)
    for handle in handles:
        rig.assert_done(handle, 120)
        rig.assert_explained(handle)


def assert_a_kill_loses_nothing(rig: Rig, handles: Sequence[SagaHandle], *, after: int) -> Worker:
    """Kill a worker in the middle, after so many lines of the ledger, and have another one end all. Return the first."""
    first = rig.worker(concurrency=2)
    wait_for(lambda: (rig.folder / "ledger").exists() and len(lines(rig)) > after, 30, "some have begun", 0.001)
    first.kill()
    assert not all(handle.status is SagaStatus.COMPLETED for handle in handles)
    rig.worker(concurrency=2)
    for handle in handles:
        rig.assert_done(handle, 120)
        rig.assert_explained(handle)
    return first


def test_a_worker_that_is_killed_in_a_batch_loses_none_of_it(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    handles = start(rig, *[{}] * 100, name="long")
    assert_a_kill_loses_nothing(rig, handles, after=20)


def flushed(rig: Rig, number: int, name: str = "line") -> list[SagaHandle]:
    """Start sagas, and have the broker lose all messages."""
    handles = start(rig, *[{}] * number, name=name)
    with redis.Redis.from_url(rig.settings["broker"]) as client:
        client.delete(rig.settings["options"]["task_default_queue"])
    return handles


def test_what_a_broker_has_lost_is_sent_again_in_batches(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    rig.configure(redispatch_after=5.0)
    handles = flushed(rig, 1_000, "calm")
    worker = rig.worker(concurrency=2)
    for handle in handles:
        rig.assert_done(handle, 90)
    begun = Counter(saga for _, event, saga in lines(rig) if event == "begin")
    assert begun == {handle.id: 3 for handle in handles}
    received = Counter(re.findall(r"Task (\S+?)\[\S+\] received", worker.output()))
    assert 1_000 // 50 <= received["sagas.batch"] <= 1_000 // 10
    dispatches = Counter(handle.record.dispatches for handle in handles)
    assert dispatches[2] >= 900, dispatches
    assert worker.output().count("recovery sent") == sum(times * (sent - 1) for sent, times in dispatches.items())
    assert_one_at_a_time(rig)


def test_a_worker_that_is_killed_in_a_batch_of_recovery_loses_none_of_it(make_rig: MakeRig) -> None:
    rig = make_rig("redis", "postgres")
    handles = flushed(rig, 200, "long")
    first = assert_a_kill_loses_nothing(rig, handles, after=60)
    assert "sagas.batch" in first.output()


def test_one_that_kills_its_worker_after_a_flush_does_not_take_others_along_again(make_rig: MakeRig) -> None:
    """Two that kill, again and again, until they are given up: nobody else comes near that."""
    rig = make_rig("redis", "postgres")
    faults: list[dict[str, str]] = [{} for _ in range(60)]
    faults[20]["two"] = faults[40]["two"] = "kill_before"
    handles = start(rig, *faults)
    with redis.Redis.from_url(rig.settings["broker"]) as client:
        client.delete(rig.settings["options"]["task_default_queue"])
    rig.worker(concurrency=2)
    for number, handle in enumerate(handles):
        if number in (20, 40):
            rig.assert_undone(handle, 120)
            assert "lost 5 of 5 times" in (handle.error or "")
        else:
            rig.assert_done(handle, 120)
            rig.assert_explained(handle)
            lost = [entry for entry in handle.history if entry.what == HistoryKind.LOST]
            assert len(lost) <= 2, "once beside each of them"


def test_a_batch_that_is_delivered_again_after_its_commits_does_nothing_twice(make_rig: MakeRig) -> None:
    """Its worker died between the last commit and the acknowledgement: Redis gives the message to another one."""
    rig = make_rig("redis", "postgres")
    handles = start(rig, *[{}] * 30)
    queue = rig.settings["options"]["task_default_queue"]
    with redis.Redis.from_url(rig.settings["broker"]) as client:
        [sent] = client.lrange(queue, 0, -1)  # type: ignore[misc, unused-ignore]
        worker = rig.worker(concurrency=2)
        for handle in handles:
            rig.assert_done(handle, 60)
        restored = json.loads(sent)
        restored["properties"]["delivery_info"]["redelivered"] = True
        restored["properties"]["delivery_tag"] = "restored"
        client.lpush(queue, json.dumps(restored))
    wait_for(lambda: worker.output().count("30 sagas") == 2, 30, "it is through with it again")
    for handle in handles:
        assert rig.ledger.story(handle.id) == ["one", "two", "three"]
        assert handle.history == []
    wait_for(lambda: not messages(rig), 10, "and nothing of it is left")
