"""The blueprints for Flask: approvals and the callbacks of other systems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from werkzeug.middleware.proxy_fix import ProxyFix

from sagas import Saga, SagaHandle, SqlStore, Step, StepContext, Wait
from sagas.approvals import PendingApproval
from sagas.contrib.flask import FlaskSagas, approvals_blueprint, webhook_blueprint
from sagas.testing import Inline
from sagas.webhooks import Webhook

TOKENS: dict[str, str] = {}


@dataclass
class Decision:
    approved: bool
    amount: Decimal
    comment: str = ""


@dataclass
class Refund:
    number: str
    card: str


def ask_bank(number: str, step: StepContext) -> None:
    TOKENS[number] = step.token


REFUND = Saga(
    "refund",
    Wait("approval", Decision, approvers=("finance", "board"), timeout=600),
    Step("pay_back", ask_bank, compensation=lambda: None, deferred=True, deadline=600, result=str),
    input=Refund,
)
PEOPLE = {"ann": ["finance"], "bob": ["sales"]}


def approver(pending: PendingApproval) -> str | None:
    who = request.headers.get("X-User", "")
    return who if pending.is_for(PEOPLE.get(who, ())) else None


def create_app(url: str, **settings: Any) -> Flask:
    db = SQLAlchemy()
    app = Flask("refunds")
    app.config |= {
        "SQLALCHEMY_DATABASE_URI": url, "CELERY": {"broker_url": "memory://"}, "SECRET_KEY": "x",
        "SAGAS_REDACT": ["card"], "SAGAS_MAX_PAYLOAD": 1000, **settings,
    }  # fmt: skip
    db.init_app(app)
    FlaskSagas(db, [REFUND]).init_app(app)
    app.register_blueprint(approvals_blueprint(approver), url_prefix="/approvals")
    app.register_blueprint(webhook_blueprint(Webhook(rate_per_step="4/minute")), url_prefix="/hooks/bank")
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    return app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app(f"sqlite:///{tmp_path / 'app.db'}")
    store(app).upgrade()
    yield app
    app.extensions["sagas"].app.close()


def store(app: Flask) -> SqlStore:
    found: SqlStore = app.extensions["sagas"].store
    return found


def start(app: Flask, number: str) -> SagaHandle:
    return Inline(store(app)).start(REFUND, Refund(number, "4111222233334444"), key=number)


class Person:
    def __init__(self, client: FlaskClient, name: str) -> None:
        self.client, self.headers = client, {"X-User": name}

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> Any:
        return self.client.post(path, data=form, headers={**self.headers, **headers})

    def form(self, path: str, **answers: str) -> dict[str, str]:
        hidden = dict(re.findall('type="hidden" name="([^"]+)" value="([^"]+)"', self.get(path).text))
        return {**hidden, "approved": "true", "amount": "1.50", **answers}


def test_only_approvers_see_and_answer(app: Flask) -> None:
    handle = start(app, "a-1")
    path = f"/approvals/{handle.id}/approval"
    ann, bob = Person(app.test_client(), "ann"), Person(app.test_client(), "bob")
    assert f'href="{path}"' in ann.get("/approvals/").text
    assert "Nothing waits for you" in bob.get("/approvals/").text
    page = ann.get(path)
    assert "a-1" in page.text
    assert "4111" not in page.text, "what is redacted is not shown"
    assert (page.headers["X-Frame-Options"], page.headers["Cache-Control"]) == ("DENY", "no-store")
    form = ann.form(path)
    assert bob.get(path).status_code == bob.post(path, form).status_code == 404
    for wrong in ("other", "pay_back"):
        assert ann.get(f"/approvals/{handle.id}/{wrong}").status_code == 404
    assert ann.get("/approvals/none/approval").status_code == 404
    for broken in ({"sagas-csrf": ""}, {"sagas-csrf": "ä"}):
        assert ann.post(path, {**form, **broken}).status_code == 403
    assert ann.post(path, form, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert Person(app.test_client(), "ann").post(path, form).status_code == 403, "another session"
    assert ann.post(path, {**form, "comment": "x" * 100_000}).status_code == 413
    assert handle.record.step("approval").status == "WAITING"


def test_an_answer_is_checked_kept_and_audited(app: Flask) -> None:
    handle = start(app, "a-2")
    path = f"/approvals/{handle.id}/approval"
    ann = Person(app.test_client(), "ann")
    refused = ann.post(path, ann.form(path, amount="<b>", approved="", comment="<i>kept</i>"))
    assert refused.status_code == 400
    assert '<strong class="error" id="wrong-amount">this is not a number' in refused.text
    assert "an answer is required" in refused.text
    assert "&lt;i&gt;kept&lt;/i&gt;" in refused.text
    form = ann.form(path)
    assert [ann.post(path, form).status_code for _ in range(2)] == [303, 303], "the same form twice counts once"
    late = ann.post(path, {**form, "form-id": "other"})
    assert (late.status_code, "of ann, which came at" in late.text) == (409, True)
    assert ann.get(path).status_code == 409
    assert "Nothing waits" in ann.get("/approvals/").text
    [entry] = store(app).queries.audit()
    assert (entry.entry.what, entry.entry.step, entry.entry.actor) == ("signal", "approval", "ann")
    too_large = start(app, "a-3")
    path = f"/approvals/{too_large.id}/approval"
    assert "more than max_payload" in ann.post(path, ann.form(path, comment="x" * 2000)).text


def waiting(app: Flask, number: str) -> str:
    handle = start(app, number)
    handle.signal("approval", Decision(approved=True, amount=Decimal(1)))
    assert handle.record.step("pay_back").status == "WAITING"
    return TOKENS[number]


def test_callbacks(app: Flask) -> None:
    client = app.test_client()
    token = waiting(app, "c-1")
    path = f"/hooks/bank/{token}"
    assert client.get(path).status_code == 405
    assert client.post(path, data={"result": "x"}).status_code == 415
    assert client.post(path, data=b"x" * 65_537, content_type="application/json").status_code == 413
    answer = client.post(path, json={"result": "r-1"})
    assert (answer.status_code, answer.json) == (200, {"status": "accepted"})
    assert client.post(path, json={"result": "r-1"}).status_code == 409
    answer = client.post(path, json={"result": "r-1"})
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (429, True)
    assert client.post("/hooks/bank/a.b.c", json={"result": "r-1"}).status_code == 410
    assert client.post("/hooks/bank/", json={"result": "r-1"}).status_code == 401
    token = waiting(app, "c-2")
    answer = client.post("/hooks/bank/", json={"error": "no"}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert app.extensions["sagas"].find("refund", "c-2").record.step("pay_back").status == "FAILED"


def test_a_body_of_unknown_length(app: Flask) -> None:
    token = waiting(app, "c-3")
    answer = app.test_client().post(
        f"/hooks/bank/{token}", input_stream=BytesIO(b'{"result": "r-3"}'), content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True},
    )  # fmt: skip
    assert answer.status_code == 200


def test_a_database_that_is_away() -> None:
    app = create_app("postgresql+psycopg://x@127.0.0.1:1/x")
    client = app.test_client()
    assert client.get("/approvals/", headers={"X-User": "ann"}).status_code == 503
    answer = client.post("/hooks/bank/a.b.c", json={"result": 1})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
