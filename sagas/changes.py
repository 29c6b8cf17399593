"""What a change of a definition means for sagas in flight. The engine and `check-deploy` both go by these rules.

A saga stands at the last stage that it has opened. Code can go on with it if its definition has the same nodes up to
and including that stage. What comes after it may differ: the saga has opened none of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from sagas.outline import Outline, OutlineNode

__all__ = ["ADVICE", "Place", "describe_place", "differences", "is_new_at", "misfits"]

#: What to do about a change that sagas in flight cannot take.
ADVICE = "give the changed saga a new version and keep the old"

#: What a kind of node is called, where that is not the word in outlines.
_KINDS = {"pivot": "step", "timer": "sleep"}

Stages = Iterable[tuple[OutlineNode, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a saga stands in its outline."""

    stage: int  #: the last stage that it has opened, from 0; -1 of a saga that is to start later
    early: frozenset[str] = frozenset()  #: the waits whose signals are kept, though their stages are not open


def misfits(stored: str, running: str, place: Place) -> list[str]:
    """Say what keeps code with one outline from going on with a saga that has another. Empty if it can go on.

    >>> stored, running = '[{"step": "reserve"}, {"wait": "paid"}]', '[{"step": "reserve"}, {"step": "check"}]'
    >>> misfits(stored, running, Place(0)), misfits(stored, running, Place(1))
    ([], ["step 'check' is new", "wait 'paid' is gone"])
    """
    if stored == running:
        return []
    before, after = Outline.parse(stored), Outline.parse(running)
    found: list[str] = []
    if not _are_same(before.stages[: place.stage + 1], after.stages[: place.stage + 1]):
        behind = [node.name for stage in before.stages[: place.stage + 1] for node in stage]
        reach = max((number for number, stage in enumerate(after.stages) if _has_any(stage, behind)), default=-1)
        concerned = {*behind, *(node.name for stage in after.stages[: max(reach, place.stage) + 1] for node in stage)}
        found += _said(before, after, concerned)
    old, new = _by_name(before), _by_name(after)
    found += [
        f"the signal of wait {name!r} has come, and that {'has changed' if name in new else 'is gone'}"
        for name in sorted(place.early)
        if name not in new or not _is_same(old[name], new[name])
    ]
    return found


def is_new_at(stored: str, running: str, stage: int) -> bool:
    """Tell whether a saga that has opened this stage of the running outline no longer goes by the stored one."""
    if stored == running:
        return False
    before, after = Outline.parse(stored), Outline.parse(running)
    return not _are_same(before.stages[: stage + 1], after.stages[: stage + 1])


def describe_place(outline: str, place: Place) -> str:
    """Say for people where a saga stands.

    >>> describe_place('[{"step": "reserve"}, {"wait": "paid"}]', Place(1))
    "stands at 'paid'"
    """
    if place.stage < 0:
        return "has not begun"
    stages = Outline.parse(outline).stages
    return f"stands at {', '.join(repr(node.name) for node in stages[min(place.stage, len(stages) - 1)])}"


def differences(stored: str, running: str) -> list[str]:
    """Say in sentences all that differs between the outline that sagas were started with and that of this code.

    >>> differences('[{"step": "reserve"}]', '[{"step": "reserve", "compensation": false}, {"step": "check"}]')
    ["step 'check' is new", "step 'reserve' had a compensation and has none"]
    """
    if stored == running:
        return []
    before, after = Outline.parse(stored), Outline.parse(running)
    return _said(before, after, {node.name for outline in (before, after) for node in outline.nodes})


# -- nodes that are the same --------------------------------------------------------------------------------------


def _is_same(old: OutlineNode, new: OutlineNode) -> bool:
    """Tell whether a record goes with either node. How many items run or may fail is asked each time."""
    return old.identity == new.identity and (old.over == new.over or not old.over or not new.over)


