"""A broker on RabbitMQ, by kombu: a durable topic exchange, and a quorum queue for each queue.

A message to one queue goes through the default exchange. What RabbitMQ itself gives up, because of a delivery limit,
goes to `dlq.<queue>`. No limit is set here: an argument of a queue can never be changed, a policy can.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from amqp import Channel
from amqp.exceptions import AMQPError, NotFound, PreconditionFailed
from kombu.connection import Connection
from kombu.exceptions import KombuError

from sagas.durations import seconds, whole_number
from sagas.errors import BrokerUnavailable, ConfigurationError, NoHandler
from sagas.events.brokers import Delivery, Outgoing, Queue, Reader, Topology
from sagas.events.brokers.shared import Pulse, exchange_of, in_forks

__all__ = ["RabbitBroker"]

#: What can be wrong with a connection. The rest are errors of ours.
_ERRORS = (AMQPError, KombuError, OSError)

#: How many messages may wait for their confirmation.
_UNCONFIRMED = 1_000

#: Acknowledgements that come within so many seconds are sent together.
_TOGETHER = 0.05

#: A header of ours, and those that RabbitMQ adds. The rest are the publisher's.
_KEY = "sagas-key"
_NOT_OF_THE_PUBLISHER = (_KEY, "x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")


class RabbitBroker:
    """Carries messages through RabbitMQ 3.10 or newer.

    `url`: as kombu reads it, `amqp://user:password@127.0.0.1:5672/vhost`. `lease`: a reader that was silent for so many
    seconds is dead, and others are given what it had; a thread of its process speaks for it while it works. `timeout`:
    how long RabbitMQ may take to answer, and to confirm. `prefetch`: how many messages a reader is sent at once; it is
    sent as many again if it asks for more while none of them is acknowledged. Other options go to `kombu.Connection`.

    RabbitMQ itself gives a message out again when it was not acknowledged within its `consumer_timeout`, 30 minutes.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float | timedelta = 30.0,
        timeout: float | timedelta = 10.0,
        prefetch: int = 100,
        **options: Any,
    ) -> None:
        self.lease = seconds(lease, "RabbitBroker: lease", ConfigurationError)
        self.timeout = seconds(timeout, "RabbitBroker: timeout", ConfigurationError)
        self.prefetch = whole_number(prefetch, "RabbitBroker: prefetch", ConfigurationError)
        self._url = url
        self._options = options
        self._exchange: str | None = None
        self.pulse = Pulse(self.lease)
        self.after_fork()
        in_forks(self)

    def __repr__(self) -> str:
        return f"<RabbitBroker {Connection(self._url).as_uri()}>"

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._publisher: _Publisher | None = None
        self.pulse.reset()

    def connect(self, *, heartbeat: float = 0) -> Connection:
        """Open a connection. It belongs to one thread at a time."""
        connection = Connection(
            self._url,
            heartbeat=heartbeat,
            connect_timeout=self.timeout,
            transport_options={"read_timeout": self.timeout, "write_timeout": self.timeout, "confirm_publish": False},
            **self._options,
        )
        connection.connect()
        return connection

    def declare(self, topology: Topology) -> Sequence[str]:
        made: list[str] = []
        with self.asked(), self._connected() as connection:
            asking = partial(Channel.exchange_declare, exchange=topology.exchange, type="topic", passive=True)
            if _is_missing(connection, asking):
                made.append(f"exchange {topology.exchange}")
            with connection.channel() as channel:
                channel.exchange_declare(topology.exchange, "topic", durable=True, auto_delete=False)
            for queue in topology.queues:
                made += self._declare_queue(connection, queue, topology.exchange)
        self._exchange = topology.exchange
        return made

    def _declare_queue(self, connection: Connection, queue: Queue, exchange: str) -> Iterator[str]:
        dead = f"dlq.{queue.name}"
        arguments = {
            dead: {"x-queue-type": "quorum"},
            queue.name: {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",  # which that strategy asks for
            },
        }
        for name, wanted in arguments.items():
            missing = _is_missing(connection, partial(Channel.queue_declare, queue=name, passive=True))
            with connection.channel() as channel:
                channel.queue_declare(name, durable=True, auto_delete=False, arguments=wanted)
                if name == queue.name:
                    for topic in queue.topics:
                        channel.queue_bind(name, exchange, topic)
            if missing:
                yield f"queue {name}"

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        with self.asked(), self._connected() as connection:
            for topic in topics:
                with contextlib.suppress(NotFound):  # no such queue, or exchange
                    connection.channel().queue_unbind(queue, exchange, topic)

    def delete(self, queue: str) -> None:
        with self.asked(), self._connected() as connection:
            for name in (queue, f"dlq.{queue}"):
                connection.channel().queue_delete(name)

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        exchange = exchange_of(self._exchange) if any(message.queue is None for message in messages) else ""
        with self._lock:
            try:
                with self.asked():
                    if self._publisher is None:
                        self._publisher = _Publisher(self.connect(), self.timeout)
                    nowhere: set[str] = set()
                    unheard: set[str] = set()
                    for begin in range(0, len(messages), _UNCONFIRMED):
                        returned = self._publisher.publish(messages[begin : begin + _UNCONFIRMED], exchange)
                        nowhere.update(returned[""])
                        unheard.update(returned[exchange] if exchange else ())
            except BaseException:
                self._disconnect()  # nobody knows what is on its way
                raise
        if nowhere:
            names = ", ".join(sorted(nowhere))
            raise NoHandler(f"there is no queue {names} at {self!r}: declare it. The other messages were published")
        return unheard

    def reader(self, queue: str) -> Reader:
        return _Reader(self, queue)

    def depth(self, queue: str) -> int:
        with self.asked(), self._connected() as connection, connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._publisher is not None:
            close(self._publisher.connection)
            self._publisher = None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        connection = self.connect()
        try:
            yield connection
        finally:
            close(connection)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Say of whatever goes wrong with RabbitMQ that the broker is unavailable."""
        try:
            yield
        except PreconditionFailed as error:
            raise ConfigurationError(
                f"{self!r} has something of that name made in another way: {error.reply_text}. RabbitMQ changes "
                "nothing that is there: delete it once it is empty, and declare it again"
            ) from error
        except NotFound as error:
            raise BrokerUnavailable(f"{self!r}: {error.reply_text}: declare it") from error
        except _ERRORS as error:
            raise BrokerUnavailable(f"{self!r}: {error!r}") from error


class _Publisher:
    """A channel that confirms, and what waits for its confirmation."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection = connection
        self._timeout = timeout
        self._channel = connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)
        self._last = 0
        self._first_open = 1
        self._open: set[int] = set()
        self._refused = 0
        self._returned: defaultdict[str, set[str]] = defaultdict(set)

    def publish(self, messages: Sequence[Outgoing], exchange: str) -> Mapping[str, Collection[str]]:
        """Return what no queue took, by exchange, once everything is confirmed; of the exchange "" it is queues."""
        self._returned, self._refused = defaultdict(set), 0
        for message in messages:
            self._send(message, exchange)
        give_up = time.monotonic() + self._timeout
        while self._open:
            left = give_up - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self._open)} of {len(messages)} messages were not confirmed")
            self.connection.drain_events(timeout=left)
        if self._refused:
            raise ConnectionError(f"{self._refused} of {len(messages)} messages were refused: a queue is full")
        return self._returned

    def _send(self, message: Outgoing, exchange: str) -> None:
        headers = dict(message.headers)
        if message.key is not None:
            headers[_KEY] = message.key
        properties = {"delivery_mode": 2, "message_id": message.id, "type": message.topic}
        self._last += 1
        self._open.add(self._last)
        self._channel.basic_publish(
            self._channel.prepare_message(message.body, headers=headers, properties=properties),
            exchange="" if message.queue else exchange,
            routing_key=message.queue or message.topic,
            mandatory=True,
        )

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._open.difference_update(range(self._first_open, tag + 1))
            self._first_open = tag + 1
        else:
            self._open.discard(tag)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        before = len(self._open)
        self._on_ack(tag, multiple)
        self._refused += before - len(self._open)

    def _on_return(self, _error: Exception, exchange: str, routing_key: str, _message: object) -> None:
        self._returned[exchange].add(routing_key)  # RabbitMQ confirms it all the same, after this


