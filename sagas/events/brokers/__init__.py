"""What the distributed bus asks of a broker. Each module here keeps these promises; one contract suite checks them.

- What `publish` has returned for is kept by the broker: it reaches every queue that `declare` had bound to its topic.
- What `receive` gave out and nobody acknowledged is given out again once its reader is closed, or dead.
- Messages of one key come out of a queue in the order in which they were published, unless one is given out again.
  Two readers that share a queue may still work on them at the same time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["GIVEN_UP", "Broker", "Delivery", "Outgoing", "Queue", "Reader", "Topology"]


#: The header that says why the broker gave a message up by itself.
GIVEN_UP = "sagas-given-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way to a broker."""

    id: str  #: the event id
    topic: str  #: `<context>.<entity>.<what happened>.v<version>`
    body: bytes  #: the encoded envelope
    headers: Mapping[str, str]  #: `content-type` among them goes to where the broker keeps that
    key: str | None = None  #: messages of one key stay in order
    queue: str | None = None  #: to this queue alone: a command, or a replay. None: to all that are bound to the topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that a broker has given out and waits to hear of.

    Whoever sent it, and however: a broker gives out what it holds. `sagas.events.incoming.read` says what it is.
    """

    queue: str
    topic: str  #: what it was published as; empty where nobody said so
    body: bytes  #: as it came
    headers: Mapping[str, str]  #: as it came, as far as that is text: see `shared.texts`. With its `content-type`
    key: str | None
    #: How often it has been given out, this time included; from 1. RabbitMQ counts what it has sent, also when the
    #: reader was closed before it asked for it.
    deliveries: int
    tag: Any = field(repr=False)  #: the broker's own


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    #: What comes in it: a topic, or `<type>.*` for every version of a type. Empty where messages are addressed to the
    #: queue itself: commands.
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that must be there before the first message is published."""

    exchange: str
    queues: tuple[Queue, ...]


class Reader(Protocol):
    """Reads one queue. Belongs to one thread."""

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Return up to `limit` messages, as soon as there is one, or none after `timeout` seconds.

        Raises `BrokerUnavailable`, also for a queue that is not there; the next call tries to connect again. What had
        been received before may then be given out again, to this reader or another.
        """

    def ack(self, delivery: Delivery) -> None:
        """Let the broker forget it. Any order will do.

        Never raises for a broker that is away: the message is then given out again.
        """

    def close(self) -> None:
        """Give back what was received and not acknowledged. Does not raise."""


class Broker(Protocol):
    """Carries messages. Safe to use from any thread; it connects when it has to, and anew after a fork."""

    lease: float  #: a reader that was silent for so many seconds is dead, and others are given what it had
    max_message_size: int  #: in bytes; a larger body is refused before it is sent

    def declare(self, topology: Topology) -> Sequence[str]:
        """Make what is missing of it, and say what was made. What is there already stays, also when unknown.

        From then on this broker publishes to the exchange of that topology, also in a fork. Raises `BrokerUnavailable`,
        and `ConfigurationError` when the broker refuses, or has another idea of what is there: `QueueMismatch` where
        that is so of single queues. Everything else is then declared.
        """

    def mismatches(self, topology: Topology) -> Mapping[str, str]:
        """Return what is wrong with those queues that are there and are not what is declared. Makes nothing.

        Raises `BrokerUnavailable`.
        """

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        """Hand messages over, in order; return once all are kept: the topics that no queue is bound to.

        Their messages reached nobody, and are gone.

        Raises `BrokerUnavailable` when that is not sure, `NoHandler` for a message to a queue that is not there,
        `InvalidMessage` for one that the broker cannot take, for example as it is too large, and `ConfigurationError`
        before `declare`. In each case some of the messages may have been published.
        """

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        """Have no more messages of these topics come in a queue; what is in it stays. What is not bound is no error.

        Raises `BrokerUnavailable`.
        """

    def delete(self, queue: str) -> None:
        """Delete a queue with its bindings and all that is in it. One that is not there is no error.

        Raises `BrokerUnavailable`.
        """

    def reader(self, queue: str) -> Reader:
        """Open a queue. Several readers of one queue share its messages."""

    def given_up(self, queue: str) -> str | None:
        """Return the queue for what the broker itself gives up of a queue, if it does such a thing."""

    def depth(self, queue: str) -> int:
        """Return how many messages the queue holds, roughly.

        Raises `BrokerUnavailable`, also for a queue that is not there.
        """

    def close(self) -> None:
        """End all connections. Readers are closed by those who opened them."""
