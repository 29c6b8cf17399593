"""An order with lines: each line is reserved, a carrier calls back, and businesses pay by invoice."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sqlalchemy.orm import Session

from sagas import Each, Pivot, Saga, Sleep, Step, StepContext, TerminalError
from tasks import accounts, faults, inventory, notifications, payments, shipping
from tasks.orders import STEP_TIMEOUT

__all__ = ["Line", "WholesaleOrder", "credit_line", "settle_invoice", "wholesale_order"]

#: A carrier that has not answered by then does not get the order.
CARRIER_DEADLINE = timedelta(days=2)
#: A business that has not paid by then is reminded.
PAYMENT_TERM = timedelta(days=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    sku: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholesaleOrder:
    order_id: str
    customer: str
    is_business: bool
    lines: list[Line]
    amount: Decimal
    address: str


def is_business(is_business: bool) -> bool:
    """Say whether the customer pays by invoice."""
    return is_business


def pays_by_card(is_business: bool) -> bool:
    """Say whether the customer pays by card."""
    return not is_business


# -- a business's credit ----------------------------------------------------------------------------------------------


def credit_line(customer: str) -> str:
    """Return the account that holds what a business may still order without paying first."""
    return f"credit-{customer}"


def reserve_credit(order_id: str, customer: str, amount: Decimal, step: StepContext) -> str:
    """Take the amount from the customer's credit line. Returns the number of the entry."""
    return accounts.debit(order_id, credit_line(customer), amount, step)


def free_credit(order_id: str, customer: str, amount: Decimal, step: StepContext) -> None:
    """Give the amount back to the credit line."""
    accounts.undo_debit(order_id, credit_line(customer), amount, step)


# -- the lines --------------------------------------------------------------------------------------------------------


def sku_of(item: Line) -> str:
    """Return the name of a line: an article is on one line of an order."""
    return item.sku


def reserve_line(item: Line, order_id: str, step: StepContext) -> str:
    """Take one line's pieces from stock. Returns the number of the reservation."""
    faults.check(step, order_id, f"wholesale.reserve/{item.sku}")
    return inventory.reserve(order_id, item.sku, item.quantity, step)


def release_line(item: Line, order_id: str, step: StepContext) -> None:
    """Put one line's pieces back."""
    faults.check(step, order_id, f"wholesale.release/{item.sku}")
    inventory.release(order_id, item.sku, item.quantity, step)


# -- the money --------------------------------------------------------------------------------------------------------


def charge(order: WholesaleOrder, reserve_credit: str | None, authorize_card: str | None, step: StepContext) -> str:
    """Invoice a business, or capture the card. Returns the number of the invoice or the receipt."""
    if reserve_credit is not None:
        return payments.invoice(order.order_id, order.amount, step)
    if authorize_card is not None:
        return payments.capture(order.order_id, order.amount, authorize_card, step)
    raise TerminalError(f"{order.order_id} has neither credit nor a card")


def is_unpaid(order_id: str, step: StepContext) -> bool:
    """Say whether there is an invoice that the customer has not paid."""
    return payments.owed(step.session, order_id) > 0


def settle_invoice(session: Session, order: WholesaleOrder, number: str) -> None:
    """Book a business's payment, in the caller's transaction: its credit line is free again.

    `number`: of the bank's entry.
    """
    payments.receive(session, order.order_id, order.amount, number)
    accounts.pay_in(session, order.order_id, credit_line(order.customer), order.amount, number)


wholesale_order = Saga(
    "wholesale_order",
    Step(
        "reserve_credit",
        reserve_credit,
        compensation=free_credit,
        when=is_business,
        queue="accounts",
        timeout=STEP_TIMEOUT,
    ),
    Step(
        "authorize_card",
        payments.authorize,
        compensation=payments.void,
        when=pays_by_card,
        queue="payments",
        timeout=STEP_TIMEOUT,
    ),
    Each(
        "reserve_lines",
        reserve_line,
        compensation=release_line,
        over="lines",
        key=sku_of,
        max_concurrency=10,
        queue="inventory",
        timeout=STEP_TIMEOUT,
    ),
    # The carrier answers when it knows whether it has room: `sagas.complete(token, tracking_number)`.
    Step(
        "create_shipment",
        shipping.book,
        compensation=shipping.call_off,
        deferred=True,
        deadline=CARRIER_DEADLINE,
        result=str,
        queue="shipping",
        timeout=STEP_TIMEOUT,
    ),
    # An invoice that was sent and a captured payment are final. From here on, the order is completed.
    Pivot("charge", charge, queue="payments", timeout=STEP_TIMEOUT),
    Step("send_confirmation", notifications.confirm, queue="notifications", timeout=STEP_TIMEOUT),
    Sleep("payment_term", PAYMENT_TERM, when=is_business, queue="notifications"),
    Step("remind", notifications.remind, when=is_unpaid, queue="notifications", timeout=STEP_TIMEOUT),
    input=WholesaleOrder,
    version=1,
)
