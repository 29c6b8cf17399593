"""The pages of the admin: what they must not tell, whatever is asked of them, and what they show."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta

from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.exceptions import FieldError
from django.db import connection, models
from django.db.models import Model
from django.test import TestCase
from django.utils import formats, timezone, translation
from sqlalchemy import insert

from sagas import SagaHandle, SagaStatus
from sagas.contrib.django import engine, sagas
from sagas.contrib.django.fields import PayloadField
from sagas.contrib.django.models import Saga
from sagas.stores import schema
from sagas.testing import Inline
from tests.django_project.orders.sagas import place_order
from tests.django_project.orders.tests import eagerly

CARD = "4111222233334444"


class _Pages(TestCase):
    def setUp(self) -> None:
        self.stuck = self.start("stuck", "broken_charge")
        self.ann = User.objects.create_user("ann", is_staff=True)
        self.permit("view_saga", "operate_saga")
        self.client.force_login(self.ann)

    def start(self, key: str, fault: str = "") -> SagaHandle:
        given = {"number": key, "card": CARD, "fault": fault}
        return Inline(sagas.store).start(place_order, given, key=key)

    def permit(self, *names: str) -> None:
        self.ann.user_permissions.set(Permission.objects.filter(codename__in=names))

    def page(self, handle: SagaHandle, what: str = "change") -> str:
        answer = self.client.get(f"/admin/sagas/saga/{handle.id}/{what}/")
        assert answer.status_code == 200
        return str(answer.content.decode())


class NothingMaskedIsTold(_Pages):
    def setUp(self) -> None:
        super().setUp()
        self.permit("view_saga")

    def test_the_list_cannot_be_asked_for_it(self) -> None:
        """A right and a wrong guess must get the same answer."""

        def answer(lookup: str, value: str, **more: str) -> tuple[int, list[str]]:
            got = self.client.get("/admin/sagas/saga/", {lookup: value, **more})
            context = got.context or {}
            return got.status_code, [saga.key for saga in context["cl"].result_list] if "cl" in context else []

        lookups = [f"input__{name}" for name in models.TextField().get_lookups()] + ["input"]
        lookups += ["history__saga__input__contains", "dead_letters__saga__input__startswith", "pk__input__contains"]
        for lookup in lookups:
            right, wrong = answer(lookup, CARD[:4]), answer(lookup, "9999")
            assert right == wrong, (lookup, right, wrong)
            assert right[0] in (400, 302), (lookup, right)
        for more in ({"_facets": "True"}, {"o": "1"}, {"_popup": "1"}, {"q": "stuck"}):
            assert answer("input__contains", CARD[:4], **more)[0] == 400
        for lookup in (
            "history__detail__contains", "dead_letters__error__regex", "caused_by__contains", "owner", "outline__regex",
            "name__regex", "key__iregex", "_to_field",
        ):  # fmt: skip
            assert answer(lookup, "input")[0] == 400, lookup
        assert answer("q", CARD) == answer("q", CARD[:4]) == (200, [])
        autocomplete = {"app_label": "sagas", "model_name": "historyentry", "field_name": "saga"}
        for term, found in ((CARD[:4], 0), (CARD, 0), ("a\0b", 0), (self.stuck.id[:20], 1)):
            got = self.client.get("/admin/autocomplete/", {**autocomplete, "term": term})
            assert (got.status_code, len(got.json()["results"])) == (200, found), term
        for order in ("0", "-1", "6", "99", "input", "x.y"):
            assert answer("o", order)[0] == 200
        assert answer("key__startswith", "stu") == answer("key", "stuck") == (200, ["stuck"])
        assert answer("name__exact", "place_order", status="STUCK") == (200, ["stuck"])
        assert answer("error__icontains", "no such words")[1] == []
        assert answer("created_at__gte", "2020-01-01") == (200, ["stuck"])

    def test_no_admin_of_a_project_can_either(self) -> None:
        """What is registered there is theirs to say; that inputs can be looked up is not."""
        found: list[tuple[type[Model], str]] = [
            (model, field.name)
            for model in apps.get_app_config("sagas").get_models()
            for field in model._meta.concrete_fields
            if isinstance(field, PayloadField)
        ]
        assert {name for _, name in found} == {
            "input",
            "result",
            "heartbeat_details",
            "body",
            "headers",
            "data",
            "metadata",
            "state",
        }
        for model, name in found:
            for lookup in {*models.TextField().get_lookups(), "length"} - {"isnull"}:
                self.assertRaises(FieldError, model._default_manager.filter, **{f"{name}__{lookup}": "x"})
        assert Saga.objects.filter(input__isnull=False).count() == 1
        assert json.loads(Saga.objects.get().input)["card"] == CARD

    def test_errors_do_not_quote_it(self) -> None:
        with eagerly(), self.assertRaises(RuntimeError), self.captureOnCommitCallbacks(execute=True):
            place_order.start({"number": "1", "card": CARD, "fault": "quotes_card"}, key="quoting")
        handle = sagas.find("place_order", "quoting")
        assert handle.status is SagaStatus.STUCK
        texts = [
            self.client.get("/admin/sagas/saga/").content.decode(),
            self.page(handle),
            self.page(handle, "history"),
        ]
        for text in texts:
            assert CARD not in text
        assert "the bank says: {&#x27;card&#x27;: &#x27;•••&#x27;} is unknown" in texts[1]
        assert CARD not in json.dumps(
            [str(row) for row in Saga.objects.defer("input").values("error", "history__detail")]
        )


class WhateverIsAsked(_Pages):
    def test_what_cannot_be_stored_is_refused(self) -> None:
        """On PostgreSQL a NUL in a question is an error of the database, which would be a 500."""
        saga, action = f"/admin/sagas/saga/{self.stuck.id}", {"reason": "x"}
        listed = "/admin/sagas/saga/"
        names = ("q", "status", "name", "key__exact", "id", "p", "o", "e", "created_at__gte", "all", "a\0b")
        for text in ("a\0b", "x" * 5_000, "\U0001f600"):
            for name in names if "\0" in text else names[:4]:
                assert self.client.get(listed, {name: text}).status_code < 500, (name, text)
            quoted = text.replace("\0", "%00")
            for path in (f"{quoted}/change", f"{quoted}/history", f"{quoted}/delete", f"{quoted}/retry/do", quoted):
                assert self.client.get(f"{listed}{path}/").status_code in (302, 400, 403, 404), path
            assert self.client.get(f"{saga}/history/", {"p": text}).status_code == 200
            assert self.client.post(f"{saga}/retry/do/?step={quoted}", action).status_code in (400, 404)
            posted = {"action": "retry", "_selected_action": text, **action}
            assert self.client.post(listed, posted).status_code in (302, 400)
        for reason in ("\0", "a\0", "x" * 2_001, ""):
            answer = self.client.post(f"{saga}/retry/do/?step=charge", {"reason": reason})
            assert answer.status_code == 200
            assert "errorlist" in answer.content.decode()
        assert self.stuck.status is SagaStatus.STUCK

    def test_sagas_that_are_gone_are_not_all_sagas(self) -> None:
        posted = {"action": "skip", "_selected_action": "0190-gone", "reason": "x"}
        answer = self.client.post("/admin/sagas/saga/", posted, follow=True)
        assert "None of the selected sagas exists any more" in answer.content.decode()
        assert self.stuck.status is SagaStatus.STUCK

    def test_a_result_is_json_that_can_be_kept(self) -> None:
        url = f"/admin/sagas/saga/{self.stuck.id}/mark-done/do/?step=charge"
        for result, problem in (
            ('{"a": NaN}', "This is not JSON"), ("Infinity", "This is not JSON"), ("1e999", "This is not JSON"),
            ("[" * 500 + "]" * 500, "100 levels deep"), ('"\\ud800"', "This is not JSON"), ("[1]", "Expected `str`"),
            (json.dumps("x" * 1_100_000), "more than max_payload"), ("\0", "Null characters"),
        ):  # fmt: skip
            answer = self.client.post(url, {"reason": "by hand, at the bank", "result": result})
            page = answer.content.decode()
            assert (answer.status_code, problem in page) == (200, True), (result[:20], problem)
            assert "by hand, at the bank</textarea>" in page
        assert self.stuck.status is SagaStatus.STUCK
        assert not LogEntry.objects.exists()

    def test_what_cannot_be_drawn_is_cut(self) -> None:
        def shown(given: str) -> str:
            with connection.cursor() as cursor:
                cursor.execute("UPDATE sagas_saga SET input = %s WHERE id = %s", [given, self.stuck.id])
                cursor.execute("UPDATE sagas_step SET result = %s WHERE saga_id = %s", [given, self.stuck.id])
            return self.page(self.stuck)

        for deep in (500, 100_000):
            assert shown("[" * deep + "]" * deep).count("cut: nested more than 100 levels deep") == 3
        assert len(shown(json.dumps(["x" * 500_000]))) < 150_000
        assert "cannot be shown: it is not JSON" in shown("{")


class WhatIsShown(_Pages):
    def test_every_step_and_its_attempts(self) -> None:
        page = self.client.get(f"/admin/sagas/saga/{self.stuck.id}/change/")
        steps = page.context["steps"]
        assert [(step["name"], step["attempts"]) for step in steps] == [("reserve", 1), ("charge", 2), ("confirm", "")]
        assert steps[2]["badge"] == ""
        assert "1200 / 3000" in page.content.decode()
        assert "not started" in page.content.decode()

    def test_dates_are_those_of_django(self) -> None:
        with translation.override("de"), timezone.override(timezone.get_fixed_timezone(timedelta(hours=5))):
            at: datetime = Saga.objects.get().created_at
            shown = formats.localize(timezone.template_localtime(at))  # as the lists of every admin do
            listed, page = self.client.get("/admin/sagas/saga/").content.decode(), self.page(self.stuck)
        assert f"{shown}</td>" in listed
        assert page.count(shown) >= 3  # of the saga, of its steps, and of its history
        assert not re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", page)

    def test_what_was_typed_is_kept_when_it_is_refused(self) -> None:
        url = f"/admin/sagas/saga/{self.stuck.id}/retry/do/?step=charge"
        sagas.skip(self.stuck.id, "charge", reason="somebody was quicker")
        answer = self.client.post(url, {"reason": "the bank is back"})
        page = answer.content.decode()
        assert answer.status_code == 200
        assert "none of its steps is stuck" in page
        assert "the bank is back</textarea>" in page
        asked = {"action": "skip", "_selected_action": [self.stuck.id], "reason": "y" * 2_001}
        assert f"{'y' * 2_001}</textarea>" in self.client.post("/admin/sagas/saga/", asked).content.decode()

    def test_an_old_error_is_gone_after_a_retry(self) -> None:
        assert "the bank is away" in self.client.get("/admin/sagas/saga/").content.decode()
        page = self.page(self.stuck)
        assert "step &#x27;charge&#x27; is stuck: RuntimeError: the bank is away" in page
        url = f"/admin/sagas/saga/{self.stuck.id}/retry/do/?step=charge"
        self.client.post(url, {"reason": "the bank is back"})
        assert "the bank is away" not in self.client.get("/admin/sagas/saga/").content.decode()
        answer = self.client.get(f"/admin/sagas/saga/{self.stuck.id}/change/")
        assert "saga-error" not in answer.content.decode()
        assert [step["error"] for step in answer.context["steps"]] == ["", "", ""]

    def test_the_history_has_every_entry(self) -> None:
        page = self.page(self.stuck)
        assert f'href="/admin/sagas/saga/{self.stuck.id}/history/"' in page
        entry = {
            "saga_id": self.stuck.id,
            "at": sagas.store.now(),
            "what": "operator: retry",
            "epoch": 1,
            "actor": "bob",
        }
        with engine().begin() as own:
            own.execute(insert(schema.history), [{**entry, "detail": f"time {number}"} for number in range(130)])
        page = self.page(self.stuck)
        assert "time 129" in page
        assert "time 100" not in page
        total = len(sagas.store.queries.history(self.stuck.id))
        assert f"The whole history: {total} entries" in page
        first, second = (self.client.get(f"/admin/sagas/saga/{self.stuck.id}/history/?p={n}") for n in (1, 2))
        whole = first.content.decode() + second.content.decode()
        assert all(f"time {number}<" in whole for number in range(130))
        assert "?p=2" in first.content.decode()
        self.permit()
        assert self.client.get(f"/admin/sagas/saga/{self.stuck.id}/history/").status_code == 403

    def test_in_german(self) -> None:
        with translation.override("de"):
            listed, page = self.client.get("/admin/sagas/saga/").content.decode(), self.page(self.stuck)
            form = self.client.get(f"/admin/sagas/saga/{self.stuck.id}/mark-done/do/?step=charge").content.decode()
            url = f"/admin/sagas/saga/{self.stuck.id}/retry/do/?step=charge"
            done = self.client.post(url, {"reason": "wieder da"}, follow=True).content.decode()
        for german, text in (
            ("Saga zum Ansehen", listed), ("Braucht einen Menschen", listed), ("Schlüssel", listed), ("Ausgewählte Sagas: Wiederholen…", listed),
            ("Schritte", page), ("noch nicht begonnen", page), ("Wiederholen: charge…", page), ("Begründung", form),
            ("Wiederholen: charge: die Saga ist jetzt RUNNING.", done),
        ):  # fmt: skip
            assert german in text, german
        assert LogEntry.objects.get().get_change_message() == "Retry charge: wieder da"
