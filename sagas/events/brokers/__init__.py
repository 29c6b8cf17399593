"""The interface between the distributed bus and a broker. One contract suite checks these guarantees for each module.

- A message that `publish` has returned for is stored by the broker: it reaches every queue that `declare` bound to its
  topic.
- A message that `receive` returned and nobody acknowledged is delivered again after its reader is closed or dead.
- Messages with the same key leave a queue in the order in which they were published, unless one is redelivered. Two
  readers that share a queue may still handle them at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["GIVEN_UP", "Broker", "Delivery", "Outgoing", "Queue", "Reader", "Topology"]


#: The header that says why the broker itself gave up on a message.
GIVEN_UP = "sagas-given-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way to a broker."""

    id: str  #: the event id
    topic: str  #: `<context>.<entity>.<what happened>.v<version>`
    body: bytes  #: the encoded envelope
    headers: Mapping[str, str]  #: the broker stores `content-type` in its own property for it
    key: str | None = None  #: messages of one key stay in order
    queue: str | None = None  #: only to this queue: a command or a replay. None: to every queue bound to the topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that a broker delivered and that awaits acknowledgement.

    It may come from any sender and in any format. `sagas.events.incoming.read` finds out what it is.
    """

    queue: str
    topic: str  #: the topic it was published under; empty if the sender set none
    body: bytes  #: as received
    headers: Mapping[str, str]  #: as received, as far as they are text (see `shared.texts`), with its `content-type`
    key: str | None
    #: How often it has been delivered, this time included; from 1. RabbitMQ counts every message it sent, even if the
    #: reader was closed before asking for it.
    deliveries: int
    tag: Any = field(repr=False)  #: the broker's own delivery tag


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    #: What it receives: topics, or `<type>.*` for every version of a type. Empty for a command queue: its messages are
    #: addressed to the queue itself.
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that must exist before the first message is published."""

    exchange: str
    queues: tuple[Queue, ...]


class Reader(Protocol):
    """Reads one queue. Belongs to one thread."""

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Return up to `limit` messages as soon as there is one, or none after `timeout` seconds.

        Raises `BrokerUnavailable`, also if the queue does not exist; the next call tries to reconnect. Messages
        received before that may be delivered again, to this reader or another.
        """

    def ack(self, *deliveries: Delivery) -> None:
        """Acknowledge messages, in any order.

        Never raises if the broker is unavailable: the messages are then delivered again.
        """

    def close(self) -> None:
        """Return all unacknowledged messages to the queue. Does not raise."""


class Broker(Protocol):
    """Carries messages. Safe to use from any thread; it connects when needed, and reconnects after a fork."""

    lease: float  #: seconds of silence after which a reader counts as dead, and others receive its messages

    @property
    def max_message_size(self) -> int:
        """In bytes. A larger body is refused before it is sent."""

    def declare(self, topology: Topology) -> Sequence[str]:
        """Create what is missing of the topology and return what was created. Existing objects stay, known or not.

        From then on this broker publishes to the exchange of that topology, also in a fork. Raises `BrokerUnavailable`,
        and `ConfigurationError` if the broker refuses or what exists differs from the declaration: `QueueMismatch` if
        only single queues differ. Everything else is then declared.
        """

    def mismatches(self, topology: Topology) -> Mapping[str, str]:
        """Return the existing queues that differ from their declaration, with a description. Creates nothing.

        Raises `BrokerUnavailable`.
        """

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        """Publish messages in order; return, once all are stored, the topics that no queue is bound to.

        Messages of those topics reached nobody and are gone.

        Raises `BrokerUnavailable` if it is uncertain whether the broker stored all messages, `NoHandler` for a message
        to a queue that does not exist, `InvalidMessage` for a message that the broker cannot accept, for example
        because it is too large, and `ConfigurationError` before `declare`. In each case, some of the messages may have
        been published.
        """

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        """Stop routing these topics to a queue. Its messages stay. A binding that does not exist is no error.

        Raises `BrokerUnavailable`.
        """

    def delete(self, queue: str) -> None:
        """Delete a queue with its bindings and messages. A queue that does not exist is no error.

        Raises `BrokerUnavailable`.
        """

    def reader(self, queue: str) -> Reader:
        """Open a queue. Several readers of one queue share its messages."""

    def given_up(self, queue: str) -> str | None:
        """Return the queue that holds the messages the broker itself gave up on, if the broker has such a queue."""

    def depth(self, queue: str) -> int:
        """Return the approximate number of messages in the queue.

        Raises `BrokerUnavailable`, also if the queue does not exist.
        """

    def close(self) -> None:
        """Close all connections. Whoever opened a reader closes it."""
