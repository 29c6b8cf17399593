"""The bank: accounts that may not be overdrawn by their owners."""

from decimal import Decimal

from sqlalchemy import update
from sqlalchemy.orm import Session

from sagas import StepContext, TerminalError
from tasks import faults, ledger
from tasks.tables import Account

__all__ = ["credit", "debit", "pay_in", "undo_credit", "undo_debit"]


def debit(transfer_id: str, source: str, amount: Decimal, step: StepContext) -> str:
    """Withdraw the money from the source. Returns the number of the entry."""
    faults.check(step, transfer_id, "accounts.debit")
    operation = ledger.begin(step, transfer_id)
    if operation.answer is None:
        if not _move(step, source, -amount, at_least=ledger.cents(amount)):
            raise TerminalError(f"there is no account {source}, or less than {amount} in it")
        ledger.post(step, transfer_id, "debited", f"accounts/{source}", amount=-amount)
        operation.answer = ledger.number(step, "debit")
    return operation.answer


def undo_debit(transfer_id: str, source: str, amount: Decimal, step: StepContext) -> None:
    faults.check(step, transfer_id, "accounts.undo_debit")
    if ledger.undo(step, transfer_id):
        _move(step, source, amount)
        ledger.reverse(step, "debit undone")


def credit(transfer_id: str, target: str, amount: Decimal, step: StepContext) -> str:
    """Deposit the money in the target. Returns the number of the entry."""
    faults.check(step, transfer_id, "accounts.credit")
    operation = ledger.begin(step, transfer_id)
    if operation.answer is None:
        if not _move(step, target, amount):
            raise TerminalError(f"there is no account {target}")
        ledger.post(step, transfer_id, "credited", f"accounts/{target}", amount=amount)
        operation.answer = ledger.number(step, "credit")
    return operation.answer


def undo_credit(transfer_id: str, target: str, amount: Decimal, step: StepContext) -> None:
    faults.check(step, transfer_id, "accounts.undo_credit")
    if ledger.undo(step, transfer_id):
        # The owner may already have spent it. A compensation has to succeed, so the balance may become negative.
        _move(step, target, -amount)
        ledger.reverse(step, "credit undone")


def pay_in(session: Session, reference: str, name: str, amount: Decimal, number: str) -> None:
    """Deposit money that comes from outside, in the caller's transaction. `number`: of the bank's entry."""
    account = update(Account).where(Account.name == name)
    session.execute(account.values(balance=Account.balance + ledger.cents(amount)))
    ledger.enter(session, reference, "paid in", f"accounts/{name}", key=number, amount=amount)


def _move(step: StepContext, name: str, amount: Decimal, *, at_least: int | None = None) -> bool:
    """Change a balance. Returns whether the account exists and has at least that many cents."""
    account = update(Account).where(Account.name == name)
    if at_least is not None:
        account = account.where(Account.balance >= at_least)
    return ledger.changed(step, account.values(balance=Account.balance + ledger.cents(amount)))
