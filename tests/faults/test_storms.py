"""Events that breed events: two services that answer each other without end, and the rest of the traffic beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sagas import SqlStore
from sagas.events import Events, HandlerContext, Service, event
from sagas.events.brokers import Broker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.choreography import graph, problems
from sagas.events.guards import StormGuard
from sagas.events.runners import InProcess
from sagas.stores import schema
from tests.servers import RabbitMQ, wait_for


@event("ping.ball.hit", check_name=False)
class Hit:
    ball: int


@event("pong.ball.returned")
class Returned:
    ball: int


@event("calm.letter.written")
class Written:
    number: int


ping, pong, calm = Service("ping", publishes=[Hit]), Service("pong"), Service("calm", publishes=[Written])


@pong.on(Hit, emits=[Returned])
def give_back(event: Hit, context: HandlerContext) -> None:
    context.emit(Returned(ball=event.ball))


@ping.on(Returned, emits=[Hit])
def hit_again(event: Returned, context: HandlerContext) -> None:
    context.emit(Hit(ball=event.ball))


@calm.on(Written)
def read(event: Written) -> None: ...


class Match:
    """The services at work, in threads of this process, and what their tables say."""

    def __init__(self, store: SqlStore, broker: Broker, guards: StormGuard) -> None:
        self.events = Events((ping, pong, calm), engine=store.engine, broker=broker, guards=guards, relay_interval=0.02)
        self.events.apply_topology()

    def publish(self, balls: int, letters: int) -> None:
        with Session(self.events.engine) as session:
            for ball in range(balls):
                self.events.publish(Hit(ball=ball), session, key=f"ball-{ball}")
            for number in range(letters):
                self.events.publish(Written(number=number), session)
            session.commit()

    def handled(self, queue: str) -> int:
        with self.events.engine.connect() as connection:
            return connection.execute(select(func.count()).where(schema.inbox.c.queue == queue)).scalar_one()


Play = Callable[[StormGuard], Match]


@pytest.fixture(params=["memory", "rabbitmq"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Play]:
    with ExitStack() as stack:

        def begin(guards: StormGuard) -> Match:
            if request.param == "memory":
                store, broker = SqlStore(f"sqlite:///{tmp_path / 'storm.db'}"), MemoryBroker()
                return _begin(stack, store, broker, guards)
            store = SqlStore(request.getfixturevalue("postgres").database())
            server: RabbitMQ = request.getfixturevalue("rabbitmq")
            for service in (ping, pong, calm):
                for subscription in service.subscriptions:
                    server.forget(subscription.queue)  # another storm may have left something in it
            return _begin(stack, store, RabbitBroker(server.url), guards)

        yield begin


def _begin(stack: ExitStack, store: SqlStore, broker: Broker, guards: StormGuard) -> Match:
    store.upgrade()
    stack.callback(store.engine.dispose)
    stack.callback(broker.close)
    match = Match(store, broker, guards)
    executor = stack.enter_context(ThreadPoolExecutor(4))
    consumers = match.events.consumers(InProcess(match.events.handle, executor))
    consumers.start()
    match.events.relay.start()
    stack.callback(consumers.join, 10)
    stack.callback(match.events.relay.stop)
    stack.callback(consumers.stop, 5)
    return match


def test_a_storm_ends_at_the_hop_limit(play: Play) -> None:
    guards = StormGuard(max_hops=8)
    match = play(guards)
    match.publish(balls=3, letters=30)
    wait_for(lambda: len(match.events.dead_letters()) == 3 and match.handled("calm.read") == 30, 60, "it is over")
    # 0 to 8 messages led to those that were handled, 9 to those that were not.
    assert (match.handled("pong.give_back"), match.handled("ping.hit_again")) == (15, 12)
    for letter in match.events.dead_letters():
        assert letter.queue == "ping.hit_again"
        assert (
            "dead-lettered: 9 messages led to this one, more than max_hops=8: ping.ball.hit -> pong.ball.returned"
            in letter.error
        )
    wait_for(lambda: match.events.outbox_unsent() == 0, 10, "nothing is on its way")
    assert guards.snapshot()["ping.hit_again"] == {"admitted": 12, "throttled": 0, "dead_lettered": 3, "repeated": 9}


def test_a_storm_ends_where_it_repeats_itself(play: Play) -> None:
    match = play(StormGuard(on_repeat="dead_letter"))
    match.publish(balls=3, letters=0)
    wait_for(lambda: len(match.events.dead_letters()) == 3, 60, "it is over")
    assert (match.handled("pong.give_back"), match.handled("ping.hit_again")) == (3, 3)
    assert all("a message of the same type led to this one" in letter.error for letter in match.events.dead_letters())


def test_a_storm_that_goes_on_is_slowed_down_and_the_rest_is_not(play: Play) -> None:
    guards = StormGuard(rate="10/second", max_hops=1_000_000)
    match = play(guards)
    began = time.monotonic()
    match.publish(balls=8, letters=0)
    wait_for(lambda: guards.snapshot().get("pong.give_back", {}).get("throttled", 0) > 0, 30, "the storm is held back")
    match.publish(balls=0, letters=9)
    wait_for(lambda: match.handled("calm.read") == 9, 30, "the letters are read")
    wait_for(lambda: match.handled("pong.give_back") >= 25, 30, "the storm goes on")
    elapsed = time.monotonic() - began
    for queue in ("pong.give_back", "ping.hit_again"):
        assert match.handled(queue) <= 10 * (elapsed + 1)
    assert guards.snapshot()["calm.read"]["throttled"] == 0
    assert match.events.dead_letters() == []


def test_it_could_have_been_known() -> None:
    assert [problem.kind for problem in problems(graph([ping, pong, calm]))] == ["cycle"]
