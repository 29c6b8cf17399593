"""Place orders, and watch them until each is complete or undone."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy.orm import Session

from sagas import SagaStatus, SqlStore
from sagas.checkpoints import AT_REST, SagaSummary
from sagas.stores import Filter
from tasks import faults, inventory
from tasks.orderfile import Order
from tasks.orders import place_order

__all__ = ["SHELF", "UNDER_WAY", "Batch", "Placed", "counted", "prepare"]

#: The minimum stock of each article. Larger orders cannot be fulfilled.
SHELF = 100

#: How many orders are in progress at once. Customers do not all come in the same second, and recovery examines sagas
#: whose messages wait in a long queue.
UNDER_WAY = 100

#: Seconds between two queries, at least and at most; and how much longer the pause is than the query.
_PAUSE, _LONGEST_PAUSE, _REST = 0.2, 1.0, 4


def prepare(store: SqlStore, orders: Sequence[Order]) -> None:
    """Stock the articles for these orders, and plan the faults that they ask for."""
    pieces: Counter[str] = Counter()
    for order in orders:
        pieces[order.input.sku] += order.input.quantity if order.input.quantity <= SHELF else 0
    with Session(store.engine) as session, session.begin():
        for sku, wanted in sorted(pieces.items()):
            inventory.stock_up(session, sku, max(wanted, SHELF))
        for order in orders:
            if order.fault is not None:
                faults.plan(session, order.input.order_id, order.fault)


@dataclass(slots=True)
class Placed:
    """A placed order, and the last known state of its saga."""

    order: Order
    saga: SagaSummary

    @property
    def is_over(self) -> bool:
        return self.saga.status in AT_REST


def counted(placed: Iterable[Placed]) -> Counter[SagaStatus]:
    """Return how many orders have each status."""
    return Counter(it.saga.status for it in placed)


class Batch:
    """Places orders a few at a time, and watches them until each has ended.

    `patience`: seconds without progress after which to give up.
    """

    def __init__(self, store: SqlStore, orders: Sequence[Order], patience: float) -> None:
        self.placed: list[Placed] = []
        self.total = len(orders)
        self._store = store
        self._orders = iter(orders)
        self._patience = patience
        self._progress_at = time.monotonic()

    @property
    def over(self) -> int:
        """How many orders have ended."""
        return sum(it.is_over for it in self.placed)

    @property
    def idle(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._progress_at

    def fill(self) -> None:
        """Place orders until the maximum is in progress. An order that was placed before is found again."""
        for order in islice(self._orders, UNDER_WAY - (len(self.placed) - self.over)):
            handle = place_order.start(order.input, key=order.input.order_id)
            self.placed.append(Placed(order, self._store.queries.summary(handle.id)))

    def until_over(self, look: Callable[[], None]) -> bool:
        """Call `look` repeatedly. Return True when all orders have ended, False after too long without progress."""
        self._progress_at = time.monotonic()
        while True:
            began = time.monotonic()
            self.fill()
            self._read()
            look()
            if self.over == self.total:
                return True
            if self.idle > self._patience:
                return False
            time.sleep(min(max(_PAUSE, _REST * (time.monotonic() - began)), _LONGEST_PAUSE))

    def _read(self) -> None:
        under_way = {it.saga.id: it for it in self.placed if not it.is_over}
        page = Filter(ids=tuple(under_way))
        for saga in self._store.queries.select(page, limit=UNDER_WAY, with_steps=True) if under_way else ():
            if saga.revision != under_way[saga.id].saga.revision:
                self._progress_at = time.monotonic()
            under_way[saga.id].saga = saga
