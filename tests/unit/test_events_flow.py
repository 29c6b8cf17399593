"""From publishing to handling, in one process: a real database file, and a broker in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from sagas import Retry, RetryableError, SqlStore, TerminalError
from sagas.endings import ProcessEnd
from sagas.errors import (
    BrokerUnavailable,
    ConfigurationError,
    DefinitionError,
    InvalidMessage,
    NoHandler,
    NotAllowed,
    NotOwner,
    StoreUnavailable,
)
from sagas.events import CommandFailed, Envelope, Events, HandlerContext, Service, command, event, inbox, leases
from sagas.events.brokers import Outgoing
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import MOST_BEGUN, Call, End
from sagas.events.runners import InProcess, InThread
from sagas.stores import schema
from tests.servers import wait_for


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


@event("inventory.stock.reserved")
class StockReserved:
    order_id: str


@event("inventory.stock.missing", check_name=False, failure=True)
class StockMissing:
    order_id: str


@command("inventory.count_stock")
class CountStock:
    sku: str


@command("payments.refund_payment")
class RefundPayment:
    order_id: str


QUICK = Retry(max_attempts=3, delay=0.01, jitter=0)
QUEUE = "inventory.reserve_stock"


@dataclass
class Shop:
    """Two services and what they saw."""

    events: Events
    broker: MemoryBroker
    seen: list[str]  #: of the orders that the handler was called with
    behave: dict[str, Callable[[HandlerContext], object]] = field(default_factory=dict)  #: by order

    def publish(self, *orders: str, key: str | None = None) -> list[Envelope]:
        with Session(self.events.engine) as session, session.begin():
            return [self.events.publish(OrderPlaced(order_id=order), session, key=key) for order in orders]

    def deliver(self, *orders: str, key: str | None = None) -> list[Envelope]:
        envelopes = self.publish(*orders, key=key)
        self.events.relay.send()
        return envelopes

    def call(self, envelope: Envelope, **changes: Any) -> Any:
        values = {
            "queue": QUEUE,
            "topic": envelope.topic,
            "body": envelope.encode(),
            "attempt": 1,
            "redelivered": False,
        }
        return self.events.handle(Call(**{**values, **changes}))

    def effects(self) -> list[str]:
        with Session(self.events.engine) as session:
            return list(session.execute(text("select order_id from effect order by n")).scalars())

    def count(self, table: Any) -> int:
        with Session(self.events.engine) as session:
            return session.execute(select(func.count()).select_from(table)).scalar_one()

    @contextmanager
    def consuming(self, *queues: str) -> Iterator[None]:
        with ThreadPoolExecutor(4) as executor:
            consumers = self.events.consumers(InProcess(self.events.handle, executor), queues or None)
            consumers.start()
            self.events.relay.start()
            try:
                yield
            finally:
                consumers.stop(5)
                self.events.relay.stop()
                assert consumers.join(10)

    def open_letters(self, count: int) -> Any:
        wait_for(lambda: len(self.events.dead_letters()) == count, 10, f"{count} dead letters")
        return self.events.dead_letters()


@pytest.fixture(autouse=True)
def no_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagas.events.consumer._IDLE", 0.05)


def make_shop(
    folder: Path, *, ordered: bool = False, breaker: int | None = None, guards: Any = None, retry: Retry = QUICK
) -> Shop:
    seen: list[str] = []
    behave: dict[str, Callable[[HandlerContext], object]] = {}
    orders, inventory = Service("orders", publishes=[OrderPlaced]), Service("inventory", publishes=[StockReserved])

    @inventory.on(
        OrderPlaced,
        emits=[StockReserved, RefundPayment],
        retry=retry,
        ordered=ordered,
        breaker=breaker,
        breaker_pause=0.3,
    )
    def reserve_stock(event: OrderPlaced, context: HandlerContext) -> None:
        seen.append(event.order_id)
        context.session.execute(text("insert into effect (order_id) values (:o)"), {"o": event.order_id})
        if event.order_id in behave:
            behave[event.order_id](context)

    @inventory.handles(CountStock)
    def count_stock(command: CountStock) -> None:
        seen.append(command.sku)
        if command.sku == "broken":
            raise RuntimeError("broken")
        if command.sku == "refused":
            raise TerminalError("no such thing")

    store = SqlStore(f"sqlite:///{folder / 'shop.db'}")
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n integer primary key, order_id text)"))
    broker = MemoryBroker()
    events = Events([orders, inventory], engine=store.engine, broker=broker, guards=guards, relay_interval=0.02)
    return Shop(events, broker, seen, behave)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path)
    yield made
    made.events.engine.dispose()


@pytest.fixture
def ordered(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path, ordered=True)
    yield made
    made.events.engine.dispose()


class Killed(ProcessEnd):
    """Nothing in there catches it, as nothing catches a kill."""


def fail(_: HandlerContext) -> None:
    raise RuntimeError("broken")


def refuse(_: HandlerContext) -> None:
    raise TerminalError("out of stock")


# -- publishing ---------------------------------------------------------------------------------------------------


def test_what_is_rolled_back_is_not_sent(shop: Shop) -> None:
    with Session(shop.events.engine) as session:
        shop.events.publish(OrderPlaced(order_id="1"), session)
    assert shop.events.relay.send() == 0
    shop.publish("2")
    assert shop.events.outbox_unsent() == 1
    assert shop.events.outbox_age() > 0
    assert shop.events.relay.send() == 1
    assert (shop.events.outbox_unsent(), shop.events.outbox_age()) == (0, 0.0)
    assert shop.events.relay.send() == 0


def test_it_takes_a_connection_too(shop: Shop) -> None:
    with shop.events.engine.begin() as connection:
        envelope = shop.events.publish(OrderPlaced(order_id="1"), connection, key="1", metadata={"tenant": "x"})
    assert (envelope.source, envelope.key, envelope.metadata["tenant"]) == ("orders", "1", "x")


def test_only_the_owner_publishes(tmp_path: Path, shop: Shop) -> None:
    elsewhere = Events([Service("payments")], engine=shop.events.engine, broker=shop.broker)
    with Session(shop.events.engine) as session, pytest.raises(NotOwner, match="belongs to service 'orders'"):
        elsewhere.publish(OrderPlaced(order_id="1"), session)


def test_an_event_is_published_and_a_command_is_sent(shop: Shop) -> None:
    with Session(shop.events.engine) as session:
        with pytest.raises(DefinitionError, match="is an? event. Use Events.publish"):
            shop.events.send(OrderPlaced(order_id="1"), session)
        with pytest.raises(DefinitionError, match="is a command. Use Events.send"):
            shop.events.publish(CountStock(sku="1"), session)
        with pytest.raises(DefinitionError, match="Pass an instance"):
            shop.events.publish(OrderPlaced, session)
        with pytest.raises(InvalidMessage, match="length <= 200"):
            shop.events.publish(OrderPlaced(order_id="1"), session, key="k" * 201)
        with pytest.raises(DefinitionError, match="source="):
            shop.events.send(CountStock(sku="1"), session)
        assert shop.events.send(CountStock(sku="1"), session, source="orders").source == "orders"


def test_a_command_without_a_handler_is_refused_at_once_where_that_can_be_known(shop: Shop) -> None:
    alone = Events([Service("payments")], engine=shop.events.engine, broker=shop.broker)
    with Session(shop.events.engine) as session, pytest.raises(NoHandler, match="Declare one with @payments.handles"):
        alone.send(RefundPayment(order_id="1"), session)


def test_a_command_that_nobody_receives_becomes_a_dead_letter_and_blocks_nothing(shop: Shop) -> None:
    with Session(shop.events.engine) as session, session.begin():
        shop.events.publish(OrderPlaced(order_id="1"), session, key="k")
        shop.events.send(RefundPayment(order_id="2"), session, source="orders", key="k")
        shop.events.publish(OrderPlaced(order_id="3"), session, key="k")
    shop.events.relay.send()
    assert shop.events.outbox_unsent() == 0
    [letter] = shop.events.dead_letters()
    assert (letter.queue, letter.type, letter.attempts) == ("payments.commands", "payments.refund_payment", 0)
    assert "NoHandler" in letter.error
    with shop.consuming():
        wait_for(lambda: shop.seen == ["1", "3"], 5)
        # Later there is somebody: the replay is sent, and that resolves it, for it is handled in another database.
        shop.broker.declare(Events([_payments()], engine=shop.events.engine, broker=shop.broker).topology())
        shop.events.replay([letter], reason="deployed", actor="me", dry_run=False)
        [letter] = shop.events.dead_letters([letter.id])
        assert (letter.resolution, letter.reason, letter.actor) == ("replayed", "deployed", "me")
        wait_for(lambda: shop.broker.depth("payments.commands") == 1, 5)


@pytest.mark.parametrize("sku", ["broken", "refused"])
def test_the_sender_of_a_command_learns_when_it_fails(shop: Shop, sku: str) -> None:
    told: list[tuple[CommandFailed, HandlerContext]] = []
    orders = Service("orders")

    @orders.on(CommandFailed)
    def learn(event: CommandFailed, context: HandlerContext) -> None:
        told.append((event, context))

    sender = Events([orders], engine=shop.events.engine, broker=shop.broker)
    sender.apply_topology()
    shop.events.apply_topology()
    with Session(shop.events.engine) as session, session.begin():
        sent = sender.send(CountStock(sku=sku), session, key="k", correlation_id="story")
    with shop.consuming(), ThreadPoolExecutor(1) as executor:
        consumers = sender.consumers(InProcess(sender.handle, executor))
        consumers.start()
        [letter] = shop.open_letters(1)
        wait_for(lambda: told, 5)
        shop.events.replay([letter], reason="once more", dry_run=False)
        wait_for(lambda: shop.events.dead_letters()[0].attempts > letter.attempts or sku == "refused", 5)
        consumers.stop(5)
        assert consumers.join(10)
    [(event, context)] = told
    assert event == CommandFailed(
        command_id=sent.event_id, command="inventory.count_stock", sender="orders", receiver="inventory",
        error=letter.error, attempts=letter.attempts,
    )  # fmt: skip
    assert (context.correlation_id, context.envelope.causation_id) == ("story", sent.event_id)
    assert context.envelope.key == "k"


def _payments() -> Service:
    payments = Service("payments")

    @payments.handles(RefundPayment)
    def refund(command: RefundPayment) -> None:
        """Nothing."""

    return payments


# -- the relay ----------------------------------------------------------------------------------------------------


def test_the_relay_marks_nothing_that_was_not_confirmed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.publish("1", "2")

    def away(_: Any) -> None:
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(shop.broker, "publish", away)
        with pytest.raises(BrokerUnavailable):
            shop.events.relay.send()
    assert shop.events.outbox_unsent() == 2
    assert shop.events.relay.send() == 2


def test_a_key_is_sent_in_order(shop: Shop) -> None:
    numbers = [str(n) for n in range(250)]  # more than two batches
    shop.deliver(*numbers, key="k")
    with shop.consuming():
        wait_for(lambda: len(shop.seen) == 250, 20)
    assert shop.seen == numbers


def test_what_the_broker_cannot_take_is_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = shop.broker.publish

    def choosy(messages: list[Outgoing]) -> Collection[str]:
        if any(b'"big"' in message.body for message in messages):
            raise InvalidMessage("too large")
        return publish(messages)

    monkeypatch.setattr(shop.broker, "publish", choosy)
    shop.deliver("big", "1")
    [letter] = shop.events.dead_letters()
    assert (letter.queue, letter.error) == ("", "it cannot be sent: InvalidMessage: too large")
    assert shop.broker.depth(QUEUE) == 1


# -- the inbox ----------------------------------------------------------------------------------------------------


def test_a_message_is_handled_once(shop: Shop) -> None:
    [envelope] = shop.deliver("1")
    assert shop.call(envelope).end is End.HANDLED
    assert shop.call(envelope).end is End.SKIPPED
    assert shop.call(envelope, redelivered=True).end is End.SKIPPED
    assert shop.seen == ["1"]
    assert shop.effects() == ["1"]
    assert shop.count(schema.redeliveries) == 0


def test_a_failed_handler_leaves_nothing_behind(shop: Shop) -> None:
    def emit_then_fail(context: HandlerContext) -> None:
        context.emit(StockReserved(order_id="1"))
        raise RuntimeError("broken")

    shop.behave["1"] = emit_then_fail
    [envelope] = shop.deliver("1")
    outcome = shop.call(envelope)
    assert (outcome.end, outcome.error) == (End.FAILED, "RuntimeError: broken")
    assert (shop.effects(), shop.events.outbox_unsent(), shop.count(schema.inbox)) == ([], 0, 0)
    del shop.behave["1"]
    assert shop.call(envelope, attempt=2).end is End.HANDLED


def test_what_a_handler_emits_commits_with_it_and_is_caused_by_its_message(shop: Shop) -> None:
    shop.behave["1"] = lambda context: context.emit(StockReserved(order_id="1"))
    [envelope] = shop.deliver("1", key="k")
    assert shop.call(envelope).end is End.HANDLED
    with Session(shop.events.engine) as session:
        row = session.execute(select(schema.outbox).where(schema.outbox.c.sent_at.is_(None))).one()
    assert (row.source, row.key) == ("inventory", "k")
    assert (row.correlation_id, row.causation_id) == (envelope.event_id, envelope.event_id)


def test_a_handler_publishes_only_what_it_says(shop: Shop) -> None:
    shop.behave["1"] = lambda context: context.emit(StockMissing(order_id="1"))
    shop.behave["2"] = lambda context: shop.events.publish(OrderPlaced(order_id="x"), context.session)
    for envelope in shop.deliver("1", "2"):
        outcome = shop.call(envelope)
        assert outcome.end is End.REJECTED
        assert "does not declare that it emits" in outcome.error


@pytest.mark.parametrize(
    ("error", "end"),
    [(TerminalError("no"), End.REJECTED), (RetryableError("wait", after=7), End.FAILED), (ValueError("x"), End.FAILED)],
)
def test_what_a_handler_raises(shop: Shop, error: Exception, end: End) -> None:
    def behave(_: HandlerContext) -> None:
        raise error

    shop.behave["1"] = behave
    [envelope] = shop.deliver("1")
    outcome = shop.call(envelope)
    assert outcome.end is end
    assert outcome.after == getattr(error, "after", None)


def test_what_a_handler_does_wrong_in_the_database_is_its_own_failure(shop: Shop) -> None:
    shop.behave["1"] = lambda context: context.session.execute(text("insert into no_such_table values (1)"))
    [envelope] = shop.deliver("1")
    assert shop.call(envelope).end is End.FAILED  # SQLite calls it an OperationalError, as it would a database away


def test_a_message_that_kills_whoever_handles_it_is_not_begun_for_ever(shop: Shop) -> None:
    [envelope] = shop.deliver("1")
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: Any) -> None:
            raise Killed

        patch.setattr("sagas.events.inbox.enter", die)
        for _ in range(MOST_BEGUN):
            with pytest.raises(Killed):
                shop.call(envelope, redelivered=True)
        outcome = shop.call(envelope, redelivered=True)
    assert outcome.end is End.REJECTED
    assert "kill" in outcome.error
    # One that was only fetched together with it is as good as new.
    [innocent] = shop.deliver("2")
    assert shop.call(innocent, redelivered=True).end is End.HANDLED


def test_an_unknown_version_waits_for_other_code(shop: Shop) -> None:
    [envelope] = shop.deliver("1")
    newer = Envelope(**{**{f: getattr(envelope, f) for f in envelope.__struct_fields__}, "version": 9})
    outcome = shop.call(newer)
    assert outcome.end is End.REJECTED
    assert "no handler for orders.order.placed.v9" in outcome.error


def test_forgetting(shop: Shop) -> None:
    for envelope in shop.deliver("1", "2"):
        shop.call(envelope)
    shop.publish("3")
    assert shop.events.purge(timedelta(days=1)) == 0
    old = datetime.now(UTC) - timedelta(days=2)
    with shop.events.engine.begin() as connection:
        connection.execute(update(schema.outbox).where(schema.outbox.c.sent_at.is_not(None)).values(sent_at=old))
        connection.execute(update(schema.inbox).values(handled_at=old))
        connection.execute(
            insert(schema.redeliveries), {"queue": "q", "event_id": "e", "deliveries": 1, "seen_at": old}
        )
    assert shop.events.purge(timedelta(days=1)) == 2 + 2 + 1
    assert (shop.events.outbox_unsent(), shop.count(schema.outbox)) == (1, 1)


# -- the consumer -------------------------------------------------------------------------------------------------


def test_it_runs(shop: Shop) -> None:
    with shop.consuming():
        shop.publish("1")
        with Session(shop.events.engine) as session, session.begin():
            shop.events.send(CountStock(sku="s"), session, source="orders")
        wait_for(lambda: sorted(shop.seen) == ["1", "s"], 5)
        wait_for(lambda: shop.broker.depth(QUEUE) == 0, 5)
    assert shop.effects() == ["1"]


def test_in_the_reading_thread(shop: Shop) -> None:
    shop.deliver("1", "2")
    consumers = shop.events.consumers(InThread(shop.events.handle), [QUEUE])
    consumers.start()
    wait_for(lambda: sorted(shop.seen) == ["1", "2"], 5)
    consumers.stop(1)
    assert consumers.join(5)


def test_a_failure_is_tried_again_and_then_a_dead_letter(shop: Shop) -> None:
    shop.behave["1"] = fail
    with shop.consuming():
        shop.publish("1", "2", key="k")
        [letter] = shop.open_letters(1)
        wait_for(lambda: shop.seen == ["1", "1", "1", "2"], 5)
    assert (letter.queue, letter.key, letter.attempts, letter.error) == (QUEUE, "k", 3, "RuntimeError: broken")
    assert shop.effects() == ["2"]
    assert shop.broker.depth(QUEUE) == 0


def test_terminal_is_a_dead_letter_at_once(shop: Shop) -> None:
    shop.behave["1"] = refuse
    with shop.consuming():
        shop.publish("1")
        [letter] = shop.open_letters(1)
    assert (shop.seen, letter.attempts) == (["1"], 0)


def test_others_do_not_wait_for_what_is_tried_again(shop: Shop) -> None:
    go = threading.Event()

    def slow(_: HandlerContext) -> None:
        if not go.is_set():
            raise RetryableError(after=0.2)

    shop.behave["1"] = slow
    with shop.consuming():
        shop.publish("1", "2", key="a")
        shop.publish("3", "4", key="b")
        shop.publish("5")
        wait_for(lambda: {"3", "4", "5"} <= set(shop.seen), 5)
        assert "2" not in shop.seen  # of its key
        go.set()
        wait_for(lambda: "2" in shop.seen, 5)
    assert shop.seen.index("3") < shop.seen.index("4")


@pytest.mark.parametrize("body", [b"no json", b"\xff\xfe\x00", b'{"eventId": "\x00"}', b"[]", b""])
def test_what_is_no_envelope_is_kept(shop: Shop, body: bytes) -> None:
    shop.events.apply_topology()
    shop.broker.publish([Outgoing(id="x", topic="orders.order.placed.v1", body=body, headers={"a": "b"}, key="k")])
    with shop.consuming():
        [letter] = shop.open_letters(1)
        wait_for(lambda: shop.broker.depth(QUEUE) == 0, 5)
    assert (letter.body, letter.headers, letter.event_id, letter.key) == (body, {"a": "b"}, "", "k")
    assert shop.events.replay([letter], reason="x", dry_run=False) == []  # it can only be discarded
    assert shop.events.discard([letter], reason="nonsense")


def test_what_was_not_acknowledged_comes_again_and_is_skipped(shop: Shop) -> None:
    [envelope] = shop.deliver("1")
    reader = shop.broker.reader(QUEUE)
    assert reader.receive(1, 1)
    assert shop.call(envelope).end is End.HANDLED
    reader.close()  # it died before it could acknowledge
    with shop.consuming():
        wait_for(lambda: shop.broker.depth(QUEUE) == 0, 5)
    assert shop.seen == ["1"]


def test_what_was_given_out_before_runs_alone(shop: Shop) -> None:
    """One of them may kill the process: the others must not be there each time, and look as guilty."""
    at_once, most = [0], [0]

    def count(_: HandlerContext) -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.02)  # long enough for another to begin
        at_once[0] -= 1

    names = ["1", "2", "3", "4", "5"]
    shop.behave.update(dict.fromkeys(names, count))
    shop.deliver(*names)
    reader = shop.broker.reader(QUEUE)
    assert len(reader.receive(5, 1)) == 5
    reader.close()
    with shop.consuming(QUEUE):
        wait_for(lambda: sorted(shop.seen) == names, 10)
    assert most == [1]


def test_while_the_broker_is_away_it_waits(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = shop.broker.reader, []

    def away(queue: str) -> Any:
        asked.append(queue)
        if len(asked) < 3:
            raise BrokerUnavailable("away")
        return real(queue)

    monkeypatch.setattr(shop.broker, "reader", away)
    shop.deliver("1")
    with shop.consuming(QUEUE):
        wait_for(lambda: shop.seen == ["1"], 10)


def test_a_database_away_costs_no_attempt(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = inbox.enter, []

    def away(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) <= 4:  # more than the attempts that it has
            raise StoreUnavailable("away")
        return real(*arguments)

    monkeypatch.setattr(inbox, "enter", away)
    monkeypatch.setattr("sagas.events.inbox.Inbox.answers", lambda _: False)
    monkeypatch.setattr("sagas.events.consumer._LONGEST_PAUSE", 0.05)
    shop.deliver("1")
    with shop.consuming(QUEUE):
        wait_for(lambda: shop.effects() == ["1"], 10)
    assert shop.events.dead_letters() == []


def test_a_queue_that_is_none_of_ours(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="there is no queue 'x'"):
        shop.events.consumers(InThread(shop.events.handle), ["x"])


def test_stopping_lets_what_runs_end(shop: Shop) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(_: HandlerContext) -> None:
        began.set()
        go.wait(10)

    shop.behave["1"] = slow
    shop.deliver("1", "2", key="k")
    with shop.consuming(QUEUE):
        began.wait(5)
        threading.Timer(0.2, go.set).start()
    assert shop.effects() == ["1"]
    assert shop.broker.depth(QUEUE) == 1  # the second was given back


# -- guards and breakers ------------------------------------------------------------------------------------------


class Guard:
    """Holds the first order once, quarantines the second."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def admit(self, envelope: Envelope, subscription: Any) -> Any:
        order = envelope.open(subscription.handlers[envelope.topic].handles[0]).order_id
        self.asked.append(order)
        if order == "1" and self.asked.count("1") == 1:
            return SimpleNamespace(decision="throttle", seconds=0.2)
        if order == "2":
            return SimpleNamespace(decision="dead_letter", reason="a storm")
        return SimpleNamespace(decision="admit")


