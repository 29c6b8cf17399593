"""Handle messages that the broker gave up on: past its delivery limit, RabbitMQ moves them to a queue nobody reads.

RabbitMQ counts every delivery, also to readers that never began the message. A message that was not begun too often
therefore returns to its queue. The rest become dead letters. So do all messages of an ordered queue, because later
messages with the same key may have been handled since.
"""

from __future__ import annotations

import dataclasses
import logging

from sqlalchemy import Engine

from sagas.errors import BrokerUnavailable, InvalidMessage
from sagas.events import redeliveries
from sagas.events.brokers import GIVEN_UP, Broker, Delivery
from sagas.events.deadletters import DeadLetters
from sagas.events.inbox import MOST_BEGUN
from sagas.events.incoming import read
from sagas.events.outbox import write
from sagas.events.services import Subscription
from sagas.stores.engines import translated
from sagas.stores.transactions import begun

__all__ = ["collect"]

logger = logging.getLogger(__name__)

#: RabbitMQ's reason for giving up on a message: it was delivered too often.
_TOO_OFTEN = "delivery_limit"

_BATCH = 100


def collect(engine: Engine, broker: Broker, letters: DeadLetters, subscription: Subscription) -> int:
    """Collect what the broker gave up on in a queue; return how many messages that was.

    Raises `BrokerUnavailable` and `StoreUnavailable`; messages that were not collected are then still there.
    """
    queue = broker.given_up(subscription.queue)
    try:
        if queue is None or broker.depth(queue) == 0:
            return 0
    except BrokerUnavailable:  # it may not have been declared yet
        return 0
    reader, count = broker.reader(queue), 0
    try:
        while received := reader.receive(_BATCH, 1.0):
            for delivery in received:
                _settle(engine, letters, subscription, dataclasses.replace(delivery, queue=subscription.queue))
                reader.ack(delivery)
            count += len(received)
    finally:
        reader.close()
    return count


def _settle(engine: Engine, letters: DeadLetters, subscription: Subscription, delivery: Delivery) -> None:
    why = delivery.headers.get(GIVEN_UP, "no reason given")
    headers = {name: value for name, value in delivery.headers.items() if name != GIVEN_UP}
    error = f"the broker gave up on the message: {why}"
    try:
        envelope = read(delivery.body, headers)
    except InvalidMessage as unread:
        letters.file_unread(dataclasses.replace(delivery, headers=headers), f"{error}; {unread}")
        return
    times = redeliveries.times_begun(engine, delivery.queue, [envelope.event_id]).get(envelope.event_id, 0)
    if why == _TOO_OFTEN and times <= MOST_BEGUN and not subscription.ordered:
        logger.warning(
            "%s: %s %s was delivered too often, but not begun too often: it returns to its queue",
            delivery.queue, envelope.event_type, envelope.event_id,
        )  # fmt: skip
        with translated(engine), begun(engine) as connection:
            write(connection, envelope, delivery.queue)
        return
    letter = letters.file(delivery.queue, envelope, body=delivery.body, headers=headers, error=error, attempts=times)
    logger.error("%s: dead letter %d: %s", delivery.queue, letter, error)
