"""What sagas ask people, in the admin; and the callbacks of other systems."""

from __future__ import annotations

import json
import re
from typing import Any
from unittest import mock

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client, TestCase, TransactionTestCase
from django.utils import translation

from sagas import Saga as Definition
from sagas import SagaHandle, Sagas, StoreUnavailable, Wait
from sagas.contrib.django import engine, sagas
from sagas.contrib.django.models import HistoryEntry, InboxMessage
from sagas.contrib.django.project import PROJECT
from sagas.events import Envelope, Events, Service
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End
from sagas.testing import Inline
from tests.django_project.orders.events import OrderPlaced
from tests.django_project.orders.models import Effect
from tests.django_project.orders.sagas import refund_order
from tests.django_project.orders.tests import eagerly

ANSWERS = {"approved": "true", "amount": "1.50", "day": "2026-01-31", "comment": "fine"}


def start(key: str) -> SagaHandle:
    return Inline(sagas.store).start(refund_order, {"number": key, "card": "4111222233334444"}, key=key)


class Approvals(TestCase):
    def setUp(self) -> None:
        self.handle = start("r-1")
        self.url = f"/admin/sagas/saga/{self.handle.id}/approval/answer/"
        self.ann = User.objects.create_user("ann", is_staff=True)
        self.ann.user_permissions.set(Permission.objects.filter(codename="view_saga"))
        self.finance = Group.objects.create(name="finance")
        self.ann.groups.add(self.finance)
        self.client.force_login(self.ann)

    def page(self, what: str = "change") -> str:
        return str(self.client.get(f"/admin/sagas/saga/{self.handle.id}/{what}/").content.decode())

    def form(self, **answers: str) -> dict[str, str]:
        [number] = re.findall('name="form-id" value="([^"]+)"', self.client.get(self.url).content.decode())
        return {**ANSWERS, "form-id": number, **answers}

    def test_only_approvers_answer(self) -> None:
        self.assertIn("It waits for approval, which board, finance may answer.", self.page())
        self.assertIn(self.url, self.page())
        form = self.form()
        self.assertIn("4111", self.handle.record.input)
        shown = self.client.get(self.url).content.decode()
        self.assertIn("r-1", shown)
        self.assertNotIn("4111", shown)
        self.ann.groups.clear()
        for method in (self.client.get, self.client.post):
            self.assertEqual(method(self.url, form).status_code, 403)
        self.assertNotIn(self.url, self.page())
        self.ann.user_permissions.clear()
        self.ann.groups.add(self.finance)
        self.assertEqual(self.client.get(self.url).status_code, 403, "who may not see sagas does not answer them")
        self.client.logout()
        self.assertEqual(self.client.post(self.url, form).status_code, 302)
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(User.objects.create_superuser("root"))
        self.assertEqual(strict.get(self.url).status_code, 200, "a superuser is in every group")
        self.assertEqual(strict.post(self.url, form).status_code, 403)
        self.assertEqual(self.handle.record.step("approval").status, "WAITING")

    def test_an_answer_is_checked_kept_and_audited(self) -> None:
        for wrong, says in (
            ({"approved": ""}, "This field is required."),
            ({"approved": "perhaps"}, "Select a valid choice"),
            ({"amount": "much"}, "this is not a number"),
            ({"day": "2026-13-01"}, "Invalid"),
        ):
            answer = self.client.post(self.url, self.form(**wrong, comment="<b>kept</b>"))
            self.assertIn(says, answer.content.decode())
            self.assertIn("&lt;b&gt;kept&lt;/b&gt;", answer.content.decode())
        form = self.form()
        with eagerly():
            for _ in range(2):
                done = self.client.post(self.url, form, follow=True)
                self.assertIn("pproval is answered.", done.content.decode())
        late = self.client.post(self.url, {**form, "form-id": "x", "approved": "false"}).content.decode()
        self.assertIn("of ann, which came at", late)
        [entry] = HistoryEntry.objects.filter(saga=self.handle.id, actor="ann")
        self.assertEqual((entry.what, entry.step), ("signal", "approval"))
        self.assertEqual({each.get_change_message() for each in LogEntry.objects.all()}, {"Answer approval"})
        result = json.loads(self.handle.record.step("approval").result or "")
        self.assertEqual(result, {"approved": True, "amount": "1.50", "day": "2026-01-31", "comment": "fine"})
        self.assertNotIn("It waits for", self.page())
        self.assertIn("<td>ann</td>", self.page())

    def test_what_is_not_asked(self) -> None:
        for wait in ("pay_back", "other", "a\0b"):
            path = f"/admin/sagas/saga/{self.handle.id}/{wait}/answer/"
            self.assertEqual(self.client.get(path).status_code, 404, wait)
        self.assertEqual(self.client.get("/admin/sagas/saga/none/approval/answer/").status_code, 404)

    def test_the_list_of_what_waits(self) -> None:
        Inline(sagas.store).start(refund_order, {"number": "x", "card": ""}, key="cancelled").cancel("no")
        page = self.client.get("/admin/sagas/saga/?status=approval").content.decode()
        self.assertIn("Waits for an approval", page)
        self.assertEqual(re.findall(r">(r-1|cancelled)</a>", page), ["r-1"])

    def test_in_german(self) -> None:
        with translation.override("de"):
            page, form = self.page(), self.client.get(self.url).content.decode()
        for german, text in (
            ("Sie wartet auf approval. Antworten darf: board, finance.", page), ("approval beantworten…", page),
            ('<option value="true">Ja</option>', form), ("mit Ihrem Namen aufbewahrt", form),
        ):  # fmt: skip
            self.assertIn(german, text)


