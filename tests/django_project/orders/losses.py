"""The connection is lost at each moment of a step, and whenever a view uses it: Django's must recover, as by itself.

Run by Django's own runner, on PostgreSQL with and without a pool and on MariaDB: `tests/integration/test_django_lost.py`
does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Self
from unittest import mock

from django.db import DatabaseError, Error, OperationalError, close_old_connections, connection, transaction
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sagas import Retry, SagaError, SagaHandle, StepContext, StoreUnavailable, TerminalError
from sagas import Saga as Definition
from sagas import Step as Part
from sagas.contrib.django import atomic, engine, publish, sagas
from sagas.contrib.django.models import Saga
from tests.django_project.orders.events import OrderPlaced
from tests.django_project.orders.models import Effect, Order
from tests.django_project.orders.sagas import place_order
from tests.django_project.orders.tests import Committing, dispatches, elsewhere, given
from tests.servers import wait_for

#: What a view or a worker may see of a database that is gone.
LOST = (Error, SagaError)


def end_backend() -> None:
    """Have the server end the connection of this thread, which is not told."""
    raw: Any = connection.connection
    if raw is None:
        return
    if connection.vendor == "postgresql":
        statement, number = "select pg_terminate_backend(%s)", raw.info.backend_pid
    else:
        statement, number = "kill %s", raw.thread_id()

    def end() -> None:
        with connection.cursor() as cursor, suppress(DatabaseError):  # MariaDB: that it is gone already
            cursor.execute(statement, [number])

    elsewhere(end)


class Blow:
    """Ends the connection just before the nth thing that it is asked to do: a statement, a commit, a savepoint."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.asked = 0
        self.log: list[str] = []

    def count(self) -> None:
        self.asked += 1
        if self.asked == self.at:
            end_backend()

    def _statement(self, execute: Any, *arguments: Any) -> Any:
        self.log.append(arguments[0])
        self.count()
        return execute(*arguments)

    def __enter__(self) -> Self:
        def counted(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                self.log.append(getattr(method, "__name__", ""))
                self.count()
                return method(*arguments)

            return call

        self._patches = [
            mock.patch.object(connection, name, counted(getattr(connection, name)))
            for name in ("_commit", "_rollback", "_set_autocommit")
        ]
        for patch in self._patches:
            patch.start()
        self._wrapper = connection.execute_wrapper(self._statement)
        self._wrapper.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._wrapper.__exit__(*error)
        for patch in self._patches:
            patch.stop()


def assert_usable() -> None:
    """Django's connection works again, no later than it would by itself."""
    assert not connection.in_atomic_block
    assert not connection.atomic_blocks
    assert not connection.savepoint_ids
    close_old_connections()  # as Django does between requests, and Celery between tasks
    with suppress(DatabaseError):  # a loss that nobody has noticed yet costs one query, as with Django alone
        connection.cursor().execute("select 1")
    close_old_connections()
    assert Effect.objects.filter(what="anything").count() == 0
    with transaction.atomic():
        Effect.objects.create(what="a write")
    assert Effect.objects.filter(what="a write").delete()[0] == 1


def in_a_view() -> None:
    with transaction.atomic():
        Order.objects.create(number="1")
        place_order.start(given("1"), key="1")
        publish(OrderPlaced(number="1"))


def in_a_nested_block() -> None:
    with transaction.atomic():
        with suppress(*LOST), transaction.atomic():
            place_order.start(given("1"), key="1")
        Order.objects.create(number="1")


def alone() -> None:
    place_order.start(given("1"), key="1")


def with_a_session() -> None:
    with Session(engine()) as session, session.begin():
        session.execute(text("select 1"))
        place_order.start(given("1"), key="1", session=session)
        Order.objects.create(number="1")


def with_a_connection() -> None:
    with transaction.atomic(), engine().begin() as own:
        own.execute(text("select 1"))
        with transaction.atomic():
            Order.objects.create(number="1")
            own.execute(text("select 1"))


def read() -> None:
    place_order.start(given("1"), key="1").status  # noqa: B018
    sagas.find("place_order", "1")


def deep(step: StepContext) -> None:
    """Block in block, the ORM and SQLAlchemy in turns."""
    with atomic(step):
        Effect.objects.create(what="outer")
        with suppress(RuntimeError), transaction.atomic():
            step.session.execute(text("select 1"))
            Effect.objects.create(what="undone")
            raise RuntimeError
        with step.session.begin_nested():
            step.session.execute(text("select 1"))
    Effect.objects.create(what="after")


def catching(step: StepContext) -> None:
    step.session.connection()
    with suppress(*LOST), atomic(step):
        Effect.objects.create(what="in a block")
    with suppress(*LOST, SQLAlchemyError):
        step.session.execute(text("select 1"))


def declining(step: StepContext) -> None:
    with suppress(*LOST), atomic(step):
        Effect.objects.create(what="never")
    raise TerminalError("declined")


def closing(step: StepContext) -> None:
    with atomic(step):
        Effect.objects.create(what="in a block")
        connection.close()


def idle(step: StepContext) -> None:
    """What `idle_in_transaction_session_timeout` does, or a firewall."""
    with atomic(step):
        Effect.objects.create(what="in a block")
        end_backend()


def careless(step: StepContext) -> None:
    """Nobody closes the session."""
    session = Session(engine())
    kept.append(session)
    session.execute(text("select 1"))
    Effect.objects.create(what="with a session of the step's own")


kept: list[Session] = []
ONCE = Retry(max_attempts=1)
#: Each with the effects that it has when it counts as done.
STEPS = {deep: 2, catching: 1, declining: 0, closing: 0, idle: 0, careless: 0}
SAGAS = {place_order: 1} | {
    Definition(f"lost_{act.__name__}", Part("act", act, compensation=None, retry=ONCE)): effects
    for act, effects in STEPS.items()
}


#: Those need no blow.
_ALWAYS_LOST = {f"lost_{act.__name__}" for act in (closing, idle, careless)}


class LosingConnections(Committing):
    def setUp(self) -> None:
        known = sagas.orchestrator.sagas
        for saga in SAGAS:
            if (saga.name, 1) not in known:
                sagas.register(saga)
        with dispatches():  # what is asked once a process is asked
            self.first = place_order.start(given("0"), key="0")
        self._age = connection.settings_dict["CONN_MAX_AGE"]
        self.ages = [0] if connection.settings_dict["OPTIONS"].get("pool") else [0, 60, None]

    def tearDown(self) -> None:
        connection.settings_dict["CONN_MAX_AGE"] = self._age
        connection.close()

    def moments(self, do: Callable[[], None], fresh: Callable[[], None], stride: int = 1) -> Iterator[Blow]:
        """Do something again and again, with the connection lost one thing later each time, and say what came of it."""
        for at, age in zip(itertools.count(1, stride), itertools.cycle(self.ages), strict=False):
            connection.settings_dict["CONN_MAX_AGE"] = age
            fresh()
            connection.close()
            connection.ensure_connection()
            blow = Blow(at)
            with dispatches(), blow, suppress(*LOST, SQLAlchemyError):
                do()
            with self.subTest(at=at, age=age):
                assert_usable()
            yield blow
            if blow.asked < at:
                assert at > 1, "there was something to lose it at"
                return

    def fresh(self) -> None:
        with connection.cursor() as cursor:
            for table in ("sagas_step", "sagas_history", "sagas_dead_letter", "events_outbox", "orders_order"):
                cursor.execute(f"DELETE FROM {table}")
            cursor.execute(f"DELETE FROM sagas_saga WHERE id <> '{self.first.id}'")
            cursor.execute("DELETE FROM orders_effect")

    def test_whatever_a_view_does(self) -> None:
        for do in (in_a_view, in_a_nested_block, alone, with_a_session, with_a_connection, read):
            with self.subTest(do.__name__):
                for blow in self.moments(do, self.fresh):
                    stored, ordered = Saga.objects.filter(key="1").count(), Order.objects.count()
                    if do in (in_a_view, with_a_session):
                        assert stored == ordered, f"at {blow.at} one is there and not the other"

    def test_a_transaction_that_was_idle_for_too_long(self) -> None:
        if connection.vendor != "postgresql":
            self.skipTest("where nobody listens, the server ends it as it ends others")
        for call in (alone, read, lambda: publish(OrderPlaced(number="1"))):
            with dispatches(), self.assertRaises(OperationalError) as caught, transaction.atomic():
                Order.objects.create(number="1")
                with connection.cursor() as cursor:
                    cursor.execute("select pg_backend_pid()")
                    [[pid]] = cursor.fetchall()
                    cursor.execute("set local idle_in_transaction_session_timeout = 20")
                elsewhere(partial(_until_gone, pid))
                call()
            assert isinstance(caught.exception, StoreUnavailable)
            assert_usable()
        assert not Order.objects.exists()

    def test_whenever_a_step_is_at_work(self) -> None:
        for saga, effects in SAGAS.items():
            handles: list[SagaHandle] = []

            def fresh(saga: Definition = saga, handles: list[SagaHandle] = handles) -> None:
                self.fresh()
                with dispatches():
                    handles.append(saga.start(given("1") if saga is place_order else None, key="1"))

            def act(saga: Definition = saga, handles: list[SagaHandle] = handles) -> None:
                sagas.orchestrator.perform(handles[-1].id, next(iter(saga.steps)), 1)

            with self.subTest(saga.name):
                for blow in self.moments(act, fresh, 1 if saga is place_order else 2):
                    record = handles[-1].record
                    done = any(step.status == "DONE" for step in record.steps.values())
                    assert Effect.objects.count() == (effects if done else 0), (blow.at, record, blow.log)
                    if saga.name in _ALWAYS_LOST:
                        break


def _until_gone(pid: int) -> None:
    wait_for(lambda: not _is_there(pid), 20)


def _is_there(pid: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where pid = %s", [pid])
        return bool(cursor.fetchone()[0])


__all__ = ["LosingConnections"]