class _Reader:
    """A connection of its own, with one consumer."""

    def __init__(self, broker: RabbitBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._begin()

    def __repr__(self) -> str:
        return f"<reader of {self._queue}>"

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # between this reader's thread and the pulse
        self._forget()

    def _forget(self) -> None:
        self._connection: Connection | None = None
        self._channel: Any = None
        self._arrived: deque[Any] = deque()
        self._given: dict[int, None] = {}  # in order
        self._acknowledged: set[int] = set()  # and not told yet
        self._told = 0.0
        self._beaten = 0.0
        self._consumer: Any = None
        self._last = self._before = 0  # the last tag, of this consumer and of the one before

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            try:
                with self._broker.asked():
                    return self._receive(limit, timeout)
            except BaseException:
                self._disconnect()
                raise

    def _receive(self, limit: int, timeout: float) -> list[Delivery]:
        if self._connection is None:
            self._open()
        self._tell()
        if not self._arrived and self._is_used_up():
            self._consume_anew()
        self._wait(timeout)
        while len(self._arrived) < limit and self._drain(0):
            pass
        return [self._delivery(self._arrived.popleft()) for _ in range(min(limit, len(self._arrived)))]

    def _open(self) -> None:
        self._connection = self._broker.connect(heartbeat=self._broker.lease)
        self._channel = self._connection.channel()
        # For good: a quorum queue can only change it by another consumer, and what is under way to the one before
        # comes back later, behind younger messages.
        self._channel.basic_qos(0, self._broker.prefetch, False)
        self._consumer = self._channel.basic_consume(self._queue, callback=self._arrive)
        self._broker.pulse.add(self)

    def _arrive(self, message: Any) -> None:
        self._last = message.delivery_info["delivery_tag"]
        self._arrived.append(message)

    def _is_used_up(self) -> bool:
        """Tell whether RabbitMQ sends no more, and has none under way, before something is acknowledged."""
        return sum(tag > self._before for tag in (*self._given, *self._acknowledged)) >= self._broker.prefetch

    def _consume_anew(self) -> None:
        """Ask for as many once more: all that was sent is at work, or waits behind what fails, and others need not.

        In the place of the consumer before, so that only one is sent messages and they stay in order.
        """
        self._channel.basic_cancel(self._consumer)
        self._before = self._last
        self._consumer = self._channel.basic_consume(self._queue, callback=self._arrive)

    def _wait(self, timeout: float) -> None:
        give_up = time.monotonic() + timeout
        while not self._arrived:
            self._send_heartbeat()
            left = give_up - time.monotonic()
            self._drain(max(0, min(left, self._broker.lease / 3)))
            if left <= 0:
                return

    def _drain(self, timeout: float) -> bool:
        assert self._connection is not None
        try:
            self._connection.drain_events(timeout=timeout)
        except TimeoutError:
            return False
        return True

    def _delivery(self, message: Any) -> Delivery:
        headers = message.headers or {}
        tag = message.delivery_info["delivery_tag"]
        self._given[tag] = None
        before = max(headers.get("x-delivery-count", 0), headers.get("x-acquired-count", 0))
        return Delivery(
            queue=self._queue,
            topic=message.properties.get("type", message.delivery_info["routing_key"]),
            body=message.body or b"",  # an empty one is a str
            headers={name: value for name, value in headers.items() if not name.startswith(_NOT_OF_THE_PUBLISHER)},
            key=headers.get(_KEY),
            deliveries=max(before, message.delivery_info["redelivered"]) + 1,
            tag=(self._channel, tag),
        )

    def ack(self, delivery: Delivery) -> None:
        channel, tag = delivery.tag
        with self._lock:
            if channel is not self._channel or tag not in self._given:
                return  # given out again since
            del self._given[tag]
            self._acknowledged.add(tag)
            if not self._given or time.monotonic() - self._told > _TOGETHER:
                with contextlib.suppress(*_ERRORS):
                    self._tell()

    def _tell(self) -> None:
        """Send the acknowledgements.

        Several at once, for each is a write of all replicas of the queue, and with many under way the last would be
        dropped when the connection ends.
        """
        acknowledged, self._acknowledged, self._told = self._acknowledged, set(), time.monotonic()
        first = next(iter(self._given), math.inf)
        if all_before := [tag for tag in acknowledged if tag < first]:
            self._channel.basic_ack(max(all_before), multiple=True)
        for tag in acknowledged.difference(all_before):
            self._channel.basic_ack(tag)

    def beat(self) -> None:
        """Stay alive while the reader's own thread is busy elsewhere; while it waits it does so itself."""
        if self._lock.acquire(blocking=False):
            try:
                if self._connection is not None:
                    self._tell()
                    self._send_heartbeat()
            finally:
                self._lock.release()

    def _send_heartbeat(self) -> None:
        now = time.monotonic()
        assert self._connection is not None
        if now - self._beaten >= self._broker.lease / 4:
            self._beaten = now
            self._connection.connection.send_heartbeat()

    def close(self) -> None:
        if self._pid == os.getpid() and self._connection is not None:
            with self._lock, contextlib.suppress(*_ERRORS):
                self._tell()
            with self._lock:
                self._disconnect()

    def _disconnect(self) -> None:
        self._broker.pulse.discard(self)
        connection = self._connection
        self._forget()
        if connection is not None:
            close(connection)


def close(connection: Connection) -> None:
    """End a connection that may be broken."""
    with contextlib.suppress(*_ERRORS):
        connection.close()


def _is_missing(connection: Connection, ask: Callable[[Any], object]) -> bool:
    channel = connection.channel()
    try:
        ask(channel)
    except NotFound:
        return True  # which has closed the channel
    channel.close()
    return False
