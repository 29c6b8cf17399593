"""The queues of RabbitMQ that implement one queue: what they are declared with, and what RabbitMQ says to that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from amqp import Channel
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed, ResourceLocked
from kombu.connection import Connection

from sagas.events.brokers import Queue

__all__ = ["bind", "declare", "given_up_of", "is_exchange_missing", "is_queue_missing", "queues_of"]


def given_up_of(queue: str) -> str:
    """Return the queue that holds what RabbitMQ itself gave up on."""
    return f"dlq.{queue}"


def queues_of(queue: str) -> dict[str, dict[str, str]]:
    """Return the RabbitMQ queues that implement one queue, with their arguments."""
    dead = given_up_of(queue)
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


def is_queue_missing(connection: Connection, queue: str) -> bool:
    """Tell whether RabbitMQ has no queue of that name."""
    return _is_missing(connection, partial(Channel.queue_declare, queue=queue, passive=True))


def is_exchange_missing(connection: Connection, exchange: str) -> bool:
    """Tell whether RabbitMQ has no exchange of that name."""
    return _is_missing(connection, partial(Channel.exchange_declare, exchange=exchange, type="topic", passive=True))


def declare(connection: Connection, queue: str, arguments: Mapping[str, str]) -> str | None:
    """Declare a queue; return RabbitMQ's refusal, if any. A refusal closes the channel."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    except (PreconditionFailed, ResourceLocked, AccessRefused) as error:
        return str(error.reply_text)
    channel.close()
    return None


def bind(connection: Connection, queue: Queue, exchange: str) -> str | None:
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
