"""The definitions in the running code, and the sagas in flight in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sagas.check import stranded
from sagas.definition import Saga
from sagas.drawing import render
from sagas.operations import Operations
from sagas.stores import InFlight

__all__ = ["Known", "UnknownDefinition", "look"]


@dataclass(frozen=True, slots=True)
class Known:
    """A definition in the running code."""

    saga: Saga
    drawing: str
    flights: Sequence[InFlight]


@dataclass(frozen=True, slots=True)
class UnknownDefinition:
    """Sagas in flight that the running code cannot continue."""

    flight: InFlight
    outline: str | None  #: of the definition with their name and version; None if there is none


def look(operations: Operations) -> tuple[list[Known], list[UnknownDefinition]]:
    """Query which sagas are in flight, and match them with the definitions."""
    flights = operations.queries.in_flight()
    definitions = operations.sagas.orchestrator.sagas
    unknown = []
    for flight in flights:
        saga = definitions.get((flight.name, flight.version))
        if saga is None or stranded(operations.queries, saga, flight):
            unknown.append(UnknownDefinition(flight, None if saga is None else saga.outline))
    lost = [each.flight for each in unknown]
    known = [
        Known(
            saga,
            render(saga, "svg", styled=False),
            [flight for flight in flights if (flight.name, flight.version) == key and flight not in lost],
        )
        for key, saga in sorted(definitions.items())
    ]
    return known, unknown
