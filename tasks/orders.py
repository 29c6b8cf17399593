"""An order: stock, card and parcel, all or nothing."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sagas import Parallel, Pivot, Retry, Saga, Step
from tasks import inventory, notifications, payments, shipping

__all__ = ["PlaceOrder", "place_order"]

#: Seconds that a participant may take. Short, because these participants answer at once or not at all.
STEP_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOrder:
    order_id: str
    customer: str
    sku: str
    quantity: int
    amount: Decimal
    address: str


place_order = Saga(
    "place_order",
    Step(
        "reserve_stock",
        inventory.reserve,
        compensation=inventory.release,
        queue="inventory",
        timeout=STEP_TIMEOUT,
    ),
    Parallel(
        Step(
            "authorize_card",
            payments.authorize,
            compensation=payments.void,
            queue="payments",
            timeout=STEP_TIMEOUT,
        ),
        Step("quote_shipping", shipping.quote, compensation=None, queue="shipping", timeout=STEP_TIMEOUT),
    ),
    Step(
        "create_shipment",
        shipping.create,
        compensation=shipping.cancel,
        queue="shipping",
        timeout=STEP_TIMEOUT,
        # No retry for a carrier that did not answer: the customer is waiting, and the order can still be compensated.
        retry=Retry(max_attempts=1),
    ),
    # The parcel can be recalled, but a captured payment is final. From here on, the order is completed.
    Pivot("capture_payment", payments.capture, queue="payments", timeout=STEP_TIMEOUT),
    Step("send_confirmation", notifications.confirm, queue="notifications", timeout=STEP_TIMEOUT),
    input=PlaceOrder,
    version=1,
    timeout=timedelta(minutes=10),
)
