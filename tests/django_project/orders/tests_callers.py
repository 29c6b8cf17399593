"""Callers in a Django project: many starts in one block, and async views. Run by `tests/integration/test_django.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from django.db import transaction
from django.test import AsyncClient, TestCase

from sagas import SagaStatus, StartStatus
from sagas.contrib.django import sagas
from sagas.contrib.django.models import Saga
from tests.django_project.orders.models import Order
from tests.django_project.orders.sagas import Placed, place_order
from tests.django_project.orders.tests import Committing, eagerly, given

STARTED, EXISTING, REFUSED = StartStatus.STARTED, StartStatus.EXISTING, StartStatus.REFUSED


class Stopped(Exception):
    """Ends a block."""


def inputs(*numbers: str) -> Iterator[tuple[Placed, str]]:
    return ((given(number), number) for number in numbers)


def sending() -> Any:
    """Collect the ids of the sagas that are sent to the broker, instead of sending them."""
    sent: list[str] = []
    patch = mock.patch.object(sagas.canvas, "dispatch_many", lambda plans: sent.extend(plan.saga_id for plan in plans))
    return sent, patch


class Many(Committing):
    def test_they_commit_with_the_block(self) -> None:
        sent, patch = sending()
        with patch:
            with transaction.atomic():
                Order.objects.create(number="1")
                results = place_order.start_many(inputs("1", "2", "1"))
                assert [result.status for result in results] == [STARTED, STARTED, EXISTING]
                assert sent == []
            assert sent == [result.handle.id for result in results[:2] if result.handle]
            place_order.start_many(inputs("3"))
            assert len(sent) == 3
        assert Saga.objects.count() == 3

    def test_and_roll_back_with_it(self) -> None:
        sent, patch = sending()
        with patch, self.assertRaises(Stopped), transaction.atomic():
            place_order.start_many(inputs("1", "2"))
            raise Stopped
        assert sent == []
        assert not Saga.objects.exists()

    def test_what_the_iterable_raises_costs_the_block_nothing(self) -> None:
        def broken() -> Iterator[tuple[Placed, str]]:
            yield from inputs(*map(str, range(600)))
            raise Stopped

        sent, patch = sending()
        with patch:
            with transaction.atomic():
                Order.objects.create(number="1")
                with self.assertRaises(Stopped):
                    place_order.start_many(broken())
            with self.assertRaises(Stopped):
                place_order.start_many(broken())
        assert Order.objects.count() == 1
        assert not Saga.objects.exists()
        assert sent == []

    def test_an_iterable_that_asks_the_database(self) -> None:
        Order.objects.bulk_create(Order(number=str(number)) for number in range(5))
        _, patch = sending()
        with patch:
            results = place_order.start_many((given(o.number), o.number) for o in Order.objects.iterator())
        assert [result.status for result in results] == [STARTED] * 5


class Asynchronously(Committing):
    async def test_a_view_starts_one_and_waits_for_its_end(self) -> None:
        with eagerly():
            answer = await AsyncClient().get("/order-await/", {"number": "1"})
        assert answer.content.endswith(b"COMPLETED")
        assert await Saga.objects.acount() == 1

    async def test_many_wait_and_take_no_thread_each(self) -> None:
        with eagerly():
            results = await place_order.astart_many(inputs(*map(str, range(20))))
        before = threading.active_count()
        handles = [result.handle for result in results if result.handle]
        ends = await asyncio.gather(*(handle.await_end(timeout=20) for handle in handles))
        assert ends == [SagaStatus.COMPLETED] * 20
        assert threading.active_count() <= before + 2


class AsynchronouslyInOneTransaction(TestCase):
    async def test_it_sees_what_the_test_has_not_committed(self) -> None:
        with mock.patch.object(sagas.canvas, "dispatch_or_leave"):
            handle = await place_order.astart(given("1"), key="1")
        assert await handle.astatus() is SagaStatus.PENDING
        assert await sagas.afind("place_order", "1") == handle
        with self.assertRaisesRegex(TimeoutError, "it is PENDING"):
            await handle.await_end(timeout=0.1)
        assert await handle.acancel() is SagaStatus.COMPENSATED
        assert await handle.await_end(timeout=5) is SagaStatus.COMPENSATED
