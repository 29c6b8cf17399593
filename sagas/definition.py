"""A saga as its author writes it: its nodes in order, and how it is started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypedDict, TypeVar

from sagas.binding import Binder, BoundStep
from sagas.children import Child, check_children
from sagas.durations import seconds
from sagas.each import Each
from sagas.errors import ConfigurationError, DefinitionError
from sagas.handle import SagaHandle, StartResult
from sagas.nodes import Node, Parallel, Step
from sagas.outline import Outline, OutlineNode

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from sagas.stores.sessions import AnySession

__all__ = ["InputT", "Saga"]

#: What a saga is started with.
InputT = TypeVar("InputT", default=Any)

_SAGA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
#: The tasks `sagas.join` and `sagas.fail` are the library's own.
_RESERVED = "sagas"


class _Starter(Protocol):
    """The app that a saga is registered with."""

    def start(
        self,
        saga: Saga,
        input: Any,  # noqa: A002
        *,
        key: str | None,
        correlation_id: str | None,
        session: AnySession | None,
        at: datetime | None,
    ) -> SagaHandle: ...

    def start_many(
        self,
        saga: Saga,
        inputs: Iterable[Any],
        *,
        correlation_id: str | None,
        session: AnySession | None,
    ) -> Sequence[StartResult]: ...

    async def astart(
        self,
        saga: Saga,
        input: Any,  # noqa: A002
        *,
        key: str | None,
        correlation_id: str | None,
        session: AsyncSession | AsyncConnection | None,
        at: datetime | None,
    ) -> SagaHandle: ...

    async def astart_many(
        self,
        saga: Saga,
        inputs: Iterable[Any],
        *,
        correlation_id: str | None,
        session: AsyncSession | AsyncConnection | None,
    ) -> Sequence[StartResult]: ...


class Saga(Generic[InputT]):
    """A business process of several steps that either finishes or is undone.

    `stages`: `Step`, `Pivot`, `Wait`, `Sleep`, `Child`, `Each` and `Parallel`, in order. `input`: the type of what it
    is started with (a dataclass, pydantic model, msgspec Struct or TypedDict). `version`: +1 when the steps change;
    sagas in flight go on with the version they began with, so keep the old definition until they are gone. `timeout`:
    seconds for the whole saga, after which it compensates, unless it is past its pivot. `publish_lifecycle`: publish
    what becomes of its sagas as events, see `sagas.events.lifecycle`.

    Raises `DefinitionError`, saying which step and why, for a saga that cannot work.

    >>> from sagas import Step
    >>> Saga("greet", Step("hello", lambda: "hi", compensation=None))
    Saga('greet', version=1)
    """

    def __init__(
        self,
        name: str,
        *stages: Node | Parallel,
        input: type[InputT] | None = None,  # noqa: A002
        version: int = 1,
        timeout: float | timedelta | None = None,
        publish_lifecycle: bool = False,
    ) -> None:
        if not _SAGA_NAME.fullmatch(name):
            raise DefinitionError(f"saga name {name!r} must match {_SAGA_NAME.pattern}")
        if name == _RESERVED:
            raise DefinitionError(
                f"saga name {name!r} is taken: its steps could have the names of the library's own tasks, such as "
                "sagas.join"
            )
        if not stages:
            raise DefinitionError(f"saga {name!r} has no steps")
        self.name = name
        self.version = version
        self.input: Any = input
        self.publish_lifecycle = publish_lifecycle
        self.timeout = None if timeout is None else seconds(timeout, f"saga {name!r}: timeout", DefinitionError)
        check_children(
            name,
            version,
            {node.name: node.saga for node in _nodes(stages) if isinstance(node, Child | Each) and node.saga},
        )
        self.stages: tuple[tuple[BoundStep, ...], ...] = tuple(Binder(name, input, self._saga_of_items).bind(stages))
        self.steps: Mapping[str, BoundStep] = {step.name: step for stage in self.stages for step in stage}
        self.pivot = next((step for step in self.steps.values() if step.step.is_pivot), None)
        #: Its nodes, as JSON: what must stay the same up to where sagas of this version that are in flight stand.
        self.outline = str(Outline(tuple(tuple(_outlined(step) for step in stage) for stage in self.stages)))
        self._starter: _Starter | None = None

    def _saga_of_items(self, name: str, step: Step, fields: Mapping[str, Any]) -> Saga[Any]:
        """Return the saga that runs the action of an `Each` for one item."""
        given: Any = TypedDict("given", dict(fields))  # type: ignore[misc]  # its fields are known at run time
        given.__name__ = given.__qualname__ = f"an item of {name!r}"
        return Saga(name, step, input=given, version=self.version)

    def __repr__(self) -> str:
        return f"Saga({self.name!r}, version={self.version})"

    def bind(self, starter: _Starter, *, replace: bool = False) -> None:
        """Tell the saga which app starts it. `Sagas` calls this. `replace`: even if another app did before."""
        if not replace and self._starter not in (None, starter):
            raise ConfigurationError(f"saga {self.name!r} is already registered with another Sagas app")
        self._starter = starter

    def start(
        self,
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        /,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        session: AnySession | None = None,
        at: datetime | None = None,
    ) -> SagaHandle:
        """Store a new saga, dispatch it, and return its handle.

        `input`: an instance of the saga's input type, or a mapping of its fields.
        `key`: the business key. A second start with the same key and input returns the handle of the first.
        `session`: a SQLAlchemy session or connection of the caller's, on the database that holds the sagas. The saga
            commits and rolls back with it, and is dispatched after the commit. Of an `AsyncSession` give its
            `sync_session`, within `run_sync`.
        `at`: when it is to start, a `datetime` with a time zone. It is stored now, and can be cancelled until then.

        Raises `InvalidInput`, `PayloadTooLarge` or `KeyConflict`, with nothing stored; `StoreUnavailable` when the
        database does not answer. A broker that does not answer is no error: the saga is stored, and recovery
        dispatches it.
        """
        return self._registered().start(self, input, key=key, correlation_id=correlation_id, session=session, at=at)

    def start_many(
        self,
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        /,
        *,
        correlation_id: str | None = None,
        session: AnySession | None = None,
    ) -> Sequence[StartResult]:
        """Store many new sagas in one transaction, dispatch them, and return what became of each, in order.

        `inputs`: pairs of an input and its key, or inputs alone. They are stored as they come, in chunks, so that an
            iterator may yield any number.
        `session`: as of `start`. All sagas are stored in a savepoint of it.

        An input that `start` would refuse is `REFUSED` and stops no other. Every other error, also one that the
        iterable raises, leaves nothing stored: `StoreUnavailable` when the database does not answer.
        """
        return self._registered().start_many(self, inputs, correlation_id=correlation_id, session=session)

    async def astart(
        self,
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        /,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
        at: datetime | None = None,
    ) -> SagaHandle:
        """Do as `start`, without blocking the event loop.

        `session`: an asynchronous session or connection of SQLAlchemy's, on the database that holds the sagas.

        An `astart` that is cancelled may have started the saga. With a `key`, calling it again tells.
        """
        return await self._registered().astart(
            self, input, key=key, correlation_id=correlation_id, session=session, at=at
        )

    async def astart_many(
        self,
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        /,
        *,
        correlation_id: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> Sequence[StartResult]:
        """Do as `start_many`, without blocking the event loop. The iterable is run in another thread.

        `session`: as of `astart`. With one, the iterable and what is to be stored are prepared in the event loop.
        """
        return await self._registered().astart_many(self, inputs, correlation_id=correlation_id, session=session)

    def _registered(self) -> _Starter:
        if self._starter is None:
            raise ConfigurationError(f"saga {self.name!r} is not registered: Sagas(app, store, [{self.name}, ...])")
        return self._starter


def _nodes(stages: Iterable[Node | Parallel]) -> Iterator[Node]:
    for stage in stages:
        yield from stage.steps if isinstance(stage, Parallel) else (stage,)


def _outlined(step: BoundStep) -> OutlineNode:
    node = step.step
    each = node if isinstance(node, Each) else None
    return OutlineNode(
        step.name,
        "pivot" if node.is_pivot else node.kind,
        compensated=step.compensation is not None,
        conditional=node.when is not None,
        deferred=node.kind == "step" and node.patience is not None,
        saga=f"{node.saga.name} {node.saga.version}" if isinstance(node, Child | Each) and node.saga else "",
        over="" if each is None else each.over if isinstance(each.over, str) else OutlineNode.A_FUNCTION,
        max_concurrency=None if each is None else each.max_concurrency,
        allow_failures=None if each is None else each.allow_failures,
    )
