"""The same account with the library `eventsourcing`, as its documentation has it: an aggregate in an application."""

from __future__ import annotations

from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from sqlalchemy import make_url

__all__ = ["Writer", "prepare"]


class Account(Aggregate):
    def __init__(self, name: str) -> None:
        self.name = name
        self.cents = 0

    @event("MoneyDeposited")
    def deposit(self, cents: int, reference: str) -> None:  # noqa: ARG002 - it is in the event
        self.cents += cents


def _application(url: str, *, create: bool) -> Application[UUID]:
    where = make_url(url)
    settings = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": where.database,
        "POSTGRES_HOST": where.host,
        "POSTGRES_PORT": where.port,
        "POSTGRES_USER": where.username,
        "POSTGRES_PASSWORD": "",
        "CREATE_TABLE": "y" if create else "n",  # several who do it at once fail
    }
    return Application(env={name: str(value) for name, value in settings.items()})


def prepare(url: str) -> None:
    with _application(url, create=True):
        pass  # it makes its tables


class Writer:
    """One process that has an account of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.application = _application(url, create=False)
        self.account = Account(name)

    def append(self, count: int) -> None:
        """Append so many events in one transaction."""
        for number in range(count):
            self.account.deposit(number, "invoice 4711")
        self.application.save(self.account)

    def replay(self) -> int:
        """Make the account from all events; return how many there were."""
        account: Account = self.application.repository.get(self.account.id)
        return account.version
