"""Run by Django's own runner, on each database: `tests/integration/test_django.py` does."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core import serializers
from django.core.management import CommandError, call_command
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    models,
    router,
    transaction,
)
from django.test import AsyncClient, Client, TestCase, TransactionTestCase
from sqlalchemy import cast, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sagas import (
    ConfigurationError,
    KeyConflict,
    NotAllowed,
    Retry,
    SagaHandle,
    SagaNotFound,
    SagaStatus,
    SqlStore,
    StepContext,
    StoreRefused,
    StoreUnavailable,
)
from sagas import Saga as Definition
from sagas import Step as Part
from sagas.contrib.django import atomic, engine, publish, sagas
from sagas.contrib.django.models import DeadLetter, HistoryEntry, InboxMessage, OutboxMessage, Saga, Step
from sagas.events import Envelope, Events, HandlerContext, Service
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Batch, Call, End
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.stores import migrate, retention, schema
from sagas.stores.retention import Expired
from sagas.testing import Inline
from tests.django_project.orders.events import OrderPlaced, events
from tests.django_project.orders.models import Effect, Order, Parcel
from tests.django_project.orders.sagas import Placed, place_order


def given(number: str, fault: str = "") -> Placed:
    return {"number": number, "card": "4111", "fault": fault}


@contextmanager
def dispatches() -> Iterator[list[str]]:
    """Collect the names of the steps that are sent to the broker, instead of sending them."""
    sent: list[str] = []
    with mock.patch.object(
        sagas.canvas, "dispatch", lambda plan, **_: sent.extend(plan.stages[0].steps if plan else ())
    ):
        yield sent


#: The tables of sagas and events that rows are written to here, each after those that refer to it.
OURS = ("sagas_step", "sagas_history", "sagas_dead_letter", "sagas_saga", "events_outbox", "events_inbox")


class Stopped(Exception):
    pass


class Committing(TransactionTestCase):
    """Real commits. What they leave is deleted here: Django's own way takes a second a test."""

    databases = ("default", "other")

    def _fixture_teardown(self) -> None:
        with connection.cursor() as cursor:
            for table in ("orders_order", "orders_effect", "orders_parcel", *OURS):
                cursor.execute(f"DELETE FROM {table}")


