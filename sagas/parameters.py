"""What fills the parameters of a saga's functions: the input, the results of earlier nodes, the context."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sagas.context import StepContext
from sagas.errors import DefinitionError, UnboundParameter
from sagas.functions import Look, allows_none, bare, describe, finish, look_at
from sagas.values import NO_TYPE, check_type, field_names, may_be_absent

__all__ = ["Bound", "Scope", "Source", "input_fields"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A function together with where each of its parameters comes from."""

    function: Callable[..., Any]
    sources: Mapping[str, Source]
    returns: Any

    timeout: float  #: seconds after which an async function is cancelled

    @property
    def takes_context(self) -> bool:
        return any(source.kind == "context" for source in self.sources.values())

    def __call__(self, **arguments: Any) -> Any:
        return finish(self.function(**arguments), self.timeout)


@dataclass(frozen=True, slots=True)
class Source:
    kind: typing.Literal["context", "input", "field", "step", "own", "item"]
    name: str = ""
    type: Any = NO_TYPE  #: the type that the consumer declares
    has_default: bool = False  #: of a field that may be absent: then the parameter's own default applies


class Scope:
    """What the functions of a node may ask for.

    `fields`: of the input, which has the type `input_type`. `results`: of the nodes in earlier stages, by their names,
    and whether each may be absent.
    """

    def __init__(self, input_type: Any, fields: Mapping[str, Any], results: Mapping[str, bool]) -> None:
        self.fields = fields
        self.results = results
        self._input = input_type

    def bind(
        self,
        given: Callable[..., Any],
        where: str,
        *,
        timeout: float,
        own: bool = False,
    ) -> Bound:
        """Bind a function. Raises `DefinitionError` where nothing fills one of its parameters.

        `own`: whether it may ask for the result of its own action, as compensations do. `timeout`: seconds for an
        async function.
        """
        look = _look_at(given, where)
        sources: dict[str, Source] = {}
        for parameter in look.parameters.values():
            hint = look.hints.get(parameter.name, NO_TYPE)
            source = self._source(parameter, hint, given, where, own=own)
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
        return Bound(given, sources, returns, timeout)

    def of_items(
        self,
        functions: list[Callable[..., Any]],
        where: str,
    ) -> tuple[dict[str, Source], dict[str, Any]]:
        """Return what fills the parameters of the functions of one item, and the types that they declare."""
        sources, hints = {"item": Source("item")}, {"item": Any}
        for given in functions:
            look = _look_at(given, where)
            for parameter in look.parameters.values():
                name, hint = parameter.name, look.hints.get(parameter.name, NO_TYPE)
                if bare(hint) is StepContext or name == "result":
                    continue
                if name != "item":
                    source = self._source(parameter, hint, given, where, own=False)
                    if source is None:
                        continue
                    sources[name] = source
                if hints.get(name, Any) is Any:
                    hints[name] = Any if hint is NO_TYPE else hint
        return sources, hints

    def _source(
        self,
        parameter: inspect.Parameter,
        hint: Any,
        given: Callable[..., Any],
        where: str,
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
        if name in self.fields:
            return self._field(parameter, hint, given, where)
        if name in self.results:
            _check_absence(name, hint, given, where, may_be_absent=self.results[name])
            return Source("step", name, hint)
        if parameter.default is parameter.empty:
            offers = [*self.fields, *self.results, *(["result"] if own else [])]
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


def input_fields(input_type: Any, saga: str) -> Mapping[str, bool]:
    """Return the fields of a saga's input. Raises `DefinitionError` for a type that cannot be kept."""
    if input_type is None:
        return {}
    try:
        fields = field_names(input_type)
        check_type(input_type)
    except (TypeError, NotImplementedError, NameError) as error:
        raise DefinitionError(f"saga {saga!r}: the input type cannot be used: {error}") from error
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
