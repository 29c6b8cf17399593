"""Events that sagas wait for, on every database: delivered once, kept when early, counted when nobody wants them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sagas import ConfigurationError, DefinitionError, Saga, SagaHandle, Sagas, SqlStore, Step, Wait
from sagas.errors import DuplicateName, InvalidInput
from sagas.events import Envelope, Events, Service, command, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End, Outcome
from sagas.observers import Observer
from sagas.testing import Inline


@event("payments.payment.confirmed")
class PaymentConfirmed:
    order_id: str
    cents: int = 0


@event("payments.payment.waived")
class PaymentWaived:
    number: int


@dataclass
class NoEvent:
    number: int


@command("payments.refund_payment")
class RefundPayment:
    order_id: str


def ship(payment: PaymentConfirmed) -> int:
    return payment.cents


def first(version: int = 1, **more: Any) -> Saga:
    given: dict[str, Any] = {"on": PaymentConfirmed, "key": "order_id", "timeout": 60, **more}
    return Saga(
        "shop.place",
        Step("reserve", lambda: None, compensation=None),
        Wait("payment", **given),
        Step("ship", ship if given["on"] is PaymentConfirmed else lambda: 0, compensation=None),
        version=version,
    )


class Counted(Observer):
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def signalled(self, saga: str, wait: str, outcome: str) -> None:
        assert (saga, wait) == ("shop.place", "payment")
        self.seen[outcome] += 1


class Shop:
    def __init__(self, engine: Engine, *definitions: Saga) -> None:
        self.definitions = definitions
        self.orders = Service("orders")
        self.orders.forward_to(*definitions)
        self.events = Events([self.orders, Service("payments")], engine=engine, broker=MemoryBroker())
        self.counted = Counted()
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.sagas = Sagas(self.app, SqlStore(engine), definitions, events=self.events, observers=[self.counted])

    def start(self, key: str, definition: Saga | None = None) -> SagaHandle:
        handle = Inline(self.sagas.store, events=self.events).start(definition or self.definitions[0], key=key)
        return self.sagas.handle(handle.id)

    def handle(self, message: Any, **more: Any) -> Outcome:
        return self.deliver(Envelope.wrap(message, source="payments"), **more)

    def deliver(self, envelope: Envelope, *, redelivered: bool = False) -> Outcome:
        topic = f"{envelope.event_type}.v1"
        return self.events.handle(
            Call("orders.shop-place-payment", topic, envelope.encode(), attempt=1, redelivered=redelivered)
        )


@pytest.fixture
def shops(event_engine: Engine) -> Iterator[Any]:
    made: list[Shop] = []

    def make(*definitions: Saga) -> Shop:
        made.append(Shop(event_engine, *definitions))
        return made[-1]

    yield make
    for shop in made:
        shop.app.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def test_an_event_is_the_signal(shops: Any, key: str) -> None:
    shop = shops(first())
    assert shop.orders.subscriptions[0].queue == "orders.shop-place-payment"
    handle = shop.start(key)
    assert handle.record.step("payment").status == "WAITING"
    envelope = Envelope.wrap(PaymentConfirmed(order_id=key, cents=7), source="payments")
    assert shop.deliver(envelope).end is End.HANDLED
    assert handle.record.step("payment").status == "DONE"
    assert handle.record.step("payment").result == f'{{"order_id":"{key}","cents":7}}'
    assert not shop.sagas.history(handle.id), "nobody decided anything"
    assert shop.deliver(envelope, redelivered=True).end is End.SKIPPED, "the inbox knows it"
    with pytest.raises(Exception, match=envelope.event_id):
        handle.signal("payment", PaymentConfirmed(order_id=key, cents=8))
    assert shop.counted.seen == {"delivered": 1}


def test_the_same_event_through_another_way_counts_once(shops: Any, key: str) -> None:
    shop = shops(first())
    handle = shop.start(key)
    envelope = Envelope.wrap(PaymentConfirmed(order_id=key), source="payments")
    handle.signal("payment", PaymentConfirmed(order_id=key), id=envelope.event_id)
    assert shop.deliver(envelope).end is End.HANDLED
    assert shop.counted.seen == {"delivered": 1}, "the saga has this event"


def test_an_event_that_comes_before_the_wait_is_kept(shops: Any, key: str) -> None:
    definition = first()
    shop = shops(definition)
    handle = shop.sagas.start(definition, key=key)  # no worker has begun it
    assert shop.handle(PaymentConfirmed(order_id=key, cents=9)).end is End.HANDLED
    assert handle.record.step("payment").status == "DONE"
    assert handle.record.step("reserve").status == "PENDING"
    assert shop.counted.seen == {"delivered": 1}


def test_events_that_nobody_wants_are_acknowledged_and_counted(shops: Any, key: str) -> None:
    shop = shops(first())
    assert shop.handle(PaymentConfirmed(order_id=f"not-{key}")).end is End.HANDLED
    handle = shop.start(key)
    assert shop.handle(PaymentConfirmed(order_id=key, cents=1)).end is End.HANDLED
    assert shop.handle(PaymentConfirmed(order_id=key, cents=2)).end is End.HANDLED, "another one came first"
    assert '"cents":1' in (handle.record.step("payment").result or "")
    cancelled = shop.start(f"{key}-2")
    cancelled.cancel("not wanted")
    assert shop.handle(PaymentConfirmed(order_id=f"{key}-2")).end is End.HANDLED
    assert shop.counted.seen == {"unknown": 1, "delivered": 1, "refused": 2}


def test_each_version_of_a_saga_has_its_own_key(shops: Any, key: str) -> None:
    old, new = first(), first(2, on=PaymentWaived, key=lambda event: f"{key}-{event.number}")
    shop = shops(old, new)
    one, two = shop.start(f"{key}-1", old), shop.start(f"{key}-2", new)
    assert shop.handle(PaymentWaived(number=1)).end is End.HANDLED
    assert shop.handle(PaymentConfirmed(order_id=f"{key}-2")).end is End.HANDLED
    assert shop.counted.seen == {"unknown": 2}, "each saga is of the other version"
    assert shop.handle(PaymentWaived(number=2)).end is End.HANDLED
    assert shop.handle(PaymentConfirmed(order_id=f"{key}-1")).end is End.HANDLED
    assert [each.record.step("payment").status for each in (one, two)] == ["DONE", "DONE"]


def test_a_signal_that_is_rolled_back_with_its_inbox_entry(shops: Any, key: str, monkeypatch: Any) -> None:
    shop = shops(first())
    handle = shop.start(key)
    envelope = Envelope.wrap(PaymentConfirmed(order_id=key), source="payments")
    with monkeypatch.context() as patch:
        patch.setattr(shop.counted, "signalled", lambda *_: 1 / 0)  # an observer breaks nothing
        patch.setattr(shop.events._inbox, "_settle", lambda *_: 1 / 0)
        assert shop.deliver(envelope).end is End.FAILED
    assert handle.record.step("payment").status == "WAITING"
    assert shop.deliver(envelope, redelivered=True).end is End.HANDLED
    assert handle.record.step("payment").status == "DONE"


def test_a_key_that_is_no_key_is_a_dead_letter(shops: Any) -> None:
    shop = shops(first(on=PaymentWaived, key="number"))
    outcome = shop.handle(PaymentWaived(number=7))
    assert (outcome.end, "the key of a saga is a str" in outcome.error) == (End.REJECTED, True)


def test_published_in_a_transaction(shops: Any, key: str) -> None:
    shop = shops(first())
    handle = shop.start(key)
    with Session(shop.sagas.store.engine) as session, session.begin():
        shop.events.publish(PaymentConfirmed(order_id=key), session)
    assert handle.record.step("payment").status == "WAITING", "until it is relayed and consumed"


def test_definitions_that_will_not_do(event_engine: Engine) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    for given, says in (
        ({"key": None}, "belong together"),
        ({"type": int}, "takes no other type"),
        ({"key": "order"}, "no field of PaymentConfirmed; it has order_id, cents"),
    ):
        with pytest.raises(DefinitionError, match=says):
            first(**given)
    with pytest.raises(DefinitionError, match="give the type"):
        Wait("payment", timeout=1)
    with pytest.raises(DefinitionError, match="waits for no event"):
        Service("orders").forward_to(Saga("none", Step("one", lambda: None, compensation=None)))
    with pytest.raises(DefinitionError, match="neither an event nor"):
        Service("orders").forward_to(first(on=NoEvent, key="number"))
    with pytest.raises(DefinitionError, match="a command"):
        Service("orders").forward_to(first(on=RefundPayment))
    orders = Service("orders")
    orders.forward_to(first())
    with pytest.raises(DuplicateName):
        orders.forward_to(first())
    with pytest.raises(ConfigurationError, match=r"this app has none: Sagas\(\.\.\., events"):
        Sagas(app, SqlStore(event_engine), [first()])
    for service in (Service("orders"), orders):
        definition = first() if not service.subscriptions else first(on=PaymentWaived, key=lambda _: "")
        events = Events([service], engine=event_engine, broker=MemoryBroker())
        with pytest.raises(ConfigurationError, match=r"wait in vain. Call forward_to\(shop.place\)"):
            Sagas(Celery(broker="memory://", set_as_current=False), SqlStore(event_engine), [definition], events=events)
    events = Events([], engine=event_engine, broker=MemoryBroker())
    for name in ("one", "two"):
        other = Celery(name, broker="memory://", set_as_current=False)
        if name == "one":
            Sagas(other, SqlStore(event_engine), events=events)
        else:
            with pytest.raises(ConfigurationError, match="these events belong to <Sagas of 'one'"):
                Sagas(other, SqlStore(event_engine), events=events)
    app.close()


def test_inline_needs_no_events() -> None:
    inline = Inline()
    handle = inline.start(first(), key="k")
    with pytest.raises(InvalidInput):
        handle.signal("payment", {"order_id": 7})
    handle.signal("payment", PaymentConfirmed(order_id="k", cents=3))
    assert handle.result["ship"] == 3


def test_a_saga_that_publishes_its_life(shops: Any, key: str) -> None:
    saga = Saga(
        "shop.place",
        Wait("payment", on=PaymentConfirmed, key="order_id", timeout=60),
        Step("ship", ship, compensation=None),
        publish_lifecycle=True,
    )
    shop = shops(saga)
    handle = shop.start(key, saga)
    outcome = shop.handle(PaymentConfirmed(order_id=key, cents=7))
    assert outcome.end is End.HANDLED, outcome.error
    assert handle.record.step("payment").status == "DONE"