class InTransactions(Committing):
    def test_the_row_the_saga_and_the_event_commit_together(self) -> None:
        with dispatches() as sent:
            with transaction.atomic():
                Order.objects.create(number="1")
                handle = place_order.start(given("1"), key="1")
                publish(OrderPlaced(number="1"))
                assert handle.status is SagaStatus.PENDING, "within the transaction it can be read"
                assert sent == []
            assert sent == ["reserve"]
        assert handle.status is SagaStatus.PENDING
        assert Saga.objects.get().id == handle.id
        assert OutboxMessage.objects.count() == 1

    def test_and_roll_back_together(self) -> None:
        with dispatches() as sent, self.assertRaises(Stopped), transaction.atomic():
            Order.objects.create(number="1")
            handle = place_order.start(given("1"))
            publish(OrderPlaced(number="1"))
            raise Stopped
        assert sent == []
        with self.assertRaises(SagaNotFound):
            handle.status  # noqa: B018
        assert not Order.objects.exists()
        assert not OutboxMessage.objects.exists()

    def test_a_savepoint_takes_its_saga_along(self) -> None:
        with dispatches() as sent, transaction.atomic():
            with self.assertRaises(Stopped), transaction.atomic():
                place_order.start(given("1"))
                raise Stopped
            kept = place_order.start(given("2"))
        assert sent == ["reserve"]
        assert [saga.id for saga in Saga.objects.all()] == [kept.id]

    def test_outside_of_a_transaction_it_is_launched_at_once(self) -> None:
        with dispatches() as sent:
            handle = place_order.start(given("1"))
            assert sent == ["reserve"]
        assert handle.status is SagaStatus.PENDING

    def test_a_transaction_on_another_database_is_another(self) -> None:
        with dispatches() as sent, self.assertRaises(Stopped), transaction.atomic(using="other"):
            place_order.start(given("1"))
            assert sent == ["reserve"]
            raise Stopped
        assert Saga.objects.count() == 1

    def test_with_autocommit_off_it_is_the_caller_who_commits(self) -> None:
        with dispatches() as sent:
            for end in (transaction.rollback, transaction.commit):
                transaction.set_autocommit(False)
                try:
                    Order.objects.create(number="1")
                    handle = place_order.start(given("1"), key="1")
                    publish(OrderPlaced(number="1"))
                    assert handle.status is SagaStatus.PENDING
                    assert sent == []
                    end()
                finally:
                    transaction.set_autocommit(True)
                assert Saga.objects.count() == OutboxMessage.objects.count() == Order.objects.count() == len(sent)
        assert sent == ["reserve"]

    def test_what_is_refused_costs_the_caller_nothing(self) -> None:
        with dispatches():
            first = place_order.start(given("1"), key="1")
            with transaction.atomic():
                Order.objects.create(number="1")
                assert place_order.start(given("1"), key="1") == first
                with self.assertRaises(KeyConflict):
                    place_order.start(given("2"), key="1")
                with self.assertRaises(DBAPIError), engine().begin() as own:  # SQLAlchemy's own, by one's own will
                    own.execute(text("insert into no_such_table values (1)"))
                Order.objects.create(number="2")
        assert Order.objects.count() == 2

    def test_atomic_requests(self) -> None:
        client = Client(raise_request_exception=False)
        with dispatches() as sent, mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            assert client.get("/order/", {"number": "1", "fail": ""}).status_code == 500
            assert not Saga.objects.exists()
            assert sent == []
            assert client.get("/order/", {"number": "2"}).content.endswith(b"True")
        assert sent == ["reserve"]
        assert [order.number for order in Order.objects.all()] == ["2"]

    async def test_an_async_view(self) -> None:
        with dispatches() as sent:
            answer = await AsyncClient().get("/order-async/", {"number": "1"})
        assert answer.content.endswith(b"PENDING")
        assert sent == ["reserve"]

    def test_operators_launch_after_the_commit_too(self) -> None:
        with dispatches() as sent:
            handle = place_order.start(given("1"))
            with transaction.atomic():
                Operations(sagas).act(Action.RESUME, handle.id, actor="ann", reason="now")
                assert sent == ["reserve"]
            assert sent == ["reserve", "reserve"]

    def test_what_steps_write_commits_with_their_success(self) -> None:
        Order.objects.create(number="1")
        handle = Inline(sagas.store).start(place_order, given("1", "raise"))
        assert handle.status is SagaStatus.COMPLETED, handle.error
        assert [effect.what for effect in Effect.objects.all()] == ["reserve 1"]
        assert Order.objects.get().number == "1 confirmed"
        assert HistoryEntry.objects.get(saga=handle.id).detail == "RuntimeError: after its effect"
        assert not connection.in_atomic_block
        undone = Inline(sagas.store).start(place_order, given("2", "declined"))
        assert undone.status is SagaStatus.COMPENSATED
        assert Effect.objects.count() == 1

    def test_an_error_of_a_hook_is_no_failure_of_the_step(self) -> None:
        handle = Inline(sagas.store).start(place_order, given("1", "hook"))
        assert handle.status is SagaStatus.COMPLETED
        assert Effect.objects.count() == 1

    def test_a_late_effect_is_rolled_back(self) -> None:
        """The saga turned back while the action was at work."""
        if connection.vendor == "sqlite":
            self.skipTest("SQLite has one writer, so nobody can turn the saga back meanwhile")

        with dispatches():
            handle = place_order.start(given("1", "overtaken"))
            turned = mock.Mock(side_effect=lambda *_: elsewhere(handle.cancel))
            with mock.patch("tests.django_project.orders.sagas._fault", turned):
                sagas.orchestrator.perform(handle.id, "reserve", 1)
        turned.assert_called_once()
        assert not Effect.objects.exists()
        assert handle.status is not SagaStatus.COMPLETED

    def test_handlers_of_events_share_their_transaction_too(self) -> None:
        events.apply_topology()
        publish(OrderPlaced(number="refused"))
        consumers = events.consumers(_here(events.handle), ["mail.thank"])
        consumers.start()
        try:
            events.relay.send()
            _wait(lambda: Effect.objects.filter(what="mail refused").exists())
        finally:
            consumers.stop(grace=5.0)
            consumers.join(10.0)
        assert Effect.objects.filter(what="mail refused").count() == 1

    def test_what_is_rolled_back_or_ended_in_silence_is_no_success(self) -> None:
        """Django rolls a block back, and says nothing, after an error that was caught in it."""
        Order.objects.create(number="there")

        def caught(_session: Session) -> None:
            with suppress(IntegrityError):
                Order.objects.create(number="there")

        def set_rollback(_session: Session) -> None:
            transaction.set_rollback(True)

        def commit(session: Session) -> None:
            session.commit()

        def commit_below(session: Session) -> None:
            session.connection().commit()

        def driver(session: Session) -> None:
            session.connection()
            connection.connection.rollback()

        for misdeed in (caught, set_rollback, commit, commit_below, driver):
            with self.subTest(misdeed.__name__):

                def careless(step: StepContext, misdeed: Callable[[Session], None] = misdeed) -> None:
                    with atomic(step):
                        Effect.objects.create(what="step")
                    misdeed(step.session)

                once = Retry(max_attempts=1)
                saga = Definition(
                    f"careless_{misdeed.__name__}", Part("act", _with_step(careless), compensation=None, retry=once)
                )
                handle = Inline(sagas.store).start(saga)
                assert handle.status is SagaStatus.COMPENSATED, handle.status
                assert not Effect.objects.exists()
                assert not connection.in_atomic_block

                shop = Service("shop")

                def handler(event: OrderPlaced, context: HandlerContext, misdeed: Any = misdeed) -> None:
                    Effect.objects.create(what=f"handler {event.number}")
                    misdeed(context.session)

                shop.on(OrderPlaced, name="act")(_with_context(handler))
                own = Events([shop], engine=engine(), broker=MemoryBroker())
                envelope = Envelope.wrap(OrderPlaced(number="1"), source="orders")
                outcome = own.handle(
                    Call(queue="shop.act", topic=envelope.topic, body=envelope.encode(), attempt=1, redelivered=False)
                )
                assert outcome.end in (End.FAILED, End.REJECTED), outcome
                assert not Effect.objects.exists()
                assert not InboxMessage.objects.exists()
                assert not connection.in_atomic_block

    def test_a_batch_of_messages_is_one_block(self) -> None:
        shop = Service("shop")

        def handler(event: OrderPlaced, _: HandlerContext) -> None:
            Effect.objects.create(what=f"batch {event.number}")
            if event.number == "caught":
                with suppress(IntegrityError):
                    Order.objects.create(number="there")
            if event.number == "bad":
                raise RuntimeError("bad")

        def handle(*numbers: str) -> list[End]:
            envelopes = [Envelope.wrap(OrderPlaced(number=number), source="orders") for number in numbers]
            calls = tuple(
                Call(queue="shop.act", topic=each.topic, body=each.encode(), attempt=1, redelivered=False)
                for each in envelopes
            )
            return [outcome.end for outcome in own.handle(Batch(calls))]

        Order.objects.create(number="there")
        shop.on(OrderPlaced, name="act", batch_size=10)(_with_context(handler))
        own = Events([shop], engine=engine(), broker=MemoryBroker())
        assert handle("1", "2") == [End.HANDLED] * 2
        assert handle("3", "bad", "4") == [End.ROLLED_BACK] * 3
        assert handle("5", "caught", "6") == [End.ROLLED_BACK] * 3
        assert sorted(effect.what for effect in Effect.objects.all()) == ["batch 1", "batch 2"]
        assert InboxMessage.objects.count() == 2
        assert not connection.in_atomic_block

    def test_blocks_that_cross_are_refused(self) -> None:
        with Session(engine()) as outer, Session(engine()) as inner:
            outer.execute(text("select 1"))
            inner.execute(text("select 1"))
            with self.assertRaisesMessage(ConfigurationError, "End them in reverse order"):
                outer.commit()
        assert not connection.in_atomic_block

    def test_the_runner_empties_the_tables_but_for_the_shards(self) -> None:
        with dispatches():
            place_order.start(given("1"))
        call_command("flush", interactive=False, verbosity=0)
        assert not Saga.objects.exists()
        with engine().connect() as own:
            assert own.execute(text("select count(*) from events_relay_shard")).scalar() == 16

    def test_an_engine_that_asked_before_counts_no_queries_of_its_own(self) -> None:
        counts = []
        with dispatches():
            for number in ("1", "2"):
                with self.assertNumQueries(_Any()) as counted, transaction.atomic():
                    place_order.start(given(number))
                counts.append(len(counted))
        assert counts[0] == counts[1] <= 7, (
            counts
        )  # with BEGIN and COMMIT, a savepoint and its release, and perhaps the time

    def test_a_connection_that_was_lost_is_renewed(self) -> None:
        if connection.vendor != "postgresql":
            self.skipTest("only PostgreSQL lets it be cut here")
        with dispatches():
            place_order.start(given("1"))
            with connections["default"].cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                [pid] = cursor.fetchone()
            elsewhere(lambda: _end(pid))
            assert place_order.start(given("2")).status is SagaStatus.PENDING

    def test_moments_keep_their_time_zone(self) -> None:
        with dispatches():
            handle = place_order.start(given("1"))
        assert abs((sagas.store.now() - handle.record.created_at).total_seconds()) < 60
        with engine().connect() as own:
            read = own.execute(schema.sagas.select()).mappings().one()["created_at"]
            if connection.vendor == "postgresql":
                assert own.execute(select(cast({"a": 1}, JSONB))).scalar() == {"a": 1}
        assert read == handle.record.created_at


