"""The event store of the library: an account whose deposits are appended, and loaded again."""

from __future__ import annotations

from sagas import SqlStore
from sagas.events import EventStore, event

__all__ = ["Writer", "prepare"]


@event("accounts.money.deposited")
class MoneyDeposited:
    cents: int
    reference: str


def prepare(url: str) -> None:
    SqlStore(url).upgrade()


class Writer:
    """One process that has an account of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.store = EventStore(SqlStore(url).engine, [MoneyDeposited])
        self.stream = name
        self.version = 0

    def append(self, count: int) -> None:
        """Append so many events in one transaction."""
        events = [MoneyDeposited(cents=number, reference="invoice 4711") for number in range(count)]
        self.version = self.store.append(None, self.stream, events, expected=self.version)

    def replay(self) -> int:
        """Make the balance from all events; return how many there were."""
        return self.store.load(self.stream, lambda cents, event: cents + event.cents, 0).version
