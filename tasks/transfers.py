"""A transfer of money between two accounts of one bank."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sagas import Saga, Step
from tasks import accounts

__all__ = ["TransferMoney", "transfer_money"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMoney:
    transfer_id: str
    source: str
    target: str
    amount: Decimal


# There is no pivot: a credit that did not answer may have happened, and is then compensated before the debit.
transfer_money = Saga(
    "transfer_money",
    Step("debit_source", accounts.debit, compensation=accounts.undo_debit, queue="accounts", timeout=10),
    Step("credit_target", accounts.credit, compensation=accounts.undo_credit, queue="accounts", timeout=10),
    input=TransferMoney,
    version=1,
    timeout=timedelta(minutes=5),
)
