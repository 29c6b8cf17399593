"""A number or a length of time that cannot be used is refused where it enters, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from sagas import (
    ConfigurationError,
    DefinitionError,
    Pivot,
    Retry,
    RetryableError,
    Saga,
    SagaError,
    Sagas,
    SagaStatus,
    SqlStore,
    Step,
)
from sagas.checkpoints import HistoryKind
from sagas.events import Events, Service, event
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.events.guards import StormGuard
from sagas.testing import Inline


def nothing() -> None: ...


def sagas(**options: Any) -> Sagas:
    return Sagas(Celery(broker="memory://", set_as_current=False), SqlStore("sqlite://"), **options)


def events(**options: Any) -> Events:
    return Events([], engine=SqlStore("sqlite://").engine, broker=MemoryBroker(), **options)


@event("shop.order.placed")
class Placed:
    number: int


def subscribed(**options: Any) -> None:
    Service("billing").on(Placed, name="bill", breaker=1, **options)(lambda event: None)


BAD = [math.inf, -math.inf, math.nan, -1, True, "30", None, 1e300, 10**400, timedelta(days=-1), timedelta.max, [1]]

DURATIONS: dict[str, tuple[Callable[[Any], Any], type[SagaError]]] = {
    "step": (lambda value: Step("a", nothing, timeout=value), DefinitionError),
    "pivot": (lambda value: Pivot("a", nothing, timeout=value), DefinitionError),
    "start": (lambda value: Step("a", nothing, start_timeout=value), DefinitionError),
    "saga": (lambda value: Saga("s", Step("a", nothing, compensation=None), timeout=value), DefinitionError),
    "delay": (lambda value: Retry(delay=value), DefinitionError),
    "max_delay": (lambda value: Retry(max_delay=value), DefinitionError),
    "lease": (lambda value: sagas(lease=value), ConfigurationError),
    "stall": (lambda value: sagas(redispatch_after=value), ConfigurationError),
    "sweep": (lambda value: sagas(recovery_interval=value), ConfigurationError),
    "inline": (lambda value: Inline(lease=value), ConfigurationError),
    "store": (lambda value: SqlStore("sqlite://", timeout=value), ConfigurationError),
    "relay": (lambda value: events(relay_interval=value), ConfigurationError),
    "breaker": (lambda value: subscribed(breaker_pause=value), DefinitionError),
    "rabbit lease": (lambda value: RabbitBroker("amqp://", lease=value), ConfigurationError),
    "rabbit timeout": (lambda value: RabbitBroker("amqp://", timeout=value), ConfigurationError),
    "redis lease": (lambda value: RedisBroker("redis://", lease=value), ConfigurationError),
    "kafka timeout": (lambda value: KafkaBroker("127.0.0.1:1", timeout=value), ConfigurationError),
}
_ALLOW_NONE = ("start", "saga")
_ALLOW_ZERO = ("delay", "max_delay")


@pytest.mark.parametrize("what", DURATIONS)
def test_lengths_of_time(what: str) -> None:
    define, error = DURATIONS[what]
    for value in [*BAD, *([] if what in _ALLOW_ZERO else [0, timedelta()])]:
        if value is None and what in _ALLOW_NONE:
            continue
        with pytest.raises(error, match="must be"):
            define(value)
    define(timedelta(seconds=90))
    define(1.5)


NUMBERS: dict[str, tuple[Callable[[Any], Any], type[SagaError]]] = {
    "attempts": (lambda value: Retry(max_attempts=value), DefinitionError),
    "deliveries": (lambda value: Step("a", nothing, max_deliveries=value), DefinitionError),
    "payload": (lambda value: sagas(max_payload=value), ConfigurationError),
    "window": (lambda value: events(prefetch=value), ConfigurationError),
    "concurrency": (lambda value: events(concurrency=value), ConfigurationError),
    "breaker": (
        lambda value: Service("billing").on(Placed, name="bill", breaker=value)(lambda event: None),
        DefinitionError,
    ),
    "hops": (lambda value: StormGuard(max_hops=value), ConfigurationError),
    "prefetch": (lambda value: RabbitBroker("amqp://", prefetch=value), ConfigurationError),
    "partitions": (lambda value: KafkaBroker("127.0.0.1:1", partitions=value), ConfigurationError),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_whole_numbers(what: str) -> None:
    define, error = NUMBERS[what]
    for value in [0, -1, 1.5, math.inf, math.nan, True, "3", 2**31, 10**400, [1]]:
        with pytest.raises(error, match="must be"):
            define(value)
    define(3)


@pytest.mark.parametrize("factor", [math.inf, math.nan, "2", True, 0.5, 10**400])
def test_factors(factor: Any) -> None:
    with pytest.raises(DefinitionError):
        Retry(factor=factor)
    with pytest.raises(DefinitionError):
        Retry(jitter=-factor if isinstance(factor, float) else factor)


def test_a_large_factor_and_a_long_history() -> None:
    assert (
        Retry(delay=timedelta(seconds=2), factor=1e300, jitter=0, max_delay=timedelta(minutes=1)).delay_after(9) == 60
    )
    assert Retry(delay=0, factor=1e300, jitter=0).delay_after(9) == 0


@pytest.mark.parametrize("after", [each for each in BAD if each is not None])
def test_when_to_try_again(after: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"RetryableError\('busy'\): after .*must be"):
        RetryableError("busy", after=after)


def test_when_to_try_again_may_be_a_timedelta_or_at_once() -> None:
    assert RetryableError(after=timedelta(minutes=1)).after == 60
    assert RetryableError(after=0).after == 0
    assert RetryableError().after is None


@pytest.mark.parametrize(
    ("header", "advice"), [("30", r"float\('30'\)"), ("Wed, 21 Oct 2026 07:28:00 GMT", "parsedate_to_datetime")]
)
def test_a_header_as_it_came_is_a_failed_attempt(header: str, advice: str) -> None:
    calls = []

    def charge() -> None:
        calls.append(header)
        if len(calls) < 3:
            raise RetryableError("429 of the bank", after=header)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=advice):
        RetryableError(after=header)  # type: ignore[arg-type]
    inline = Inline()
    handle = inline.start(Saga("s", Step("a", charge, compensation=None)))
    assert (handle.status, len(calls)) == (SagaStatus.COMPLETED, 3)
    failed = [
        entry.detail for entry in inline.store.queries.history(handle.id) if entry.what == HistoryKind.STEP_FAILED
    ]
    assert len(failed) == 2
    assert all("429 of the bank" in each and header in each for each in failed)
