"""Reads and transactions of the store's own, limited in time, with errors that the engine can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Connection, Engine, RowMapping, Select

from sagas.errors import StoreUnavailable
from sagas.stores.engines import READ_ONLY, forget_after_fork, refused, spare, translated
from sagas.stores.transactions import check

__all__ = ["Connections"]

T = TypeVar("T")


class Connections:
    """The connections of a store.

    `timeout`: seconds after which a database that does not answer counts as gone.
    """

    #: Whether a thread may use one on behalf of others. A framework's may belong to its thread.
    are_shared: ClassVar[bool] = True

    def __init__(self, engine: Engine, timeout: float) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._timeout = timeout
        forget_after_fork(engine)

    def rows(self, query: Select[Any]) -> Sequence[RowMapping]:
        """Return all rows of a query."""
        return self.read(lambda connection: connection.execute(query).mappings().all())

    def scalar(self, query: Select[Any]) -> Any:
        """Return the only value of a query."""
        return self.read(lambda connection: connection.execute(query).scalar_one())

    def read(self, ask: Callable[[Connection], T]) -> T:
        """Call `ask` with a connection that only reads; call it again if the first connection is dead."""
        options: dict[str, Any] = {READ_ONLY: True}
        if self.dialect == "postgresql":  # single statements need no transaction: one round trip instead of three
            options["isolation_level"] = "AUTOCOMMIT"

        def attempt() -> T:
            with self.translated(), self.engine.connect() as connection:
                return ask(spare(connection).execution_options(**options))

        return self.again_if_stale(attempt)

    @staticmethod
    def again_if_stale(attempt: Callable[[], T]) -> T:
        """Try once more when the database does not answer: the pool may hold connections from before its restart."""
        try:
            return attempt()
        except StoreUnavailable:
            return attempt()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that ends with the block, and that the database ends if it hears no more of us."""
        with self.translated(), self.engine.connect() as connection, spare(connection).begin():
            self.free_if_lost(connection)
            yield connection
            check(connection, "a transaction of the engine")

    @contextmanager
    def autocommitting(self) -> Iterator[Connection]:
        """Open a connection on which each statement is a transaction of its own."""
        with self.translated(), self.engine.connect() as connection:
            yield spare(connection).execution_options(isolation_level="AUTOCOMMIT")

    def free_if_lost(self, connection: Connection) -> None:
        """Have the database end this transaction if it hears no more of us: its locks would hold the others up."""
        if self.dialect == "postgresql":
            milliseconds = int(self._timeout * 1000)
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")

    def owns(self, connection: Connection) -> bool:  # noqa: ARG002
        """Tell whether a transaction of the store's is not part of a larger one, whose pauses are the caller's."""
        return True

    @contextmanager
    def translated(self, *, limited: bool = True) -> Iterator[None]:
        """Raise `StoreUnavailable` or `StoreRefused` for what the database raises in the block.

        `limited`: whether `timeout` applies to the statements in it.
        """
        with refused(), translated(self.engine, self._timeout if limited else None):
            yield
