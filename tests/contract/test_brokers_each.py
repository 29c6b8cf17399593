"""What is special to one broker."""

from __future__ import annotations

import gc
import logging
import os
import re
import shlex
import uuid
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from kombu.connection import Connection

from sagas import ConfigurationError
from sagas.errors import BrokerUnavailable, InvalidMessage, NoHandler, QueueMismatch
from sagas.events.brokers import GIVEN_UP, Outgoing, Queue, Topology
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from tests.contract.broker_of import LEASE, bodies, message, take
from tests.servers import Kafka, RabbitMQ, Redis, wait_for

PLACED = "orders.order.placed.v1"


def _topology() -> tuple[Topology, str]:
    mark = uuid.uuid4().hex[:8]
    return Topology(f"shop_{mark}.events", (Queue(f"one_{mark}.purpose", (PLACED,)),)), f"one_{mark}.purpose"


# -- memory -----------------------------------------------------------------------------------------------------------


def test_the_memory_broker_refuses_to_be_forked() -> None:
    broker = MemoryBroker()
    topology, queue = _topology()
    broker.declare(topology)
    child = os.fork()
    if child == 0:
        try:
            broker.publish([message(1)])
        except ConfigurationError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert broker.depth(queue) == 0


def test_the_memory_broker_takes_back_what_a_forgotten_reader_had() -> None:
    broker = MemoryBroker()
    topology, queue = _topology()
    broker.declare(topology)
    broker.publish([message(number) for number in range(3)])
    reader = broker.reader(queue)
    take(reader, 2)
    del reader
    gc.collect()
    again = take(broker.reader(queue), 3)
    assert [(d.body, d.deliveries) for d in again] == [(b"0", 2), (b"1", 2), (b"2", 1)]


# -- Redis ------------------------------------------------------------------------------------------------------------


def test_redis_that_was_flushed_is_set_up_again(redis_server: Redis) -> None:
    broker = RedisBroker(redis_server.url, lease=LEASE)
    topology, queue = _topology()
    broker.declare(topology)
    reader = broker.reader(queue)
    assert reader.receive(1, 0.1) == []
    redis_server.flush()
    with pytest.raises(BrokerUnavailable, match="Declare it"):
        reader.receive(1, 0.1)
    broker.publish([message(1)])
    assert bodies(take(reader, 1)) == ["1"]
    redis_server.flush()
    broker.publish([message(2), message(3, queue=queue)])  # a publisher notices too
    assert bodies(take(broker.reader(queue), 2)) == ["2", "3"]
    with pytest.raises(NoHandler):
        broker.publish([message(4, queue="nowhere")])
    reader.close()
    broker.close()


def test_redis_that_may_evict_queues_is_refused(redis_server: Redis) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ConfigurationError, match="noeviction"):
                RedisBroker(redis_server.url).declare(_topology()[0])
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
    RedisBroker(redis_server.url).declare(_topology()[0])


def test_redis_that_is_full_says_so(redis_server: Redis) -> None:
    broker = RedisBroker(redis_server.url)
    topology, queue = _topology()
    broker.declare(topology)
    with redis_server.client() as client:
        client.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(BrokerUnavailable, match="maxmemory"):
                broker.publish([message(1)])
        finally:
            client.config_set("maxmemory", "0")
    broker.publish([message(2)])
    assert bodies(take(broker.reader(queue), 1)) == ["2"]


def test_redis_keeps_nothing_of_what_is_done(redis_server: Redis) -> None:
    """No acknowledged message, and no reader that is gone."""
    broker = RedisBroker(redis_server.url, lease=LEASE)
    topology, queue = _topology()
    broker.declare(topology)
    for number in range(3):
        broker.publish([message(number)])
        reader = broker.reader(queue)
        take(reader, 1, ack=True)
        reader.close()
    last = broker.reader(queue)
    last.receive(1, 0.1)
    with redis_server.client() as client:
        assert client.xlen(f"sagas:queue:{queue}") == 0
        assert len(client.xinfo_consumers(f"sagas:queue:{queue}", "readers")) <= 1  # the last one
    last.close()


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