class Callbacks(TransactionTestCase):
    def waiting(self, key: str) -> str:
        """Return the token of a saga that waits for the bank."""
        inline = Inline(sagas.store)
        handle = inline.start(refund_order, {"number": key, "card": ""}, key=key)
        handle.signal("approval", {"approved": True, "amount": "1"})
        self.assertEqual(handle.record.step("pay_back").status, "WAITING")
        return str(Effect.objects.get(what__startswith=f"asked {key} ").what.split()[2])

    def post(self, token: str | None, body: Any, **more: Any) -> Any:
        path = "/hooks/bank/" if token is None else f"/hooks/bank/{token}/"
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        strict = Client(enforce_csrf_checks=True)
        return strict.post(path, raw, **{"content_type": "application/json", **more})

    def test_the_outcome_of_a_step(self) -> None:
        token = self.waiting("c-1")
        with self.assertNoLogs("django.request"), eagerly():  # which would have the path, and the token in it
            self.assertEqual(self.client.get(f"/hooks/bank/{token}/").status_code, 405)
            for body, status in ((b"{", 400), ({"result": 7}, 400), (b"x" * 1001, 413)):
                self.assertEqual(self.post(token, body).status_code, status, body)
            answer = self.post(token, {"result": "r-7"})
            self.assertEqual((answer.status_code, answer.json()), (200, {"status": "accepted"}))
            answer = self.post(token, {"result": "r-8"})
            self.assertEqual((answer.status_code, answer.json()), (409, {"status": "ended"}))
            answer = self.post(token, {"result": "r-8"})
            self.assertEqual((answer.status_code, int(answer["Retry-After"]) > 0), (429, True))
            self.assertEqual(self.post("a.b.c", {"result": "r-7"}).status_code, 410)
        self.assertEqual(sagas.find("refund_order", "c-1").status, "COMPLETED")

    def test_in_the_header_and_as_a_failure(self) -> None:
        token = self.waiting("c-2")
        self.assertEqual(self.post(None, {"error": "no"}).status_code, 401)
        with eagerly():
            self.assertEqual(
                self.post(None, {"error": "no money"}, headers={"Authorization": f"Bearer {token}"}).status_code, 200
            )
        self.assertIn("no money", sagas.find("refund_order", "c-2").record.error or "")

    def test_late(self) -> None:
        token = self.waiting("c-3")
        with eagerly():
            sagas.find("refund_order", "c-3").cancel("not wanted")
            answer = self.post(token, {"result": "r-9"})
        self.assertEqual((answer.status_code, answer.json()), (409, {"status": "late"}))
        self.assertTrue(Effect.objects.filter(what="recalled c-3 r-9").exists())

    def test_with_a_transaction_for_every_request(self) -> None:
        token = self.waiting("c-4")
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True), eagerly():
            self.assertEqual(self.post(token, {"result": "r-4"}).status_code, 200)
        self.assertEqual(sagas.find("refund_order", "c-4").status, "COMPLETED")

    def test_a_database_that_does_not_answer(self) -> None:
        token = self.waiting("c-5")
        with mock.patch.object(Sagas, "complete", side_effect=StoreUnavailable("away")):
            answer = self.post(token, {"result": "r-4"})
        self.assertEqual((answer.status_code, answer["Retry-After"]), (503, "5"))


class EventsAsSignals(TransactionTestCase):
    def test_an_event_wakes_the_saga_in_one_transaction_with_its_inbox_entry(self) -> None:
        definition = Definition("await_order", Wait("order", on=OrderPlaced, key="number", timeout=60))
        shop = Service("shop")
        shop.forward_to(definition)
        own = Events([shop], engine=engine(), broker=MemoryBroker())
        own.connect(PROJECT.get())
        with mock.patch.dict(sagas.orchestrator.sagas, {("await_order", 1): definition}), eagerly():
            handle = Inline(sagas.store).start(definition, key="7")
            envelope = Envelope.wrap(OrderPlaced(number="7"), source="orders")
            for redelivered, end in ((False, End.HANDLED), (True, End.SKIPPED)):
                call = Call(
                    "shop.await_order-order", envelope.topic, envelope.encode(), attempt=1, redelivered=redelivered
                )
                self.assertEqual(own.handle(call).end, end)
            self.assertEqual(handle.status, "COMPLETED")
        self.assertEqual(InboxMessage.objects.get().queue, "shop.await_order-order")
