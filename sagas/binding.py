"""Nodes in their places in a saga: checked, and their functions bound, when the saga is defined."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sagas.children import Child, compensate_child, result_type
from sagas.each import Each
from sagas.errors import DefinitionError, DuplicateName, UnboundParameter
from sagas.functions import bare, describe
from sagas.kinds import type_name
from sagas.nodes import COMPENSATE, UNSAID, Node, Parallel, Pivot, Sleep, Step, Wait
from sagas.parameters import Bound, Scope, Source, input_fields
from sagas.retries import UNTIL_DONE, Retry
from sagas.values import NO_TYPE, check_type, dump, field_names

if TYPE_CHECKING:
    from sagas.definition import Saga

__all__ = ["Binder", "BoundStep"]

#: Makes the saga that runs an action for one item, from its name, its step, and the types of what the action asks for.
_SagaOfItems = Callable[[str, Step, Mapping[str, Any]], "Saga"]


class BoundStep:
    """A node in its place in a saga: everything about it decided."""

    __slots__ = (
        "action",
        "child",
        "compensation",
        "compensation_retry",
        "items",
        "key",
        "name",
        "on_timeout",
        "past_pivot",
        "queue",
        "retry",
        "stage",
        "step",
        "when",
    )

    def __init__(
        self,
        step: Node,
        stage: int,
        action: Bound,
        compensation: Bound | None,
        when: Bound | None,
        key: Bound | None,
        *,
        past_pivot: bool,
        child: Saga | None = None,
        items: Bound | None = None,
    ) -> None:
        self.name = step.name
        self.step = step
        self.stage = stage
        self.queue = step.queue
        self.action = action
        self.compensation = compensation
        self.when = when
        self.key = key  #: of a child saga
        self.child = child  #: the saga that it runs, once or for each item
        self.items = items  #: what makes the input of the child for one item
        self.past_pivot = past_pivot
        self.retry = step.retry or (UNTIL_DONE if past_pivot else Retry())
        self.compensation_retry = step.compensation_retry or UNTIL_DONE
        #: JSON of the value that a wait goes on with when its timeout is over; None where it compensates.
        self.on_timeout: str | None = None
        if isinstance(step, Wait) and step.on_timeout is not COMPENSATE:
            self.on_timeout = dump(step.on_timeout, action.returns)

    @property
    def gives_token(self) -> bool:
        """Whether another system may complete it by a token."""
        return self.step.patience is not None and not self.step.is_open_at_once


class Binder:
    """Binds the nodes of one saga: its input and the results of earlier nodes are what parameters may ask for."""

    def __init__(self, saga: str, input_type: Any, saga_of_items: _SagaOfItems) -> None:
        self._saga = saga
        self._input = input_type
        self._saga_of_items = saga_of_items

    def bind(self, stages: tuple[Node | Parallel, ...]) -> Iterator[tuple[BoundStep, ...]]:
        """Yield the nodes of each stage, bound. Raises `DefinitionError` for the first that cannot work."""
        fields = input_fields(self._input, self._saga)
        results: dict[str, bool] = {}  # of earlier stages: node name -> whether its result may be absent
        names: set[str] = set()
        pivot: str | None = None
        for number, stage in enumerate(stages):
            if not isinstance(stage, Node | Parallel):
                raise DefinitionError(
                    f"saga {self._saga!r}: {stage!r} is no node: a Step, Pivot, Wait, Sleep, Child, Each or Parallel"
                )
            steps = stage.steps if isinstance(stage, Parallel) else (stage,)
            scope, bound = Scope(self._input, fields, results), []
            for step in steps:
                where = f"saga {self._saga!r}, step {step.name!r}"
                if step.name in names:
                    raise DuplicateName(f"{where}: another step has this name")
                names.add(step.name)
                _check_name(step.name, fields, where)
                if step.is_pivot and pivot:
                    raise DefinitionError(f"{where}: a saga has one pivot, and {pivot!r} is it")
                _check_compensation(step, pivot, where)
                if pivot is None:
                    self._check_child(step, where)
                bound.append(self._bind_step(step, number, scope, where, past_pivot=pivot is not None))
            if isinstance(stage, Pivot):
                pivot = stage.name
            results.update({step.name: _may_be_absent(step) for step in bound})
            yield tuple(bound)

    def _check_child(self, step: Node, where: str) -> None:
        """Refuse sagas with a pivot of their own before that of this saga."""
        if isinstance(step, Child | Each) and step.saga and step.saga.pivot is not None:
            raise DefinitionError(
                f"{where}: its saga {step.saga.name!r} has the pivot {step.saga.pivot.name!r}, from where on "
                f"it cannot be undone, and {self._saga!r} may still need to undo it there. Put the child after "
                f"a pivot of {self._saga!r}, or use a saga without a pivot"
            )

    def _bind_step(self, step: Node, number: int, scope: Scope, where: str, *, past_pivot: bool) -> BoundStep:
        if isinstance(step, Each):
            return self._bind_each(step, number, scope, where, past_pivot=past_pivot)
        what = "input" if isinstance(step, Child) else "action"
        action = scope.bind(step.action, f"{where}, {what}", timeout=step.timeout)
        _check_reports(step, action, where)
        compensation, key = None, None
        if isinstance(step, Child):
            action = self._bind_child(step, action, where)
            if not past_pivot:
                compensation = Bound(compensate_child, {}, None, step.timeout)
            if step.key is not None:
                key = scope.bind(step.key, f"{where}, key", timeout=step.timeout)
        if step.compensation not in (UNSAID, None):
            assert step.compensation is not None
            compensation = scope.bind(step.compensation, f"{where}, compensation", timeout=step.timeout, own=True)
        when = None
        if step.when is not None:
            when = scope.bind(step.when, f"{where}, when", timeout=step.timeout)
        if isinstance(step, Wait):
            action = replace(action, returns=_payload_type(step, where))
        elif isinstance(step, Sleep):
            action = replace(action, returns=None)
        elif isinstance(step, Step) and step.patience is not None:
            action = replace(action, returns=step.result)
        child = step.saga if isinstance(step, Child) else None
        return BoundStep(step, number, action, compensation, when, key, past_pivot=past_pivot, child=child)

    def _bind_each(self, each: Each, number: int, scope: Scope, where: str, *, past_pivot: bool) -> BoundStep:
        over, when = _bind_over(each, scope, where), None
        if each.when is not None:
            when = scope.bind(each.when, f"{where}, when", timeout=each.timeout)
        if each.item is None:
            assert each.saga is not None
            child, functions = each.saga, [each.input]
            given: Callable[..., Any] = each.input or _item
        else:
            child, functions, given = None, [each.item.action, each.item.compensation], _packed
        sources, hints = scope.of_items([f for f in functions if callable(f)], where)
        if child is None:
            child = self._saga_of_items(f"{self._saga}.{each.name}", _item_step(each, where, past_pivot), hints)
            one = child.steps[each.name].action.returns
        else:
            one = result_type(child)
        returns = NO_TYPE if one is NO_TYPE else _list_of(one | None if each.allow_failures else one)
        compensation = None if past_pivot else Bound(compensate_child, {}, None, each.timeout)
        return BoundStep(
            each,
            number,
            replace(over, returns=returns),
            compensation,
            when,
            None,
            past_pivot=past_pivot,
            child=child,
            items=Bound(given, sources, NO_TYPE, each.timeout),
        )

    def _bind_child(self, child: Child, given: Bound, where: str) -> Bound:
        """Return what makes the input of a child saga. Raises `DefinitionError` where that takes another type."""
        wanted, saga = child.saga.input, child.saga.name
        if child.has_input:
            returns = given.returns
            if wanted is None:
                raise DefinitionError(f"{where}: the saga {saga!r} takes no input: drop input=")
            if returns is not NO_TYPE and bare(returns) is not wanted and not _is_mapping(returns):
                raise DefinitionError(
                    f"{where}: {describe(given.function)} returns {type_name(returns)}, and the saga {saga!r} takes "
                    f"{type_name(wanted)}"
                )
        elif wanted is not None and wanted is self._input:
            given = replace(given, function=_same, sources={"input": Source("input")})
        elif wanted is not None:
            raise DefinitionError(
                f"{where}: the saga {saga!r} takes {type_name(wanted)}, and {self._saga!r} "
                f"{'nothing' if self._input is None else type_name(self._input)}: give input= a function that returns "
                "the child's input"
            )
        return replace(given, returns=result_type(child.saga))


def _check_name(name: str, fields: Mapping[str, Any], where: str) -> None:
    if name in fields:
        raise DuplicateName(f"{where}: a field of the input has this name, so a parameter could mean either")
    if name in ("result", "step"):
        raise DefinitionError(f"{where}: the name is taken; compensations receive their own result by it")


def _check_compensation(step: Node, pivot: str | None, where: str) -> None:
    undoable = step.compensation not in (UNSAID, None)
    if step.is_pivot and step.when is not None:
        raise DefinitionError(f"{where}: a pivot is never conditional: the saga commits itself there")
    if step.is_pivot and step.patience is not None:
        raise DefinitionError(f"{where}: a pivot cannot be deferred")
    if pivot and isinstance(step, Wait) and step.on_timeout is COMPENSATE:
        raise DefinitionError(
            f"{where}: it comes after the pivot {pivot!r}, where nothing is compensated: give on_timeout= a value "
            "to go on with"
        )
    if step.is_pivot and undoable:
        raise DefinitionError(f"{where}: a pivot is never undone, so it takes no compensation")
    if pivot and undoable:
        raise DefinitionError(f"{where}: it comes after the pivot {pivot!r} and is never undone; drop its compensation")
    if step.compensation is UNSAID and not (step.is_pivot or pivot or isinstance(step, Child | Each)):
        raise DefinitionError(f"{where}: say what undoes it, or compensation=None when nothing needs undoing")


def _check_reports(step: Node, action: Bound, where: str) -> None:
    if step.heartbeat_timeout is not None and not action.takes_context:
        raise DefinitionError(
            f"{where}: heartbeat_timeout= is for an action that reports: give {describe(step.action)} a parameter that "
            "is annotated StepContext, and have it call heartbeat()"
        )


def _bind_over(each: Each, scope: Scope, where: str) -> Bound:
    """Return what gives the items."""
    if callable(each.over):
        return scope.bind(each.over, f"{where}, over", timeout=each.timeout)
    if each.over in scope.fields:
        source = Source("field", each.over)
    elif each.over in scope.results:
        if scope.results[each.over]:
            raise DefinitionError(
                f"{where}: over={each.over!r} may be absent, since that node has when=. Give over= a function that "
                "returns a list in any case"
            )
        source = Source("step", each.over, list)
    else:
        raise UnboundParameter(
            f"{where}: over={each.over!r} is neither a field of the input nor an earlier node. "
            f"There is: {', '.join([*scope.fields, *scope.results]) or '(nothing yet)'}; or give a function"
        )
    return Bound(each.action, {"items": source}, NO_TYPE, each.timeout)


def _list_of(type_: Any) -> Any:
    made: Any = list
    return made[type_]


def _packed(**given: Any) -> dict[str, Any]:
    """Give the action of an item what it asks for."""
    return given


def _item(item: Any) -> Any:
    """Give a saga the item as its input."""
    return item


def _item_step(each: Each, where: str, past_pivot: bool) -> Step:
    """Return the step that runs the action for one item."""
    item = each.item
    assert item is not None
    if not past_pivot:
        if item.compensation is UNSAID:
            raise DefinitionError(f"{where}: say what undoes an item, or compensation=None when nothing needs undoing")
        return item
    if item.compensation not in (UNSAID, None):
        raise DefinitionError(f"{where}: it comes after the pivot and is never undone; drop its compensation")
    return Pivot(
        each.name,
        item.action,
        timeout=item.timeout,
        start_timeout=item.start_timeout,
        retry=item.retry or UNTIL_DONE,
        heartbeat_timeout=item.heartbeat_timeout,
        queue=item.queue,
        max_deliveries=item.max_deliveries,
    )


def _same(input: Any) -> Any:  # noqa: A002
    """Give a child saga what its parent was given."""
    return input


def _is_mapping(type_: Any) -> bool:
    origin = typing.get_origin(type_) or type_
    return type_ is Any or (isinstance(origin, type) and issubclass(origin, Mapping))


def _may_be_absent(step: BoundStep) -> bool:
    return step.when is not None


def _payload_type(wait: Wait, where: str) -> Any:
    """Return the type of a wait's signal. Raises `DefinitionError` for one that cannot be kept."""
    try:
        check_type(wait.type)
        if isinstance(wait.key, str) and wait.key not in (fields := field_names(wait.type)):
            raise DefinitionError(
                f"{where}: key={wait.key!r} is no field of {wait.type.__qualname__}; it has {', '.join(fields)}"
            )
        if wait.on_timeout is not COMPENSATE:
            dump(wait.on_timeout, wait.type)
    except (TypeError, NotImplementedError, NameError) as error:
        raise DefinitionError(
            f"{where}: the payload or on_timeout={wait.on_timeout!r} cannot be kept: {error}"
        ) from error
    return wait.type
