"""This code held against the sagas in flight: which of them it could not bring on, and why. For before a deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagas.app import Sagas
from sagas.checkpoints import FINISHED, SagaStatus, node_of
from sagas.definition import Saga
from sagas.errors import PayloadUnreadable
from sagas.outline import Outline, OutlineNode
from sagas.stores import Filter, InFlight, Payloads, Queries, operator_store
from sagas.values import NO_TYPE, load

__all__ = ["Flight", "check", "differences"]

_UNFINISHED = frozenset(SagaStatus) - FINISHED
_PAGE = 100

#: Of one definition, so many values that do not read are told.
_MOST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """The unfinished sagas that were started with one definition, and what keeps this code from going on with them."""

    name: str
    version: int
    outline: str
    count: int
    statuses: tuple[SagaStatus, ...]
    oldest: datetime  #: when the oldest of them was started
    example: str  #: its id
    problems: tuple[str, ...]  #: empty where this code can go on with them
    read: int  #: of how many of them the stored values were read

    @property
    def ok(self) -> bool:
        return not self.problems


def check(sagas: Sagas, *, values: int | None = 100) -> Sequence[Flight]:
    """Return the sagas in flight by definition, and what keeps this code from each.

    It only reads, and needs no broker. `values`: of how many sagas of each definition, oldest first, the stored inputs
    and results are read with the types of this code; None: of all. A value that does not read would count as
    `TerminalError`, and turn its saga back.
    Raises `StoreUnavailable`; `ConfigurationError` where sagas are not kept in a `SqlStore`.
    """
    queries = operator_store(sagas.store).queries
    groups: dict[tuple[str, int, str], list[InFlight]] = {}
    for each in queries.in_flight():
        groups.setdefault((each.name, each.version, each.outline), []).append(each)
    return [_flight(sagas, queries, found, values) for found in groups.values()]


def _flight(sagas: Sagas, queries: Queries, found: Sequence[InFlight], values: int | None) -> Flight:
    oldest = min(found, key=lambda each: each.oldest)
    problems = tuple(_misfits(sagas, oldest))
    read = 0
    if not problems:
        saga = sagas.orchestrator.sagas[oldest.name, oldest.version]
        read, problems = _values(queries, saga, values)
    return Flight(
        name=oldest.name,
        version=oldest.version,
        outline=oldest.outline,
        count=sum(each.count for each in found),
        statuses=tuple(sorted({each.status for each in found})),
        oldest=oldest.oldest,
        example=oldest.example,
        problems=problems,
        read=read,
    )


def _misfits(sagas: Sagas, flight: InFlight) -> Iterator[str]:
    known = sagas.orchestrator.sagas
    saga = known.get((flight.name, flight.version))
    if saga is not None:
        yield from differences(flight.outline, saga.outline)
        return
    versions = ", ".join(str(version) for name, version in sorted(known) if name == flight.name)
    if versions:
        yield f"this code has only version {versions}: keep version {flight.version} registered until they are gone"
    else:
        yield "this code has no saga of this name: keep it registered until they are gone"


# -- outlines -----------------------------------------------------------------------------------------------------


def differences(stored: str, running: str) -> list[str]:
    """Say in sentences what differs between the outline that sagas were started with and that of this code.

    >>> differences('[{"step": "reserve"}]', '[{"step": "reserve", "compensation": false}, {"step": "check"}]')
    ["step 'check' is new: give the changed saga a new version and keep the old",
    "step 'reserve' had a compensation and has none: give the changed saga a new version and keep the old"]
    """
    if stored == running:
        return []
    before, after = _places(stored), _places(running)
    found = [f"step {name!r} is gone" for name in before if name not in after]
    found += [f"step {name!r} is new" for name in after if name not in before]
    for name in before:
        if name in after:
            found += _changed(name, before, after)
    # Only what they have in common tells who changed places: a new step moves all that come after it.
    common = [name for name in before if name in after]
    if common != [name for name in after if name in before]:
        found.append(f"the order was {', '.join(common)} and is {', '.join(n for n in after if n in before)}")
    return [f"{each}: give the changed saga a new version and keep the old" for each in found or ["its stages differ"]]


@dataclass(frozen=True, slots=True)
class _Place:
    beside: frozenset[str]
    node: OutlineNode


def _places(outline: str) -> dict[str, _Place]:
    places = {}
    for stage in Outline.parse(outline).stages:
        names = frozenset(node.name for node in stage)
        places.update({node.name: _Place(names - {node.name}, node) for node in stage})
    return places


def _changed(name: str, before: dict[str, _Place], after: dict[str, _Place]) -> Iterator[str]:
    old, new = before[name], after[name]
    if old.node.is_pivot != new.node.is_pivot:
        yield f"step {name!r} " + ("is now the pivot" if new.node.is_pivot else "was the pivot and no longer is")
    elif old.node.kind != new.node.kind:
        yield f"{name!r} was a {old.node.kind} and is a {new.node.kind}"
    elif old.node.saga != new.node.saga:
        yield f"{name!r} was the child saga {old.node.saga} and is {new.node.saga}"
    elif old.node.compensated != new.node.compensated:
        had = "had a compensation and has none" if old.node.compensated else "had no compensation and has one"
        yield f"step {name!r} {had}"
    together = frozenset(before) & frozenset(after)
    if old.beside & together != new.beside & together:
        yield f"step {name!r} ran {_beside(old.beside)} and runs {_beside(new.beside)}"


def _beside(names: frozenset[str]) -> str:
    return f"beside {', '.join(sorted(names))}" if names else "alone"


# -- values -------------------------------------------------------------------------------------------------------


def _values(queries: Queries, saga: Saga, most: int | None) -> tuple[int, tuple[str, ...]]:
    """Read the stored values of sagas, oldest first; return of how many, and what does not read."""
    where = Filter(name=saga.name, version=saga.version, statuses=_UNFINISHED)
    after, read = "", 0
    wrong: list[str] = []
    while most is None or read < most:
        limit = _PAGE if most is None else min(_PAGE, most - read)
        page = queries.select(where, after=after, limit=limit)
        for record in page:
            if record.outline == saga.outline:
                wrong += list(_unreadable(saga, record.id, queries.payloads(record.id)))
                read += 1
        if len(wrong) > _MOST:
            return read, (*wrong[:_MOST], "and more")
        if len(page) < limit:
            break
        after = page[-1].id
    return read, tuple(wrong)


def _unreadable(saga: Saga, saga_id: str, payloads: Payloads) -> Iterator[str]:
    where = f"saga {saga_id}"
    if saga.input is not None and (error := _error(payloads.input, saga.input)):
        yield f"{where}: its input does not read as {_name(saga.input)}: {error}"
    for name, result in payloads.results.items():
        node = node_of(name)
        for type_ in _read_as(saga, node) if node in saga.steps else ():
            if error := _error(result, type_):
                yield f"{where}: the result of step {name!r} does not read as {_name(type_)}: {error}"


def _read_as(saga: Saga, name: str) -> list[Any]:
    """Return the types that a result is read as: what its action declares, or else what each that asks for it does."""
    declared = saga.steps[name].action.returns
    if declared is not NO_TYPE:
        return [declared]
    functions = [bound for step in saga.steps.values() for bound in (step.action, step.compensation) if bound]
    asked = [source.type for bound in functions for source in bound.sources.values() if source.name == name]
    own = saga.steps[name].compensation
    asked += [source.type for source in own.sources.values() if source.kind == "own"] if own else []
    return [type_ for type_ in asked if type_ is not NO_TYPE]


def _error(text: str | PayloadUnreadable, type_: Any) -> str | None:
    if isinstance(text, PayloadUnreadable):
        return str(text)
    try:
        load(text, type_)
    except Exception as error:  # noqa: BLE001 - whatever a type of the user's raises keeps the step from its arguments
        return f"{type(error).__name__}: {error}"
    return None


def _name(type_: Any) -> str:
    return getattr(type_, "__qualname__", None) or str(type_)
