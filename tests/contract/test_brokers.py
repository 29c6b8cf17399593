"""What the distributed bus asks of a broker, of every broker, against real servers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from sagas import ConfigurationError
from sagas.errors import BrokerUnavailable, NoHandler
from sagas.events.brokers import Broker, Delivery, Outgoing, Queue, Reader, Topology
from sagas.events.brokers.memory import MemoryBroker
from tests import forks
from tests.contract.broker_of import LEASE, bodies, broker_of, message, take
from tests.servers import Kafka, RabbitMQ, Redis, Server, wait_for

PLACED, SHIPPED, PAID = "orders.order.placed.v1", "orders.order.shipped.v1", "payments.payment.captured.v1"
SERVERS = {"rabbitmq": "rabbitmq", "redis": "redis_server", "kafka": "kafka"}


@dataclass
class Seam:
    """A kind of broker, the server behind it, and names that no other test uses."""

    kind: str
    server: Server | None
    address: str = ""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    made: list[Broker] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    @property
    def exchange(self) -> str:
        return f"shop_{self.mark}.events"

    @property
    def broker(self) -> Broker:
        return self.made[0] if self.made else self.another()

    def another(self, *, timeout: float = 15.0, lease: float = LEASE) -> Broker:
        """A broker as another process would have it; the memory broker has no other process."""
        if self.kind == "memory":
            self.made.append(self.made[0] if self.made else MemoryBroker())
        else:
            self.made.append(broker_of(self.kind, self.address, timeout=timeout, lease=lease))
        return self.made[-1]

    def name(self, queue: str) -> str:
        return f"{queue}_{self.mark}.purpose"

    def topology(self, **queues: tuple[str, ...]) -> Topology:
        return Topology(self.exchange, tuple(Queue(self.name(name), topics) for name, topics in queues.items()))

    def declare(self, **queues: tuple[str, ...]) -> list[str]:
        return list(self.broker.declare(self.topology(**queues)))

    def publish(self, *messages: Outgoing) -> None:
        self.broker.publish(messages)

    def reader(self, queue: str, broker: Broker | None = None) -> Reader:
        self.readers.append((broker or self.broker).reader(self.name(queue)))
        return self.readers[-1]

    def assert_empty(self, queue: str, topic: str) -> None:
        """Nothing is left: what is published last comes out alone, from wherever it is put."""
        reader = self.reader(queue)
        keys = [f"key-{number}" for number in range(24)]
        self.publish(*[message("last", topic, key=key) for key in keys])
        left = take(reader, len(keys), ack=True)
        assert set(bodies(left)) == {"last"}
        reader.close()

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        for broker in self.made:
            broker.close()


def _address(server: Server) -> str:
    if isinstance(server, Kafka):
        return server.address
    assert isinstance(server, Redis | RabbitMQ)
    return server.url


@pytest.fixture(params=["memory", "rabbitmq", "redis", "kafka"])
def seam(request: pytest.FixtureRequest) -> Iterator[Seam]:
    server = request.getfixturevalue(SERVERS[request.param]) if request.param in SERVERS else None
    seam = Seam(request.param, server, _address(server) if server else "")
    yield seam
    seam.close()


@pytest.fixture
def remote(seam: Seam) -> Seam:
    if seam.kind == "memory":
        pytest.skip("it lives in one process")
    return seam


# -- who gets what ----------------------------------------------------------------------------------------------------


def test_every_queue_bound_gets_it_and_no_other(seam: Seam) -> None:
    seam.declare(one=(PLACED, PAID), two=(PLACED,), other=(SHIPPED,))
    seam.publish(message(1, key="k"), message(2, PAID, key="k"), message(3, SHIPPED, key="k"))
    seam.publish(*[message(f"last {topic}", topic, key="k") for topic in (PLACED, PAID, SHIPPED)])
    assert bodies(take(seam.reader("one"), 4)) == ["1", "2", f"last {PLACED}", f"last {PAID}"]
    assert bodies(take(seam.reader("two"), 2)) == ["1", f"last {PLACED}"]
    assert bodies(take(seam.reader("other"), 2)) == ["3", f"last {SHIPPED}"]


def test_what_nobody_listens_to_is_published_to_nobody(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(message(1, SHIPPED), message(2))
    assert bodies(take(seam.reader("one"), 1)) == ["2"]


def test_a_queue_keeps_what_nobody_has_read(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    for begin in range(0, 200, 50):
        seam.publish(*[message(number, key=f"k{number % 7}") for number in range(begin, begin + 50)])
    wait_for(lambda: seam.broker.depth(seam.name("one")) == 200, 10, "the queue holds 200")
    reader = seam.reader("one")
    taken = take(reader, 200, ack=True)
    assert sorted(map(int, bodies(taken))) == list(range(200))
    reader.close()
    wait_for(lambda: seam.broker.depth(seam.name("one")) == 0, 10, "the queue is empty")


def test_a_subscriber_that_is_added_misses_nothing_from_then_on(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    counter = iter(range(1_000_000))
    published: list[int] = []
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            numbers = [next(counter) for _ in range(5)]
            seam.publish(*[message(number, key=str(number % 5)) for number in numbers])
            published.extend(numbers)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        wait_for(lambda: len(published) > 20, 20, "some are published before")
        before = max(published)
        seam.another().declare(seam.topology(two=(PLACED,)))
        since = max(published) + 6  # the batch under way may have been handed over before
        wait_for(lambda: len(published) > since + 50, 20, "some are published after")
    finally:
        stop.set()
        thread.join()
    last = max(published)
    reader = seam.reader("two")
    got: set[int] = set()

    def caught_up() -> bool:
        for delivery in reader.receive(100, 0.5):
            got.add(int(delivery.body))
            reader.ack(delivery)
        return set(range(since, last + 1)) <= got

    wait_for(caught_up, 30, "the second queue has all that was published since", pause=0)
    assert min(got) > before
    assert sorted(map(int, bodies(take(seam.reader("one"), last + 1, ack=True)))) == list(range(last + 1))


def test_a_binding_that_is_added_is_seen_by_readers_that_do_not_know_it(remote: Seam) -> None:
    """As in a rolling deployment: the old process has the queue open, the new one binds one topic more to it."""
    remote.declare(one=(PLACED,))
    reader = remote.reader("one")
    remote.publish(message(1, key="k"), message("passed over", SHIPPED, key="k"))
    [first] = take(reader, 1)
    reader.ack(first)
    assert reader.receive(10, 0.2) == []
    newer = remote.another()
    newer.declare(remote.topology(one=(PLACED, SHIPPED)))
    newer.publish([message(2, SHIPPED, key="k"), message(3, key="k")])
    assert bodies(take(reader, 2)) == ["2", "3"]


def test_a_command_reaches_one_queue_alone(seam: Seam) -> None:
    seam.declare(one=(PLACED,), commands=())
    seam.publish(message(1, "orders.cancel_order.v1", queue=seam.name("commands"), key="k"))
    seam.publish(message(2, PLACED, queue=seam.name("one")))  # a replay
    [command] = take(seam.reader("commands"), 1)
    assert (command.body, command.topic, command.key) == (b"1", "orders.cancel_order.v1", "k")
    [replayed] = take(seam.reader("one"), 1)
    assert (replayed.body, replayed.topic, replayed.key) == (b"2", PLACED, None)


def test_nobody_receives_what_is_sent_to_a_missing_queue(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    with pytest.raises(NoHandler, match=seam.name("nowhere")):
        seam.publish(message(1, "orders.cancel_order.v1", queue=seam.name("nowhere")))
    seam.publish(message(2))
    assert bodies(take(seam.reader("one"), 1)) == ["2"]
    seam.declare(nowhere=())
    seam.publish(message(3, "orders.cancel_order.v1", queue=seam.name("nowhere")))
    assert bodies(take(seam.reader("nowhere"), 1)) == ["3"]


# -- declaring --------------------------------------------------------------------------------------------------------


def test_declaring_says_what_it_made_and_makes_it_once(seam: Seam) -> None:
    made = seam.declare(one=(PLACED, SHIPPED), commands=())
    assert f"exchange {seam.exchange}" in made
    assert f"queue {seam.name('one')}" in made
    assert f"queue {seam.name('commands')}" in made
    assert seam.declare(one=(PLACED, SHIPPED), commands=()) == []
    assert list(seam.another().declare(seam.topology(one=(PLACED, SHIPPED), commands=()))) == []
    assert any(f"queue {seam.name('two')}" in line for line in seam.declare(two=(PLACED,)))


def test_declaring_again_keeps_what_is_in_the_queue(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(message(1))
    seam.another().declare(seam.topology(one=(PLACED, SHIPPED)))
    seam.publish(message(2, SHIPPED))
    assert sorted(bodies(take(seam.reader("one"), 2))) == ["1", "2"]


def test_publishing_before_declaring_is_refused(seam: Seam) -> None:
    with pytest.raises(ConfigurationError, match="declare"):
        seam.publish(message(1))


def test_a_queue_that_is_not_there_is_said_to_be_missing(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    reader = seam.reader("two")
    with pytest.raises(BrokerUnavailable, match="Declare it"):
        reader.receive(1, 0.1)
    with pytest.raises(BrokerUnavailable, match="Declare it"):
        seam.broker.depth(seam.name("two"))
    seam.declare(two=(PLACED,))
    seam.publish(message(1))
    assert bodies(take(reader, 1)) == ["1"]


# -- what is in a message ---------------------------------------------------------------------------------------------


def test_messages_come_out_as_they_went_in(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    headers = {"eventId": "1", "empty": "", "héader": "wärt 💶", "x-mine": "a\nb\t\x01", "key": "not the key"}
    sent = [
        Outgoing(id="a", topic=PLACED, body=bytes(range(256)), headers=headers, key="schlüssel 💶\n"),
        Outgoing(id="b", topic=PLACED, body=b"", headers={}),
        Outgoing(id="c", topic=PLACED, body='{"ü": "💶"}'.encode(), headers={"a": "x" * 3000}, key=""),
    ]
    for outgoing in sent:
        seam.publish(outgoing)
    by_body = {delivery.body: delivery for delivery in take(seam.reader("one"), 3)}
    for outgoing in sent:
        delivery = by_body[outgoing.body]
        assert (delivery.queue, delivery.topic, delivery.deliveries) == (seam.name("one"), PLACED, 1)
        assert (dict(delivery.headers), delivery.key) == (outgoing.headers, outgoing.key)


def test_a_body_of_a_megabyte(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    body = bytes(range(256)) * 4096 + b"and its envelope"
    seam.publish(*[Outgoing(id=str(number), topic=PLACED, body=body, headers={}, key="k") for number in range(3)])
    assert [delivery.body == body for delivery in take(seam.reader("one"), 3)] == [True] * 3


# -- order ------------------------------------------------------------------------------------------------------------


def test_messages_of_one_key_stay_in_order(seam: Seam) -> None:
    """Whatever their topics are."""
    seam.declare(one=(PLACED, SHIPPED, PAID))
    topics, sent = (PLACED, SHIPPED, PAID), defaultdict(list)
    batch = []
    for number in range(300):
        key = f"k{number % 5}"
        sent[key].append(str(number))
        batch.append(message(number, topics[number * 7 % 3], key=key))
        if len(batch) > number % 23:
            seam.publish(*batch)
            batch = []
    seam.publish(*batch)
    got = defaultdict(list)
    reader = seam.reader("one")
    for delivery in take(reader, 300, limit=17, ack=True):
        got[delivery.key].append(delivery.body.decode())
    assert got == sent


def test_a_reader_is_given_no_more_than_it_asked_for(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(*[message(number, key="k") for number in range(20)])
    reader = seam.reader("one")
    got: list[Delivery] = []
    for limit in (1, 3, 1, 10, 5):  # none is acknowledged meanwhile
        received = wait_for(lambda limit=limit: reader.receive(limit, 1), 20, "a message", pause=0)  # type: ignore[misc]
        assert 1 <= len(received) <= limit
        got.extend(received)
    assert bodies(got) == [str(number) for number in range(len(got))]
    rest = take(reader, 20 - len(got))
    assert bodies(got + rest) == [str(number) for number in range(20)]


def test_an_empty_queue_gives_nothing_in_time(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    reader = seam.reader("one")
    assert reader.receive(10, 0) == []
    began = time.monotonic()
    assert reader.receive(10, 0.3) == []
    assert 0.25 < time.monotonic() - began < 5


def test_a_waiting_reader_is_woken(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    reader = seam.reader("one")
    reader.receive(1, 0.1)
    received: list[float] = []

    def receive() -> None:
        while not received:
            if reader.receive(10, 20):
                received.append(time.monotonic())

    thread = threading.Thread(target=receive)
    thread.start()
    published = time.monotonic()
    seam.publish(message("wake up"))
    thread.join(60)
    assert received[0] - published < 10


# -- acknowledging ----------------------------------------------------------------------------------------------------


def test_two_readers_share_a_queue(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    readers = [seam.reader("one"), seam.reader("one", seam.another())]
    got: list[list[str]] = [[], []]
    done = threading.Event()

    def read(which: int) -> None:
        while not done.is_set():
            for delivery in readers[which].receive(2, 0.2):
                got[which].append(delivery.body.decode())
                readers[which].ack(delivery)

    threads = [threading.Thread(target=read, args=[which]) for which in range(2)]
    for thread in threads:
        thread.start()
    sent = 0

    def both_have_some() -> bool:
        nonlocal sent
        seam.publish(*[message(number, key=f"k{number}") for number in range(sent, sent + 20)])
        sent += 20
        return all(len(some) >= 5 for some in got)

    try:
        wait_for(both_have_some, 40, "both have received something", pause=0.1)
        wait_for(lambda: len({*got[0], *got[1]}) == sent, 40, "all have arrived")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if seam.kind != "kafka":  # which gives some again when a reader joins
        assert len(got[0]) + len(got[1]) == sent


def test_what_is_not_acknowledged_is_given_out_again(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(*[message(number, key="k") for number in range(6)])
    first = seam.reader("one")
    given = take(first, 4)
    assert [delivery.deliveries for delivery in given] == [1] * 4
    first.ack(given[0])
    first.ack(given[1])
    first.close()
    second = seam.reader("one")
    again = take(second, 4)
    assert bodies(again) == ["2", "3", "4", "5"]
    assert [delivery.deliveries for delivery in again][:2] == [2, 2]
    if seam.kind != "rabbitmq":  # which had sent them to the first reader
        assert [delivery.deliveries for delivery in again][2:] == [1, 1]
    for delivery in again:
        second.ack(delivery)
    second.close()
    seam.assert_empty("one", PLACED)


def test_acknowledging_in_any_order(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(*[message(number, key="k") for number in range(5)])
    first = seam.reader("one")
    given = take(first, 5)
    for number in (4, 0, 2):
        first.ack(given[number])
    first.close()
    second = seam.reader("one")
    again: list[Delivery] = []

    def have_the_others() -> bool:
        again.extend(second.receive(10, 0.5))
        return {"1", "3"} <= {*bodies(again)}

    wait_for(have_the_others, 20, "what was not acknowledged comes again", pause=0)
    assert "0" not in bodies(again)
    if seam.kind != "kafka":  # which can only say up to where all is acknowledged
        assert bodies(again) == ["1", "3"]
    assert all(delivery.deliveries == 2 for delivery in again)
    again += take(second, 4 - len(again)) if seam.kind == "kafka" else []
    for delivery in reversed(again):
        second.ack(delivery)
        second.ack(delivery)  # once more does no harm
    second.close()
    seam.assert_empty("one", PLACED)


def test_a_reader_that_was_closed_may_be_used_again(seam: Seam) -> None:
    seam.declare(one=(PLACED,))
    seam.publish(message(1))
    reader = seam.reader("one")
    [stale] = take(reader, 1)
    reader.close()
    reader.close()
    [fresh] = take(reader, 1)
    assert fresh.deliveries == 2
    reader.ack(stale)  # of the life before
    reader.ack(fresh)
    reader.close()
    seam.assert_empty("one", PLACED)


def test_a_slow_reader_keeps_what_it_has(remote: Seam) -> None:
    """It is busy for longer than a lease, but its process is alive."""
    remote.declare(one=(PLACED,))
    remote.publish(message(1, key="k"))
    # RabbitMQ counts in seconds, and waits for the third.
    lease, busy = (1, 3.5) if remote.kind == "rabbitmq" else (LEASE, 1.5 * LEASE)
    slow = remote.reader("one", remote.another(lease=lease))
    [delivery] = take(slow, 1)
    other = remote.reader("one", remote.another(lease=lease))
    stolen: list[Delivery] = []
    busy_until = time.monotonic() + busy
    while time.monotonic() < busy_until:
        stolen += other.receive(10, 0.5)
    assert stolen == []
    slow.ack(delivery)
    slow.close()
    other.close()
    remote.assert_empty("one", PLACED)


@contextlib.contextmanager
def _process(seam: Seam, what: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.contract.broker_of", what, seam.kind, seam.address, *arguments]
    with forks.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_killed_its_reader_is_given_out_again_and_counted(remote: Seam) -> None:
    remote.declare(one=(PLACED,))
    remote.publish(message("poison", key="k"))
    for deliveries in (1, 2):
        with _process(remote, "read", remote.name("one")) as process:
            assert process.communicate(timeout=90)[0] == f"poison {deliveries}\n"
    reader = remote.reader("one")
    [delivery] = take(reader, 1)
    assert delivery.deliveries == 3
    reader.ack(delivery)
    reader.close()
    remote.assert_empty("one", PLACED)


# -- processes, threads, servers --------------------------------------------------------------------------------------


def test_many_threads_publish_at_once(seam: Seam) -> None:
    seam.declare(one=(PLACED,), commands=())

    def publish(which: int) -> None:
        for number in range(25):
            seam.publish(message(f"{which}-{number}", key=str(which)), message("c", queue=seam.name("commands")))

    threads = [threading.Thread(target=publish, args=[which]) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = bodies(take(seam.reader("one"), 100))
    for which in range(4):
        own = [body for body in got if body.startswith(f"{which}-")]
        assert own == [f"{which}-{number}" for number in range(25)]
    assert len(take(seam.reader("commands"), 100)) == 100


def test_a_fork_connects_anew_and_leaves_its_parent_alone(remote: Seam) -> None:
    with _process(remote, "fork", remote.exchange, remote.name("one")) as process:
        out, _ = process.communicate(timeout=90)
    assert (process.returncode, out) == (0, "forked\n")
    remote.declare(one=(PLACED,))
    remote.assert_empty("one", PLACED)


def test_a_server_that_was_killed_and_came_back(remote: Seam) -> None:
    """What was confirmed is there, publishing says so while it is away, and all go on by themselves."""
    if remote.kind == "redis":  # the one of all tests keeps nothing
        with Redis(durable=True) as server:
            durable = Seam("redis", server, server.url)
            _outage(durable, server)
            durable.close()
    else:
        assert remote.server is not None
        _outage(remote, remote.server)


def _outage(seam: Seam, server: Server) -> None:
    publisher = seam.another(timeout=3)
    publisher.declare(seam.topology(one=(PLACED,)))
    publisher.publish([message(number, key="k") for number in range(10)])
    reader = seam.reader("one", publisher)
    taken = take(reader, 3)
    reader.ack(taken[0])
    publisher.publish([message(number, key="k") for number in range(10, 20)])
    if isinstance(server, RabbitMQ):
        wait_for(lambda: server.has_saved(seam.name("one")), 20, "a kill would not take the queue too")
    server.kill()
    with pytest.raises(BrokerUnavailable):
        publisher.publish([message("lost", key="k")])
    with pytest.raises(BrokerUnavailable):
        wait_for(lambda: reader.receive(10, 0.5) and None, 20, "the reader notices", pause=0)
    reader.ack(taken[1])  # raises nothing
    server.start()
    wait_for(lambda: _published(publisher, message("after", key="k")), 30, "publishing works again")
    missing = {*map(str, range(2, 20)), "after"}

    def all_there() -> bool:
        try:
            for delivery in reader.receive(100, 0.5):
                missing.discard(delivery.body.decode())
                reader.ack(delivery)
        except BrokerUnavailable as error:
            print(error, missing)
        return not missing

    wait_for(all_there, 60, "the reader has all that was confirmed")


def _published(broker: Broker, outgoing: Outgoing) -> bool:
    return _succeeds(lambda: broker.publish([outgoing]))


def _succeeds(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except BrokerUnavailable as error:
        print(error)
        return False
    return True


def test_a_server_that_does_not_answer(remote: Seam) -> None:
    remote.declare(one=(PLACED,))
    impatient = remote.another(timeout=2)
    wait_for(lambda: _succeeds(lambda: impatient.declare(remote.topology(one=(PLACED,)))), 30, "it is declared")
    wait_for(lambda: _published(impatient, message(1)), 30, "one is published")
    assert remote.server is not None
    remote.server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            impatient.publish([message(2)])
        with pytest.raises(BrokerUnavailable):
            impatient.depth(remote.name("one"))
        assert time.monotonic() - began < 20
    finally:
        remote.server.resume()
    wait_for(lambda: _published(impatient, message(3)), 30, "publishing works again")
