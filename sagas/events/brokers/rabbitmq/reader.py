"""Reads one queue of RabbitMQ."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from kombu.connection import Connection

from sagas.events.brokers import GIVEN_UP, Delivery
from sagas.events.brokers.rabbitmq.publisher import KEY
from sagas.events.brokers.rabbitmq.server import ERRORS, Server, close
from sagas.events.brokers.shared import CONTENT_TYPE, Heartbeat, text_of, texts

__all__ = ["RabbitReader"]

#: Acknowledgements within this many seconds are sent together.
_TOGETHER = 0.05

#: Headers that this library or RabbitMQ adds. All others are the publisher's.
_NOT_OF_THE_PUBLISHER = (KEY, "x-delivery-count", "x-acquired-count", "x-death", "x-first-death-", "x-last-death-")

#: RabbitMQ's header that says why it gave up on a message.
_WHY_DEAD = "x-first-death-reason"

#: Properties that carry no information or are stored elsewhere. Others are delivered as headers with this prefix.
_KEPT_ELSEWHERE = ("application_headers", "content_type", "delivery_mode", "message_id", "type")
_PROPERTY = "amqp-"


class RabbitReader:
    """One connection with one consumer."""

    def __init__(self, server: Server, queue: str, *, lease: float, prefetch: int, heartbeat: Heartbeat) -> None:
        self._server = server
        self._queue = queue
        self._lease = lease
        self._prefetch = prefetch
        self._heartbeat = heartbeat
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
        self._consumers = 0  # how many this connection has had
        self._last = self._before = 0  # the last tag, of this consumer and of the one before

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            try:
                with self._server.asked():
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
        self._connection = self._server.connect(heartbeat=self._lease)
        self._channel = self._connection.channel()
        self._channel.auto_decode = False  # the body stays as received, whatever its encoding claims to be
        # Permanent: with a quorum queue, only another consumer could change it, and what is on its way to the previous
        # consumer would return later, behind newer messages.
        self._channel.basic_qos(0, self._prefetch, False)
        self._consume()
        self._heartbeat.add(self)

    def _consume(self) -> None:
        # When this process dies, RabbitMQ returns messages consumer by consumer, in the order of their tags.
        self._consumers += 1
        tag = f"{self._consumers:012}"
        self._consumer = self._channel.basic_consume(self._queue, consumer_tag=tag, callback=self._arrive)

    def _arrive(self, message: Any) -> None:
        self._last = message.delivery_info["delivery_tag"]
        self._arrived.append(message)

    def _is_used_up(self) -> bool:
        """Return whether RabbitMQ sends no more messages, and has none on the way, until one is acknowledged."""
        return sum(tag > self._before for tag in (*self._given, *self._acknowledged)) >= self._prefetch

    def _consume_anew(self) -> None:
        """Ask for another prefetch: every message so far is being handled or waits behind a failing one.

        The new consumer replaces the previous one. Only one consumer receives messages, so they stay in order.
        """
        self._channel.basic_cancel(self._consumer)
        self._before = self._last
        self._consume()

    def _wait(self, timeout: float) -> None:
        give_up = time.monotonic() + timeout
        while not self._arrived:
            self._send_heartbeat()
            left = give_up - time.monotonic()
            self._drain(max(0, min(left, self._lease / 3)))
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
            key=headers.get(KEY),
            deliveries=max(before, int(about["redelivered"])) + 1,
            tag=(self._channel, about["delivery_tag"]),
        )

    def ack(self, *deliveries: Delivery) -> None:
        with self._lock:
            for channel, tag in (delivery.tag for delivery in deliveries):
                if channel is self._channel and tag in self._given:  # else redelivered since
                    del self._given[tag]
                    self._acknowledged.add(tag)
            if not self._given or time.monotonic() - self._told > _TOGETHER:
                with contextlib.suppress(*ERRORS):
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
        if now - self._beaten >= self._lease / 4:
            self._beaten = now
            self._connection.connection.send_heartbeat()

    def close(self) -> None:
        if self._pid == os.getpid() and self._connection is not None:
            with self._lock, contextlib.suppress(*ERRORS):
                self._tell()
            with self._lock:
                self._disconnect()

    def _disconnect(self) -> None:
        self._heartbeat.discard(self)
        connection = self._connection
        self._forget()
        if connection is not None:
            close(connection)


def _count(text: str | None) -> int:
    """Return a count that RabbitMQ sent. A publisher may have set that header to anything."""
    return int(text) if text is not None and text.isdecimal() and len(text) < len(str(2**63)) else 0