class Refusals(Committing):
    """What callers are told is what Django's people catch, and an error of the library; never one of SQLAlchemy's."""

    def setUp(self) -> None:
        with dispatches():
            self.handle = place_order.start(given("1"), key="1")
        self.calls: dict[str, Callable[[], object]] = {
            "start": lambda: place_order.start(given("2"), key="2"),
            "start again": lambda: place_order.start(given("1"), key="1"),
            "publish": lambda: publish(OrderPlaced(number="1")),
            "handle": lambda: sagas.handle(self.handle.id),
            "find": lambda: sagas.find("place_order", "1"),
            "status": lambda: self.handle.status,
            "cancel": self.handle.cancel,
            "compensate": lambda: sagas.compensate(self.handle.id, reason="x"),
            "list": lambda: sagas.store.queries.select(),  # type: ignore[attr-defined]
            "history": lambda: sagas.store.queries.history(self.handle.id),
            "operators": lambda: Operations(sagas).act(Action.RESUME, self.handle.id, actor="ann", reason="x"),
        }

    def refused(self, names: set[str], said: str, error: type[Exception]) -> None:
        for name in names:
            with self.subTest(name), dispatches(), transaction.atomic():
                with self.assertRaisesRegex(DatabaseError, said) as caught:
                    self.calls[name]()
                assert isinstance(caught.exception, error), caught.exception
                assert "4111" not in repr(caught.exception)
                transaction.set_rollback(True)
        assert not connection.in_atomic_block

    def test_in_a_block_that_has_failed(self) -> None:
        for name, call in self.calls.items():
            with self.subTest(name), dispatches(), transaction.atomic():
                with suppress(DatabaseError), connection.cursor() as cursor:
                    cursor.execute("select nonsense")
                if connection.vendor != "postgresql":  # the others go on
                    transaction.set_rollback(True)
                with self.assertRaisesRegex(
                    DatabaseError, "put code that may fail into its own atomic block"
                ) as caught:
                    call()
                assert isinstance(caught.exception, StoreRefused)
                transaction.set_rollback(True)

    def test_without_the_right_to_write(self) -> None:
        if connection.vendor == "sqlite":
            self.skipTest("it has no rights")
        only_reads = "set session characteristics as transaction read only"
        if connection.vendor == "mysql":
            only_reads = "set session transaction read only"
        with connection.cursor() as cursor:
            cursor.execute(only_reads)
        try:
            writes = {"start", "publish", "cancel", "compensate", "operators"}
            self.refused(writes, "grant it SELECT, INSERT, UPDATE and DELETE", StoreRefused)
            assert self.handle.status is SagaStatus.PENDING
        finally:
            connection.close()

    def test_while_the_database_is_away(self) -> None:
        if connection.vendor == "sqlite":
            self.skipTest("it is never away")
        connection.close()
        with mock.patch.dict(connection.settings_dict, PORT="1"), dispatches():
            for name, call in self.calls.items():
                with self.subTest(name), self.assertRaises(OperationalError) as caught:
                    call()
                assert isinstance(caught.exception, StoreUnavailable)
            with self.assertRaises(OperationalError), transaction.atomic():
                place_order.start(given("2"), key="2")
        assert not connection.in_atomic_block
        assert self.handle.status is SagaStatus.PENDING

    def test_without_their_tables(self) -> None:
        if connection.vendor == "mysql":
            self.skipTest("it commits what renames a table")
        with self.assertRaises(Stopped), transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE events_outbox RENAME TO away")
            with self.assertRaisesRegex(DatabaseError, "manage.py migrate"):
                publish(OrderPlaced(number="1"))
            raise Stopped

    def test_a_row_that_refers_to_a_saga_keeps_it(self) -> None:
        done = Inline(sagas.store).start(place_order, given("3"), key="3")
        parcel = Parcel.objects.create(saga_id=done.id)
        which = Expired(older_than=timedelta(microseconds=1))
        with self.assertRaisesRegex(StoreRefused, "ON DELETE SET NULL or CASCADE"):
            list(retention.purge(sagas.store, which, reason="old"))  # type: ignore[arg-type]
        assert Parcel.objects.get().saga.key == "3"
        parcel.delete()
        assert sum(retention.purge(sagas.store, which, reason="old")) == 1  # type: ignore[arg-type]


