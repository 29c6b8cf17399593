"""The database's time, which is the only time that the engine goes by."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, select

from sagas.stores.connections import Connections
from sagas.stores.engines import database_now

__all__ = ["DatabaseClock"]

#: Seconds for which the difference between the database's clock and ours is believed.
TRUST = 30.0


class DatabaseClock:
    """Reads the database's time, and keeps it by our monotonic clock: no wall clock can step a lease."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._query = select(database_now(connections.dialect))
        self._known: tuple[datetime, float] | None = None

    @property
    def asked_at(self) -> float | None:
        """When the database was last asked, by the monotonic clock."""
        return None if self._known is None else self._known[1]

    def now(self) -> datetime:
        """Return the database's time. Raises `StoreUnavailable`."""
        known = self._known
        if known is None or time.monotonic() - known[1] > TRUST:
            known = self.ask()
        return known[0] + timedelta(seconds=time.monotonic() - known[1])

    def ask(self) -> tuple[datetime, float]:
        """Ask the database. Return its time, and when that was by the monotonic clock. Raises `StoreUnavailable`."""
        if self._connections.dialect == "sqlite":  # its clock is that of this machine
            known = self._known = datetime.now(UTC), time.monotonic()
        else:
            known = self._known = self._connections.read(self._ask)
        return known

    def _ask(self, connection: Connection) -> tuple[datetime, float]:
        """Return the database's time, and when that was by our monotonic clock."""
        before = time.monotonic()  # to connect may take long, and tells nothing about the age of the answer
        now = connection.execute(self._query).scalar_one()
        # The answer is as old as half the way there and back.
        return now, (before + time.monotonic()) / 2