def test_what_rabbitmq_gives_up_is_kept(rabbitmq: RabbitMQ) -> None:
    broker = RabbitBroker(rabbitmq.url)
    topology, queue = _topology()
    broker.declare(topology)
    broker.publish([message(1, key="k")])
    with Connection(rabbitmq.url) as connection, connection.channel() as channel:
        given = wait_for(lambda: channel.basic_get(queue), 10, "the message")
        channel.basic_reject(given.delivery_tag, requeue=False)  # as it does itself past a delivery limit
    wait_for(lambda: broker.depth(f"dlq.{queue}") == 1, 20, "it is in the dead-letter queue")
    [dead] = take(broker.reader(f"dlq.{queue}"), 1)
    assert (dead.body, dead.topic, dead.key, dict(dead.headers)) == (
        b"1",
        PLACED,
        "k",
        {"n": "1", GIVEN_UP: "rejected"},
    )
    broker.close()


def test_a_delivery_limit_of_rabbitmq_ends_what_nobody_can_handle(rabbitmq: RabbitMQ) -> None:
    """By the policy that docs/brokers.md advises."""
    page = (Path(__file__).parent.parent.parent / "docs" / "brokers.md").read_text()
    found = re.search(r"`rabbitmqctl (set_policy sagas [^`]*)`", page)
    assert found is not None
    rabbitmq.control(*shlex.split(found[1].replace("1000000}", "2}")))
    try:
        broker = RabbitBroker(rabbitmq.url)
        topology, queue = _topology()
        broker.declare(topology)
        broker.publish([message("poison")])
        reader = broker.reader(queue)
        for deliveries in (1, 2, 3):
            [delivery] = take(reader, 1)
            assert delivery.deliveries == deliveries
            reader.close()
        [dead] = take(broker.reader(f"dlq.{queue}"), 1)
        assert dead.body == b"poison"
        assert broker.depth(queue) == 0
    finally:
        rabbitmq.control("clear_policy", "sagas")


def test_rabbitmq_that_has_it_otherwise_is_refused(rabbitmq: RabbitMQ) -> None:
    topology, queue = _topology()
    with Connection(rabbitmq.url) as connection, connection.channel() as channel:
        channel.queue_declare(queue, durable=True, auto_delete=False)  # a classic one
    with pytest.raises(QueueMismatch, match="--if-empty"):
        RabbitBroker(rabbitmq.url).declare(topology)


# -- Kafka ------------------------------------------------------------------------------------------------------------


def test_kafka_refuses_what_is_too_large(kafka: Kafka) -> None:
    broker = KafkaBroker(kafka.address, partitions=1)
    topology, queue = _topology()
    broker.declare(topology)
    with pytest.raises(InvalidMessage, match="too large"):
        broker.publish([Outgoing(id="1", topic=PLACED, body=b"x" * 5_000_000, headers={})])
    broker.publish([message(2)])
    reader = broker.reader(queue)
    assert bodies(take(reader, 1)) == ["2"]
    reader.close()


def test_kafka_that_refuses_a_name_says_why(kafka: Kafka) -> None:
    broker = KafkaBroker(kafka.address, partitions=1)
    mark = uuid.uuid4().hex[:8]
    broker.declare(Topology(f"shop_{mark}.events", (Queue(f"a_{mark}.b"),)))
    with pytest.raises(ConfigurationError, match="collide"):
        broker.declare(Topology(f"shop_{mark}.events", (Queue(f"a.{mark}_b"),)))


def test_kafka_tells_what_it_deleted_unread(kafka: Kafka, caplog: pytest.LogCaptureFixture) -> None:
    broker = KafkaBroker(kafka.address, partitions=1)
    topology, queue = _topology()
    broker.declare(topology)
    broker.publish([message(number) for number in range(5)])
    admin = AdminClient({"bootstrap.servers": kafka.address})
    for future in admin.delete_records([TopicPartition(topology.exchange, 0, 3)]).values():
        future.result()  # as retention does
    reader = broker.reader(queue)
    with caplog.at_level(logging.ERROR, "sagas"):
        assert bodies(take(reader, 2)) == ["3", "4"]
    assert "3 messages" in caplog.text
    reader.close()