class InOneTransaction(TestCase):
    """Django's `TestCase`: everything is in a transaction that is rolled back."""

    def test_what_follows_the_commit_can_be_seen(self) -> None:
        with dispatches() as sent:
            with self.captureOnCommitCallbacks(execute=True):
                handle = place_order.start(given("1"))
                assert sent == []
            assert sent == ["reserve"]
        assert handle.status is SagaStatus.PENDING

    def test_a_saga_runs_inline(self) -> None:
        assert Inline(sagas.store).start(place_order, given("1")).status is SagaStatus.COMPLETED
        assert Inline(sagas.store).start(place_order, given("2", "declined")).status is SagaStatus.COMPENSATED
        assert Effect.objects.get().what == "reserve 1"

    def test_a_saga_that_is_kept_elsewhere_is_refused_its_block(self) -> None:
        store = SqlStore("sqlite://")
        store.upgrade()
        for inline in (Inline(), Inline(store)):
            handle = inline.start(place_order, given("1"))
            assert handle.status is SagaStatus.STUCK, "its compensation is refused, too"
            assert "In tests use Inline(sagas.store)" in (handle.error or "")
        assert not Effect.objects.exists()

    def test_the_tables_are_read_and_not_written(self) -> None:
        handle = Inline(sagas.store).start(place_order, given("1", "broken_charge"))
        saga = Saga.objects.get(pk=handle.id)
        assert (str(saga.name), saga.status) == ("place_order", "STUCK")
        assert Step.objects.filter(saga=saga, status="STUCK").get().node == "charge"
        assert DeadLetter.objects.get().saga == saga
        for write in (saga.save, saga.delete, Saga.objects.all().delete, lambda: Saga.objects.update(status="x")):
            with self.assertRaises(NotAllowed):
                write()

    def test_a_block_of_a_step_can_fail_alone(self) -> None:
        def twice(step: StepContext) -> None:
            with atomic(step):
                Order.objects.create(number="1")
            with self.assertRaises(IntegrityError), atomic(step):
                Order.objects.create(number="1")
            Order.objects.create(number="2")

        handle = Inline(sagas.store).start(Definition("twice", Part("twice", twice, compensation=None)))
        assert handle.status is SagaStatus.COMPLETED
        assert Order.objects.count() == 2


