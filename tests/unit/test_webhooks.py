"""Callbacks by HTTP, without a framework: every status code, and what is never kept or logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from sagas import Saga, Sagas, SqlStore, Step, StepContext
from sagas.errors import ConfigurationError, StoreUnavailable
from sagas.testing import Inline
from sagas.webhooks import Webhook, WebhookAnswer, WebhookRequest


@dataclass
class Transfer:
    number: str


TOKENS: list[str] = []


def ask(step: StepContext) -> None:
    TOKENS.append(step.token)


PAY = Saga(
    "pay",
    Step("transfer", ask, compensation=lambda: None, deferred=True, deadline=60, result=Transfer),
)


@pytest.fixture(scope="module")
def sagas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sagas[SqlStore]]:
    store = SqlStore(f"sqlite:///{tmp_path_factory.mktemp('webhooks') / 'sagas.db'}")
    store.upgrade()
    PAY._starter = None
    app = Celery("pays", broker="memory://", set_as_current=False)
    yield Sagas(app, store, [PAY], max_payload=1000)
    PAY._starter = None
    store.engine.dispose()
    app.close()


def waiting(sagas: Sagas[SqlStore]) -> tuple[str, str]:
    """Return the token of a step that waits, and its saga."""
    TOKENS.clear()
    handle = Inline(sagas.store).start(PAY)
    assert handle.record.step("transfer").status == "WAITING"
    return TOKENS[0], handle.id


def request(token: str | None, body: Any, **more: Any) -> WebhookRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given: dict[str, Any] = {
        "path_token": token,
        "content_type": "application/json; charset=utf-8",
        "content_length": len(raw),
        "client": "10.0.0.7",
        "read": lambda most: raw[:most],
    }
    return WebhookRequest(**{**given, **more})


RESULT = {"result": {"number": "t-1"}}


def test_it_is_accepted_once(sagas: Sagas[SqlStore], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, saga_id = waiting(sagas)
    hook = Webhook()
    assert hook.receive(sagas, request(token, RESULT)) == WebhookAnswer(200, {"status": "accepted"})
    assert sagas.handle(saga_id).record.step("transfer").result == '{"number":"t-1"}'
    assert hook.receive(sagas, request(token, RESULT)) == WebhookAnswer(409, {"status": "ended"})
    assert hook.receive(sagas, request(token, {"error": "no"})).status == 409
    assert saga_id in caplog.text
    assert token.rpartition(".")[2] not in caplog.text


def test_in_the_header_and_as_a_failure(sagas: Sagas[SqlStore]) -> None:
    token, saga_id = waiting(sagas)
    sent = request(None, {"error": "no money"}, authorization=f"bearer {token}")
    assert Webhook().receive(sagas, sent).status == 200
    record = sagas.handle(saga_id).record
    assert (record.step("transfer").status, record.direction) == ("FAILED", "BACKWARD")
    assert "no money" in (record.error or "")


def test_late(sagas: Sagas[SqlStore]) -> None:
    token, saga_id = waiting(sagas)
    sagas.cancel(saga_id)
    answer = Webhook().receive(sagas, request(token, RESULT))
    assert (answer.status, answer.body) == (409, {"status": "late"})


def endless(most: int) -> bytes:
    assert most == 65_537, "no more than the limit is read"
    return b"x" * most


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"path_token": None}, 401, "no token"),
        ({"path_token": None, "authorization": "Basic x"}, 401, "no token"),
        ({"content_type": "text/plain"}, 415, "send JSON"),
        ({"content_length": 65_537}, 413, "65,536"),
        ({"content_length": None, "read": endless}, 413, "65,536"),
        ({"read": lambda _: b"{"}, 400, "not JSON"),
        ({"read": lambda _: b"[" * 5000}, 400, "not JSON"),
        ({"read": lambda _: b'"\xff"'}, 400, "not JSON"),
        ({"read": lambda _: b"7"}, 400, "send"),
        ({"read": lambda _: b"{}"}, 400, "send"),
        ({"read": lambda _: b'{"result": 1, "error": "x"}'}, 400, "send"),
        ({"read": lambda _: b'{"error": 7}'}, 400, "send"),
        ({"read": lambda _: b'{"result": {"number": 7}}'}, 400, "Expected `str`, got `int`"),
        ({"read": lambda _: b'{"result": {"number": "%s"}}' % (b"x" * 2000)}, 413, "max_payload"),
        ({"path_token": "x"}, 410, "not valid"),
        ({"path_token": "a.transfer.b"}, 410, "not valid"),
        ({"path_token": "\ud800.\0.b"}, 410, "not valid"),
    ],
)
def test_what_is_refused(sagas: Sagas[SqlStore], changes: dict[str, Any], status: int, says: str) -> None:
    token, saga_id = waiting(sagas)
    answer = Webhook().receive(sagas, request(token, RESULT, **changes) if "path_token" not in changes else request(
        changes["path_token"], RESULT, **{name: value for name, value in changes.items() if name != "path_token"}
    ))  # fmt: skip
    assert (answer.status, says in str(answer.body)) == (status, True), answer
    assert answer.headers["Cache-Control"] == "no-store"
    assert sagas.handle(saga_id).record.step("transfer").status == "WAITING"


def test_another_secret(sagas: Sagas[SqlStore]) -> None:
    token, _ = waiting(sagas)
    assert Webhook().receive(sagas, request(token[:-1] + ("a" if token[-1] != "a" else "b"), RESULT)).status == 410


def test_a_database_that_does_not_answer(sagas: Sagas[SqlStore], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away")

    token, _ = waiting(sagas)
    monkeypatch.setattr(sagas, "complete", away)
    answer = Webhook().receive(sagas, request(token, RESULT))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


def test_the_body_of_another_system(sagas: Sagas[SqlStore], caplog: pytest.LogCaptureFixture) -> None:
    def translate(body: Any) -> dict[str, Any]:
        return {"error": "declined"} if body["state"] == "declined" else {"result": {"number": body["id"]}}

    hook = Webhook(translate=translate)
    token, saga_id = waiting(sagas)
    bodies: tuple[Any, ...] = ([], {"state": "paid"}, 7)
    for wrong in bodies:
        assert hook.receive(sagas, request(token, wrong)).status == 400
    assert "could not be translated" in caplog.text
    assert hook.receive(sagas, request(token, {"state": "paid", "id": "b-7"})).status == 200
    assert sagas.handle(saga_id).record.step("transfer").result == '{"number":"b-7"}'


def test_rates(sagas: Sagas[SqlStore]) -> None:
    token, _ = waiting(sagas)
    hook = Webhook(rate_per_step="2/minute", rate_per_client="4/minute")
    assert [hook.receive(sagas, request(token, [])).status for _ in range(3)] == [400, 400, 429]
    limited = hook.receive(sagas, request(token, RESULT, client="10.0.0.8"))
    assert (limited.status, 0 < int(limited.headers["Retry-After"]) <= 60) == (429, True)
    assert hook.receive(sagas, request("other", [])).status == 400
    assert hook.receive(sagas, request("more", [])).status == 429, "four requests of this client"
    free = Webhook(rate_per_step=None, rate_per_client=None)
    assert {free.receive(sagas, request(token, [])).status for _ in range(50)} == {400}
    settings: tuple[dict[str, Any], ...] = ({"rate_per_step": "often"}, {"max_body": 0}, {"storage": "nowhere://"})
    for wrong in settings:
        with pytest.raises(ConfigurationError, match="Webhook: "):
            Webhook(**wrong)
