"""Declaring services, their handlers and their queues."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from sagas import Retry
from sagas.errors import DefinitionError, DuplicateName
from sagas.events import Envelope, HandlerContext, Service, command, event, type_of


@event("orders.order.placed")
class OrderPlaced:
    order_id: str = "o-1"


@event("orders.order.changed", version=3, upcasters={2: dict})
class OrderChanged:
    order_id: str = "o-1"


@event("payments.payment.failed", failure=True)
class PaymentFailed:
    order_id: str = "o-1"


@command("payments.take_payment")
class TakePayment:
    order_id: str = "o-1"


@command("payments.refund")
class Refund:
    order_id: str = "o-1"


def test_each_handler_of_events_has_a_queue_and_all_commands_share_one() -> None:
    payments = Service("payments", publishes=[PaymentFailed])
    retry = Retry(max_attempts=9)

    @payments.on(OrderPlaced, OrderChanged, emits=[PaymentFailed, Refund], retry=retry, ordered=True, breaker=4)
    def charge(event: OrderPlaced | OrderChanged) -> None: ...

    @payments.on(OrderPlaced, name="count-orders")
    def count(event: OrderPlaced) -> None: ...

    @payments.handles(TakePayment, emits=[PaymentFailed])
    def take(command: TakePayment) -> None: ...

    @payments.handles(Refund, compensates=[OrderPlaced])
    def refund(command: Refund) -> None: ...

    first, second, third = payments.subscriptions
    assert [s.queue for s in payments.subscriptions] == [
        "payments.charge",
        "payments.count-orders",
        "payments.commands",
    ]
    # The old version too, that an upcaster leads up from.
    assert list(first.handlers) == ["orders.order.changed.v2", "orders.order.changed.v3", "orders.order.placed.v1"]
    assert list(third.handlers) == ["payments.take_payment.v1", "payments.refund.v1"]
    assert (first.retry, first.ordered, first.breaker, second.breaker) == (retry, True, 4, None)
    assert [s.is_for_commands for s in payments.subscriptions] == [False, False, True]
    assert [s.compensates for s in payments.subscriptions] == [False, False, True]
    assert [h.name for h in payments.handlers] == ["charge", "count-orders", "take", "refund"]
    assert first.handlers["orders.order.placed.v1"].emits == (type_of(PaymentFailed), type_of(Refund))
    assert charge.__name__ == "charge"  # the function stays what it was


def test_a_handler_gets_its_message_and_the_context_if_it_asks() -> None:
    billing = Service("billing")
    seen: list[Any] = []

    @billing.on(OrderPlaced)
    def plain(happened: OrderPlaced) -> None:
        seen.append(happened)

    @billing.on(OrderPlaced)
    def curious(context: HandlerContext, *, happened: OrderPlaced) -> None:
        seen.append((happened, context))

    context = _context()
    for subscription in billing.subscriptions:
        subscription.handlers["orders.order.placed.v1"](OrderPlaced(), context)
    assert seen == [OrderPlaced(), (OrderPlaced(), context)]


def test_the_context_emits_with_the_key_of_the_message() -> None:
    sent: list[Any] = []
    context = _context(lambda *args, **options: sent.append((args, options)), key="o-1")
    context.emit(Refund())
    context.emit(Refund(), key="k")
    context.emit(Refund(), key="")
    assert [options["key"] for _, options in sent] == ["o-1", "k", ""]
    assert context.idempotency_key == f"billing.curious:{context.envelope.event_id}"
    assert context.correlation_id == context.envelope.event_id


def _context(publish: Any = None, key: str | None = None) -> HandlerContext:
    envelope = Envelope.wrap(OrderPlaced(), source="orders", key=key)
    session: Any = object()
    return HandlerContext(
        envelope=envelope, subscription="billing.curious", attempt=1, session=session, _publish=publish, _signal=publish
    )


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Orders", "1st", "my-shop", "büro", "a.b", "x" * 101])
def test_names_of_services_that_will_not_do(name: str) -> None:
    with pytest.raises(DefinitionError, match="starts with a letter"):
        Service(name)


def test_only_the_owner_publishes_an_event_and_anybody_sends_a_command() -> None:
    with pytest.raises(DefinitionError, match=r"'billing', publishes: event .* belongs to 'payments'.*Send a command"):
        Service("billing", publishes=[PaymentFailed])
    billing = Service("billing", publishes=[Refund])
    with pytest.raises(DefinitionError, match=r"'billing', handler 'bill' emits: event 'payments.payment.failed'"):

        @billing.on(OrderPlaced, emits=[PaymentFailed])
        def bill(event: OrderPlaced) -> None: ...

    assert billing.subscriptions == ()


def test_commands_and_events_are_handled_differently() -> None:
    payments = Service("payments")
    with pytest.raises(DefinitionError, match=r"'payments.refund' is a command. Handle it with @service.handles"):

        @payments.on(Refund)
        def on(command: Refund) -> None: ...

    with pytest.raises(DefinitionError, match=r"'orders.order.placed' is an event. Handle it with @service.on"):

        @payments.handles(OrderPlaced)
        def handles(event: OrderPlaced) -> None: ...

    with pytest.raises(DefinitionError, match="neither an event nor a command"):
        payments.on(int)(_takes_event)


def test_a_command_has_one_receiver_and_one_handler() -> None:
    with pytest.raises(DefinitionError, match="'payments.refund' goes to service 'payments', not to 'billing'"):

        @Service("billing").handles(Refund)
        def elsewhere(command: Refund) -> None: ...

    payments = Service("payments")

    @payments.handles(Refund)
    def first(command: Refund) -> None: ...

    with pytest.raises(DuplicateName, match="already has a handler, 'first'.*use an event if several need to react"):

        @payments.handles(Refund)
        def second(command: Refund) -> None: ...


def test_queues_have_names_of_their_own() -> None:
    billing = Service("billing")
    billing.on(OrderPlaced, name="bill")(_takes_event)
    for name in ("bill", "commands"):
        with pytest.raises(DuplicateName, match=f"'{name}': this service has another queue with this name"):
            billing.on(OrderPlaced, name=name)(_takes_event)
    for name in ("two words", "a.b", "x" * 91):
        with pytest.raises(DefinitionError, match="letters, digits"):
            billing.on(OrderPlaced, name=name)(_takes_event)


def _takes_event(event: OrderPlaced) -> None: ...


async def _async(event: OrderPlaced) -> None: ...


def _nothing() -> None: ...


def _two(event: OrderPlaced, other: str) -> None: ...


def _two_contexts(event: OrderPlaced, one: HandlerContext, two: HandlerContext) -> None: ...


def _any_number(*events: OrderPlaced) -> None: ...


def _by_position(event: OrderPlaced, /) -> None: ...


def _lost(event: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_async, "plain function"),
        (functools.partial(_takes_event), "plain function"),
        (_nothing, "must take one message"),
        (_two, "must take one message"),
        (_two_contexts, "must take one message"),
        (_any_number, "passed by name"),
        (_by_position, "passed by name"),
        (_lost, "annotation cannot be resolved"),
    ],
)
def test_functions_that_cannot_be_called(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=f"service 'billing', handler 'bill': .*{says}"):
        Service("billing").on(OrderPlaced, name="bill")(function)


def test_a_handler_of_nothing_and_breakers_that_make_no_sense() -> None:
    billing = Service("billing")
    with pytest.raises(DefinitionError, match="it handles no events"):
        billing.on()(_takes_event)
    for options in ({"breaker": 0}, {"breaker": 1, "breaker_pause": 0}):
        with pytest.raises(DefinitionError, match="it must be"):
            billing.on(OrderPlaced, **options)(_takes_event)  # type: ignore[arg-type]
