"""Events that sagas wait for, lost, doubled, early and late: real rules, a real inbox, and bugs planted in them.

The database is a SQLite file. A broker is simulated that delivers a message again when its consumer dies before the
commit, or between that and the acknowledgement.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from sagas import Saga, Sagas, SagaStatus, SqlStore, Step, Wait
from sagas.events import Envelope, Events, Service, event, inbox
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End
from sagas.events.waits import EventSignals
from sagas.stores.transactions import Lent
from sagas.testing import Inline
from tests.unit.simulation import Violation

ROUNDS = 60


@event("payments.payment.confirmed")
class PaymentConfirmed:
    order_id: str
    cents: int


def order() -> Saga:
    return Saga(
        "order",
        Step("reserve", lambda: None, compensation=lambda: None),
        Wait("payment", on=PaymentConfirmed, key="order_id", timeout=timedelta(hours=1)),
        Step("ship", lambda payment: payment.cents, compensation=None),
    )


class Shop:
    def __init__(self, database: Path) -> None:
        self.store = SqlStore(f"sqlite:///{database}")
        self.store.upgrade()
        self.saga = order()
        service = Service("orders")
        service.forward_to(self.saga)
        self.queue = service.subscriptions[0].queue
        self.events = Events([service, Service("payments")], engine=self.store.engine, broker=MemoryBroker())
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.sagas = Sagas(self.app, self.store, [self.saga], events=self.events)

    def close(self) -> None:
        self.app.close()
        self.store.engine.dispose()


@pytest.fixture
def shops(tmp_path: Path) -> Iterator[Callable[[], Shop]]:
    made: list[Shop] = []

    def make() -> Shop:
        made.append(Shop(tmp_path / "shop.db"))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


def simulate(seed: int, shop: Shop, patch: pytest.MonkeyPatch) -> None:
    """Play one schedule. Raises `Violation`."""
    dice, key = random.Random(seed), f"order-{seed}"
    handle = shop.sagas.start(shop.saga, key=key)  # no worker has begun it: whatever comes now comes early
    sent = [
        Envelope.wrap(PaymentConfirmed(order_id=key, cents=n), source="payments") for n in range(dice.choice((1, 1, 2)))
    ]
    waiting = [(envelope, False) for envelope in sent]
    story = [f"seed {seed}, {len(sent)} events"]
    accepted: list[str] = []  # the events that were acknowledged, in order
    handled: Counter[str] = Counter()
    inline = Inline(shop.store, events=shop.events)
    inline.orchestrator.register(shop.saga)
    commit = Lent.commit

    def die(lent: Lent) -> None:
        raise RuntimeError("the consumer dies before the commit")

    def wrong(what: str) -> Violation:
        return Violation("\n".join([what, *story]))

    while waiting:
        match dice.choice(["deliver", "deliver", "deliver", "work", "double"]):
            case "work":
                inline.finish(handle.id)
                story.append(f"the worker is at {[step.name for step in handle.record.steps.values()]}")
            case "double" if len(waiting) < 4:
                waiting.append(dice.choice(waiting))
            case _:
                envelope, again = waiting.pop(dice.randrange(len(waiting)))
                dies = dice.choice(["", "", "before", "after"])
                patch.setattr(Lent, "commit", die if dies == "before" else commit)
                end = shop.events.handle(
                    Call(shop.queue, "payments.payment.confirmed.v1", envelope.encode(), attempt=1, redelivered=again)
                ).end
                patch.setattr(Lent, "commit", commit)
                story.append(
                    f"{envelope.event_id[-4:]} is {end.value}{f', and its consumer dies {dies}' if dies else ''}"
                )
                if dies:
                    waiting.append((envelope, True))
                elif end not in (End.HANDLED, End.SKIPPED):
                    raise wrong(f"a delivery without a fault ends {end}")
                if dies != "before" and end is End.HANDLED:
                    handled[envelope.event_id] += 1
                    accepted.append(envelope.event_id)
    record = inline.finish(handle.id)
    if record.status is not SagaStatus.COMPLETED:
        raise wrong(f"all events are acknowledged, and the saga is {record.status}: {record.error}")
    if accepted[0] not in (record.step("payment").input or ""):
        raise wrong(f"{accepted[0]} came first, and the wait has {record.step('payment').input}")
    if twice := [each for each, times in handled.items() if times > 1]:
        raise wrong(f"{twice[0]} was handled twice")


# -- bugs that it sees ------------------------------------------------------------------------------------------------


def remembered_although_undone(patch: pytest.MonkeyPatch) -> None:
    """What a process has begun to handle counts as handled, also when its transaction was rolled back."""
    enter, begun = inbox.enter, set()

    def enter_once(connection: Any, subscription: Any, envelope: Envelope) -> Any:
        if envelope.event_id in begun:
            return None
        begun.add(envelope.event_id)
        return enter(connection, subscription, envelope)

    patch.setattr(inbox, "enter", enter_once)
    patch.setattr(inbox, "_check_same", lambda *_: None)


def no_inbox(patch: pytest.MonkeyPatch) -> None:
    """Nobody remembers which events have been handled, and each delivery is a signal of its own."""
    enter, deliver = inbox.enter, EventSignals.deliver

    def enter_as_new(connection: Any, subscription: Any, envelope: Envelope) -> Any:
        return enter(
            connection, subscription, Envelope.wrap(PaymentConfirmed(order_id="any", cents=0), source="payments")
        )

    def deliver_as_new(
        self: EventSignals, saga: str, wait: str, message: Any, envelope: Envelope, session: Any
    ) -> None:
        other = Envelope.wrap(message, source="payments")
        deliver(self, saga, wait, message, other, session)

    patch.setattr(inbox, "enter", enter_as_new)
    patch.setattr(EventSignals, "deliver", deliver_as_new)


def early_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """An event for a saga that does not wait yet is acknowledged, and forgotten."""
    deliver = EventSignals.deliver

    def only_if_it_waits(self: EventSignals, saga: str, wait: str, message: Any, *rest: Any) -> None:
        assert self._sagas is not None
        if wait in self._sagas.store.find(saga, message.order_id).steps:
            deliver(self, saga, wait, message, *rest)

    patch.setattr(EventSignals, "deliver", only_if_it_waits)


def test_nothing_is_seen_where_nothing_is_cut(shops: Callable[[], Shop], monkeypatch: pytest.MonkeyPatch) -> None:
    shop = shops()
    for seed in range(ROUNDS):
        simulate(seed, shop, monkeypatch)


@pytest.mark.parametrize(
    "cut", [remembered_although_undone, no_inbox, early_is_forgotten], ids=lambda cut: cut.__name__
)
def test_a_cut_is_seen(
    cut: Callable[[pytest.MonkeyPatch], None], shops: Callable[[], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch)
    shop = shops()
    with pytest.raises(Violation) as seen:
        for seed in range(ROUNDS):
            simulate(seed, shop, monkeypatch)
    print(f"{cut.__name__}: {cut.__doc__}\n{seen.value}")
