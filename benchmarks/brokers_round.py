"""One round of one broker, in a process of its own: `python -m benchmarks.brokers_round WHO KIND ADDRESS MESSAGES`.

Both publish the same bodies, at most 100 of them waiting for their confirmation, to one queue that is there before. A
handler that does nothing consumes them, each acknowledged after it was handled, at most 100 ahead.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from sagas.events.brokers import Broker, Outgoing, Queue, Topology
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker

BODY = b'{"data": "' + b"x" * 488 + b'"}'
BATCH = 100
TOPIC = "shop.order.placed.v1"


def sagas(kind: str, address: str, count: int) -> tuple[float, float]:
    """Return the seconds until all are published, and until all are handled: it reads once all are published."""
    makers: dict[str, Callable[[], Broker]] = {
        "memory": MemoryBroker,
        "rabbitmq": lambda: RabbitBroker(address, prefetch=BATCH),
        "redis": lambda: RedisBroker(address),
        "kafka": lambda: KafkaBroker(address),
    }
    broker, mark = makers[kind](), uuid.uuid4().hex[:8]
    queue = f"bench_{mark}.purpose"
    broker.declare(Topology(f"bench_{mark}.events", (Queue(queue, (TOPIC,)),)))

    def publish(begin: int, end: int) -> None:
        broker.publish(
            [Outgoing(id=str(n), topic=TOPIC, body=BODY, headers={"n": str(n)}, key=str(n)) for n in range(begin, end)]
        )

    def consume(wanted: int) -> None:
        while wanted:
            for delivery in reader.receive(min(BATCH, wanted), 1):
                reader.ack(delivery)
                wanted -= 1

    reader = broker.reader(queue)
    publish(0, BATCH)
    consume(BATCH)  # connected, and member of the group
    began = time.perf_counter()
    for begin in range(0, count, BATCH):
        publish(begin, begin + BATCH)
    published = time.perf_counter()
    consume(count)
    consumed = time.perf_counter()
    reader.close()
    broker.close()
    return published - began, consumed - began


async def faststream(kind: str, address: str, count: int) -> tuple[float, float]:
    """The same with FastStream, which reads while it publishes."""
    queue = f"bench_{uuid.uuid4().hex[:8]}"
    broker, subscriber, options = _of_faststream(kind, address, queue)
    seen, enough, wanted = 0, asyncio.Event(), BATCH

    @subscriber  # type: ignore[untyped-decorator, unused-ignore]
    async def handle(_body: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen == wanted:
            enough.set()

    async def publish(messages: int) -> None:
        for begin in range(0, messages, BATCH):
            numbers = range(begin, min(begin + BATCH, messages))
            await asyncio.gather(*[broker.publish(BODY, **options(str(n))) for n in numbers])

    await broker.start()
    await publish(BATCH)
    await enough.wait()
    enough.clear()
    wanted = BATCH + count
    began = time.perf_counter()
    await publish(count)
    published = time.perf_counter()
    await enough.wait()
    consumed = time.perf_counter()
    await broker.stop()
    return published - began, consumed - began


def _of_faststream(kind: str, address: str, queue: str) -> tuple[Any, Any, Callable[[str], dict[str, Any]]]:
    from faststream import AckPolicy  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only where it runs

    quiet = {"logger": None}
    if kind == "rabbitmq":
        from faststream import rabbit  # noqa: PLC0415 - as above

        broker = rabbit.RabbitBroker(address, default_channel=rabbit.Channel(prefetch_count=BATCH), **quiet)
        quorum = rabbit.RabbitQueue(queue, queue_type=rabbit.QueueType.QUORUM, durable=True)
        subscriber = broker.subscriber(quorum, ack_policy=AckPolicy.NACK_ON_ERROR)
        return broker, subscriber, lambda _: {"queue": queue, "persist": True}
    if kind == "redis":
        from faststream import redis  # noqa: PLC0415 - as above

        broker = redis.RedisBroker(address, max_connections=2 * BATCH, **quiet)
        stream = redis.StreamSub(queue, group="readers", consumer="one", max_records=BATCH, last_id=">")
        subscriber = broker.subscriber(stream=stream, ack_policy=AckPolicy.NACK_ON_ERROR)
        return broker, subscriber, lambda _: {"stream": queue}
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - as above
    from faststream import confluent  # noqa: PLC0415 - as above

    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(queue, 12, 1)])[queue].result()
    broker = confluent.KafkaBroker(address, acks="all", enable_idempotence=True, **quiet)
    subscriber = broker.subscriber(
        queue, group_id=queue, auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR
    )
    return broker, subscriber, lambda key: {"topic": queue, "key": key.encode()}


def main() -> None:
    who, kind, address, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    times = sagas(kind, address, count) if who == "sagas" else asyncio.run(faststream(kind, address, count))
    print(json.dumps({"publish": count / times[0], "through": count / times[1]}))


if __name__ == "__main__":
    main()
