"""The audit: what the ledger should contain for orders after everything was done and undone."""

from collections.abc import Iterator, Mapping

from sagas import SagaStatus, StepStatus
from sagas.checkpoints import FINISHED, SagaSummary
from tasks import ledger
from tasks.ledger import Net
from tasks.orders import place_order
from tasks.placing import Placed

__all__ = ["complaints", "expected", "undone"]


def undone(saga: SagaSummary) -> list[str]:
    """Return the steps whose compensation ran, in the order in which they were compensated."""
    steps = [
        (step.finished_at, step.name)
        for step in saga.steps.values()
        if step.status is StepStatus.COMPENSATED and step.finished_at and place_order.steps[step.name].compensation
    ]
    return [name for _, name in sorted(steps)]


def expected(it: Placed) -> Mapping[str, Net]:
    """Return what should be left in the ledger: all of an order, or nothing."""
    if it.saga.status is not SagaStatus.COMPLETED:
        return {}
    order = it.order.input
    return {
        "payments/till": Net(ledger.cents(order.amount), 0),
        f"inventory/{order.sku}": Net(0, -order.quantity),
        "shipping/parcels": Net(0, 1),
        "notifications/messages": Net(0, 1),
    }


def complaints(it: Placed, left: Mapping[str, Net]) -> Iterator[str]:
    """Yield what is wrong. `left`: what the ledger has left for the order."""
    key, status = it.saga.key, it.saga.status
    if status not in FINISHED:
        yield f"{key} is still {status}: {it.saga.trouble or 'no error'}"
    elif it.order.expect not in (None, status):
        yield f"{key} is {status}, and should be {it.order.expect}: {it.saga.error}"
    elif left != expected(it):
        yield f"{key} is {status}, and the ledger has {dict(left)} for it instead of {dict(expected(it))}"
    stages = [place_order.steps[name].stage for name in undone(it.saga)]
    if stages != sorted(stages, reverse=True):
        yield f"{key} was not undone in reverse order: {', '.join(undone(it.saga))}"
