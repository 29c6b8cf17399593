"""Every kind of callable: what it takes is read, and what it returns is finished or refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, NoReturn, NotRequired, Optional, TypedDict

import pytest
from sqlalchemy import text

from sagas import DefinitionError, Retry, Saga, SagaHandle, SagaStatus, SqlStore, Step, StepContext, TerminalError
from sagas.events import event
from sagas.functions import finish
from sagas.testing import Inline

done: list[Any] = []
ONCE = Retry(max_attempts=1)
ambient = contextvars.ContextVar("ambient", default="nothing")


@pytest.fixture(autouse=True)
def _forget() -> None:
    done.clear()


@dataclass
class Order:
    sku: str
    amount: Decimal


class MayLack(TypedDict):
    sku: str
    note: NotRequired[str]


ORDER = Order("tea", Decimal("1.10"))


def fail() -> NoReturn:
    raise TerminalError("no stock")


async def refund(amount: Decimal) -> None:
    await asyncio.sleep(0)
    done.append(amount)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Refund:
    async def __call__(self, amount: Decimal) -> None:
        await refund(amount)

    async def method(self, amount: Decimal) -> None:
        await refund(amount)

    async def _for(self, factor: int, amount: Decimal) -> None:
        await refund(amount * factor)

    doubled = functools.partialmethod(_for, 2)


class Awaited:
    """Something to await that is no coroutine."""

    def __init__(self, amount: Decimal) -> None:
        self.amount = amount

    def __await__(self) -> Any:
        return refund(self.amount).__await__()


def in_a_pool(amount: Decimal) -> concurrent.futures.Future[None]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(done.append, amount)


async def twice(amount: Decimal) -> Awaitable[None]:
    return refund(amount)


UNDO = {
    "function": refund,
    "lambda": lambda amount: refund(amount),
    "decorator": decorated(refund),
    "object": Refund(),
    "method": Refund().method,
    "partial": functools.partial(Refund()._for, 1),
    "nested partial": functools.partial(functools.partial(Refund()._for), factor=1),
    "partialmethod": Refund().doubled,
    "awaitable": lambda amount: Awaited(amount),
    "future": in_a_pool,
    "twice": twice,
}


@pytest.mark.parametrize("undo", UNDO.values(), ids=list(UNDO))
def test_an_async_compensation_runs_however_it_is_hidden(undo: Callable[..., Any]) -> None:
    saga = Saga("s", Step("charge", lambda: "c-1", compensation=undo), Step("b", fail, compensation=None), input=Order)
    handle = Inline().start(saga, ORDER)
    assert handle.status is SagaStatus.COMPENSATED
    assert done == [ORDER.amount * (2 if undo is UNDO["partialmethod"] else 1)]


def generator() -> Iterator[int]:
    done.append("ran")
    yield 1


async def async_generator() -> AsyncIterator[int]:
    done.append("ran")
    yield 1


@contextmanager
def entered() -> Iterator[None]:
    done.append("ran")
    yield


class CallsGenerator:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    "given",
    [generator, async_generator, functools.partial(generator), CallsGenerator(), Refund, functools.partial(Refund)],
)
@pytest.mark.parametrize("place", ["action", "compensation"])
def test_what_would_run_nothing_is_refused_when_it_is_defined(given: Any, place: str) -> None:
    functions: dict[str, Any] = {"action": lambda: 1, "compensation": None, place: given}
    with pytest.raises(DefinitionError, match=f"step 'a', {place}: .*(generator|class)"):
        Saga("s", Step("a", **functions))


@pytest.mark.parametrize(
    "returns",
    [generator, async_generator, entered, lambda: map(done.append, [1]), lambda: fail, lambda: functools.partial(fail)],
)
def test_a_compensation_that_returns_what_nobody_runs_has_not_succeeded(returns: Callable[[], Any]) -> None:
    saga = Saga(
        "s",
        Step("a", lambda: 1, compensation=lambda: returns(), compensation_retry=ONCE),
        Step("b", fail, compensation=None),
    )
    handle = Inline().start(saga)
    assert handle.status is SagaStatus.STUCK
    assert "it returned a" in str(handle.record.step("a").error)
    assert done == []


@pytest.mark.parametrize("returns", [generator, async_generator, entered])
def test_an_action_that_returns_what_nobody_runs_is_undone(returns: Callable[[], Any]) -> None:
    saga = Saga("s", Step("a", lambda: returns(), compensation=lambda: done.append("undone")))
    handle = Inline().start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert "it returned a" in str(handle.error)
    assert done == ["undone"]


# -- what is read of a callable -------------------------------------------------------------------------------------


class Charge:
    def __call__(self, amount: Decimal, step: StepContext | None = None) -> Decimal:
        assert step is not None
        return amount


@dataclass
class Gateway:
    """Its own annotations are those of fields, not of parameters."""

    name: str

    def __call__(self, amount: Decimal, order: Order, step: StepContext) -> Decimal:
        assert order.amount == amount
        return amount

    def pay(self, url: str, amount: Decimal, *, step: Optional[StepContext]) -> Decimal:  # noqa: UP045
        assert step is not None
        assert url == "https://example.org"
        return amount

    to_example = functools.partialmethod(pay, "https://example.org")


def pay(gateway: str, sku: str, amount: Decimal, step: Annotated[StepContext, "mine"]) -> Decimal:
    assert step.attempt == 1
    assert (gateway, sku) == ("stripe", "coffee")
    return amount


@decorated
def wrapped(amount: Decimal, step: Annotated[StepContext | None, ""]) -> Decimal:
    assert step is not None
    return amount


async def awaited(amount: Decimal) -> Decimal:
    await asyncio.sleep(0)
    return amount


def returns_coroutine(amount: Decimal) -> Awaitable[Decimal]:
    return awaited(amount)


@functools.cache
def cached(amount: Decimal) -> Decimal:
    return amount


class Decorated:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "action",
    [
        Charge(),
        Gateway("x"),
        functools.partial(Gateway("x").pay, "https://example.org"),
        Gateway("x").to_example,
        functools.partial(pay, "stripe", sku="coffee"),
        functools.partial(functools.partial(pay, "stripe"), sku="coffee"),
        wrapped,
        Decorated(wrapped),
        awaited,
        returns_coroutine,
        cached,
    ],
)
def test_annotations_are_read_wherever_they_are(action: Callable[..., Any]) -> None:
    handle = Inline().start(Saga("s", Step("a", action, compensation=None), input=Order), ORDER)
    assert handle.result["a"] == ORDER.amount, handle.error
    assert type(handle.result["a"]) is Decimal


@pytest.mark.parametrize("action", [lambda *args: 1, lambda **kwargs: 1, lambda sku, /: 1])
def test_parameters_that_have_no_name_are_refused(action: Callable[..., Any]) -> None:
    with pytest.raises(DefinitionError, match="one by one"):
        Saga("s", Step("a", action, compensation=None), input=Order)


def with_default(sku: str, note: str = "none") -> str:
    return note


def with_none(sku: str, note: str | None) -> str | None:
    return note


def must_have(note: str) -> str:
    return note


def test_a_field_that_is_absent() -> None:
    saga = Saga("s", Step("a", with_default, compensation=None), Step("b", with_none, compensation=None), input=MayLack)
    assert dict(Inline().start(saga, {"sku": "tea"}).result) == {"a": "none", "b": None}
    assert dict(Inline().start(saga, {"sku": "tea", "note": "x"}).result) == {"a": "x", "b": "x"}
    with pytest.raises(DefinitionError, match="'note' of the input may be absent.*give it a default"):
        Saga("s", Step("a", must_have, compensation=None), input=MayLack)


def test_a_compensation_that_lacks_a_field_runs() -> None:
    def undo(note: str | None = None) -> None:
        done.append(note)

    saga = Saga("s", Step("a", lambda: 1, compensation=undo), Step("b", fail, compensation=None), input=MayLack)
    assert Inline().start(saga, {"sku": "tea"}).status is SagaStatus.COMPENSATED
    assert done == [None]


# -- within an event loop -------------------------------------------------------------------------------------------


@event("orders.order.placed")
class Placed:
    sku: str


async def write_and_tell(step: StepContext) -> str:
    await asyncio.sleep(0)
    step.session.execute(text("insert into effect values (:key)"), {"key": step.key})
    return ambient.get()


def test_session_and_context_are_there_and_a_failure_takes_the_effect_back(tmp_path: Any) -> None:
    store = SqlStore(f"sqlite:///{tmp_path}/s.db")
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n varchar(100))"))

    async def write_and_fail(step: StepContext) -> None:
        await write_and_tell(step)
        raise TerminalError("no")

    ambient.set("of the caller")
    inline = Inline(store)
    written = inline.start(Saga("s", Step("a", write_and_tell, compensation=None)), key="kept")
    assert written.result["a"] == "of the caller"
    inline.start(Saga("t", Step("a", write_and_fail, compensation=None)), key="lost")

    async def within() -> SagaHandle:
        return inline.start(Saga("u", Step("a", write_and_tell, compensation=None)), key="within")

    # A test that is async itself: its loop runs already.
    assert asyncio.run(within()).result["a"] == "of the caller"
    with store.engine.connect() as connection:
        assert connection.execute(text("select n from effect order by n")).scalars().all() == ["kept", "within"]
    store.engine.dispose()


def test_an_async_step_emits() -> None:
    async def place(step: StepContext) -> None:
        await asyncio.sleep(0)
        step.emit(Placed(sku="tea"))

    inline = Inline()
    assert inline.start(Saga("s", Step("a", place, compensation=None))).status is SagaStatus.COMPLETED
    assert inline.emitted == [Placed(sku="tea")]


def test_a_crash_after_an_async_effect_is_after_the_effect() -> None:
    inline = Inline()
    inline.crash_after("a")
    saga = Saga("s", Step("a", refund, compensation=None), input=Order)
    assert inline.start(saga, ORDER).status is SagaStatus.COMPLETED
    assert done == [ORDER.amount] * 2


def test_a_coroutine_is_cancelled_when_its_time_is_over() -> None:
    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            done.append("cleaned up")

    saga = Saga("s", Step("a", hang, compensation=lambda: done.append("undone"), timeout=0.05, retry=ONCE))
    handle = Inline().start(saga)
    assert handle.status is SagaStatus.COMPENSATED
    assert "its timeout of 0.05 s expired" in str(handle.error)
    assert done == ["cleaned up", "undone"]


def test_a_timeout_of_its_own_stays_what_it_is() -> None:
    async def impatient() -> None:
        raise TimeoutError("the bank did not answer")

    with pytest.raises(TimeoutError, match="the bank"):
        finish(impatient(), 10)


def test_green_threads_run_their_coroutines_side_by_side() -> None:
    """In a process of its own, since it patches the standard library."""
    code = """
        from gevent import monkey
        monkey.patch_all()
        import gevent
        run = lambda calls: [each.get() for each in [gevent.spawn(call) for call in calls]]
        import asyncio, contextvars
        from sagas.functions import finish
        number = contextvars.ContextVar("number")
        met = []
        async def meet(i):
            met.append(i)
            while len(met) < 4:
                await asyncio.sleep(0.01)
            return number.get()
        def call(i):
            number.set(i)
            return finish(meet(i), 20)
        print(run([lambda i=i: call(i) for i in range(4)]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.strip() == "[0, 1, 2, 3]", ended.stderr
