"""What deployments do to events, on every broker: who comes first, new versions, other names, and subscriptions that end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sagas import NotAllowed, Retry, SqlStore, TerminalError
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers import Broker, Queue, Topology
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.runners import InThread
from sagas.stores import schema
from tests.contract.broker_of import broker_of
from tests.servers import wait_for

QUICK = Retry(max_attempts=2, delay=0.01)


@event("orders.order.placed")
class PlacedV1:
    order_id: str


@event("orders.order.placed", version=2, upcasters={1: lambda data: {**data, "currency": "EUR"}})
class PlacedV2:
    order_id: str
    currency: str


@event("orders.order.accepted", was=["orders.order.placed"])
class Accepted:
    order_id: str


@event("orders.order.cancelled")
class Cancelled:
    order_id: str


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    store = SqlStore(f"sqlite:///{tmp_path_factory.mktemp('deployments') / 'events.db'}")
    store.upgrade()
    yield store.engine
    store.engine.dispose()


class World:
    """One broker and one database, and a name that no other test uses."""

    def __init__(self, engine: Engine, make: Callable[[], Broker]) -> None:
        self.engine = engine
        self.make = make
        self.service = f"s{uuid4().hex[:8]}"
        self.exchange = f"x{uuid4().hex[:8]}"
        self.seen: list[tuple[str, str]] = []
        self.broken = False

    def deploy(self, *events: type, name: str = "note", service: Service | None = None, **options: Any) -> Events:
        """Return what code has that handles these, or with none of them only publishes."""
        services = [Service("orders", publishes=[PlacedV1, PlacedV2, Cancelled])]
        if events:
            subscriber = service or Service(self.service)

            def handler(message: Any, context: HandlerContext) -> None:
                if self.broken:
                    raise TerminalError("a bug of 1.0")
                self.seen.append((type(message).__name__, message.order_id))
                assert context.envelope.event_id

            subscriber.on(*events, name=name, retry=QUICK, **options)(handler)
            services.append(subscriber)
        return Events(services, engine=self.engine, broker=self.make(), exchange=self.exchange)

    def publish(self, events: Events, *messages: Any) -> None:
        with Session(self.engine) as session, session.begin():
            for message in messages:
                events.publish(message, session, key=message.order_id)
        events.relay.send()

    def consume(self, events: Events, until: Callable[[], object]) -> None:
        consumers = events.consumers(InThread(events.handle))
        consumers.start()
        try:
            wait_for(until, 30)
        finally:
            consumers.stop(5)
            assert consumers.join(20)

    def letters(self, events: Events) -> Sequence[str]:
        return [letter.error for letter in events.dead_letters() if letter.queue.startswith(self.service)]


@pytest.fixture(params=["memory", "rabbitmq", "redis", "kafka"])
def world(request: pytest.FixtureRequest, engine: Engine) -> Iterator[World]:
    kind = request.param
    made: list[Broker] = []
    memory = MemoryBroker()
    if kind != "memory":
        server = request.getfixturevalue("redis_server" if kind == "redis" else kind)
        address = server.address if kind == "kafka" else server.url

    def make() -> Broker:
        broker = memory if kind == "memory" else broker_of(kind, address)
        made.append(broker)
        return broker

    yield World(engine, make)
    for broker in made:
        broker.close()
    with engine.begin() as connection:
        for table in (schema.outbox, schema.inbox, schema.event_dead_letters, schema.bindings):
            connection.execute(table.delete())


def test_a_publisher_is_deployed_before_its_consumers(world: World) -> None:
    """A version that the consumer does not know is kept for it as a dead letter, and can be replayed after its deploy."""
    old, publisher = world.deploy(PlacedV1), world.deploy()
    old.apply_topology()
    world.publish(publisher, PlacedV1(order_id="1"), PlacedV2(order_id="2", currency="USD"))
    world.consume(old, lambda: world.seen and old.dead_letters())
    assert world.seen == [("PlacedV1", "1")]
    [letter] = old.dead_letters()
    assert "no handler for orders.order.placed.v2" in letter.error
    new = world.deploy(PlacedV2)
    new.replay([letter], reason="deployed", dry_run=False)
    new.relay.send()
    world.consume(new, lambda: len(world.seen) == 2)
    assert world.seen[1:] == [("PlacedV2", "2")]
    world.consume(new, lambda: not new.dead_letters())


def test_what_was_bound_to_one_version_is_bound_to_all(world: World) -> None:
    """Bindings of 0.1 were to each version: applying the topology replaces them, so that unbinding ends them, too."""
    queue = f"{world.service}.note"
    world.make().declare(Topology(world.exchange, (Queue(queue, ("orders.order.placed.v1",)),)))
    events = world.deploy(PlacedV1)
    events.apply_topology()
    world.publish(events, PlacedV1(order_id="1"))
    world.consume(events, lambda: world.seen)
    assert world.seen == [("PlacedV1", "1")]
    after = world.deploy(Cancelled)
    after.apply_topology(delete=True)
    world.publish(after, PlacedV1(order_id="2"), Cancelled(order_id="3"))
    world.consume(after, lambda: len(world.seen) == 2)
    assert world.seen[1:] == [("Cancelled", "3")]
    assert world.letters(after) == []


def test_an_event_that_nobody_listens_to_is_reported(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publisher = world.deploy()
    publisher.apply_topology()
    with caplog.at_level(logging.WARNING, "sagas.events.relay"):
        world.publish(publisher, PlacedV1(order_id="1"))
        world.publish(publisher, PlacedV1(order_id="2"))
    assert [record.getMessage() for record in caplog.records if "reached nobody" in record.getMessage()].__len__() == 1
    assert publisher.outbox_unheard() == {"orders.order.placed": 2}
    assert publisher.outbox_unsent() == 0
    # Its first subscriber comes: what was sent into nothing can be sent again.
    subscriber = world.deploy(PlacedV1)
    subscriber.apply_topology()
    assert publisher.resend(["orders.order.placed"]) == 2
    publisher.relay.send()
    assert publisher.outbox_unheard() == {}
    world.consume(subscriber, lambda: len(world.seen) == 2)
    caplog.clear()
    world.publish(publisher, PlacedV1(order_id="3"))
    assert publisher.outbox_unheard() == {}
    assert not caplog.records


def test_a_renamed_handler_takes_over_messages_and_dead_letters(world: World) -> None:
    old = world.deploy(PlacedV1, name="reserve")
    old.apply_topology()
    world.broken = True
    world.publish(old, PlacedV1(order_id="1"))
    world.consume(old, old.dead_letters)
    world.publish(old, PlacedV1(order_id="2"))  # waits in the old queue
    world.broken = False
    # Without a word of the old name a replay would go to a queue that nobody reads.
    unaware = world.deploy(PlacedV1, name="reserve_stock")
    with pytest.raises(NotAllowed, match=r"was=\['reserve'\]"):
        unaware.replay(unaware.dead_letters(), reason="fixed", dry_run=False)
    assert unaware.outbox_unsent() == 0
    new = world.deploy(PlacedV1, name="reserve_stock", was=["reserve"])
    made = new.apply_topology()
    assert f"moved 1 messages from {world.service}.reserve to {world.service}.reserve_stock" in " ".join(made)
    world.publish(new, PlacedV1(order_id="3"))
    assert len(new.replay(new.dead_letters(), reason="fixed", dry_run=False)) == 1
    new.relay.send()
    world.consume(new, lambda: len(world.seen) == 3 and not new.dead_letters())
    assert sorted(number for _, number in world.seen) == ["1", "2", "3"]
    assert not [found for found in new.topology_difference() if found.queue == f"{world.service}.reserve"]


def test_a_renamed_service_keeps_what_it_had(world: World) -> None:
    old = world.deploy(PlacedV1)
    old.apply_topology()
    world.publish(old, PlacedV1(order_id="1"))
    renamed = Service(f"{world.service}_new", was=[world.service])
    new = world.deploy(PlacedV1, service=renamed)
    new.apply_topology()
    world.publish(new, PlacedV1(order_id="2"))
    world.consume(new, lambda: len(world.seen) == 2)
    assert sorted(number for _, number in world.seen) == ["1", "2"]


def test_what_an_old_name_has_handled_is_not_handled_again(world: World) -> None:
    old = world.deploy(PlacedV1, name="reserve")
    old.apply_topology()
    world.publish(old, PlacedV1(order_id="1"))
    world.consume(old, lambda: len(world.seen) == 1)
    new = world.deploy(PlacedV1, Cancelled, name="reserve_stock", was=["reserve"])
    new.apply_topology()
    with world.engine.connect() as connection:
        body = connection.execute(select(schema.outbox.c.body)).scalar_one()
    with world.engine.begin() as connection:
        connection.execute(schema.outbox.update().values(sent_at=None))
    new.relay.send()
    world.publish(new, Cancelled(order_id="2"))
    world.consume(new, lambda: len(world.seen) == 2)
    assert [number for _, number in world.seen] == ["1", "2"], body


def test_a_renamed_type_is_read_by_its_new_name(world: World) -> None:
    new, publisher = world.deploy(Accepted), world.deploy()
    new.apply_topology()
    world.publish(publisher, PlacedV1(order_id="1"))
    world.consume(new, lambda: world.seen)
    assert world.seen == [("Accepted", "1")]


def test_unsubscribing_ends(world: World) -> None:
    before = world.deploy(PlacedV1, Cancelled)
    before.apply_topology()
    queue = f"{world.service}.note"
    after = world.deploy(Cancelled)
    # Not asked for yet: it may be that older code still reads the queue.
    after.apply_topology()
    world.publish(after, PlacedV1(order_id="1"))
    world.consume(after, after.dead_letters)
    assert "topology apply --delete" in world.letters(after)[0]
    [found] = [each for each in after.topology_difference() if each.queue == queue]
    assert (found.topics, found.whole, found.ours) == (("orders.order.placed.*",), False, True)
    # One that is in the queue by then is passed over; no more of them come.
    world.publish(after, PlacedV1(order_id="2"))
    assert f"unbound orders.order.placed.* from {queue}" in after.apply_topology(delete=True)
    assert not after.topology_difference()
    world.publish(after, PlacedV1(order_id="3"), Cancelled(order_id="4"))
    world.consume(after, lambda: ("Cancelled", "4") in world.seen)
    assert len(world.letters(after)) == 1
    assert after.outbox_unheard() == {"orders.order.placed": 1}
    # Who subscribes again gets them again, and older code does not pass them over.
    before.apply_topology()
    world.publish(before, PlacedV1(order_id="5"))
    world.consume(before, lambda: ("PlacedV1", "5") in world.seen)


def test_a_queue_that_is_declared_no_longer_goes_when_it_is_empty(world: World) -> None:
    before = world.deploy(PlacedV1, name="first")
    before.apply_topology()
    world.publish(before, PlacedV1(order_id="1"))
    old = f"{world.service}.first"
    after = world.deploy(PlacedV1, name="second")
    after.apply_topology()
    told = after.apply_topology(delete=True)
    assert any(f"kept queue {old}: it holds" in line for line in told), told
    [found] = [each for each in after.topology_difference() if each.queue == old]
    assert (found.whole, found.topics) == (True, ("orders.order.placed.*",))
    world.publish(after, PlacedV1(order_id="2"))
    world.consume(after, lambda: world.seen)
    assert any(line.startswith(f"deleted queue {old}") for line in after.apply_topology(delete=True, discard=True))
    assert not after.topology_difference()


def test_queues_of_other_services_are_left_alone(world: World) -> None:
    world.deploy(PlacedV1).apply_topology()
    queue = f"{world.service}.note"
    elsewhere = world.deploy(Cancelled, service=Service(f"{world.service}_b"))
    elsewhere.apply_topology()
    assert any(
        f"kept queue {queue}: this code does not declare its service" in line
        for line in elsewhere.apply_topology(delete=True)
    )
    assert f"deleted queue {queue}, which held 0 messages" in elsewhere.apply_topology(delete=True, others=[queue])
