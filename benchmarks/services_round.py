"""One round of many services, in a process of its own: `python -m benchmarks.services_round WHO KIND ADDRESS MESSAGES`.

Fifty types of events, and ten services that listen to ten of them each, so that each event is handled twice. All are
published first, 100 at a time; then all services start, and the clock runs until each event was handled by both.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import threading
import time
import uuid
from typing import Any

from benchmarks.brokers_round import BATCH, BODY
from sagas.events.brokers import Broker, Outgoing, Queue, Topology
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker

TYPES, SERVICES, EACH = 50, 10, 10
NAMES = [f"context{number // 5}.thing.happened{number}" for number in range(TYPES)]
#: What each service listens to: its own five types, and those of the next.
LISTENS = [[(service * 5 + number) % TYPES for number in range(EACH)] for service in range(SERVICES)]


def sagas(kind: str, address: str, count: int) -> tuple[float, float]:
    """Return the seconds until all are published, and those until all are handled."""
    makers: dict[str, Any] = {
        "memory": MemoryBroker,
        "rabbitmq": lambda: RabbitBroker(address),
        "redis": lambda: RedisBroker(address),
        "kafka": lambda: KafkaBroker(address, partitions=3),
    }
    broker: Broker = makers[kind]()
    mark = uuid.uuid4().hex[:8]
    queues = [
        Queue(f"service{service}_{mark}.purpose", tuple(f"{NAMES[number]}.*" for number in listens))
        for service, listens in enumerate(LISTENS)
    ]
    broker.declare(Topology(f"bench_{mark}.events", tuple(queues)))
    began = time.perf_counter()
    for begin in range(0, count, BATCH):
        numbers = range(begin, min(begin + BATCH, count))
        broker.publish(
            [Outgoing(id=str(n), topic=f"{NAMES[n % TYPES]}.v1", body=BODY, headers={}, key=str(n)) for n in numbers]
        )
    published = time.perf_counter()

    def read(queue: Queue) -> None:
        reader, left = broker.reader(queue.name), count // TYPES * EACH
        while left:
            for delivery in reader.receive(BATCH, 1):
                reader.ack(delivery)
                left -= 1
        reader.close()

    threads = [threading.Thread(target=read, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.perf_counter()
    broker.close()
    return published - began, ended - published


async def faststream(kind: str, address: str, count: int) -> tuple[float, float]:
    """The same with FastStream: the services are made before, and start once all is published."""
    broker, publish = _of_faststream(kind, address, uuid.uuid4().hex[:8], _Seen(count))
    await broker.connect()
    await publish.prepare()
    began = time.perf_counter()
    for begin in range(0, count, BATCH):
        await asyncio.gather(*[publish(n) for n in range(begin, min(begin + BATCH, count))])
    published = time.perf_counter()
    await broker.start()
    await publish.seen.enough.wait()
    ended = time.perf_counter()
    await broker.stop()
    return published - began, ended - published


class _Seen:
    def __init__(self, count: int) -> None:
        self.left = count // TYPES * EACH * SERVICES
        self.enough = asyncio.Event()

    async def __call__(self, _body: bytes) -> None:
        self.left -= 1
        if self.left == 0:
            self.enough.set()


class _Publish:
    """Publishes an event by its number. `prepare` makes what must be there before."""

    def __init__(self, seen: _Seen, send: Any, prepare: Any) -> None:
        self.seen, self._send, self.prepare = seen, send, prepare

    async def __call__(self, number: int) -> None:
        await self._send(number)


def _of_faststream(kind: str, address: str, mark: str, seen: _Seen) -> tuple[Any, _Publish]:
    makers = {"rabbitmq": _on_rabbitmq, "redis": _on_redis, "kafka": _on_kafka}
    return makers[kind](address, mark, [f"{mark}.{name}" for name in NAMES], seen)


def _faststream(module: str) -> tuple[Any, Any]:
    """Return one of its modules, and how it acknowledges. It is there only where the benchmarks run."""
    return (
        importlib.import_module(f"faststream.{module}"),
        importlib.import_module("faststream").AckPolicy.NACK_ON_ERROR,
    )


def _on_rabbitmq(address: str, mark: str, names: list[str], seen: _Seen) -> tuple[Any, _Publish]:
    rabbit, policy = _faststream("rabbit")

    broker = rabbit.RabbitBroker(address, default_channel=rabbit.Channel(prefetch_count=BATCH), logger=None)
    exchange = rabbit.RabbitExchange(f"bench_{mark}", type=rabbit.ExchangeType.TOPIC, durable=True)
    quorum = rabbit.QueueType.QUORUM
    queues = [
        rabbit.RabbitQueue(f"service{service}_{mark}", queue_type=quorum, durable=True, routing_key=names[listens[0]])
        for service, listens in enumerate(LISTENS)
    ]
    for queue in queues:
        broker.subscriber(queue, exchange, ack_policy=policy)(seen)

    async def prepare() -> None:
        made = await broker.declare_exchange(exchange)
        for queue, listens in zip(queues, LISTENS, strict=True):
            at_broker = await broker.declare_queue(queue)
            for number in listens:
                await at_broker.bind(made, routing_key=names[number])

    async def send(number: int) -> None:
        await broker.publish(BODY, exchange=exchange, routing_key=names[number % TYPES], persist=True)

    return broker, _Publish(seen, send, prepare)


def _on_redis(address: str, _mark: str, names: list[str], seen: _Seen) -> tuple[Any, _Publish]:
    import redis as client  # noqa: PLC0415 - as above

    redis, policy = _faststream("redis")

    broker = redis.RedisBroker(address, max_connections=2 * BATCH, logger=None)
    pairs = [(f"service{service}", names[number]) for service, listens in enumerate(LISTENS) for number in listens]
    for group, name in pairs:
        stream = redis.StreamSub(name, group=group, consumer="one", max_records=BATCH, last_id=">")
        broker.subscriber(stream=stream, ack_policy=policy)(seen)

    async def prepare() -> None:
        with client.Redis.from_url(address) as connection:
            for group, name in pairs:
                connection.xgroup_create(name, group, "0", mkstream=True)

    async def send(number: int) -> None:
        await broker.publish(BODY, stream=names[number % TYPES])

    return broker, _Publish(seen, send, prepare)


def _on_kafka(address: str, mark: str, names: list[str], seen: _Seen) -> tuple[Any, _Publish]:
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415 - as above

    confluent, policy = _faststream("confluent")

    broker = confluent.KafkaBroker(address, acks="all", enable_idempotence=True, logger=None)
    for service, listens in enumerate(LISTENS):
        topics = [names[number] for number in listens]
        broker.subscriber(
            *topics,
            group_id=f"service{service}_{mark}",
            auto_offset_reset="earliest",
            ack_policy=policy,
        )(seen)

    async def prepare() -> None:
        admin = AdminClient({"bootstrap.servers": address})
        for made in admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
            made.result()

    async def send(number: int) -> None:
        await broker.publish(BODY, topic=names[number % TYPES], key=str(number).encode())

    return broker, _Publish(seen, send, prepare)


def main() -> None:
    who, kind, address, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    times = sagas(kind, address, count) if who == "sagas" else asyncio.run(faststream(kind, address, count))
    print(json.dumps({"publish": count / times[0], "through": count // TYPES * EACH * SERVICES / times[1]}))


if __name__ == "__main__":
    main()