def test_guards(tmp_path: Path) -> None:
    guard = Guard()
    shop = make_shop(tmp_path, guards=guard)
    shop.deliver("1", "2", "3")
    with shop.consuming(QUEUE):
        [letter] = shop.open_letters(1)
        wait_for(lambda: sorted(shop.seen) == ["1", "3"], 5)
        assert letter.error == "dead-lettered: a storm"
        assert sorted(guard.asked) == ["1", "1", "2", "3"]
        shop.events.replay([letter], reason="no storm", dry_run=False)  # a person has decided
        wait_for(lambda: "2" in shop.seen, 5)
    assert sorted(guard.asked) == ["1", "1", "2", "3"]
    shop.events.engine.dispose()


def test_an_open_breaker_leaves_the_queue_alone(tmp_path: Path) -> None:
    shop = make_shop(tmp_path, breaker=3, retry=Retry(max_attempts=50, delay=0.01))
    broken = threading.Event()
    broken.set()

    def maybe(_: HandlerContext) -> None:
        if broken.is_set():
            raise RuntimeError("down")

    names = [str(n) for n in range(40)]
    shop.behave.update(dict.fromkeys(names, maybe))
    shop.deliver(*names)
    with shop.consuming(QUEUE):
        breaker = shop.events.breakers.of(shop.events.subscriptions[0])
        wait_for(lambda: breaker.openings >= 3, 5)
        tried = len(shop.seen)
        # Three open it, as many may run already when it opens, and one is tried each time before it opens again.
        assert tried <= 3 + 3 + breaker.openings
        broken.clear()
        wait_for(lambda: shop.broker.depth(QUEUE) == 0, 10)
    assert sorted(shop.effects(), key=int) == names
    assert shop.events.dead_letters() == []
    shop.events.engine.dispose()


