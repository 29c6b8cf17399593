"""One round, in a process of its own: `python -m benchmarks.batches_round KIND ADDRESS DATABASE SIZE MESSAGES`.

Messages of different keys wait at the broker. A consumer with four threads works them off; the handler inserts a row.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select

from sagas import SqlStore
from sagas.events import Envelope, Events, HandlerContext, Service, event
from sagas.events.brokers import Broker, Outgoing
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.events.runners import InProcess

THREADS = 4

metadata = MetaData()
counts = Table("count", metadata, Column("id", Integer, primary_key=True), Column("number", Integer))


@event("shop.order.placed")
class OrderPlaced:
    number: int


def measure(broker: Broker, database: str, size: int, messages: int) -> dict[str, float]:
    """Return the CPU time of this process in microseconds per message, and messages per second."""
    store = SqlStore(database)
    store.upgrade()
    metadata.create_all(store.engine)
    seen, wanted, everything = [0], messages + 2 * size, threading.Event()
    lock = threading.Lock()
    stock = Service(f"bench_{uuid.uuid4().hex[:8]}")

    @stock.on(OrderPlaced, name="count", batch_size=size)
    def count(event: OrderPlaced, context: HandlerContext) -> None:
        context.session.execute(insert(counts), {"number": event.number})
        with lock:
            seen[0] += 1
            if seen[0] in (2 * size, wanted):
                everything.set()

    events = Events([stock], engine=store.engine, broker=broker, exchange=f"{stock.name}.events", concurrency=THREADS)
    events.apply_topology()
    with ThreadPoolExecutor(THREADS) as executor:
        consumers = events.consumers(InProcess(events.handle, executor))
        publish(broker, range(2 * size))
        consumers.start()
        everything.wait()  # connected, and its statements prepared
        consumers.stop(10)
        consumers.join(10)
        everything.clear()
        publish(broker, range(messages))
        consumers = events.consumers(InProcess(events.handle, executor))
        used, began = time.process_time(), time.perf_counter()
        consumers.start()
        everything.wait()
        consumers.stop(10)
        consumers.join(10)
        used, took = time.process_time() - used, time.perf_counter() - began
    with store.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(counts)).scalar_one() == wanted
    return {"cpu": used / messages * 1e6, "rate": messages / took}


def publish(broker: Broker, numbers: range) -> None:
    envelopes = [Envelope.wrap(OrderPlaced(number=n), source="shop", key=str(n)) for n in numbers]
    broker.publish(
        [
            Outgoing(id=each.event_id, topic=each.topic, body=each.encode(), headers=each.headers(), key=each.key)
            for each in envelopes
        ]
    )


def main() -> None:
    kind, address, database, size, messages = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    broker: Broker = RabbitBroker(address) if kind == "rabbitmq" else RedisBroker(address)
    print(json.dumps(measure(broker, database, int(size), int(messages))))
    broker.close()


if __name__ == "__main__":
    main()
