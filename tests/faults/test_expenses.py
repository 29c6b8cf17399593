"""The shop's expenses: workers are killed before and after each answer, and every expense is paid once or not at all."""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from sagas import SagaHandle, Sagas, SagaStatus, SqlStore
from sagas.approvals import Approvals
from sagas.operations import Operations
from sagas.webhooks import Webhook, WebhookAnswer, WebhookRequest
from tasks import faults, ledger, tables
from tasks.expenses import Expense, pay_expense
from tests import forks
from tests.rig import ROOT
from tests.servers import Postgres, Redis, wait_for
from tests.shop import shop

#: Where the worker is killed, by the expense that it works on.
KILLED = {
    "small": ("book",),
    "approved": ("reserve_budget", "order_transfer"),
    "declined": ("release_budget",),
    "refused": ("recall_transfer",),
    "cancelled": ("order_transfer", "recall_transfer"),
}


class Bank:
    """Answers by HTTP what it was asked in a table."""

    def __init__(self, sagas: Sagas[SqlStore]) -> None:
        self.sagas = sagas
        self.hook = Webhook()

    def token(self, reference: str) -> str | None:
        with Session(self.sagas.store.engine) as session:
            query = select(tables.TransferOrder.token).where(tables.TransferOrder.reference == reference)
            return session.scalars(query).one_or_none()

    def answer(self, token: str, body: dict[str, Any]) -> int:
        return self.post(token, body).status

    def post(self, token: str, body: dict[str, Any]) -> WebhookAnswer:
        raw = json.dumps(body).encode()
        request = WebhookRequest(
            path_token=token, content_type="application/json", content_length=len(raw), client="bank",
            read=lambda most: raw[:most],
        )  # fmt: skip
        return self.hook.receive(self.sagas, request)


@pytest.fixture
def sagas(redis_server: Redis, postgres: Postgres) -> Any:
    store = SqlStore(postgres.database())
    store.upgrade()
    tables.create_all(store.engine)
    pay_expense._starter = None
    app = Celery("shop", broker=redis_server.url, set_as_current=False)
    sagas = Sagas(app, store, [pay_expense], lease=1, redispatch_after=1)
    yield sagas
    pay_expense._starter = None
    store.engine.dispose()
    app.close()


def test_expenses(sagas: Sagas[SqlStore], redis_server: Redis, tmp_path: Path) -> None:
    url = sagas.store.engine.url.render_as_string(hide_password=False)
    bank, approvals = Bank(sagas), Approvals(Operations(sagas))
    amounts = {"small": 20, "approved": 2_000, "declined": 3_000, "refused": 4_000, "cancelled": 5_000}
    with Session(sagas.store.engine) as session, session.begin():
        for name, places in KILLED.items():
            for at in places:
                faults.plan(session, name, faults.Fault(at=f"expenses.{at}", kind="kill"))
    handles = {
        name: pay_expense.start(
            Expense(expense_id=name, employee="ann", amount=Decimal(amount), purpose="a chair"), key=name
        )
        for name, amount in amounts.items()
    }

    def until(met: Any, what: str) -> None:
        """Run workers, each of which may be killed, until a condition holds."""
        for _ in range(40):
            with shop(redis_server, url, tmp_path, queues="shop,accounts") as worker:
                wait_for(lambda: met() or worker.poll() is not None, 60, what)
            if met():
                return
        raise AssertionError(f"too many workers died before this: {what}")

    until(lambda: {each.record.key for each in approvals.waiting()} == amounts.keys() - {"small"}, "all are asked")
    # No worker runs while people and the bank answer.
    for pending in approvals.waiting(groups=["finance", "staff"]):
        if (name := pending.record.key) != "declined":
            approvals.answer(pending, {"approved": "true"}, actor="bob", id=f"form-{name}")
            approvals.answer(pending, {"approved": "true"}, actor="bob", id=f"form-{name}")
    done = forks.run(
        [
            sys.executable, "-m", "celery", "-A", "config", "sagas", "signal", "declined", "approval", "--payload",
            '{"approved": false, "comment": "too dear"}', "--sender", "eve",
        ], cwd=ROOT, env={**os.environ, "BROKER_URL": redis_server.url, "SAGAS_DATABASE_URL": url},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not approvals.waiting()
    asked = ("small", "approved", "refused", "cancelled")
    until(lambda: all(waits(handles[name]) for name in asked), "the bank was asked")
    tokens = {name: bank.token(name) or "" for name in asked}
    assert bank.answer(tokens["small"], {"result": {"number": "t-small"}}) == 200
    assert bank.answer(tokens["small"], {"result": {"number": "t-other"}}) == 409
    assert bank.answer(tokens["approved"], {"result": {"number": "t-approved"}}) == 200
    assert bank.answer(tokens["refused"], {"error": "no such account"}) == 200
    handles["cancelled"].cancel("no longer needed")
    assert bank.answer(tokens["cancelled"], {"result": {"number": "t-late"}}) == 409
    ends = {name: "COMPLETED" if name in ("small", "approved") else "COMPENSATED" for name in amounts}
    until(lambda: {name: str(handle.status) for name, handle in handles.items()} == ends, "all ended")
    assert handles["small"].result["book"] == "t-small"
    assert handles["small"].result["approval"] is None
    with Session(sagas.store.engine) as session:
        nets = ledger.net(session)
    for name, amount in amounts.items():
        paid = ends[name] == "COMPLETED"
        assert {account: net.amount for account, net in nets.get(name, {}).items()} == (
            dict.fromkeys(("budget/ann", "bank/ann", "books/ann"), amount * 100) if paid else {}
        ), name
    audited = [(each.key, each.entry.what, each.entry.actor) for each in sagas.store.queries.audit()]
    assert sorted(audited, key=str) == sorted(
        [("declined", "signal", "eve"), *((name, "signal", "bob") for name in ("approved", "refused", "cancelled"))],
        key=str,
    )
    assert "declined: too dear" in (handles["declined"].record.error or "")


def waits(handle: SagaHandle) -> bool:
    assert handle.status in (SagaStatus.PENDING, SagaStatus.RUNNING)
    return handle.record.step("transfer").status == "WAITING"
