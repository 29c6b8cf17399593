"""What the event store writes, and the interface of what writes it to a database."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, Engine

from sagas.stores.transactions import begun

__all__ = ["Row", "Writing"]


class Row(msgspec.Struct, frozen=True):
    """An event to be written. The database provides the rest."""

    number: int  #: within its append, from 1
    event_id: str
    type: str
    version: int
    data: str
    metadata: str


class Writing(abc.ABC):
    """What differs between databases. The given connections are in a transaction."""

    @abc.abstractmethod
    def append(self, connection: Connection, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        """Append events to a stream and return its version, or write nothing and return None on a version mismatch.

        `expected`: the version that the stream must have, 0 if it must not exist; None: any.
        """

    def append_alone(self, engine: Engine, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        """Append as `append` does, in a transaction of its own."""
        with begun(engine) as connection:
            return self.append(connection, stream, expected, rows)

    @abc.abstractmethod
    def lock(self, connection: Connection, stream: str) -> None:
        """Prevent other transactions from appending to a stream until this transaction ends."""

    def safe_position(self, connection: Connection) -> int | None:  # noqa: ARG002 - for databases that need one
        """Return the position up to which no event is still uncommitted; None if everything visible is safe.

        `connection`: a connection that begins no transaction.
        """
        return None
