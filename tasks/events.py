"""What happens to an order, as the services of the shop tell each other.

Every event carries the order, so that nobody has to ask another service for what it needs.
"""

from sagas.events import event
from tasks.orders import PlaceOrder

__all__ = [
    "OrderCancelled",
    "OrderConfirmed",
    "OrderPlaced",
    "ParcelRefused",
    "ParcelShipped",
    "PaymentDeclined",
    "PaymentReceived",
    "PaymentRefunded",
    "StockRefused",
    "StockReleased",
    "StockReserved",
]


@event("orders.order.placed")
class OrderPlaced:
    """A customer wants something."""

    order: PlaceOrder


@event("orders.order.confirmed")
class OrderConfirmed:
    """It is on its way: nothing can go wrong any more."""

    order: PlaceOrder
    parcel: str


@event("orders.order.cancelled")
class OrderCancelled:
    """It did not work out, and all that was done for it is undone."""

    order: PlaceOrder
    reason: str


@event("inventory.stock.reserved")
class StockReserved:
    order: PlaceOrder


@event("inventory.stock.refused", failure=True)
class StockRefused:
    """There is not enough on the shelf."""

    order: PlaceOrder
    reason: str


@event("inventory.stock.released")
class StockReleased:
    """The pieces are back on the shelf."""

    order: PlaceOrder
    reason: str


@event("payments.payment.received")
class PaymentReceived:
    order: PlaceOrder


@event("payments.payment.declined", failure=True)
class PaymentDeclined:
    order: PlaceOrder
    reason: str


@event("payments.payment.refunded")
class PaymentRefunded:
    order: PlaceOrder
    reason: str


@event("shipping.parcel.shipped")
class ParcelShipped:
    order: PlaceOrder
    parcel: str


@event("shipping.parcel.refused", failure=True)
class ParcelRefused:
    """The carrier will not take it."""

    order: PlaceOrder
    reason: str
