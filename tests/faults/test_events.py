"""Events through real brokers and processes, while everything that can die does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sagas.events.inbox import MOST_BEGUN
from tests.event_rig import EventRig
from tests.servers import Postgres, RabbitMQ, Redis, Server, wait_for

RESERVE, CHARGE, PACK = "inventory.reserve_stock", "billing.charge", "shipping.pack"
MakeEventRig = Callable[..., EventRig]


@pytest.fixture
def make_event_rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeEventRig]:
    made: list[EventRig] = []
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))

    def make(broker: str, celery: str = "memory://") -> EventRig:
        url = request.getfixturevalue("rabbitmq" if broker == "rabbitmq" else "redis_server").url
        rig = EventRig(url, celery, request.getfixturevalue("postgres").database(), tmp_path)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        print(rig.logs())  # shown when the test fails
        rig.close()


def end(server: Server) -> None:
    """End a server as its owner would. A RabbitMQ that is killed soon after a quorum queue was made may not find it."""
    assert server.process is not None
    server.process.send_signal(server.grace)
    server.process.wait(60)


@pytest.fixture
def rig(make_event_rig: MakeEventRig) -> EventRig:
    return make_event_rig("redis")


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_while_processes_are_killed_nothing_is_lost_doubled_or_overtaken(
    make_event_rig: MakeEventRig, broker: str
) -> None:
    """Readers, handlers and relays in three processes, one of which is killed again and again."""
    rig = make_event_rig(broker)
    published = {f"key {n}": range(n * 100, n * 100 + 30) for n in range(6)}
    rig.publish_while_readers_are_killed(published, CHARGE, every=20, seed=7)
    rig.assert_each_once(published, RESERVE, CHARGE, PACK)
    rig.settled()
    assert rig.events.dead_letters() == []


@pytest.mark.parametrize(
    ("broker", "moment"),
    [
        ("redis", "before publishing"),
        ("rabbitmq", "after publishing"),
        ("redis", "before ack"),
        ("rabbitmq", "before ack"),
    ],
)
def test_death_at_the_most_awkward_moment(make_event_rig: MakeEventRig, broker: str, moment: str) -> None:
    rig = make_event_rig(broker)
    published = {"a": range(10), "b": range(10, 20)}
    for key, numbers in published.items():
        rig.publish(*numbers, key=key)
    first = rig.consume(die=moment)
    wait_for(lambda: not first.running, 20, "it died")
    assert (rig.folder / f"died-{moment}").exists()
    rig.consume()
    rig.assert_each_once(published, RESERVE, CHARGE, PACK)
    rig.settled()


def test_what_is_published_while_nobody_consumes_waits(rig: EventRig) -> None:
    rig.publish(*range(20), key="a")
    assert rig.events.relay.send() == 20
    assert rig.events.broker.depth(RESERVE) == rig.events.broker.depth(PACK) == 20
    rig.consume()
    rig.assert_each_once({"a": range(20)}, RESERVE, CHARGE, PACK)


def test_poison_takes_nothing_with_it(rig: EventRig) -> None:
    """A message that kills whoever handles it, among others, under a supervisor that starts it anew."""
    rig.publish(*range(10))
    rig.publish(10, fault="kill")
    rig.publish(*range(11, 20))
    rig.consume()

    def given_up_and_others_done() -> bool:
        if not rig.processes[-1].running:
            rig.consume()
        return bool(rig.events.dead_letters()) and len(rig.done(RESERVE)) >= 19

    wait_for(given_up_and_others_done, 90, "it is given up, and the others are done")
    # Once each time that it was given out; and once more for each copy that its first victim's relay has sent.
    assert 1 + MOST_BEGUN < len(rig.processes) < 1 + MOST_BEGUN + 4
    [letter] = rig.events.dead_letters()
    assert "the message seems to kill its process" in letter.error
    assert '"number":10' in letter.body.decode()
    assert sorted(number for _, number in rig.done(RESERVE)) == sorted({*range(20)} - {10})
    assert rig.processes[-1].running


def test_the_broker_is_restarted(make_event_rig: MakeEventRig, rabbitmq: RabbitMQ) -> None:
    rig = make_event_rig("rabbitmq")
    rig.consume()
    rig.publish(*range(20), key="a")
    rig.wait_for_done(RESERVE, 1)
    end(rabbitmq)
    rig.publish(*range(20, 40), key="a")  # publishing asks the database alone
    assert rig.events.outbox_unsent() > 0
    rabbitmq.start()
    rig.assert_each_once({"a": range(40)}, RESERVE, CHARGE, PACK)


def test_the_broker_is_silent_for_a_while(make_event_rig: MakeEventRig, redis_server: Redis) -> None:
    rig = make_event_rig("redis")
    rig.consume()
    rig.publish(*range(20), key="a")
    rig.wait_for_done(RESERVE, 1)
    redis_server.pause()
    try:
        rig.publish(*range(20, 40), key="a")
    finally:
        redis_server.resume()
    rig.assert_each_once({"a": range(40)}, RESERVE, CHARGE, PACK)


def test_the_database_is_restarted(rig: EventRig, postgres: Postgres) -> None:
    rig.consume()
    rig.publish(*range(20), key="a")
    rig.wait_for_done(RESERVE, 5)
    postgres.restart()
    rig.events.engine.dispose()
    rig.publish(*range(20, 40), key="a")
    rig.assert_each_once({"a": range(40)}, RESERVE, CHARGE, PACK)
    assert rig.events.dead_letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_an_ordered_queue_goes_to_the_next_process_in_order(make_event_rig: MakeEventRig, broker: str) -> None:
    rig = make_event_rig(broker)
    first, second = rig.consume(PACK).ready(), rig.consume(PACK).ready()
    rig.publish(*range(10), key="a")
    rig.wait_for_done(PACK, 10)
    [pid] = {line["pid"] for line in rig.ledger()}
    reading = first if first.pid == pid else second
    os.kill(pid, signal.SIGSTOP)  # it does not die, it is only not heard of; the broker still gives it messages
    rig.publish(*range(10, 50), key="a")
    rig.assert_each_once({"a": range(50)}, PACK)
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: "another process has taken over the queue" in reading.output(), 20, "it saw that it was given up")
    rig.publish(*range(50, 60), key="a")
    rig.assert_each_once({"a": range(60)}, PACK)


def test_a_dead_letter_holds_back_its_key_alone_until_it_is_replayed(rig: EventRig) -> None:
    rig.consume()
    rig.publish(1, fault="refuse")
    rig.publish(2)
    wait_for(rig.events.dead_letters, 30, "a dead letter")
    rig.wait_for_done(RESERVE, 1)
    (rig.folder / "mended").touch()
    rig.events.replay(rig.events.dead_letters(), reason="mended", actor="me", dry_run=False)
    rig.wait_for_done(CHARGE, 2)
    wait_for(lambda: not rig.events.dead_letters(), 20, "it is resolved")
    assert sorted(number for _, number in rig.done(RESERVE)) == [1, 2]
    assert sorted(number for _, number in rig.done(PACK)) == [1, 2]  # it did not hear of it again


def test_told_to_end_it_lets_handlers_end(rig: EventRig) -> None:
    process = rig.consume(RESERVE)
    rig.publish(1, fault="slow")
    wait_for(rig.ledger, 20, "it began")
    process.terminate()
    wait_for(lambda: "events: stopping" in process.output(), 10, "it was told")
    (rig.folder / "go").touch()
    assert process.wait() == 0
    assert rig.done(RESERVE) == [(None, 1)]
    assert rig.events.broker.depth(RESERVE) == 0  # acknowledged


def test_told_to_end_it_does_not_wait_for_ever(rig: EventRig) -> None:
    process = rig.consume(RESERVE, grace=0.5)
    rig.publish(1, fault="slow")
    wait_for(rig.ledger, 20, "it began")
    process.terminate()
    assert process.wait() == 1
    (rig.folder / "go").touch()
    rig.consume()
    rig.assert_each_once({"": [1]}, RESERVE, CHARGE)


# -- in Celery's workers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_consumes_beside_its_tasks(make_event_rig: MakeEventRig, rabbitmq: RabbitMQ, pool: str) -> None:
    rig = make_event_rig("redis", celery=rabbitmq.url)
    worker = rig.worker("-P", pool, "-c", "2")
    rig.publish(*range(20), key="a")
    for _ in range(10):
        rig.app.tasks["ping"].delay()
    rig.assert_each_once({"a": range(20)}, RESERVE, CHARGE, PACK)
    wait_for(lambda: len((rig.folder / "pings").read_text().split()) == 10, 20, "its tasks")
    rig.settled()
    pids = {line["pid"] for line in rig.ledger()}
    children = {child.pid for child in psutil.Process(worker.pid).children(recursive=True)}
    assert pids <= children if pool == "prefork" else pids == {worker.pid}
    worker.terminate()
    assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_handler_that_exits_has_failed(make_event_rig: MakeEventRig, redis_server: Redis, pool: str) -> None:
    """Its process, or its reader, is not what ends: it is tried as often as it may be, and becomes a dead letter."""
    rig = make_event_rig("rabbitmq", celery=redis_server.url)
    worker = rig.worker("-P", pool, "-c", "1")
    rig.publish(1, fault="exit")
    wait_for(rig.events.dead_letters, 60, "a dead letter")
    [letter] = rig.events.dead_letters()
    assert (letter.error, letter.attempts) == ("SystemExit: gave up", 3)
    rig.publish(2)
    rig.wait_for_done(CHARGE, 1)
    assert len({line["pid"] for line in rig.ledger() if line["queue"] == RESERVE}) == 1
    assert worker.running


def test_children_are_killed(make_event_rig: MakeEventRig, redis_server: Redis) -> None:
    """A message that kills its child once is handled by another; one that always does becomes a dead letter."""
    rig = make_event_rig("rabbitmq", celery=redis_server.url)
    worker = rig.worker("-P", "prefork", "-c", "2")
    rig.publish(*range(5), fault="kill once")
    rig.publish(5, fault="kill")
    rig.publish(*range(6, 10))
    wait_for(rig.events.dead_letters, 60, "a dead letter")
    [letter] = rig.events.dead_letters()
    assert '"number":5' in letter.body.decode()
    rig.wait_for_done(CHARGE, 9)
    assert sorted(number for _, number in rig.done(RESERVE)) == sorted({*range(10)} - {5})
    assert worker.running
    rig.settled()


def test_a_worker_that_loses_its_own_broker_goes_on(make_event_rig: MakeEventRig, rabbitmq: RabbitMQ) -> None:
    rig = make_event_rig("redis", celery=rabbitmq.url)
    worker = rig.worker("-P", "prefork", "-c", "2")
    rig.publish(*range(10), key="a")
    rig.wait_for_done(PACK, 10)
    publishing = threading.Thread(target=rig.publish, args=range(10, 200), kwargs={"key": "a"})
    publishing.start()
    rig.wait_for_done(PACK, 20)
    end(rabbitmq)
    rabbitmq.start()
    publishing.join()
    rig.assert_each_once({"a": range(200)}, RESERVE, CHARGE, PACK)
    rig.settled()
    assert worker.running
    worker.terminate()
    assert worker.wait() == 0


def test_a_worker_is_killed(make_event_rig: MakeEventRig, redis_server: Redis) -> None:
    rig = make_event_rig("redis", celery=redis_server.url)
    first = rig.worker("-P", "prefork", "-c", "2")
    rig.publish(*range(60), key="a")
    rig.wait_for_done(RESERVE, 5)
    first.kill()
    rig.worker("-P", "prefork", "-c", "2")
    rig.assert_each_once({"a": range(60)}, RESERVE, CHARGE, PACK)


def test_a_worker_consumes_the_queues_that_it_is_told(make_event_rig: MakeEventRig, redis_server: Redis) -> None:
    rig = make_event_rig("rabbitmq", celery=redis_server.url)
    rig.worker("-P", "threads", "-c", "2", "-Q", f"{RESERVE},{CHARGE}")
    rig.publish(*range(5))
    rig.assert_each_once({"": range(5)}, RESERVE, CHARGE)
    assert rig.done(PACK) == []
    # It consumes none of Celery's, for -Q did not name one.
    rig.app.tasks["ping"].delay()
    rig.worker("-P", "threads", "-c", "2", "-Q", rig.settings["name"])
    wait_for((rig.folder / "pings").exists, 20, "the other does the tasks")
    rig.publish(*range(5, 10))
    rig.assert_each_once({"": range(10)}, RESERVE, CHARGE)
    assert rig.done(PACK) == []


def test_a_worker_told_to_end_lets_handlers_end(make_event_rig: MakeEventRig, redis_server: Redis) -> None:
    rig = make_event_rig("rabbitmq", celery=redis_server.url)
    worker = rig.worker("-P", "prefork", "-c", "2", "-Q", RESERVE)
    rig.publish(1, fault="slow")
    wait_for(rig.ledger, 20, "it began")
    worker.terminate()
    wait_for(lambda: "Warm shutdown" in worker.output(), 10, "it was told")
    (rig.folder / "go").touch()
    assert worker.wait() == 0
    assert rig.done(RESERVE) == [(None, 1)]
    assert rig.events.broker.depth(RESERVE) == 0