def _are_same(before: Stages, after: Stages) -> bool:
    one, other = [_sorted(stage) for stage in before], [_sorted(stage) for stage in after]
    return [len(stage) for stage in one] == [len(stage) for stage in other] and all(
        _is_same(old, new)
        for stage, changed in zip(one, other, strict=True)
        for old, new in zip(stage, changed, strict=True)
    )


def _sorted(stage: tuple[OutlineNode, ...]) -> list[OutlineNode]:
    return sorted(stage, key=lambda node: node.name)


def _has_any(stage: tuple[OutlineNode, ...], names: Collection[str]) -> bool:
    return any(node.name in names for node in stage)


def _by_name(outline: Outline) -> dict[str, OutlineNode]:
    return {node.name: node for node in outline.nodes}


# -- sentences ----------------------------------------------------------------------------------------------------


def _said(before: Outline, after: Outline, concerned: Collection[str]) -> list[str]:
    """Say what differs about some of the nodes."""
    old, new = _places(before), _places(after)
    found = [f"{old[name].what} is gone" for name in old if name in concerned and name not in new]
    found = [f"{new[name].what} is new" for name in new if name in concerned and name not in old] + found
    common = [name for name in old if name in new and name in concerned]
    for name in common:
        found += _changed(name, old, new)
    # Only what they have in common tells who changed places: a new step moves all that come after it.
    if common != (now := [name for name in new if name in common]):
        found.append(f"the order was {', '.join(common)} and is {', '.join(now)}")
    return found or ["its stages differ"]


@dataclass(frozen=True, slots=True)
class _Place:
    beside: frozenset[str]
    node: OutlineNode

    @property
    def what(self) -> str:
        return _what(self.node)


def _what(node: OutlineNode) -> str:
    return f"{_KINDS.get(node.kind, node.kind)} {node.name!r}"


def _places(outline: Outline) -> dict[str, _Place]:
    places = {}
    for stage in outline.stages:
        names = frozenset(node.name for node in stage)
        places.update({node.name: _Place(names - {node.name}, node) for node in stage})
    return places


def _changed(name: str, before: dict[str, _Place], after: dict[str, _Place]) -> Iterator[str]:
    old, new = before[name], after[name]
    yield from _changed_node(old.node, new.node)
    together = frozenset(before) & frozenset(after)
    if old.beside & together != new.beside & together:
        yield f"{_what(new.node)} ran {_beside(old.beside)} and runs {_beside(new.beside)}"


def _changed_node(old: OutlineNode, new: OutlineNode) -> Iterator[str]:
    what = _what(new)
    if old.is_pivot != new.is_pivot:
        yield f"{what} " + ("is now the pivot" if new.is_pivot else "was the pivot and no longer is")
    elif old.kind != new.kind:
        yield f"{new.name!r} was a {old.kind} and is a {new.kind}"
    elif old.saga != new.saga:
        yield f"{new.name!r} was {_of_saga(old)} and is {_of_saga(new)}"
    elif old.compensated != new.compensated:
        yield f"{what} " + ("had a compensation and has none" if old.compensated else "had no compensation and has one")
    if old.conditional != new.conditional:
        yield f"{what} " + ("had a condition and has none" if old.conditional else "had no condition and has one")
    if old.kind == new.kind and old.deferred != new.deferred:
        yield f"{what} was {_deferred(old)} and is {_deferred(new)}"
    if old.over and new.over and old.over != new.over:
        yield f"{what} went over {_over(old)} and goes over {_over(new)}"
    for option in ("max_concurrency", "allow_failures"):
        had, has = getattr(old, option), getattr(new, option)
        if None not in (had, has) and had != has:
            yield f"{what} had {option}={had} and has {option}={has}"


def _deferred(node: OutlineNode) -> str:
    return "deferred" if node.deferred else "not deferred"


def _of_saga(node: OutlineNode) -> str:
    return f"the child saga {node.saga}" if node.saga else "an action"


def _over(node: OutlineNode) -> str:
    return node.over if node.over == OutlineNode.A_FUNCTION else repr(node.over)


def _beside(names: frozenset[str]) -> str:
    return f"beside {', '.join(sorted(names))}" if names else "alone"
