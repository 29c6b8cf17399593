"""One key whose messages fail: the others do not wait for it, however many of its messages there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from sagas import Retry, SqlStore
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers import Broker, Queue, Topology
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.runners import InProcess
from tests.contract.broker_of import bodies, broker_of, message, take
from tests.servers import RabbitMQ, wait_for

#: More than the window of a consumer, and more than RabbitMQ sends at once.
BEHIND = 130


@event("orders.order.placed")
class OrderPlaced:
    number: int


@pytest.fixture(params=["memory", "rabbitmq", "redis", "kafka"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    made: Broker = MemoryBroker()
    if request.param != "memory":
        server = request.getfixturevalue("redis_server" if request.param == "redis" else request.param)
        made = broker_of(request.param, server.address if request.param == "kafka" else server.url)
    yield made
    made.close()


def test_others_do_not_wait_for_a_failing_key(broker: Broker, tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'hot.db'}")
    store.upgrade()
    orders, shop = Service("orders", publishes=[OrderPlaced]), Service(f"s{uuid4().hex[:8]}")
    seen: list[tuple[str | None, int]] = []
    mended, failed = threading.Event(), threading.Event()

    @shop.on(OrderPlaced, name="note", retry=Retry(max_attempts=1000, delay=0.5, factor=1, jitter=0))
    def note(event: OrderPlaced, context: HandlerContext) -> None:
        if context.envelope.key == "hot" and not mended.is_set():
            failed.set()
            raise ConnectionError("this customer's warehouse is down")
        seen.append((context.envelope.key, event.number))

    events = Events([orders, shop], engine=store.engine, broker=broker, exchange=f"x{uuid4().hex[:8]}")
    events.apply_topology()

    def publish(key: str, *numbers: int) -> None:
        with Session(store.engine) as session, session.begin():
            for number in numbers:
                events.publish(OrderPlaced(number=number), session, key=key)
        events.relay.send()

    publish("hot", *range(BEHIND))
    publish("other", 1)
    with ThreadPoolExecutor(4) as executor:
        consumers = events.consumers(InProcess(events.handle, executor))
        consumers.start()
        wait_for(lambda: seen, 20, "the other key is handled")
        assert seen == [("other", 1)]
        wait_for(failed.is_set, 20, "the failing key has been tried")
        publish("third", 1)
        wait_for(lambda: ("third", 1) in seen, 20, "one that comes later is handled, too")
        mended.set()
        wait_for(lambda: len(seen) == BEHIND + 2, 60, "the failing key goes on")
        consumers.stop(5)
        assert consumers.join(20)
    assert [number for key, number in seen if key == "hot"] == list(range(BEHIND))
    store.engine.dispose()


def test_rabbitmq_sends_more_to_who_asks_for_more(rabbitmq: RabbitMQ) -> None:
    """In order, and each once, though a quorum queue needs another consumer for that."""
    broker = RabbitBroker(rabbitmq.url, prefetch=10)
    queue, exchange = f"q{uuid4().hex[:8]}", f"x{uuid4().hex[:8]}"
    broker.declare(Topology(exchange, (Queue(queue),)))
    broker.publish([message(number, queue=queue) for number in range(95)])
    reader = broker.reader(queue)
    taken = take(reader, 45, limit=7)
    for delivery in taken[5:20]:  # in the middle
        reader.ack(delivery)
    taken += take(reader, 50, limit=7)
    assert bodies(taken) == [str(number) for number in range(95)]
    assert all(delivery.deliveries == 1 for delivery in taken)
    for delivery in taken:
        reader.ack(delivery)
    reader.close()
    again = broker.reader(queue)
    assert again.receive(10, 0.5) == []
    again.close()
    broker.close()


def test_rabbitmq_returns_all_that_a_dead_reader_had_in_order(rabbitmq: RabbitMQ) -> None:
    """Also what it was sent when it asked for more."""
    broker = RabbitBroker(rabbitmq.url, prefetch=10)
    queue, exchange = f"q{uuid4().hex[:8]}", f"x{uuid4().hex[:8]}"
    broker.declare(Topology(exchange, (Queue(queue),)))
    broker.publish([message(number, queue=queue) for number in range(70)])
    dead: Any = broker.reader(queue)
    take(dead, 65, limit=7)
    dead._connection.connection.transport.sock.close()
    heir = broker.reader(queue)
    taken = take(heir, 65, limit=7)
    assert bodies(taken) == [str(number) for number in range(65)]
    assert all(delivery.deliveries == 2 for delivery in taken)
    heir.close()
    broker.close()
