"""This code held against the sagas in flight: which of them it could not bring on, and why. For before a deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagas.app import Sagas
from sagas.changes import ADVICE, Place, describe_place, differences, misfits
from sagas.checkpoints import FINISHED, SagaStatus, node_of
from sagas.definition import Saga
from sagas.errors import PayloadUnreadable
from sagas.opening import place_of
from sagas.stores import Filter, InFlight, Payloads, Queries, Standing, operator_store
from sagas.values import NO_TYPE, load

__all__ = ["Flight", "check", "differences", "stranded"]

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
    example: str  #: the id of one of them: one that this code cannot go on with, if there is any
    problems: tuple[str, ...]  #: empty where this code can go on with them
    stranded: int  #: how many of them have no definition in this code that they could go on with
    changes: tuple[str, ...]  #: what this code does in another way, ahead of those that go on with it
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
    oldest, count = min(found, key=lambda each: each.oldest), sum(each.count for each in found)
    saga = sagas.orchestrator.sagas.get((oldest.name, oldest.version))
    if saga is None:
        lost, example, read = count, oldest.example, 0
        problems: Sequence[str] = [_absence(sagas, oldest)]
    else:
        stays = stranded(queries, saga, oldest)
        lost, example, read = sum(each.count for each, _ in stays), oldest.example, 0
        problems = [_sentence(queries, oldest.outline, *each) for each in stays]
        if stays:
            example = stays[0][0].example
        else:
            read, problems = _values(queries, saga, oldest.outline, values)
    return Flight(
        name=oldest.name,
        version=oldest.version,
        outline=oldest.outline,
        count=count,
        statuses=tuple(sorted({each.status for each in found})),
        oldest=oldest.oldest,
        example=example,
        problems=tuple(problems),
        stranded=lost,
        changes=tuple(differences(oldest.outline, saga.outline)) if saga is not None and lost < count else (),
        read=read,
    )


def _absence(sagas: Sagas, flight: InFlight) -> str:
    if versions := sagas.orchestrator.sagas.versions(flight.name):
        return f"this code has only version {versions}: keep version {flight.version} registered until they are gone"
    return "this code has no saga of this name: keep it registered until they are gone"


# -- outlines -----------------------------------------------------------------------------------------------------


def stranded(queries: Queries, saga: Saga, flight: InFlight) -> list[tuple[Standing, list[str]]]:
    """Return which sagas of a flight a definition cannot go on with, by where they stand, and why."""
    if flight.outline == saga.outline:
        return []
    found: list[tuple[Standing, list[str]]] = []
    for each in queries.standing(flight.name, flight.version, flight.outline):
        early = frozenset() if each.early is None else frozenset({each.early})
        # Those that have a signal early are among all that stand at their stage.
        counted = any(other.early is None and other.stage == each.stage for other, _ in found)
        if not counted and (why := misfits(flight.outline, saga.outline, Place(each.stage, early))):
            found.append((each, why))
    return found


def _sentence(queries: Queries, outline: str, standing: Standing, why: Sequence[str]) -> str:
    example = queries.summary(standing.example)
    also = f", as {standing.count - 1} more do" if standing.count > 1 else ""
    place = describe_place(outline, place_of(example))
    return f"{'; '.join(why)}, and saga {example.id} (key {example.key}) {place}{also}: {ADVICE}"


# -- values -------------------------------------------------------------------------------------------------------


def _values(queries: Queries, saga: Saga, outline: str, most: int | None) -> tuple[int, tuple[str, ...]]:
    """Read the stored values of sagas, oldest first; return of how many, and what does not read."""
    where = Filter(name=saga.name, version=saga.version, statuses=_UNFINISHED)
    after, read = "", 0
    wrong: list[str] = []
    while most is None or read < most:
        limit = _PAGE if most is None else min(_PAGE, most - read)
        page = queries.select(where, after=after, limit=limit)
        for record in page:
            if record.outline == outline:
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
