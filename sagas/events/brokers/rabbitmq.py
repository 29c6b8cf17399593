"""A broker on RabbitMQ, through kombu: a durable topic exchange, and a quorum queue for each queue.

A message to a single queue goes through the default exchange. Messages that RabbitMQ itself gives up on, because of a
delivery limit, go to `dlq.<queue>`. This module sets no limit: a queue's argument can never change, a policy can.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from amqp import Channel
from amqp.exceptions import AccessRefused, AMQPError, NotFound, PreconditionFailed, ResourceLocked
from amqp.method_framing import frame_handler
from amqp.serialization import dumps
from kombu.connection import Connection
from kombu.exceptions import KombuError

from sagas.durations import seconds, whole_number
from sagas.errors import BrokerUnavailable, ConfigurationError, InvalidMessage, NoHandler, QueueMismatch
from sagas.events.brokers import GIVEN_UP, Delivery, Outgoing, Queue, Reader, Topology
from sagas.events.brokers.shared import CONTENT_TYPE, Heartbeat, exchange_of, in_forks, text_of, texts

__all__ = ["RabbitBroker"]

#: Errors of the connection. All others are our own.
_ERRORS = (AMQPError, KombuError, OSError)

#: How many messages may await confirmation.
_UNCONFIRMED = 1_000

#: Acknowledgements within this many seconds are sent together.
_TOGETHER = 0.05

#: Headers that this library or RabbitMQ adds. All others are the publisher's.
_KEY = "sagas-key"
_NOT_OF_THE_PUBLISHER = (_KEY, "x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")

#: RabbitMQ's header that says why it gave up on a message.
_WHY_DEAD = "x-first-death-reason"

#: Properties that carry no information or are stored elsewhere. Others are delivered as headers with this prefix.
_KEPT_ELSEWHERE = ("application_headers", "content_type", "delivery_mode", "message_id", "type")
_PROPERTY = "amqp-"

#: Replaces properties that cannot be read: it holds all of them, as received.
_UNREAD = "amqp-properties"

#: The largest routing key, header name or property, in bytes: AMQP has one byte for its length.
_LONGEST_NAME = 255

#: The largest size of all headers together, in bytes. They share one frame, which RabbitMQ limits to 128 KiB.
_LARGEST_HEADERS = 100_000

#: RabbitMQ's reply codes for a message that is itself invalid, and that would fail again.
_REFUSALS = (501, 502, 503, 540)  # frame error, syntax error, command invalid, not implemented
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class RabbitBroker:
    """Carries messages through RabbitMQ 3.10 or newer.

    `url`: as kombu reads it, `amqp://user:password@127.0.0.1:5672/vhost`. `lease`: seconds of silence after which a
    reader counts as dead, and others receive its messages; a thread sends heartbeats while the reader's own thread
    works. `timeout`: how long RabbitMQ may take to answer and to confirm. `prefetch`: how many messages RabbitMQ sends
    a reader at once. A reader that asks for more while none of them is acknowledged gets as many again.
    `max_message_size`: the largest body, in bytes. RabbitMQ's own limit, the setting with the same name, is 16 MiB from
    version 4 and 128 MiB before. Other options go to `kombu.Connection`.

    RabbitMQ itself redelivers a message that is not acknowledged within its `consumer_timeout`, 30 minutes.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float | timedelta = 30.0,
        timeout: float | timedelta = 10.0,
        prefetch: int = 100,
        max_message_size: int = 16 * 1024 * 1024,
        **options: Any,
    ) -> None:
        self.lease = seconds(lease, "RabbitBroker: lease", ConfigurationError)
        self.max_message_size = whole_number(max_message_size, "RabbitBroker: max_message_size", ConfigurationError)
        self.timeout = seconds(timeout, "RabbitBroker: timeout", ConfigurationError)
        self.prefetch = whole_number(prefetch, "RabbitBroker: prefetch", ConfigurationError)
        self._url = url
        self._options = options
        self._exchange: str | None = None
        self.heartbeat = Heartbeat(self.lease)
        self.after_fork()
        in_forks(self)

    def __repr__(self) -> str:
        return f"<RabbitBroker {Connection(self._url).as_uri()}>"

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._publisher: _Publisher | None = None
        self.heartbeat.reset()

    def connect(self, *, heartbeat: float = 0) -> Connection:
        """Open a connection. It belongs to one thread at a time."""
        connection = Connection(
            self._url,
            heartbeat=heartbeat,
            connect_timeout=self.timeout,
            transport_options={
                "read_timeout": self.timeout,
                "write_timeout": self.timeout,
                "confirm_publish": False,
                "frame_handler": _forbearing,
            },
            **self._options,
        )
        connection.connect()
        return connection

    def declare(self, topology: Topology) -> Sequence[str]:
        made: list[str] = []
        wrong: dict[str, str] = {}
        with self.asked(), self._connected() as connection:
            asking = partial(Channel.exchange_declare, exchange=topology.exchange, type="topic", passive=True)
            if _is_missing(connection, asking):
                made.append(f"exchange {topology.exchange}")
            with connection.channel() as channel:
                channel.exchange_declare(topology.exchange, "topic", durable=True, auto_delete=False)
            for queue in topology.queues:
                for name, arguments in _queues(queue.name).items():
                    missing = _is_missing(connection, _asks_for(name))
                    if refusal := _refusal(connection, name, arguments):
                        wrong[queue.name] = self._mismatch(name, refusal)
                    elif missing:
                        made.append(f"queue {name}")
                # Bind it even if it differs from the declaration: messages published meanwhile are kept in it.
                if refusal := _bind(connection, queue, topology.exchange):
                    wrong.setdefault(queue.name, self._mismatch(queue.name, refusal))
        self._exchange = topology.exchange
        if wrong:
            raise QueueMismatch(wrong)
        return made

    def mismatches(self, topology: Topology) -> Mapping[str, str]:
        wrong: dict[str, str] = {}
        with self.asked(), self._connected() as connection:
            for queue in topology.queues:
                for name, arguments in _queues(queue.name).items():
                    if _is_missing(connection, _asks_for(name)):
                        continue
                    if refusal := _refusal(connection, name, arguments):
                        wrong[queue.name] = self._mismatch(name, refusal)
        return wrong

    def _mismatch(self, queue: str, refusal: str) -> str:
        return (
            f"queue {queue!r} at {self!r} differs from its declaration here: {refusal}. RabbitMQ cannot change an "
            "existing queue. It stays as it is, and messages published to it are kept, but this process does not read "
            "it. If it belongs to another application, rename this handler or service. If it does not, have its "
            f"messages read or moved, then run `rabbitmqctl delete_queue {queue} --if-empty`: it is declared again "
            "automatically"
        )

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        with self.asked(), self._connected() as connection:
            for topic in topics:
                with contextlib.suppress(NotFound):  # no such queue or exchange
                    connection.channel().queue_unbind(queue, exchange, topic)

    def delete(self, queue: str) -> None:
        with self.asked(), self._connected() as connection:
            for name in (queue, f"dlq.{queue}"):
                connection.channel().queue_delete(name)

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        exchange = exchange_of(self._exchange) if any(message.queue is None for message in messages) else ""
        for message in messages:
            self._check(message)
        with self._lock:
            try:
                with self.asked(publishing=True):
                    if self._publisher is None:
                        self._publisher = _Publisher(self.connect(), self.timeout)
                    nowhere: set[str] = set()
                    unheard: set[str] = set()
                    for begin in range(0, len(messages), _UNCONFIRMED):
                        returned = self._publisher.publish(messages[begin : begin + _UNCONFIRMED], exchange)
                        nowhere.update(returned[""])
                        unheard.update(returned[exchange] if exchange else ())
            except BaseException:
                self._disconnect()  # it is unknown what is still on its way
                raise
        if nowhere:
            names = ", ".join(sorted(nowhere))
            raise NoHandler(f"there is no queue {names} at {self!r}. Declare it. The other messages were published")
        return unheard

    def _check(self, message: Outgoing) -> None:
        """Reject messages that would make RabbitMQ close the connection, before anything is sent."""
        if len(message.body) > self.max_message_size:
            raise InvalidMessage(
                f"a message of {len(message.body):,} bytes is too large for {self!r}: the limit is "
                f"{self.max_message_size:,} bytes (max_message_size). Store the data elsewhere and publish a reference"
            )
        names = (message.queue or message.topic, message.topic, message.id, *message.headers)
        if longest := next((name for name in names if _size(name) > _LONGEST_NAME), None):
            raise InvalidMessage(f"{longest[:100]!r}... is too long for RabbitMQ: the limit is {_LONGEST_NAME} bytes")
        size = _size(message.key or "") + sum(_size(name) + _size(value) for name, value in message.headers.items())
        if size > _LARGEST_HEADERS:
            raise InvalidMessage(
                f"headers of {size:,} bytes are too large for RabbitMQ: the limit is {_LARGEST_HEADERS:,} bytes"
            )

    def reader(self, queue: str) -> Reader:
        return _Reader(self, queue)

    def given_up(self, queue: str) -> str:
        return f"dlq.{queue}"

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
    def asked(self, *, publishing: bool = False) -> Iterator[None]:
        """Translate RabbitMQ's errors: most of them mean that the broker is unavailable."""
        try:
            yield
        except NotFound as error:
            raise BrokerUnavailable(f"{self!r}: {error.reply_text}. Declare it") from error
        except AMQPError as error:
            raise self._meaning(error, publishing=publishing) from error
        except _ERRORS as error:
            raise BrokerUnavailable(f"{self!r}: {error!r}") from error

    def _meaning(self, error: AMQPError, *, publishing: bool) -> Exception:
        said = str(error.reply_text or error)
        if too_large := _TOO_LARGE.search(said):
            self.max_message_size = min(self.max_message_size, int(too_large[1]))  # so the next is rejected early
            return InvalidMessage(
                f"{self!r}: {said}. Store the data elsewhere and publish a reference, or raise max_message_size in "
                "RabbitMQ and here"
            )
        if isinstance(error, PreconditionFailed) and "inequivalent arg" in said:
            return ConfigurationError(
                f"{self!r} has an exchange or queue of that name with other settings: {said}. RabbitMQ cannot change "
                "it. If it belongs to another application, choose another name with Events(exchange=...)"
            )
        if publishing and (error.reply_code in _REFUSALS or isinstance(error, PreconditionFailed)):
            return InvalidMessage(f"{self!r} rejected a message: {said}")
        return BrokerUnavailable(f"{self!r}: {said}")


