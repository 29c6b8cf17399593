"""Schedules in a Django project: found in an app's `sagas.py`, run on Django's connection, operated in the admin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest import mock

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import TestCase, TransactionTestCase
from django.utils import translation
from sqlalchemy import update

from sagas.contrib.django import engine, sagas
from sagas.contrib.django.models import AuditEntry, Saga, Schedule, Tick
from sagas.stores import schema
from tests.django_project.orders.sagas import nightly_order


@contextmanager
def dispatches() -> Iterator[list[str]]:
    """Collect the names of the steps that are sent to the broker, instead of sending them."""
    sent: list[str] = []
    with mock.patch.object(sagas.canvas, "dispatch", lambda plan, **_: sent.extend(plan.stages[0].steps)):
        yield sent


def make_due() -> None:
    """Let a tick be due, as if no worker had looked for a day."""
    with engine().begin() as connection:
        yesterday = Schedule.objects.get().next_at - timedelta(days=1)
        if yesterday.tzinfo is None:
            yesterday = nightly_order.next_after(sagas.store.now()) - timedelta(days=1)
        connection.execute(update(schema.schedules).values(next_at=yesterday))


class Ticks(TransactionTestCase):
    def test_a_tick_starts_its_saga_on_djangos_connection(self) -> None:
        assert sagas.scheduler.schedules == {"nightly_order": nightly_order}
        with dispatches() as sent:
            sagas.scheduler.run_once()
            assert Schedule.objects.get().saga == "place_order"
            make_due()
            sagas.scheduler.run_once()
            sagas.scheduler.run_once()
        [tick] = Tick.objects.all()
        assert (tick.schedule, tick.outcome) == ("nightly_order", "STARTED")
        saga = Saga.objects.get(pk=tick.saga_id)
        assert saga.key.startswith("nightly_order@")
        assert sent == ["reserve"]

    def test_a_saga_that_cannot_be_started_leaves_a_tick(self) -> None:
        sagas.scheduler.run_once()
        make_due()
        with mock.patch.object(nightly_order, "input", lambda tick: {"nummer": 1}):
            sagas.scheduler.run_once()
        assert (Tick.objects.get().outcome, Saga.objects.count()) == ("FAILED", 0)


class Pages(TestCase):
    def setUp(self) -> None:
        sagas.scheduler.run_once()
        self.ann = User.objects.create_user("ann", is_staff=True)
        self.permit("view_saga", "view_schedule", "operate_schedule")
        self.client.force_login(self.ann)

    def permit(self, *names: str) -> None:
        self.ann.user_permissions.set(Permission.objects.filter(codename__in=names))

    def page(self) -> str:
        answer = self.client.get("/admin/sagas/schedule/nightly_order/change/")
        assert answer.status_code == 200
        return str(answer.content.decode())

    def act(self, action: str, reason: str = "the bank is closed") -> str:
        answer = self.client.post(f"/admin/sagas/schedule/nightly_order/{action}/do/", {"reason": reason}, follow=True)
        return str(answer.content.decode())

    def test_what_is_shown(self) -> None:
        listed = self.client.get("/admin/sagas/schedule/").content.decode()
        assert "nightly_order" in listed
        assert "0 2 * * * (Europe/Vienna)" in listed
        page = self.page()
        assert page.count(" 02:00 CE") == 5  # CET or CEST
        assert "skip" in page
        assert self.client.get("/admin/sagas/schedule/nope/change/").status_code == 404
        with translation.override("de"):
            german = self.client.get("/admin/sagas/schedule/nightly_order/change/", headers={"accept-language": "de"})
        assert german.status_code == 200

    def test_pause_resume_and_run(self) -> None:
        assert "Pause" in self.page()
        assert "the bank is closed" in self.act("pause")
        assert Schedule.objects.get().paused_by == "ann"
        assert "paused already" in self.act("pause")
        assert "This field is required" in self.act("resume", "")
        self.act("resume")
        assert Schedule.objects.get().paused_by is None
        with dispatches() as sent, self.captureOnCommitCallbacks(execute=True):
            self.act("run", "month end")
        assert sent == ["reserve"]
        tick = Tick.objects.get()
        assert (tick.actor, tick.why) == ("ann", "by hand: month end")
        assert tick.saga_id in self.page()
        assert "its overlap is &#x27;skip&#x27;" in self.act("run")
        done = [(entry.what, entry.actor) for entry in AuditEntry.objects.order_by("id")]
        assert done == [("pause schedule", "ann"), ("resume schedule", "ann"), ("run schedule", "ann")]
        assert LogEntry.objects.filter(change_message__contains="Run now: month end").count() == 1

    def test_who_may_look_may_not_act(self) -> None:
        self.permit("view_schedule")
        assert "/do/" not in self.page()
        assert self.client.post("/admin/sagas/schedule/nightly_order/run/do/", {"reason": "x"}).status_code == 403
        assert self.client.get("/admin/sagas/schedule/nightly_order/explode/do/").status_code == 403
        self.permit("operate_schedule")
        assert self.client.get("/admin/sagas/schedule/nightly_order/change/").status_code == 403
        assert self.client.get("/admin/sagas/schedule/nightly_order/explode/do/").status_code == 404
