"""The events that the services of the shop exchange about an order.

Every event carries the order, so that no service has to ask another for the data it needs.
"""

from sagas.events import event
from tasks.orders import PlaceOrder

__all__ = [
    "OrderCancelled",
    "OrderPlaced",
    "PaymentCompleted",
    "PaymentFailed",
    "PaymentRefunded",
    "ShipmentCreated",
    "ShipmentFailed",
    "StockReleased",
    "StockReservationFailed",
    "StockReserved",
]


@event("orders.order.placed")
class OrderPlaced:
    """A customer has placed an order."""

    order: PlaceOrder


@event("orders.order.cancelled")
class OrderCancelled:
    """The order failed, and everything done for it is undone."""

    order: PlaceOrder
    reason: str


@event("inventory.stock.reserved")
class StockReserved:
    order: PlaceOrder


@event("inventory.stock.reservation_failed", failure=True)
class StockReservationFailed:
    """There is not enough on the shelf."""

    order: PlaceOrder
    reason: str


@event("inventory.stock.released")
class StockReleased:
    """The pieces are back on the shelf."""

    order: PlaceOrder
    reason: str


@event("payments.payment.completed")
class PaymentCompleted:
    order: PlaceOrder


@event("payments.payment.failed", failure=True)
class PaymentFailed:
    """The provider declined it."""

    order: PlaceOrder
    reason: str


@event("payments.payment.refunded")
class PaymentRefunded:
    order: PlaceOrder
    reason: str


@event("shipping.shipment.created")
class ShipmentCreated:
    order: PlaceOrder
    parcel: str


@event("shipping.shipment.failed", failure=True)
class ShipmentFailed:
    """The carrier will not take the parcel."""

    order: PlaceOrder
    reason: str
