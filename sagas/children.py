"""`Child`: a node that is a saga of its own, and what a definition may contain of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from sagas.errors import DefinitionError
from sagas.nodes import UNSAID, Node
from sagas.values import NO_TYPE

if TYPE_CHECKING:
    from sagas.binding import BoundStep
    from sagas.definition import Saga

__all__ = ["DEEPEST_CHILD", "Child", "check_children", "compensate_child", "descendants", "result_type"]

#: A saga may have children, and these may have children, down to so many levels.
DEEPEST_CHILD = 10


class Child(Node):
    """Runs another saga as one node: a saga of its own, with its own steps, history and key, that has a parent.

    `saga`: the saga to run. Registering the parent registers it.
    `input`: a function that returns the child's input, or a mapping of its fields. Its parameters are filled by name,
        like those of an action. Left out, the child receives the parent's input, if it takes that type, or none.
    `key`: a function that returns the child's business key. Left out, the key is the parent's id and the step's name.
    `when`: run the child only if this function returns true; otherwise the result is None.

    The result for later steps is a dict of the results of the child's steps, by their names.

    If the child compensates, the node has failed, and the parent compensates. If the parent compensates, the child
    compensates, also if it is COMPLETED. A child that has a pivot may therefore only stand after the parent's pivot.

    >>> from sagas import Saga, Step
    >>> book_hotel = Saga("book_hotel", Step("room", lambda: 7, compensation=None))
    >>> Child("hotel", book_hotel)
    Child('hotel')
    """

    kind = "child"

    def __init__(
        self,
        name: str,
        saga: Saga[Any],
        *,
        input: Callable[..., Any] | None = None,  # noqa: A002
        key: Callable[..., str] | None = None,
        when: Callable[..., Any] | None = None,
        queue: str | None = None,
    ) -> None:
        super().__init__(name, input or _nothing, compensation=UNSAID, when=when, queue=queue)
        self.saga = saga
        self.has_input = input is not None
        self.key = key


def _nothing() -> None:
    """Give the child no input."""


def compensate_child() -> None:
    """Stand for the compensation of a child, which is that of its own steps."""


def result_type(saga: Saga[Any]) -> Any:
    """Return the type of what later steps of a parent receive: the results of the child's steps, by name."""
    fields = {step.name: _result_of(step) for step in saga.steps.values() if step.step.kind != "timer"}
    made: Any = TypedDict("made", fields, total=False)  # type: ignore[misc]  # its fields are known at run time
    made.__name__ = made.__qualname__ = f"{saga.name}'s results"
    return made


def _result_of(step: BoundStep) -> Any:
    returns = Any if step.action.returns is NO_TYPE else step.action.returns
    return returns if step.when is None else returns | None


def descendants(saga: Saga[Any]) -> Iterator[Saga[Any]]:
    """Yield the children of a saga, and theirs."""
    for step in saga.steps.values():
        if step.child is not None:
            yield step.child
            yield from descendants(step.child)


def check_children(name: str, version: int, nodes: Mapping[str, Any]) -> None:
    """Refuse a saga that contains itself, or too many levels. Raises `DefinitionError`."""
    for child, saga in nodes.items():
        where = f"saga {name!r}, child {child!r}"
        if not hasattr(saga, "stages"):
            raise DefinitionError(f"{where}: {saga!r} is no Saga")
        for inner in (saga, *descendants(saga)):
            if (inner.name, inner.version) == (name, version):
                raise DefinitionError(
                    f"{where}: saga {name!r} version {version} would contain itself, without end. Give one of the two "
                    "another name, or another version if it is another one"
                )
        if depth(saga) >= DEEPEST_CHILD:
            raise DefinitionError(
                f"{where}: it is nested more than {DEEPEST_CHILD} levels deep; let a step start the inner saga, with "
                "saga.start(...), where nothing has to be undone with the outer one"
            )


def depth(saga: Saga[Any]) -> int:
    """Return how many levels of sagas a saga has, with itself."""
    inner = [depth(step.child) for step in saga.steps.values() if step.child is not None]
    return 1 + max(inner, default=0)