# -- dead letters -------------------------------------------------------------------------------------------------


def test_a_replay_goes_to_the_one_that_failed_and_is_handled(shop: Shop) -> None:
    shop.behave["1"] = refuse
    with shop.consuming():
        shop.publish("1")
        [letter] = shop.open_letters(1)
        assert shop.events.replay([letter], reason="try") == [letter]  # said, not done
        assert shop.events.dead_letters()[0].resolution is None
        shop.events.replay([letter], reason="try", actor="me", dry_run=False)
        wait_for(lambda: len(shop.seen) == 2, 5)
        wait_for(lambda: shop.events.dead_letters()[0].resolution is None, 5)  # it failed again: the same one
        assert shop.events.dead_letters()[0].id == letter.id
        shop.behave.clear()
        shop.events.replay([letter], reason="mended", actor="me", dry_run=False)
        shop.open_letters(0)
    assert shop.effects() == ["1"]
    [letter] = shop.events.dead_letters([letter.id])
    assert (letter.resolution, letter.reason, letter.actor) == ("replayed", "mended", "me")
    assert letter.resolved_at is not None
    assert shop.events.replay([letter], reason="again", dry_run=False) == []


def test_a_replay_that_was_sent_twice_is_handled_once(shop: Shop) -> None:
    shop.behave["1"] = refuse
    with shop.consuming():
        shop.publish("1")
        [letter] = shop.open_letters(1)
    shop.behave.clear()
    for _ in range(2):
        shop.events.replay([letter], reason="x", dry_run=False)
    with shop.consuming():
        shop.open_letters(0)
        wait_for(lambda: shop.events.outbox_unsent() == 0 and shop.broker.depth(QUEUE) == 0, 5)
    assert shop.effects() == ["1"]


