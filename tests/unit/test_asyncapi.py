"""The AsyncAPI document, held against AsyncAPI's own schema and against real messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from jsonschema import Draft7Validator
from pydantic import BaseModel, ConfigDict

from sagas import SqlStore
from sagas.cli.events import events as group
from sagas.events import Envelope, Events, HandlerContext, Service, command, event
from sagas.events.asyncapi import asyncapi


class Card(msgspec.Struct, tag=True, frozen=True):
    number: str


class Cash(msgspec.Struct, tag=True, frozen=True):
    given: int


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)
    street: str
    next: Address | None = None


@event("orders.order.placed", version=2, upcasters={1: lambda data: data})
class OrderPlaced:
    """Somebody ordered something."""

    order_id: str
    amount: Decimal
    at: datetime
    pair: tuple[int, str]
    paid: Card | Cash
    to: Address


@event("payments.payment.refused", failure=True)
class PaymentRefused(BaseModel):
    model_config = ConfigDict(frozen=True)
    order_id: str
    to: Address


@command("payments.take_payment")
class TakePayment:
    order_id: str


PLACED = OrderPlaced(
    order_id="o",
    amount=Decimal(1),
    at=datetime(2026, 1, 1),  # noqa: DTZ001
    pair=(1, "a"),
    paid=Cash(1),
    to=Address(street="s"),
)


@pytest.fixture
def events() -> Iterator[Events]:
    orders = Service("orders", publishes=[OrderPlaced])
    payments = Service("payments")
    billing = Service("billing")

    @orders.on(PaymentRefused, emits=[TakePayment])
    def try_again(message: PaymentRefused, context: HandlerContext) -> None:
        """Ask once more."""

    @payments.handles(TakePayment, emits=[PaymentRefused])
    def take(message: TakePayment) -> None:
        pass

    @billing.on(OrderPlaced)
    def bill(message: OrderPlaced) -> None:
        pass

    store = SqlStore("sqlite://")
    broker: Any = None
    yield Events([orders, payments, billing], engine=store.engine, broker=broker)
    store.engine.dispose()


@pytest.fixture
def document(events: Events) -> dict[str, Any]:
    return asyncapi(events, title="Shop", version="3.1.4")


def official() -> Draft7Validator:
    packed = (Path(__file__).parent / "asyncapi" / "3.0.0.json.gz").read_bytes()
    return Draft7Validator(json.loads(gzip.decompress(packed)))


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert [error.message for error in official().iter_errors(document)] == []


def test_the_judge_is_awake(document: dict[str, Any]) -> None:
    spoils: list[Callable[[Any], Any]] = [
        lambda d: d["operations"]["orders.sends.orders.order.placed.v2"].pop("channel"),
        lambda d: d["channels"].update(x={"nonsense": 1}),
        lambda d: d["info"].pop("version"),
        lambda d: d["components"]["schemas"]["orders.order.placed.v2"].update(type="nonsense"),
    ]
    for spoil in spoils:
        spoilt = json.loads(json.dumps(document))
        spoil(spoilt)
        assert not official().is_valid(spoilt)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for name, each in value.items():
                if name == "$ref":
                    yield each
                yield from references(each)

    found = set(references(document))
    assert len(found) > 15
    for reference in found:
        target = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_who_sends_and_receives_what(document: dict[str, Any]) -> None:
    assert sorted(document["channels"]) == [
        "orders.order.placed.v1", "orders.order.placed.v2", "payments.commands", "payments.payment.refused.v1",
    ]  # fmt: skip
    operations = document["operations"]
    assert {key: operation["action"] for key, operation in operations.items()} == {
        "orders.sends.orders.order.placed.v2": "send",
        "orders.sends.payments.take_payment.v1": "send",
        "orders.try_again.receives.payments.payment.refused.v1": "receive",
        "payments.sends.payments.payment.refused.v1": "send",
        "payments.commands.receives.payments.take_payment.v1": "receive",
        "billing.bill.receives.orders.order.placed.v1": "receive",
        "billing.bill.receives.orders.order.placed.v2": "receive",
    }
    again = operations["orders.try_again.receives.payments.payment.refused.v1"]
    assert again["description"] == "Ask once more."
    assert again["x-queue"] == "orders.try_again"
    assert operations["payments.commands.receives.payments.take_payment.v1"]["channel"] == {
        "$ref": "#/channels/payments.commands"
    }
    messages = document["components"]["messages"]
    assert {"name": "failure"} in messages["payments.payment.refused.v1"]["tags"]
    assert {"name": "command"} in messages["payments.take_payment.v1"]["tags"]
    assert messages["orders.order.placed.v1"]["x-read-as"] == 2


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("orders.order.placed.v2", PLACED),
        ("payments.payment.refused.v1", PaymentRefused(order_id="o", to=Address(street="s", next=Address(street="t")))),
        ("payments.take_payment.v1", TakePayment(order_id="o")),
    ],
)
def test_a_real_message_fits_what_is_said_of_it(document: dict[str, Any], topic: str, message: Any) -> None:
    envelope = Envelope.wrap(message, source="orders", key="k")
    told = document["components"]["messages"][topic]
    body = json.loads(envelope.encode())
    payload = Draft7Validator({**told["payload"], "components": document["components"]})
    payload.validate(body)
    Draft7Validator({**told["headers"], "components": document["components"]}).validate(envelope.headers())
    assert not payload.is_valid({**body, "data": {"order_id": 1}})
    assert not payload.is_valid({**body, "version": 9})


def test_from_the_command_line(events: Events, tmp_path: Path) -> None:
    obj = SimpleNamespace(app=SimpleNamespace(main="shop", sagas=SimpleNamespace(events=events)))
    done = CliRunner().invoke(group, ["asyncapi"], obj=obj)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == asyncapi(events, title="shop", version="1.0.0")
    words = ["asyncapi", "--output", str(tmp_path / "a.json"), "--title", "Shop", "--app-version", "2"]
    done = CliRunner().invoke(group, words, obj=obj)
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads((tmp_path / "a.json").read_text())["info"]["title"] == "Shop"
