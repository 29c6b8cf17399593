"""What is refused when a saga is defined, and what is filled in."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from kombu.entity import Queue

from sagas import (
    ConfigurationError,
    DefinitionError,
    DuplicateName,
    Parallel,
    Pivot,
    Retry,
    Saga,
    Step,
    StepContext,
    UnboundParameter,
)


@dataclass
class Order:
    order_id: str
    amount: Decimal


def reserve(order_id: str) -> str:
    return order_id


def nothing() -> None: ...


def test_parameters_are_bound_by_name() -> None:
    def charge(order: Order, amount: Decimal, reserve_stock: str, step: StepContext, note: str = "-") -> Decimal:
        return amount

    def refund(result: Decimal | None, order_id: str, reserve_stock: str) -> None: ...

    saga = Saga(
        "s", Step("reserve_stock", reserve, compensation=None), Step("charge", charge, compensation=refund), input=Order
    )
    kinds = {name: source.kind for name, source in saga.steps["charge"].action.sources.items()}
    assert kinds == {"order": "input", "amount": "field", "reserve_stock": "step", "step": "context"}
    assert saga.steps["charge"].compensation is not None
    assert {n: s.kind for n, s in saga.steps["charge"].compensation.sources.items()} == {
        "result": "own", "order_id": "field", "reserve_stock": "step",
    }  # fmt: skip
    assert saga.outline == '[{"step": "reserve_stock", "compensation": false}, {"step": "charge"}]'


def test_celery_tasks_are_steps() -> None:
    app = Celery(set_as_current=False)

    @app.task  # type: ignore[untyped-decorator]
    def plain(order_id: str) -> str:
        return order_id

    @app.task(bind=True)  # type: ignore[untyped-decorator]
    def bound(self: Any, order_id: str) -> str:
        return order_id + str(self.name)[-5:]

    saga = Saga("s", Step("one", plain, compensation=None), Step("two", bound, compensation=None), input=Order)
    assert list(saga.steps["two"].action.sources) == ["order_id"]
    assert saga.steps["two"].action(order_id="x") == "xbound"


async def asynchronous() -> AsyncIterator[int]:
    yield 1


def takes_anything(*args: Any) -> None: ...


def wants(quantity: int) -> None: ...


def wants_result(result: int) -> None: ...


def unkept() -> "Missing": ...  # type: ignore[name-defined]  # noqa: F821


def returns_object() -> Celery: ...


ok = Step("ok", nothing, compensation=None)


@pytest.mark.parametrize(
    ("define", "error", "says"),
    [
        (lambda: Saga("s"), DefinitionError, "no steps"),
        (lambda: Saga("1 s", ok), DefinitionError, "must match"),
        (lambda: Step("two words", nothing, compensation=None), DefinitionError, "Python identifier"),
        (lambda: Step("a" * 101, nothing, compensation=None), DefinitionError, "at most 100 bytes"),
        (lambda: Step("ä" * 51, nothing, compensation=None), DefinitionError, "at most 100 bytes"),
        (lambda: Step("a", nothing, compensation=None, queue=""), DefinitionError, "cannot be the name of a queue"),
        (lambda: Step("a", nothing, compensation=None, queue="ä" * 128), DefinitionError, "1 to 255 bytes"),
        (lambda: Step("a", nothing, compensation=None, queue="a\0"), DefinitionError, "without NUL"),
        (lambda: Step("a", nothing, compensation=None, queue="amq.steps"), DefinitionError, "for itself"),
        (lambda: Step("a", nothing, compensation=None, queue=Queue("a")), DefinitionError, "must be a name"),  # type: ignore[arg-type]
        (lambda: Saga("sagas", Step("join", nothing, compensation=None)), DefinitionError, "'sagas' is taken"),
        (lambda: Step("x", nothing, compensation=None, timeout=0), DefinitionError, "more than zero"),
        (lambda: Step("x", nothing, compensation=None, max_deliveries=0), DefinitionError, "never run"),
        (lambda: Retry(max_attempts=0), DefinitionError, "at least 1"),
        (lambda: Retry(factor=0.5), DefinitionError, "factor"),
        (lambda: Parallel(ok), DefinitionError, "two nodes or more"),
        (lambda: Parallel(ok, Pivot("p", nothing)), DefinitionError, "cannot be one of several"),
        (lambda: Saga("s", Step("x", nothing)), DefinitionError, "say what undoes it"),
        (lambda: Saga("s", ok, ok), DuplicateName, "another step has this name"),
        (lambda: Saga("s", Step("amount", nothing, compensation=None), input=Order), DuplicateName, "either"),
        (lambda: Saga("s", Step("result", nothing, compensation=None)), DefinitionError, "taken"),
        (lambda: Saga("s", Pivot("p", nothing), Pivot("q", nothing)), DefinitionError, "one pivot"),
        (lambda: Saga("s", Pivot("p", nothing, compensation=nothing)), DefinitionError, "no compensation"),
        (lambda: Saga("s", Pivot("p", nothing), Step("x", nothing, compensation=nothing)), DefinitionError, "drop its"),
        (
            lambda: Saga("s", Step("x", wants, compensation=None), input=Order),
            UnboundParameter,
            "'quantity'.*order_id, amount",
        ),
        (lambda: Saga("s", Step("x", wants_result, compensation=None)), UnboundParameter, "'result'"),
        (lambda: Saga("s", Step("x", takes_anything, compensation=None)), DefinitionError, "one by one"),
        (lambda: Saga("s", Step("x", asynchronous, compensation=None)), DefinitionError, "generator"),
        (lambda: Saga("s", Step("x", "shop.reserve", compensation=None)), DefinitionError, "not a function"),  # type: ignore[arg-type]
        (lambda: Saga("s", Step("x", unkept, compensation=None)), DefinitionError, "cannot be read"),
        (lambda: Saga("s", Step("x", returns_object, compensation=None)), DefinitionError, "cannot be kept"),
        (lambda: Saga("s", ok, input=Celery), DefinitionError, "cannot be"),
        (lambda: Saga("s", ok, input=int), DefinitionError, "not a dataclass"),
        (lambda: Saga("s", reserve), DefinitionError, "is no node"),  # type: ignore[arg-type]
        (lambda: Saga("s", ok).start(), ConfigurationError, "not registered"),
    ],
)
def test_what_cannot_work_is_refused(define: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        define()


def test_the_results_of_a_sibling_are_not_there() -> None:
    def needs(left: int) -> None: ...

    with pytest.raises(UnboundParameter, match="'left'"):
        Saga("s", Parallel(Step("left", nothing, compensation=None), Step("right", needs, compensation=None)))


def test_defaults_depend_on_the_place() -> None:
    saga = Saga("s", ok, Pivot("p", nothing), Step("after", nothing), timeout=timedelta(minutes=2))
    assert saga.timeout == 120
    assert saga.steps["ok"].retry.max_attempts == 3
    assert saga.steps["after"].retry.max_attempts == 10
    assert (
        saga.outline
        == '[{"step": "ok", "compensation": false}, {"pivot": "p"}, {"step": "after", "compensation": false}]'
    )


def test_delays_grow_and_are_spread() -> None:
    retry = Retry(max_attempts=9, delay=1, factor=2, max_delay=10, jitter=0)
    assert [retry.delay_after(n) for n in (1, 2, 3, 4, 5, 500)] == [1, 2, 4, 8, 10, 10]
    spread = {Retry().delay_after(1, seed=str(i)) for i in range(20)}
    assert len(spread) == 20
    assert all(1 <= delay <= 1.1 for delay in spread)