def test_what_was_discarded_while_it_was_on_its_way_is_not_handled(shop: Shop) -> None:
    shop.behave["1"] = refuse
    with shop.consuming():
        shop.publish("1")
        [letter] = shop.open_letters(1)
    shop.behave.clear()
    shop.events.replay([letter], reason="x", dry_run=False)
    shop.events.discard([letter], reason="no", actor="me")
    with shop.consuming():
        wait_for(lambda: shop.events.outbox_unsent() == 0 and shop.broker.depth(QUEUE) == 0, 5)
    assert shop.effects() == []


def test_a_reason_is_asked_for(shop: Shop) -> None:
    with pytest.raises(NotAllowed, match="give a reason"):
        shop.events.replay([], reason=" ")
    with pytest.raises(NotAllowed, match="give a reason"):
        shop.events.discard([], reason="")
    with pytest.raises(NotAllowed, match="there is no dead letter 7"):
        shop.events.dead_letters([7])


def test_an_ordered_key_waits_behind_its_dead_letter(ordered: Shop) -> None:
    ordered.behave["1"] = refuse
    with ordered.consuming():
        ordered.publish("1", "2", "3", key="a")
        ordered.publish("4", key="b")
        letters = ordered.open_letters(3)
        wait_for(lambda: ordered.effects() == ["4"], 5)
        assert [letter.behind for letter in letters] == [None, letters[0].id, letters[0].id]
        assert ordered.events.replay(letters, reason="x") == [letters[0]]  # the others follow by themselves
        ordered.behave.clear()
        ordered.behave["2"] = refuse
        ordered.events.replay(letters, reason="mended", dry_run=False)
        wait_for(lambda: ordered.seen[-2:] == ["1", "2"], 5)
        wait_for(lambda: [letter.resolution for letter in ordered.events.dead_letters()] == [None, None], 5)
        ordered.publish("5", key="a")
        letters = ordered.open_letters(3)  # 2 is the first now
        ordered.behave.clear()
        ordered.events.discard(letters[:1], reason="never mind")
        ordered.open_letters(0)
        ordered.publish("6", key="a")
        wait_for(lambda: ordered.effects() == ["4", "1", "3", "5", "6"], 5)


