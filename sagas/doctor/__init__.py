"""Looks at everything that sagas stand on, and says what is wrong and what to do: `celery -A yourapp sagas doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sagas.app import Sagas
from sagas.doctor import broker, database, schedules, setup, work, workers
from sagas.doctor.findings import Finding, Level, problem
from sagas.errors import StoreRefused
from sagas.stores import OperatorStore, operator_store

__all__ = ["Finding", "Level", "examine"]


def examine(sagas: Sagas, *, timeout: float = 2.0) -> Sequence[Finding]:
    """Look at the app, its broker, its database, its workers and the work that waits; return what was found.

    It changes nothing. `timeout`: seconds that the broker has to answer, and that workers have.
    Raises `ConfigurationError` where sagas are not kept in a `SqlStore`.
    """
    return tuple(_examine(sagas, operator_store(sagas.store), timeout))


def _examine(sagas: Sagas, store: OperatorStore, timeout: float) -> Iterator[Finding]:
    yield from setup.examine(sagas)
    found = tuple(broker.examine(sagas.app, timeout))
    yield from found
    if broker.UNREACHABLE not in [finding.code for finding in found]:
        yield from workers.examine(sagas, timeout)
    tables_are_there = True
    for finding in database.examine(sagas, store):
        tables_are_there &= finding.code not in (database.UNREACHABLE, database.OUTDATED)
        yield finding
    if tables_are_there:  # else there is nothing to look at, or not in these columns
        try:
            yield from work.examine(sagas, store)
            yield from schedules.examine(sagas)
        except StoreRefused as error:
            yield problem(database.PRIVILEGES, f"the work that waits cannot be looked at: {error}", "grant SELECT")
    if sagas.events is not None:
        yield from work.examine_queues(sagas.events)
