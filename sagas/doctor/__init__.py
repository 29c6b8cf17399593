"""Checks everything that sagas depend on, and says what is wrong and what to do: `celery -A yourapp sagas doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sagas.app import Sagas
from sagas.doctor import broker, database, schedules, setup, work, workers
from sagas.doctor.findings import Finding, Level, problem
from sagas.errors import StoreRefused
from sagas.stores import OperatorStore, operator_store

__all__ = ["Finding", "Level", "examine"]


def examine(sagas: Sagas, *, timeout: float = 2.0) -> Sequence[Finding]:
    """Check the app, its broker, database and workers, and the pending work; return the findings.

    It changes nothing. `timeout`: seconds that the broker has to answer, and the workers.
    Raises `ConfigurationError` if the store is not a `SqlStore`.
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
    if tables_are_there:  # otherwise the tables or their columns are missing
        try:
            yield from work.examine(sagas, store)
            yield from schedules.examine(sagas)
        except StoreRefused as error:
            yield problem(database.PRIVILEGES, f"the pending work cannot be examined: {error}", "grant SELECT")
    if sagas.events is not None:
        yield from work.examine_queues(sagas.events)
