"""Makes the brokers of the contract tests, in the tests' own process and in others.

As a program it is a reader that is killed by what it receives, or a process that forks.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from sagas.events.brokers import Broker, Delivery, Outgoing, Reader
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from tests.servers import die_with_parent, wait_for

#: Seconds after which a reader counts as dead.
LEASE = 2.0


def broker_of(kind: str, address: str, *, timeout: float = 15.0, lease: float = LEASE) -> Broker:
    makers: dict[str, Callable[[], Broker]] = {
        "rabbitmq": lambda: RabbitBroker(address, lease=lease, timeout=timeout),
        "redis": lambda: RedisBroker(address, lease=lease, timeout=timeout),
        "kafka": lambda: KafkaBroker(address, partitions=3, lease=lease, timeout=timeout),
    }
    return makers[kind]()


def message(
    number: object, topic: str = "orders.order.placed.v1", *, key: str | None = None, queue: str | None = None
) -> Outgoing:
    return Outgoing(
        id=f"id-{number}", topic=topic, body=str(number).encode(), headers={"n": str(number)}, key=key, queue=queue
    )


def take(reader: Reader, count: int, *, limit: int = 100, timeout: float = 30, ack: bool = False) -> list[Delivery]:
    """Receive until there are so many."""
    taken: list[Delivery] = []

    def enough() -> bool:
        received = reader.receive(min(limit, count - len(taken)), 0.5)
        taken.extend(received)
        for delivery in received if ack else ():
            reader.ack(delivery)
        return len(taken) >= count

    if count:
        wait_for(enough, timeout, f"{count} messages come out of the queue", pause=0)
    return taken


def bodies(deliveries: list[Delivery]) -> list[str]:
    return [delivery.body.decode() for delivery in deliveries]


def _read(kind: str, address: str, queue: str) -> None:
    """Receive one message, say how often it was given out, and be killed by it."""
    [delivery] = take(broker_of(kind, address).reader(queue), 1)
    os.write(1, f"{delivery.body.decode()} {delivery.deliveries}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _fork(kind: str, address: str, exchange: str, queue: str) -> None:
    """Use a broker and a reader, in a fork too, and go on using them afterwards."""
    from sagas.events.brokers import Queue, Topology  # noqa: PLC0415 - keeps what a reader imports small

    broker = broker_of(kind, address)
    broker.declare(Topology(exchange, (Queue(queue, ("orders.order.placed.v1",)),)))
    broker.publish([message("before"), message("before-2")])
    reader = broker.reader(queue)
    first, second = take(reader, 2, limit=2)
    child = os.fork()
    if child == 0:
        broker.publish([message("child")])
        broker.publish([message("child-2", queue=queue)])
        sys.exit()  # an ordinary end, which destroys all objects
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    unused = os.fork()
    if unused == 0:
        sys.exit()  # has not even touched it
    os.waitpid(unused, 0)
    broker.publish([message("after")])
    reader.ack(first)
    reader.ack(second)
    left = take(reader, 3)
    assert {*bodies(left)} == {"child", "child-2", "after"}, left
    assert all(delivery.deliveries == 1 for delivery in left), left
    reader.close()
    inside = os.fork()
    if inside == 0:
        again = take(reader, 3)  # the reader begins anew
        assert all(delivery.deliveries == 2 for delivery in again), again
        for delivery in again:
            reader.ack(delivery)
        reader.close()
        broker.close()
        print("forked", flush=True)
        sys.exit()
    _, status = os.waitpid(inside, 0)
    assert status == 0, status


if __name__ == "__main__":
    die_with_parent()
    programs: dict[str, Callable[..., None]] = {"read": _read, "fork": _fork}
    programs[sys.argv[1]](*sys.argv[2:])
