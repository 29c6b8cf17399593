"""Publishes messages to RabbitMQ, and returns when all of them are confirmed."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from amqp.exceptions import AMQPError, PreconditionFailed
from kombu.connection import Connection

from sagas.errors import InvalidMessage, NoHandler
from sagas.events.brokers import Outgoing
from sagas.events.brokers.rabbitmq.server import Server, close, is_another, said
from sagas.events.brokers.shared import CONTENT_TYPE, in_forks

__all__ = ["KEY", "Publisher"]

#: The header with the key of a message.
KEY = "sagas-key"

#: How many messages may await confirmation.
_UNCONFIRMED = 1_000

#: The largest routing key, header name or property, in bytes: AMQP has one byte for its length.
_LONGEST_NAME = 255

#: The largest size of all headers together, in bytes. They share one frame, which RabbitMQ limits to 128 KiB.
_LARGEST_HEADERS = 100_000

#: RabbitMQ's reply codes for a message that is itself invalid, and that would fail again.
_REFUSALS = (501, 502, 503, 540)  # frame error, syntax error, command invalid, not implemented
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class Publisher:
    """A connection that publishes, opened again whenever it failed. Safe to use from any thread."""

    def __init__(self, server: Server, max_message_size: int) -> None:
        self.max_message_size = max_message_size
        self._server = server
        self.after_fork()
        in_forks(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._confirmed: _Confirmed | None = None

    def publish(self, messages: Sequence[Outgoing], exchange: str) -> Collection[str]:
        """Publish messages in order; return, once all are confirmed, the topics that no queue is bound to.

        Raises `BrokerUnavailable`, `InvalidMessage` and `NoHandler` as `Broker.publish` does.
        """
        for message in messages:
            self._check(message)
        with self._lock:
            try:
                with self._server.asked(), self._accepted():
                    if self._confirmed is None:
                        self._confirmed = _Confirmed(self._server.connect(), self._server.timeout)
                    nowhere: set[str] = set()
                    unheard: set[str] = set()
                    for begin in range(0, len(messages), _UNCONFIRMED):
                        returned = self._confirmed.publish(messages[begin : begin + _UNCONFIRMED], exchange)
                        nowhere.update(returned[""])
                        unheard.update(returned[exchange] if exchange else ())
            except BaseException:
                self._disconnect()  # it is unknown what is still on its way
                raise
        if nowhere:
            names = ", ".join(sorted(nowhere))
            raise NoHandler(
                f"there is no queue {names} at {self._server!r}. Declare it. The other messages were published"
            )
        return unheard

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._confirmed is not None:
            close(self._confirmed.connection)
            self._confirmed = None

    def _check(self, message: Outgoing) -> None:
        """Reject messages that would make RabbitMQ close the connection, before anything is sent."""
        if len(message.body) > self.max_message_size:
            raise InvalidMessage(
                f"a message of {len(message.body):,} bytes is too large for {self._server!r}: the limit is "
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

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        """Raise `InvalidMessage` if RabbitMQ closed the connection because of what a message is."""
        try:
            yield
        except AMQPError as error:
            if too_large := _TOO_LARGE.search(said(error)):
                self.max_message_size = min(self.max_message_size, int(too_large[1]))  # so the next is rejected early
                raise InvalidMessage(
                    f"{self._server!r}: {said(error)}. Store the data elsewhere and publish a reference, or raise "
                    "max_message_size in RabbitMQ and here"
                ) from error
            is_refused = error.reply_code in _REFUSALS or isinstance(error, PreconditionFailed)
            if is_refused and not is_another(error):
                raise InvalidMessage(f"{self._server!r} rejected a message: {said(error)}") from error
            raise


class _Confirmed:
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
            headers[KEY] = message.key
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


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
