"""What fills each parameter of a saga's functions, decided and checked when the saga is defined."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sagas.context import StepContext
from sagas.errors import DefinitionError, DuplicateName, UnboundParameter
from sagas.functions import Look, allows_none, bare, describe, finish, look_at
from sagas.nodes import COMPENSATE, UNSAID, Node, Parallel, Pivot, Sleep, Step, Wait
from sagas.retries import UNTIL_DONE, Retry
from sagas.values import NO_TYPE, check_type, dump, field_names, may_be_absent

__all__ = ["Binder", "Bound", "BoundStep", "Source"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A function together with where each of its parameters comes from."""

    function: Callable[..., Any]
    sources: Mapping[str, Source]
    returns: Any

    timeout: float  #: seconds after which an async function is cancelled

    def __call__(self, **arguments: Any) -> Any:
        return finish(self.function(**arguments), self.timeout)


@dataclass(frozen=True, slots=True)
class Source:
    kind: typing.Literal["context", "input", "field", "step", "own"]
    name: str = ""
    type: Any = NO_TYPE  #: the type that the consumer declares
    has_default: bool = False  #: of a field that may be absent: then the parameter's own default applies


class BoundStep:
    """A node in its place in a saga: everything about it decided."""

    __slots__ = (
        "action",
        "compensation",
        "compensation_retry",
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
        *,
        past_pivot: bool,
    ) -> None:
        self.name = step.name
        self.step = step
        self.stage = stage
        self.queue = step.queue
        self.action = action
        self.compensation = compensation
        self.when = when
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

    def __init__(self, saga: str, input_type: Any) -> None:
        self._saga = saga
        self._input = input_type

    def bind(self, stages: tuple[Node | Parallel, ...]) -> Iterator[tuple[BoundStep, ...]]:
        """Yield the nodes of each stage, bound. Raises `DefinitionError` for the first that cannot work."""
        fields = self._input_fields()
        results: dict[str, bool] = {}  # of earlier stages: node name -> whether its result may be absent
        names: set[str] = set()
        pivot: str | None = None
        for number, stage in enumerate(stages):
            if not isinstance(stage, Node | Parallel):
                raise DefinitionError(
                    f"saga {self._saga!r}: {stage!r} is no node: a Step, Pivot, Wait, Sleep or Parallel"
                )
            steps = stage.steps if isinstance(stage, Parallel) else (stage,)
            bound = []
            for step in steps:
                where = f"saga {self._saga!r}, step {step.name!r}"
                if step.name in names:
                    raise DuplicateName(f"{where}: another step has this name")
                if step.name in fields:
                    raise DuplicateName(
                        f"{where}: a field of the input has this name, so a parameter could mean either"
                    )
                if step.name in ("result", "step"):
                    raise DefinitionError(f"{where}: the name is taken; compensations receive their own result by it")
                names.add(step.name)
                if step.is_pivot and pivot:
                    raise DefinitionError(f"{where}: a saga has one pivot, and {pivot!r} is it")
                self._check_compensation(step, pivot, where)
                bound.append(self._bind_step(step, number, fields, results, where, past_pivot=pivot is not None))
            if isinstance(stage, Pivot):
                pivot = stage.name
            results.update({step.name: _may_be_absent(step) for step in bound})
            yield tuple(bound)

    @staticmethod
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
            raise DefinitionError(
                f"{where}: it comes after the pivot {pivot!r} and is never undone; drop its compensation"
            )
        if step.compensation is UNSAID and not (step.is_pivot or pivot):
            raise DefinitionError(f"{where}: say what undoes it, or compensation=None when nothing needs undoing")

    def _bind_step(
        self,
        step: Node,
        number: int,
        fields: Mapping[str, Any],
        results: Mapping[str, bool],
        where: str,
        *,
        past_pivot: bool,
    ) -> BoundStep:
        action = self._bind_function(step, step.action, f"{where}, action", fields, results, own=False)
        compensation = None
        if step.compensation not in (UNSAID, None):
            assert step.compensation is not None
            compensation = self._bind_function(
                step, step.compensation, f"{where}, compensation", fields, results, own=True
            )
        when = None
        if step.when is not None:
            when = self._bind_function(step, step.when, f"{where}, when", fields, results, own=False)
        if isinstance(step, Wait):
            action = replace(action, returns=_payload_type(step, where))
        elif isinstance(step, Sleep):
            action = replace(action, returns=None)
        elif isinstance(step, Step) and step.patience is not None:
            action = replace(action, returns=step.result)
        return BoundStep(step, number, action, compensation, when, past_pivot=past_pivot)

    def _bind_function(
        self,
        step: Node,
        given: Callable[..., Any],
        where: str,
        fields: Mapping[str, Any],
        results: Mapping[str, bool],
        *,
        own: bool,
    ) -> Bound:
        look = _look_at(given, where)
        sources: dict[str, Source] = {}
        for parameter in look.parameters.values():
            hint = look.hints.get(parameter.name, NO_TYPE)
            source = self._source(parameter, hint, given, where, fields, results, own=own)
            if source is not None:
                sources[parameter.name] = source
        returns = look.hints.get("return", NO_TYPE)
        if returns in (typing.NoReturn, typing.Never):  # it always raises
            returns = None
        if not own:
            try:
                check_type(returns)
            except (TypeError, NotImplementedError, NameError) as error:
                raise DefinitionError(f"{where}: what {describe(given)} returns cannot be kept: {error}") from error
        return Bound(given, sources, returns, step.timeout)

    def _source(
        self,
        parameter: inspect.Parameter,
        hint: Any,
        given: Callable[..., Any],
        where: str,
        fields: Mapping[str, Any],
        results: Mapping[str, bool],
        *,
        own: bool,
    ) -> Source | None:
        """Return what fills a parameter; None where only its default does."""
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"{where}: {describe(given)} has the parameter {parameter}; "
                "parameters are filled by name, one by one. A decorator keeps those of its function by "
                "functools.wraps"
            )
        if bare(hint) is StepContext:
            return Source("context")
        if own and name == "result":
            return Source("own", type=hint)
        if self._input is not None and bare(hint) is self._input:
            return Source("input")
        if name in fields:
            return self._field(parameter, hint, given, where)
        if name in results:
            _check_absence(name, hint, given, where, may_be_absent=results[name])
            return Source("step", name, hint)
        if parameter.default is parameter.empty:
            offers = [*fields, *results, *(["result"] if own else [])]
            raise UnboundParameter(
                f"{where}: nothing can fill the parameter {name!r} of {describe(given)}. "
                f"It may name one of: {', '.join(offers) or '(nothing yet)'}; or be annotated StepContext"
            )
        return None

    def _field(self, parameter: inspect.Parameter, hint: Any, given: Callable[..., Any], where: str) -> Source:
        has_default = parameter.default is not parameter.empty
        if may_be_absent(self._input, parameter.name) and not has_default and not allows_none(hint):
            raise DefinitionError(
                f"{where}: the field {parameter.name!r} of the input may be absent, and then nothing can fill that "
                f"parameter of {describe(given)}: give it a default, or a type that allows None"
            )
        return Source("field", parameter.name, has_default=has_default)

    def _input_fields(self) -> Mapping[str, bool]:
        if self._input is None:
            return {}
        try:
            fields = field_names(self._input)
            check_type(self._input)
        except (TypeError, NotImplementedError, NameError) as error:
            raise DefinitionError(f"saga {self._saga!r}: the input type cannot be used: {error}") from error
        return fields


def _look_at(given: Any, where: str) -> Look:
    if not callable(given):
        raise DefinitionError(f"{where}: {given!r} is not a function or a Celery task")
    try:
        return look_at(given)
    except TypeError as error:
        raise DefinitionError(f"{where}: {error}") from error
    except NameError as error:
        raise DefinitionError(f"{where}: an annotation of {describe(given)} cannot be read: {error}") from error


def _check_absence(name: str, hint: Any, given: Any, where: str, *, may_be_absent: bool) -> None:
    if may_be_absent and not allows_none(hint):
        raise DefinitionError(
            f"{where}: the result of {name!r} may be absent, since that node has when=. Give the "
            f"parameter of {describe(given)} a type that allows None"
        )


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
