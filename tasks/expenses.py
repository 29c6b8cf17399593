"""An expense: its budget is reserved, a person approves a large one, the bank pays and calls back, and it is booked."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import delete

from sagas import Pivot, Saga, Step, StepContext, TerminalError, Wait
from tasks import faults, ledger
from tasks.tables import TransferOrder

__all__ = ["Decision", "Expense", "Transfer", "pay_expense"]

#: Smaller expenses need no approval.
LARGE = Decimal(500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expense:
    expense_id: str
    employee: str
    amount: Decimal
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    approved: bool
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    number: str


def reserve_budget(expense_id: str, employee: str, amount: Decimal, step: StepContext) -> str:
    """Reserve the amount in the employee's budget. Returns the number of the entry."""
    faults.check(step, expense_id, "expenses.reserve_budget")
    operation = ledger.begin(step, expense_id)
    if operation.answer is None:
        ledger.post(step, expense_id, "reserved", f"budget/{employee}", amount=amount)
        operation.answer = ledger.number(step, "budget")
    return operation.answer


def release_budget(expense_id: str, step: StepContext) -> None:
    faults.check(step, expense_id, "expenses.release_budget")
    if ledger.undo(step, expense_id):
        ledger.reverse(step, "released")


def is_large(amount: Decimal) -> bool:
    return amount > LARGE


def check_decision(approval: Decision | None) -> None:
    if approval is not None and not approval.approved:
        raise TerminalError(f"declined: {approval.comment or 'no comment'}")


def order_transfer(expense_id: str, employee: str, amount: Decimal, step: StepContext) -> None:
    """Ask the bank to pay. It calls back with the token."""
    faults.check(step, expense_id, "expenses.order_transfer")
    operation = ledger.begin(step, expense_id)
    if operation.answer is None:
        ledger.post(step, expense_id, "ordered", f"bank/{employee}", amount=amount)
        step.session.add(TransferOrder(reference=expense_id, token=step.token, amount=ledger.cents(amount)))
        operation.answer = "ordered"


def recall_transfer(expense_id: str, step: StepContext) -> None:
    """Take the order back. If the bank has paid, it gets its money back."""
    faults.check(step, expense_id, "expenses.recall_transfer")
    if ledger.undo(step, expense_id):
        step.session.execute(delete(TransferOrder).where(TransferOrder.reference == expense_id))
        ledger.reverse(step, "recalled")


def book(expense_id: str, employee: str, amount: Decimal, transfer: Transfer, step: StepContext) -> str:
    """Book the expense. Returns the number of the transfer."""
    faults.check(step, expense_id, "expenses.book")
    operation = ledger.begin(step, expense_id)
    if operation.answer is None:
        ledger.post(step, expense_id, "booked", f"books/{employee}", amount=amount)
        operation.answer = transfer.number
    return operation.answer


pay_expense = Saga(
    "pay_expense",
    Step("reserve_budget", reserve_budget, compensation=release_budget, queue="accounts", timeout=10),
    Wait("approval", Decision, approvers="finance", timeout=timedelta(days=3), when=is_large, queue="accounts"),
    Step("check_decision", check_decision, compensation=None, queue="accounts", timeout=10),
    Step(
        "transfer",
        order_transfer,
        compensation=recall_transfer,
        deferred=True,
        deadline=timedelta(days=2),
        result=Transfer,
        queue="accounts",
        timeout=10,
    ),
    Pivot("book", book, queue="accounts", timeout=10),
    input=Expense,
    version=1,
)