class _Publisher:
    """A channel in confirm mode, and the messages that await confirmation."""

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
        """Return, once everything is confirmed, the routing keys that no queue took, by exchange.

        For the exchange "", a routing key is the name of a queue.
        """
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
        content_type = headers.pop(CONTENT_TYPE, None)
        self._last += 1
        self._open.add(self._last)
        self._channel.basic_publish(
            self._channel.prepare_message(
                message.body, content_type=content_type, headers=headers, properties=properties
            ),
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
        self._returned[exchange].add(routing_key)  # RabbitMQ still confirms the message after returning it


class _Reader:
    """One connection with one consumer."""

    def __init__(self, broker: RabbitBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._begin()

    def __repr__(self) -> str:
        return f"<reader of {self._queue}>"

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # between this reader's thread and the heartbeat
        self._forget()

    def _forget(self) -> None:
        self._connection: Connection | None = None
        self._channel: Any = None
        self._arrived: deque[Any] = deque()
        self._given: dict[int, None] = {}  # in order
        self._acknowledged: set[int] = set()  # and not sent yet
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
        self._channel.auto_decode = False  # the body stays as received, whatever its encoding claims to be
        # Permanent: with a quorum queue, only another consumer could change it, and what is on its way to the previous
        # consumer would return later, behind newer messages.
        self._channel.basic_qos(0, self._broker.prefetch, False)
        self._consumer = self._channel.basic_consume(self._queue, callback=self._arrive)
        self._broker.heartbeat.add(self)

    def _arrive(self, message: Any) -> None:
        self._last = message.delivery_info["delivery_tag"]
        self._arrived.append(message)

    def _is_used_up(self) -> bool:
        """Return whether RabbitMQ sends no more messages, and has none on the way, until one is acknowledged."""
        return sum(tag > self._before for tag in (*self._given, *self._acknowledged)) >= self._broker.prefetch

    def _consume_anew(self) -> None:
        """Ask for another prefetch: every message so far is being handled or waits behind a failing one.

        The new consumer replaces the previous one. Only one consumer receives messages, so they stay in order.
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
        about, properties = message.delivery_info, message.properties
        headers = texts((properties.get("application_headers") or {}).items())
        self._given[about["delivery_tag"]] = None
        before = max(_count(headers.get("x-delivery-count")), _count(headers.get("x-acquired-count")))
        # A message from the default exchange was addressed to the queue; its topic is in the `type` property.
        topic = about["routing_key"] if about["exchange"] else properties.get("type", about["routing_key"])
        others = {name: value for name, value in headers.items() if not name.startswith(_NOT_OF_THE_PUBLISHER)}
        for name, value in properties.items():
            if name not in _KEPT_ELSEWHERE:
                others[_PROPERTY + name.replace("_", "-")] = text_of(value)
        if _WHY_DEAD in headers:
            others[GIVEN_UP] = headers[_WHY_DEAD]
        if "content_type" in properties:
            others[CONTENT_TYPE] = text_of(properties["content_type"])
        return Delivery(
            queue=self._queue,
            topic=text_of(topic),
            body=bytes(message.body or b""),  # an empty body is a str
            headers=others,
            key=headers.get(_KEY),
            deliveries=max(before, int(about["redelivered"])) + 1,
            tag=(self._channel, about["delivery_tag"]),
        )

    def ack(self, delivery: Delivery) -> None:
        channel, tag = delivery.tag
        with self._lock:
            if channel is not self._channel or tag not in self._given:
                return  # redelivered since
            del self._given[tag]
            self._acknowledged.add(tag)
            if not self._given or time.monotonic() - self._told > _TOGETHER:
                with contextlib.suppress(*_ERRORS):
                    self._tell()

    def _tell(self) -> None:
        """Send the acknowledgements.

        They go together because each is a write on all replicas of the queue. With many in flight, the last ones would
        be dropped when the connection ends.
        """
        acknowledged, self._acknowledged, self._told = self._acknowledged, set(), time.monotonic()
        first = next(iter(self._given), math.inf)
        if all_before := [tag for tag in acknowledged if tag < first]:
            self._channel.basic_ack(max(all_before), multiple=True)
        for tag in acknowledged.difference(all_before):
            self._channel.basic_ack(tag)

    def beat(self) -> None:
        """Send a heartbeat while the reader's own thread is busy. A waiting reader sends heartbeats itself."""
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
        self._broker.heartbeat.discard(self)
        connection = self._connection
        self._forget()
        if connection is not None:
            close(connection)


def close(connection: Connection) -> None:
    """Close a connection that may be broken."""
    with contextlib.suppress(*_ERRORS):
        connection.close()


def _queues(queue: str) -> dict[str, dict[str, str]]:
    """Return the RabbitMQ queues that implement one queue, with their arguments."""
    dead = f"dlq.{queue}"
    return {
        dead: {"x-queue-type": "quorum"},
        queue: {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # required by that strategy
        },
    }


def _asks_for(queue: str) -> Callable[[Any], object]:
    return partial(Channel.queue_declare, queue=queue, passive=True)


def _refusal(connection: Connection, queue: str, arguments: Mapping[str, str]) -> str | None:
    """Declare a queue; return RabbitMQ's refusal, if any. A refusal closes the channel."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    except (PreconditionFailed, ResourceLocked, AccessRefused) as error:
        return str(error.reply_text)
    channel.close()
    return None


def _bind(connection: Connection, queue: Queue, exchange: str) -> str | None:
    """Bind a queue to its topics; return RabbitMQ's refusal, if any."""
    channel = connection.channel()
    try:
        for topic in queue.topics:
            channel.queue_bind(queue.name, exchange, topic)
    except (NotFound, ResourceLocked, AccessRefused) as error:
        return str(error.reply_text)
    channel.close()
    return None


def _is_missing(connection: Connection, ask: Callable[[Any], object]) -> bool:
    channel = connection.channel()
    try:
        ask(channel)
    except NotFound:
        return True  # the error has closed the channel
    except (ResourceLocked, AccessRefused):
        return False
    channel.close()
    return False


def _count(text: str | None) -> int:
    """Return a count that RabbitMQ sent. A publisher may have set that header to anything."""
    return int(text) if text is not None and text.isdecimal() and len(text) < len(str(2**63)) else 0


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


# -- messages from any sender ---------------------------------------------------------------------------------------

_METHOD, _HEADER = 1, 2
_DELIVER = b"\0\x3c\0\x3c"


def _forbearing(connection: Any, callback: Any, **_: Any) -> Callable[[Any], Any]:
    """Handle frames, and keep the connection open when py-amqp cannot read a message's names or properties.

    The fault lies in a single message, and RabbitMQ would send it again. An example is a date in the year 58,000, where
    a sender used milliseconds instead of seconds.
    """
    handle = frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        kind, channel, content = frame
        if kind == _METHOD and content[:4] == _DELIVER:
            return handle((kind, channel, _with_ascii_names(content)))
        if kind != _HEADER:
            return handle(frame)
        try:
            return handle(frame)
        except Exception:  # noqa: BLE001 - py-amqp does not document what it raises
            return handle((kind, channel, _without_properties(content)))

    return on_frame


def _with_ascii_names(content: Any) -> bytes:
    """Return the method that delivers a message, with readable names: "?" replaces bytes that are not text."""
    text = bytearray(content)
    at = 4
    at += 1 + text[at]  # the consumer tag
    at += 8 + 1  # the delivery tag and the redelivered flag
    for _ in ("exchange", "routing key"):
        begin, end = at + 1, at + 1 + text[at]
        try:
            text[begin:end].decode()
        except UnicodeDecodeError:
            text[begin:end] = bytes(byte if byte < 0x80 else ord("?") for byte in text[begin:end])
        at = end
    return bytes(text)


def _without_properties(content: Any) -> bytes:
    """Return a message's header with one property, which holds all properties as received."""
    fixed, properties = bytes(content[:12]), bytes(content[12:])
    header = {_UNREAD: f"base64:{base64.b64encode(properties).decode()}"}
    table: bytes = dumps("F", (header,))
    return fixed + b"\x20\0" + table