@contextmanager
def eagerly() -> Iterator[None]:
    """Have `CELERY_TASK_ALWAYS_EAGER` on, as the settings of many test suites have it."""
    sagas.app.conf.update(task_always_eager=True, task_eager_propagates=True)
    try:
        yield
    finally:
        sagas.app.conf.update(task_always_eager=False, task_eager_propagates=False)


class Eagerly(TestCase):
    """A saga that is started in a `TestCase` runs when the callbacks of the commit do, on the test's own connection."""

    def run(self, result: Any = None) -> Any:
        with eagerly():
            return super().run(result)

    def test_it_runs_when_the_callbacks_do(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks, transaction.atomic():
            Order.objects.create(number="1")
            handle = place_order.start(given("1"))
            self.assertIs(handle.status, SagaStatus.PENDING)
        self.assertTrue(callbacks)
        self.assertIs(handle.status, SagaStatus.COMPLETED)
        self.assertEqual(Order.objects.get().number, "1 confirmed")
        self.assertEqual(Effect.objects.get().what, "reserve 1")

    def test_a_decline_is_undone_and_not_raised(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            handle = place_order.start(given("1", "declined"))
        self.assertIs(handle.status, SagaStatus.COMPENSATED)
        self.assertFalse(Effect.objects.exists())

    def test_a_flaw_is_raised_at_the_end(self) -> None:
        away = self.assertRaisesRegex(RuntimeError, "the bank is away")
        with away, self.captureOnCommitCallbacks(execute=True):
            handle = place_order.start(given("1", "broken_charge"))
        self.assertIs(handle.status, SagaStatus.STUCK)

    def test_nothing_runs_without_the_callbacks(self) -> None:
        handle = place_order.start(given("1"))
        self.assertIs(handle.status, SagaStatus.PENDING)

    def test_a_view(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            answer = self.client.get("/order/", {"number": "1"})
        self.assertEqual(answer.status_code, 200)
        self.assertIs(sagas.find("place_order", "1").status, SagaStatus.COMPLETED)
        self.assertEqual(Order.objects.get().number, "1 confirmed")

    def test_what_a_step_wrote_before_it_failed_is_rolled_back(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            handle = place_order.start(given("1", "raise"))
        self.assertIs(handle.status, SagaStatus.COMPLETED)
        self.assertEqual(Effect.objects.count(), 1)


class EagerlyWithCommits(Committing):
    def test_it_runs_after_the_commit_of_the_block(self) -> None:
        with eagerly():
            with transaction.atomic():
                Order.objects.create(number="1")
                handle = place_order.start(given("1"))
                assert Saga.objects.get().status == "PENDING"
            assert handle.status is SagaStatus.COMPLETED
            assert place_order.start(given("2")).status == "COMPLETED", "and at once outside of one"
        assert not connection.in_atomic_block

    def test_what_is_rolled_back_never_runs(self) -> None:
        with eagerly(), self.assertRaises(Stopped), transaction.atomic():
            place_order.start(given("1"))
            raise Stopped
        assert not Effect.objects.exists()

    def test_a_flaw_is_raised_by_the_block(self) -> None:
        with eagerly(), self.assertRaisesRegex(RuntimeError, "the bank is away"), transaction.atomic():
            place_order.start(given("1", "broken_charge"), key="1")
        assert sagas.find("place_order", "1").status is SagaStatus.STUCK
        assert not connection.in_atomic_block


class InTheAdmin(TestCase):
    """What people see of sagas and do to them."""

    def setUp(self) -> None:
        self.stuck = Inline(sagas.store).start(place_order, given("stuck", "broken_charge"), key="stuck")
        self.done = Inline(sagas.store).start(place_order, given("done"), key="done")
        self.ann = User.objects.create_user("ann", is_staff=True)
        self.permit("view_saga", "operate_saga")
        self.client.force_login(self.ann)

    def permit(self, *names: str) -> None:
        self.ann.user_permissions.set(Permission.objects.filter(codename__in=names))

    def page(self, handle: SagaHandle) -> str:
        page: str = self.client.get(f"/admin/sagas/saga/{handle.id}/change/").content.decode()
        return page

    def test_the_list_finds_them(self) -> None:
        def keys(**query: str) -> set[str]:
            answer = self.client.get("/admin/sagas/saga/", query)
            return {saga.key for saga in answer.context["cl"].result_list}

        assert keys() == {"stuck", "done"}
        assert keys(status="attention") == keys(status="STUCK") == {"stuck"}
        assert keys(q="done") == keys(q=self.done.id[:30]) == {"done"} or keys(q=self.done.id) == {"done"}
        assert keys(name="place_order", status="COMPLETED") == {"done"}

    def test_a_page_shows_everything_but_what_is_masked(self) -> None:
        page = self.page(self.stuck)
        for shown in (
            "the bank is away",
            "saga-stuck",
            "charge",
            "•••",
            "Retry charge",
            "Mark done charge",
            "Compensate",
        ):
            assert shown in page, shown
        assert "4111" not in page
        assert "Retry" not in self.page(self.done)

    def test_an_action_takes_a_reason_and_leaves_who_and_why(self) -> None:
        url = f"/admin/sagas/saga/{self.stuck.id}/retry/do/?step=charge"
        assert "This field is required" in self.client.post(url, {"reason": " "}).content.decode()
        assert self.stuck.status is SagaStatus.STUCK
        assert "stuck" in self.client.get(url).content.decode()
        answer = self.client.post(url, {"reason": "the bank is back"}, follow=True)
        assert "Retry charge: the saga is now RUNNING." in answer.content.decode()
        entry = sagas.store.queries.history(self.stuck.id)[-1]
        assert entry.actor == "ann"
        assert "the bank is back" in entry.detail
        log = LogEntry.objects.get()
        assert (log.user, log.object_id, log.get_change_message()) == (
            self.ann, self.stuck.id, "Retry charge: the bank is back",
        )  # fmt: skip
        redelivered = self.client.post(url, {"reason": "twice"}, follow=True)
        assert "none of its steps is stuck" in redelivered.content.decode()
        assert LogEntry.objects.count() == 1

    def test_a_step_is_marked_done_with_its_result(self) -> None:
        url = f"/admin/sagas/saga/{self.stuck.id}/mark-done/do/?step=charge"
        assert "This is not JSON" in self.client.post(url, {"reason": "x", "result": "receipt-7"}).content.decode()
        answer = self.client.post(url, {"reason": "by hand", "result": '"receipt-7"'}, follow=True)
        assert "the saga is now RUNNING" in answer.content.decode()
        assert self.stuck.record.step("charge").result == '"receipt-7"'

    def test_many_at_once(self) -> None:
        chosen = {"action": "skip", "_selected_action": [self.stuck.id, self.done.id]}
        asked = self.client.post("/admin/sagas/saga/", chosen).content.decode()
        assert "Kept in the saga&#x27;s history" in asked
        assert self.stuck.record.step("charge").status == "STUCK"
        answer = self.client.post("/admin/sagas/saga/", {**chosen, "reason": "written off"}, follow=True)
        page = answer.content.decode()
        assert "1 of 2 sagas done" in page
        assert "none of its steps is stuck" in page
        assert self.stuck.status is SagaStatus.RUNNING
        assert LogEntry.objects.count() == 1

    def test_who_may_only_look_does_nothing(self) -> None:
        self.permit("view_saga")
        assert "Retry" not in self.page(self.stuck)
        assert "Skip selected" not in self.client.get("/admin/sagas/saga/").content.decode()
        url = f"/admin/sagas/saga/{self.stuck.id}/retry/do/?step=charge"
        assert self.client.post(url, {"reason": "x"}).status_code == 403
        chosen = {"action": "skip", "_selected_action": [self.stuck.id], "reason": "x"}
        self.client.post("/admin/sagas/saga/", chosen)
        assert self.stuck.status is SagaStatus.STUCK
        self.permit()
        assert self.client.get(f"/admin/sagas/saga/{self.stuck.id}/change/").status_code == 403

    def test_nothing_is_added_changed_or_deleted(self) -> None:
        self.permit("view_saga", "operate_saga")
        assert self.client.get("/admin/sagas/saga/add/").status_code == 403
        assert self.client.post(f"/admin/sagas/saga/{self.done.id}/delete/").status_code == 403
        assert self.client.get("/admin/sagas/saga/nonsense/change/").status_code == 404


class Tables(Committing):
    """The tables that Django's migrations make are those of the library."""

    def test_they_are_those_of_the_library(self) -> None:
        with engine().connect() as own:
            context = MigrationContext.configure(
                own, opts={"compare_type": True, "version_table": migrate.VERSION_TABLE}
            )
            ours = set(schema.metadata.tables)
            differences = [
                difference for difference in compare_metadata(context, schema.metadata)
                if _table_of(difference) in ours
            ]  # fmt: skip
        names = sorted(name for app, name in _migrations() if app == "sagas")
        assert not differences, (
            f"Django's migrations do not lead to sagas/stores/schema.py: {differences}\nAfter the library's own "
            "migration in sagas/stores/migrations/versions, add "
            f"sagas/contrib/django/migrations/{len(names) + 1:04}_what.py with UpgradeTables({migrate.head()!r}, "
            "before=<the revision that the one before it leads to>), as 0001_initial.py does, and mend models.py"
        )
        assert migrate.current(engine()) == migrate.head()

    def test_every_column_is_in_a_model(self) -> None:
        models_of = {model._meta.db_table: model for model in apps.get_app_config("sagas").get_models()}
        seeded = {"events_relay_shard", "events_position"}
        for name, table in schema.metadata.tables.items():
            if name in seeded:
                continue
            assert name in models_of, f"{name} has no model: add one to sagas/contrib/django/models.py"
            fields: list[models.Field[Any, Any]] = list(models_of[name]._meta.concrete_fields)
            assert {field.column for field in fields} == {column.name for column in table.columns}, name
            nullable = {field.column for field in fields if field.null}
            assert nullable == {column.name for column in table.columns if column.nullable}, name
        assert set(models_of) <= set(schema.metadata.tables)

    def test_rows_are_told_apart_by_their_whole_key(self) -> None:
        for model in apps.get_app_config("sagas").get_models():
            table = schema.metadata.tables[model._meta.db_table]
            key = tuple(column.name for column in table.primary_key)
            if len(key) == 1:
                assert key == (model._meta.pk.column,), f"{model}: the key of {table} is {key}"
            else:
                assert getattr(model, "whole_key", None) == key, f"{model}: whole_key must be {key}"
        handle = Inline(sagas.store).start(place_order, given("1"))
        steps = list(Step.objects.filter(saga=handle.id))
        assert len(set(steps)) == len(steps) == 3
        for step in steps:
            seq, step.started_seq = step.started_seq, 0
            step.refresh_from_db()
            assert step.started_seq == seq
            assert steps.index(step) == steps.index(Step.objects.get(saga=handle.id, node=step.node))

    def test_sagas_are_not_in_dumps_and_are_not_loaded(self) -> None:
        Order.objects.create(number="1")
        handle = Inline(sagas.store).start(place_order, given("2", "broken_charge"))
        dumps = []
        for database in ("default", "other"):
            said = StringIO()
            call_command("dumpdata", database=database, stdout=(dump := StringIO()), stderr=said)
            assert "excludes the tables of sagas" in said.getvalue()
            dumps.append(dump.getvalue())
        assert {row["model"].split(".")[0] for row in json.loads(dumps[0])} >= {"orders"}
        assert '"sagas.' not in dumps[0]
        for label in ("sagas", "sagas.Step"):
            with self.assertRaisesMessage(CommandError, "sagas cannot be fixtures"):
                call_command("dumpdata", label, stdout=StringIO())
        with TemporaryDirectory() as folder:
            fixture = Path(folder) / "made_elsewhere.json"
            rows = [Order(pk=7, number="7"), *Saga.objects.all(), *Step.objects.all()]
            fixture.write_text(serializers.serialize("json", rows))
            with self.assertRaisesMessage(NotAllowed, "loaddata --exclude sagas"):
                call_command("loaddata", str(fixture), verbosity=0)
            assert not Order.objects.filter(pk=7).exists()
            call_command("loaddata", str(fixture), exclude=["sagas"], verbosity=0)
            assert Order.objects.filter(pk=7).exists()
        assert handle.status is SagaStatus.STUCK

    def test_inspectdb_leaves_them_alone(self) -> None:
        call_command("inspectdb", stdout=(said := StringIO()))
        found = set(re.findall(r"db_table = '(\w+)'", said.getvalue()))
        assert {"orders_order", "django_session"} <= found
        assert not found & {*schema.metadata.tables, migrate.VERSION_TABLE}
        call_command("inspectdb", "sagas_saga", stdout=(said := StringIO()))
        assert "db_table = 'sagas_saga'" in said.getvalue()

    def test_a_router_without_an_opinion_leaves_them_in_one_database(self) -> None:
        class Silent:
            def allow_migrate(self, *_: Any, **__: Any) -> None: ...
            def db_for_read(self, *_: Any, **__: Any) -> str | None:
                return "other"

        handle = Inline(sagas.store).start(place_order, given("1"))
        with mock.patch.object(router, "routers", [*router.routers, Silent()]):
            assert not router.allow_migrate_model("other", Saga)
            assert router.allow_migrate_model("default", Saga)
            [entry] = HistoryEntry.objects.filter(saga=handle.id)[:1] or [None]
            saga = Saga.objects.get(pk=handle.id)
            assert Saga._base_manager.get(pk=handle.id) == saga
            assert list(saga.history.all()) == ([entry] if entry else [])
            assert connections["other"].creation.serialize_db_to_string()

    def test_everything_public_says_what_it_is(self) -> None:
        package = importlib.import_module("sagas.contrib.django")
        for found in pkgutil.walk_packages(package.__path__, "sagas.contrib.django."):
            module = importlib.import_module(found.name)
            assert "migrations" in found.name or module.__doc__, found.name
            for name in getattr(module, "__all__", []):
                assert getattr(module, name).__doc__ or not callable(getattr(module, name)), name

    def test_the_models_need_no_migration(self) -> None:
        try:
            call_command("makemigrations", "sagas", check=True, dry_run=True, verbosity=1, stdout=(said := StringIO()))
        except SystemExit:
            self.fail(f"the models of sagas are not those of its migrations:\n{said.getvalue()}")

    def test_tables_that_are_there_already_stay(self) -> None:
        migrate.upgrade(engine(), "0001")
        assert migrate.current(engine()) == migrate.head()

    def test_the_sql_of_the_migrations_can_be_read(self) -> None:
        for app, name in sorted(_migrations()):
            if app == "sagas":
                call_command("sqlmigrate", app, name, stdout=(said := StringIO()))
                assert re.search("^(CREATE|ALTER|DROP) ", said.getvalue(), re.MULTILINE), (name, said.getvalue())
                assert "UPDATE sagas_alembic_version" in said.getvalue() or "0001" in name
                call_command("sqlmigrate", app, name, backwards=True, stdout=(said := StringIO()))
                assert re.search("^(ALTER|DROP) ", said.getvalue(), re.MULTILINE), (name, said.getvalue())
        assert migrate.current(engine()) == migrate.head(), "nothing was done"
        call_command("sqlmigrate", "sagas", "0001", database="other", stdout=(said := StringIO()))
        assert "CREATE" not in said.getvalue()

    def test_alembic_is_refused(self) -> None:
        with self.assertRaisesMessage(ConfigurationError, "manage.py migrate"):
            sagas.store.upgrade()  # type: ignore[attr-defined]
        with self.assertRaises(CommandError) as refused:
            call_command("sagas", "db", "upgrade")
        assert "manage.py migrate" in str(refused.exception)


def _with_step(function: Callable[[StepContext], None]) -> Any:
    def step(step: StepContext) -> None:
        function(step)

    return step


def _with_context(function: Callable[[OrderPlaced, HandlerContext], None]) -> Any:
    def handler(event: OrderPlaced, context: HandlerContext) -> None:
        function(event, context)

    return handler


def _migrations() -> Any:
    from django.db.migrations.loader import MigrationLoader

    return MigrationLoader(None).disk_migrations


def _table_of(difference: Any) -> str:
    """Return the table that a difference is about; those that are changes of columns come as lists."""
    first = difference[0] if isinstance(difference, list) else difference
    about = first[1]
    if hasattr(about, "columns") and hasattr(about, "metadata"):
        return str(about.name)
    table = getattr(about, "table", None)
    return str(table.name) if table is not None else str(first[2])


def elsewhere(work: Callable[[], object]) -> None:
    """Do it in a thread, which has a connection of its own."""
    import threading

    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert not failed, failed


def _end(pid: int) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s)", [pid])


def _here(handle: Any) -> Any:
    from sagas.events.runners import InThread

    def and_close(call: Any) -> Any:
        try:
            return handle(call)
        finally:
            connections.close_all()

    return InThread(and_close)


def _wait(condition: Callable[[], bool]) -> None:
    from tests.servers import wait_for

    wait_for(condition, 20)


class _Any(int):
    """Equal to each number of queries."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True
