"""The outline of a definition: its nodes, their order, and what each of them is. It is stored with every saga.

The outline tells whether running code still has the definition that a saga was started with. It also lets tools draw
and list a saga whose definition is in other code. In JSON, a node is an object, and a parallel stage is an array::

    [{"step": "reserve"}, [{"step": "authorize"}, {"step": "quote", "compensation": false}], {"pivot": "capture"},
     {"wait": "pickup"}, {"timer": "grace", "when": true}, {"child": "deliver", "saga": "deliver_order 1"},
     {"each": "bill", "over": "customers", "max_concurrency": 20, "allow_failures": 0.05}]
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from sagas.checkpoints import SagaSummary, StepRecord

__all__ = ["Outline", "OutlineNode", "steps_of"]

_COMPENSATION = "compensation"
_WHEN = "when"
_DEFERRED = "deferred"
_SAGA = "saga"
_OVER = "over"
_MAX_CONCURRENCY = "max_concurrency"
_ALLOW_FAILURES = "allow_failures"
_MARKS = frozenset({_COMPENSATION, _WHEN, _DEFERRED, _SAGA, _OVER, _MAX_CONCURRENCY, _ALLOW_FAILURES})

#: Kinds of nodes that something undoes unless the outline says otherwise.
_COMPENSATED = frozenset({"step", "child"})


@dataclass(frozen=True, slots=True)
class OutlineNode:
    """A node of a definition, without its functions."""

    name: str
    kind: str = "step"
    compensated: bool = True  #: whether something undoes it
    conditional: bool = False  #: whether it has `when=`
    deferred: bool = False  #: whether another system completes it
    saga: str = ""  #: the name and the version of the saga that is its child
    over: str = ""  #: of an `Each`: the name of what gives its items, or `A_FUNCTION`; empty where it is not known
    max_concurrency: int | None = None  #: of an `Each`; None where it is not known
    allow_failures: float | None = None  #: the same

    #: What `over` is where a function gives the items.
    A_FUNCTION: ClassVar[str] = "a function"

    @property
    def identity(self) -> tuple[str | bool, ...]:
        """What must stay the same while a saga has steps of this node."""
        return self.name, self.kind, self.compensated, self.conditional, self.deferred, self.saga

    @property
    def is_pivot(self) -> bool:
        return self.kind == "pivot"

    @property
    def label(self) -> str:
        """The name for drawings, with what they have no form for.

        >>> OutlineNode("approval", "wait", conditional=True).label
        'approval (wait, conditional)'
        >>> OutlineNode("hotel", "child", saga="book_hotel 1").label
        'hotel (saga book_hotel 1)'
        """
        marks = [self.kind] * (self.kind in ("wait", "timer")) + [f"saga {self.saga}"] * bool(self.saga)
        marks += ["conditional"] * self.conditional + ["deferred"] * self.deferred
        return f"{self.name} ({', '.join(marks)})" if marks else self.name

    def as_json(self) -> dict[str, Any]:
        """Return the object that stands for the node. Of a step, a compensation is taken for granted."""
        node: dict[str, Any] = {self.kind: self.name}
        if self.compensated is not (self.kind in _COMPENSATED):
            node[_COMPENSATION] = self.compensated
        if self.conditional:
            node[_WHEN] = True
        if self.deferred:
            node[_DEFERRED] = True
        if self.saga:
            node[_SAGA] = self.saga
        if self.over:
            node[_OVER] = self.over
        if self.max_concurrency is not None:
            node[_MAX_CONCURRENCY] = self.max_concurrency
        if self.allow_failures is not None:
            node[_ALLOW_FAILURES] = self.allow_failures
        return node

    @classmethod
    def from_json(cls, node: dict[str, Any]) -> OutlineNode:
        [(kind, name)] = [(key, value) for key, value in node.items() if key not in _MARKS]
        return cls(
            str(name),
            kind,
            compensated=bool(node.get(_COMPENSATION, kind in _COMPENSATED)),
            conditional=bool(node.get(_WHEN, False)),
            deferred=bool(node.get(_DEFERRED, False)),
            saga=str(node.get(_SAGA, "")),
            over=str(node.get(_OVER, "")),
            max_concurrency=node.get(_MAX_CONCURRENCY),
            allow_failures=node.get(_ALLOW_FAILURES),
        )


@dataclass(frozen=True, slots=True)
class Outline:
    """The stages of a definition, in order. A stage has several nodes if they run in parallel.

    >>> outline = Outline.parse('[{"step": "reserve"}, {"pivot": "pay"}]')
    >>> [node.name for node in outline.nodes if node.is_pivot]
    ['pay']
    """

    stages: tuple[tuple[OutlineNode, ...], ...]

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def parse(text: str) -> Outline:
        """Read an outline as it is stored."""
        stages = [stage if isinstance(stage, list) else [stage] for stage in json.loads(text)]
        return Outline(tuple(tuple(OutlineNode.from_json(node) for node in stage) for stage in stages))

    def __str__(self) -> str:
        """Return the outline as it is stored."""
        stages = [[node.as_json() for node in stage] for stage in self.stages]
        return json.dumps([stage if len(stage) > 1 else stage[0] for stage in stages], ensure_ascii=False)

    @property
    def nodes(self) -> Iterator[OutlineNode]:
        """The nodes in the order of the definition."""
        return (node for stage in self.stages for node in stage)

    def describe(self) -> str:
        """Return the outline in one line for people.

        >>> Outline.parse('[{"step": "reserve"}, [{"step": "a"}, {"step": "b", "compensation": false}]]').describe()
        'reserve > a & b (no compensation)'
        """
        return " > ".join(" & ".join(_described(node) for node in stage) for stage in self.stages)


def steps_of(record: SagaSummary) -> list[StepRecord]:
    """Return the steps of a saga in the order of its definition, with an empty record for a node that is not open."""
    by_node: dict[str, list[StepRecord]] = {}
    for step in record.steps.values():
        by_node.setdefault(step.node, []).append(step)
    return [
        step
        for node in Outline.parse(record.outline).nodes
        for step in by_node.get(node.name) or [record.step(node.name)]
    ]


def _described(node: OutlineNode) -> str:
    marks = [node.kind] if node.kind != "step" else [] if node.compensated else ["no compensation"]
    marks = [f"saga {node.saga}"] if node.saga else marks
    marks += ["conditional"] * node.conditional + ["deferred"] * node.deferred
    return f"{node.name} ({', '.join(marks)})" if marks else node.name
