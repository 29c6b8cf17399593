"""The saga of a refund: a person approves it, the bank pays it and calls back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from examples.flask_shop.models import BankOrder, Order, db
from sagas import Pivot, Saga, Step, StepContext, TerminalError, Wait

__all__ = ["AskRefund", "Decision", "refund_order"]


@dataclass
class AskRefund:
    order_id: str
    cents: int
    why: str


@dataclass
class Decision:
    approved: bool
    comment: str = ""


def check_decision(approval: Decision) -> None:
    if not approval.approved:
        raise TerminalError(f"not approved: {approval.comment or 'no comment'}")


def ask_bank(order_id: str, cents: int, step: StepContext) -> None:
    db.session.merge(BankOrder(order_id=order_id, token=step.token, cents=cents))


def recall(order_id: str) -> None:
    known = db.session.get(BankOrder, order_id)
    if known is not None:
        db.session.delete(known)


def close(order_id: str, pay_back: str) -> str:
    db.session.get_one(Order, order_id).state = "refunded"
    return pay_back


refund_order = Saga(
    "refund_order",
    Wait("approval", Decision, approvers="staff", timeout=timedelta(days=3)),
    Step("check_decision", check_decision, compensation=None),
    Step("pay_back", ask_bank, compensation=recall, deferred=True, deadline=timedelta(days=1), result=str),
    Pivot("close", close),
    input=AskRefund,
)