def test_an_ordered_queue_has_one_reader(ordered: Shop) -> None:
    with ordered.consuming():
        ordered.publish("1", key="a")
        wait_for(lambda: ordered.seen == ["1"], 5)
        second = ordered.events.consumers(InThread(ordered.events.handle), [QUEUE])
        second.start()
        ordered.publish("2", key="a")
        wait_for(lambda: ordered.seen == ["1", "2"], 5)
        [consumer] = second._consumers
        assert consumer._reader is None
    ordered.publish("3", key="a")
    ordered.events.relay.send()
    wait_for(lambda: ordered.seen == ["1", "2", "3"], 5)  # it took over at once: the first had let go
    second.stop(1)
    assert second.join(5)


def test_an_ordered_queue_rests_while_its_lease_cannot_be_asked_for(
    ordered: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = leases.take, []

    def away(*arguments: Any) -> bool:
        asked.append(time.monotonic())
        if len(asked) <= 2:
            raise StoreUnavailable("away")
        return real(*arguments)

    monkeypatch.setattr(leases, "take", away)
    ordered.deliver("1", key="a")
    with ordered.consuming(QUEUE):
        wait_for(lambda: ordered.seen == ["1"], 10)
    assert asked[1] - asked[0] >= 0.5
    assert asked[2] - asked[1] >= 1.0


def test_topology(shop: Shop) -> None:
    queues = {queue.name: queue.topics for queue in shop.events.topology().queues}
    assert queues == {QUEUE: ("orders.order.placed.*",), "inventory.commands": ()}
    assert shop.events.apply_topology()
    assert shop.events.apply_topology() == []
