"""The order flow of `tasks/choreography.py`, orchestrated: one definition of what comes next and how to undo it.

`tasks/orders.py` has a richer saga, with a hold on the card, a parallel stage and a pivot. This one is the flow as
it is usually drawn::

    ProcessPayment -> ReserveInventory -> CreateShipment -> SendConfirmation
      refund     <-     release        <-    cancel

Each step creates its command from the order and lets the service execute it.
"""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sagas import Retry, Saga, Step, StepContext
from tasks import inventory, notifications, payments, shipping
from tasks.orders import STEP_TIMEOUT, PlaceOrder

__all__ = ["CreateShipment", "ProcessPayment", "ReserveInventory", "SendConfirmation", "fulfil_order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPayment:
    order_id: str
    amount: Decimal

    def execute(self, step: StepContext) -> str:
        return payments.process(self.order_id, self.amount, step)

    def refund(self, step: StepContext) -> None:
        payments.refund(self.order_id, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveInventory:
    order_id: str
    sku: str
    quantity: int

    def execute(self, step: StepContext) -> str:
        return inventory.reserve(self.order_id, self.sku, self.quantity, step)

    def release(self, step: StepContext) -> None:
        inventory.release(self.order_id, self.sku, self.quantity, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateShipment:
    order_id: str
    quantity: int
    address: str

    def execute(self, step: StepContext) -> str:
        quote = shipping.quote(self.order_id, self.quantity, step)
        return shipping.create(self.order_id, self.address, quote, step)

    def cancel(self, step: StepContext) -> None:
        shipping.cancel(self.order_id, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendConfirmation:
    order_id: str
    customer: str
    parcel: str

    def execute(self, step: StepContext) -> str:
        return notifications.confirm(self.order_id, self.customer, self.parcel, step)


def process_payment(order: PlaceOrder, step: StepContext) -> str:
    return ProcessPayment(order_id=order.order_id, amount=order.amount).execute(step)


def refund(order: PlaceOrder, step: StepContext) -> None:
    ProcessPayment(order_id=order.order_id, amount=order.amount).refund(step)


def reserve_inventory(order: PlaceOrder, step: StepContext) -> str:
    return _reservation(order).execute(step)


def release(order: PlaceOrder, step: StepContext) -> None:
    _reservation(order).release(step)


def _reservation(order: PlaceOrder) -> ReserveInventory:
    return ReserveInventory(order_id=order.order_id, sku=order.sku, quantity=order.quantity)


def create_shipment(order: PlaceOrder, step: StepContext) -> str:
    return _shipment(order).execute(step)


def cancel(order: PlaceOrder, step: StepContext) -> None:
    _shipment(order).cancel(step)


def _shipment(order: PlaceOrder) -> CreateShipment:
    return CreateShipment(order_id=order.order_id, quantity=order.quantity, address=order.address)


def send_confirmation(order: PlaceOrder, create_shipment: str, step: StepContext) -> str:
    command = SendConfirmation(order_id=order.order_id, customer=order.customer, parcel=create_shipment)
    return command.execute(step)


fulfil_order = Saga(
    "fulfil_order",
    Step("process_payment", process_payment, compensation=refund, queue="payments", timeout=STEP_TIMEOUT),
    Step("reserve_inventory", reserve_inventory, compensation=release, queue="inventory", timeout=STEP_TIMEOUT),
    Step("create_shipment", create_shipment, compensation=cancel, queue="shipping", timeout=STEP_TIMEOUT),
    # An e-mail cannot be recalled. It is sent last, and a failure does not undo the order: it is retried for longer.
    Step(
        "send_confirmation",
        send_confirmation,
        compensation=None,
        queue="notifications",
        timeout=STEP_TIMEOUT,
        retry=Retry(max_attempts=10),
    ),
    input=PlaceOrder,
    version=1,
    timeout=timedelta(minutes=10),
)
