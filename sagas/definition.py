"""A saga as its author writes it: steps, their compensations, and what is checked before any of them runs."""

from __future__ import annotations

import inspect
import random
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from sagas.durations import finite_number, seconds, whole_number
from sagas.errors import (
    ConfigurationError,
    DefinitionError,
    DuplicateName,
    NotAllowed,
    TerminalError,
    UnboundParameter,
)  # fmt: skip
from sagas.functions import allows_none, bare, describe, finish, look_at
from sagas.handle import SagaHandle, StartResult
from sagas.nodes import COMPENSATE, UNSAID, Node, Sleep, Wait
from sagas.outline import Outline, OutlineNode
from sagas.values import NO_TYPE, check_type, dump, field_names, may_be_absent

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from sagas.stores.sessions import AnySession

__all__ = ["NEVER", "Parallel", "Pivot", "Retry", "Saga", "Step", "StepContext"]

#: What a saga is started with.
InputT = TypeVar("InputT", default=Any)

_SAGA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
#: The tasks `sagas.join` and `sagas.fail` are the library's own.
_RESERVED = "sagas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how soon after a failure, a step is tried again.

    `delay` seconds (or a timedelta) before the second attempt, `factor` times longer before each one after that, never
    more than `max_delay`; each spread by up to `jitter` (0.1 = 10 %) so that sagas that failed together do not return
    together.

    `on`: other policies for some errors, by their class: `on={RateLimited: Retry(max_attempts=20), Expired: NEVER}`.
    The class that is nearest to that of the error counts, and all failures of the step count, whatever their class. A
    step that takes longer than its `timeout` fails with a `TimeoutError`.

    >>> Retry(max_attempts=4, delay=2, jitter=0).delay_after(2)
    4.0
    >>> Retry(on={OSError: NEVER}).policy_for(ConnectionError()).max_attempts
    1
    """

    max_attempts: int = 3
    delay: float | timedelta = 1.0
    factor: float = 2.0
    max_delay: float | timedelta = 60.0
    jitter: float = 0.1
    on: Mapping[type[BaseException], Retry] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        whole_number(self.max_attempts, "Retry: max_attempts", DefinitionError, why="the first attempt counts")
        for name in ("delay", "max_delay"):
            # Set past `frozen`, so that a timedelta is a number from here on.
            object.__setattr__(self, name, seconds(getattr(self, name), f"Retry: {name}", DefinitionError, zero=True))
        for name in ("factor", "jitter"):
            finite_number(getattr(self, name), f"Retry: {name}", DefinitionError)
        if self.factor < 1 or not 0 <= self.jitter <= 1:
            raise DefinitionError(f"{self}: delays are seconds >= 0, factor >= 1 and jitter from 0 to 1")
        for kind, policy in self.on.items():
            _check_policy(kind, policy)

    def policy_for(self, error: BaseException) -> Retry:
        """Return the policy for an error: that of the class nearest to its own, else this one."""
        return next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), self)

    def delay_after(self, failures: int, seed: str = "") -> float:
        """Return the seconds to wait after that many failures. The same seed gives the same spread."""
        assert isinstance(self.delay, float)
        assert isinstance(self.max_delay, float)
        try:
            delay = min(self.delay * self.factor ** (failures - 1), self.max_delay)
        except OverflowError:  # a large factor and a long history
            delay = self.max_delay if self.delay else 0.0
        return delay * (1 + self.jitter * random.Random(seed).random()) if self.jitter else delay  # noqa: S311


def _check_policy(kind: object, policy: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise DefinitionError(f"Retry: on has {kind!r}, which is not a class of exceptions")
    if issubclass(kind, TerminalError):
        raise DefinitionError(f"Retry: on has {kind.__name__}, but a TerminalError is never tried again")
    if not isinstance(policy, Retry) or policy.on:
        raise DefinitionError(
            f"Retry: on[{kind.__name__}] is {policy!r}; it must be NEVER, or a Retry without an `on` of its own"
        )


#: For `Retry(on=...)`: an error after which a step is not tried again. Whether it had an effect is not known, so the
#: step is in doubt; an action that knows that it had none raises `TerminalError`.
NEVER = Retry(max_attempts=1)

#: Where only success will do (a compensation, a step after the pivot), a step is tried for longer.
UNTIL_DONE = Retry(max_attempts=10, max_delay=300.0)


@dataclass(slots=True, kw_only=True)
class StepContext:
    """What a step may ask about itself. A parameter annotated `StepContext` receives it."""

    saga: str  #: the saga's name
    saga_id: str
    key: str  #: the business key that the saga was started with
    step: str
    attempt: int  #: from 1; a takeover from a dead worker counts
    correlation_id: str
    started_at: datetime  #: when the first attempt at the action began; it stays the same
    _now: Callable[[], datetime] = field(repr=False)
    _open_session: Callable[[], Session] = field(repr=False)
    _emit: Callable[[Any, str | None], None] = field(repr=False)
    _token: str | None = field(default=None, repr=False)

    @property
    def now(self) -> datetime:
        """The database's time, in UTC. In tests that run inline, a clock that moves itself."""
        return self._now()

    @property
    def idempotency_key(self) -> str:
        """The name of this step's effect: the same in every attempt of the action *and* of its compensation."""
        return f"{self.saga_id}:{self.step}"

    @property
    def token(self) -> str:
        """The token with which another system completes this step: `sagas.complete(token, result)`.

        Anybody who has it can complete the step: hand it only to the system that shall. A token of an earlier attempt
        stays good. Raises `NotAllowed` in a step that is not deferred, and in a compensation.
        """
        if self._token is None:
            raise NotAllowed(
                f"saga {self.saga!r}, step {self.step!r}: only a deferred step, or a Wait's begin=, has a token"
            )
        return self._token

    @property
    def session(self) -> Session:
        """A SQLAlchemy session in the transaction that also checkpoints this step.

        What is written through it and the step's success commit together or not at all, so on the database that
        holds the sagas an effect happens exactly once. It commits when the step returns; `commit()` and `rollback()`
        are refused. For a part that may fail, use a savepoint: `with step.session.begin_nested():`.
        """
        return self._open_session()

    def emit(self, message: Any, *, key: str | None = None) -> None:
        """Publish an event, or send a command, if and only if this step succeeds.

        It is stored in the transaction of the step's checkpoint, and carries the saga's correlation id. `key`: messages
        of one key stay in order; left out, the saga's key. What a failed attempt emitted is forgotten.
        Raises `NotOwner` for an event of a service that this process does not declare, `ConfigurationError` where
        `Sagas` was given no `events`.
        """
        self._emit(message, key)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A function together with where each of its parameters comes from."""

    function: Callable[..., Any]
    sources: Mapping[str, _Source]
    returns: Any

    timeout: float  #: seconds after which an async function is cancelled

    def __call__(self, **arguments: Any) -> Any:
        return finish(self.function(**arguments), self.timeout)


@dataclass(frozen=True, slots=True)
class _Source:
    kind: typing.Literal["context", "input", "field", "step", "own"]
    name: str = ""
    type: Any = NO_TYPE  #: the type that the consumer declares
    has_default: bool = False  #: of a field that may be absent: then the parameter's own default applies


class Step(Node):
    """One action of a saga and what undoes it.

    `action`, `compensation`: functions, `async def` ones too, Celery tasks, or objects to call. Parameters are
        filled **by name**: a field of the saga's input, the result of a step in an earlier stage (by that step's name),
        the whole input (annotated with its type), the context (annotated `StepContext`). A compensation may also ask
        for `result`: what its own action returned, or None when the outcome is unknown. `compensation=None` says that
        nothing needs undoing.
    `timeout`: seconds (or a timedelta) that one attempt may take, from the moment a worker claims it. An async function
        is cancelled then.
    `start_timeout`: seconds (or a timedelta) that the step may wait for a worker; None waits as long as the saga may
        take.
    `retry`, `compensation_retry`: see `Retry`. Left out: 3 attempts for an action that can still be undone,
        10 for a compensation and for an action after the pivot.
    `poll_timeout`: seconds (or a timedelta) from its first attempt for which the action may answer "not yet", by
        raising `RetryableError(after=...)`. It is called again after that time, and that counts as no failure. When
        `poll_timeout` is over, the step is given up as in doubt.
    `queue`: the Celery queue of the service that owns the step; left out, Celery routes the task by its name.
    `max_deliveries`: how many workers may die or be lost at this step before it is given up as in doubt.
    `when`: run the step only if this function returns true. Its parameters are filled as those of the action. It is
        called once, and its answer is stored. If it returns false, the result is None for later steps.
    `deferred`: the action only asks another system, and returns. The step ends with `sagas.complete(token, result)` or
        `sagas.fail(token, error)`; the token is `step.token`, where `step` is the context. `deadline`: seconds (or a
        timedelta) after which the step is given up; the compensation then undoes what may have happened. `result`:
        the type of the result that it is completed with.
    """

    is_pivot = False

    def __init__(
        self,
        name: str,
        action: Callable[..., Any],
        *,
        compensation: Callable[..., Any] | None = UNSAID,
        timeout: float | timedelta = 300.0,
        start_timeout: float | timedelta | None = None,
        retry: Retry | None = None,
        compensation_retry: Retry | None = None,
        poll_timeout: float | timedelta | None = None,
        queue: str | None = None,
        max_deliveries: int = 5,
        when: Callable[..., Any] | None = None,
        deferred: bool = False,
        deadline: float | timedelta | None = None,
        result: Any = NO_TYPE,
    ) -> None:
        super().__init__(
            name,
            action,
            compensation=compensation,
            when=when,
            queue=queue,
            timeout=timeout,
            start_timeout=start_timeout,
            max_deliveries=max_deliveries,
        )
        self.poll_timeout = (
            None if poll_timeout is None else seconds(poll_timeout, f"step {name!r}: poll_timeout", DefinitionError)
        )
        self.retry = retry
        self.compensation_retry = compensation_retry
        if deferred != (deadline is not None):
            raise DefinitionError(
                f"step {name!r}: a deferred step needs a deadline: until then somebody has to complete it"
                if deferred
                else f"step {name!r}: a deadline is for deferred=True; `timeout` limits an attempt"
            )
        if result is not NO_TYPE and not deferred:
            raise DefinitionError(f"step {name!r}: result= is for deferred=True; annotate what the action returns")
        self.result = result
        self.patience = None if deadline is None else seconds(deadline, f"step {name!r}: deadline", DefinitionError)


class Pivot(Step):
    """The step of no return: before it everything can be undone, after it everything is retried until it is done."""

    is_pivot = True


class Parallel:
    """Nodes that run at the same time. The next stage begins when all of them are done."""

    def __init__(self, *steps: Node) -> None:
        if len(steps) < 2 or not all(isinstance(step, Node) for step in steps):
            raise DefinitionError("Parallel takes two nodes or more, such as steps, and nothing else")
        if pivots := [step.name for step in steps if step.is_pivot]:
            raise DefinitionError(
                f"the pivot {pivots[0]!r} cannot be one of several: it is where the saga commits itself"
            )
        self.steps = steps

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.steps))})"


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
        action: _Bound,
        compensation: _Bound | None,
        when: _Bound | None,
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

    `stages`: `Step`, `Pivot`, `Wait`, `Sleep` and
    `Parallel`, in order. `input`: the type of what it is started with (a dataclass,
    pydantic model, msgspec Struct or TypedDict). `version`: +1 when the steps change; sagas in flight go on with the
    version they began with, so keep the old definition until they are gone. `timeout`: seconds for the whole saga,
    after which it compensates, unless it is past its pivot. `publish_lifecycle`: publish what becomes of its sagas as
    events, see `sagas.events.lifecycle`.

    Raises `DefinitionError`, saying which step and why, for a saga that cannot work.

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
        self.stages: tuple[tuple[BoundStep, ...], ...] = tuple(self._bind_stages(stages))
        self.steps: Mapping[str, BoundStep] = {step.name: step for stage in self.stages for step in stage}
        self.pivot = next((step for step in self.steps.values() if step.step.is_pivot), None)
        #: Its nodes, as JSON: what must stay the same as long as sagas of this version are in flight.
        self.outline = str(Outline(tuple(tuple(_outlined(step) for step in stage) for stage in self.stages)))
        self._starter: _Starter | None = None

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

    def _bind_stages(self, stages: tuple[Node | Parallel, ...]) -> Iterator[tuple[BoundStep, ...]]:
        fields = self._input_fields()
        results: dict[str, bool] = {}  # of earlier stages: node name -> whether its result may be absent
        names: set[str] = set()
        pivot: str | None = None
        for number, stage in enumerate(stages):
            if not isinstance(stage, Node | Parallel):
                raise DefinitionError(
                    f"saga {self.name!r}: {stage!r} is no node: a Step, Pivot, Wait, Sleep or Parallel"
                )
            steps = stage.steps if isinstance(stage, Parallel) else (stage,)
            bound = []
            for step in steps:
                where = f"saga {self.name!r}, step {step.name!r}"
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
    ) -> _Bound:
        if not callable(given):
            raise DefinitionError(f"{where}: {given!r} is not a function or a Celery task")
        try:
            look = look_at(given)
        except TypeError as error:
            raise DefinitionError(f"{where}: {error}") from error
        except NameError as error:
            raise DefinitionError(f"{where}: an annotation of {describe(given)} cannot be read: {error}") from error
        sources: dict[str, _Source] = {}
        for parameter in look.parameters.values():
            hint = look.hints.get(parameter.name, NO_TYPE)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise DefinitionError(
                    f"{where}: {describe(given)} has the parameter {parameter}; "
                    "parameters are filled by name, one by one. A decorator keeps those of its function by "
                    "functools.wraps"
                )
            if bare(hint) is StepContext:
                sources[parameter.name] = _Source("context")
            elif own and parameter.name == "result":
                sources[parameter.name] = _Source("own", type=hint)
            elif self.input is not None and bare(hint) is self.input:
                sources[parameter.name] = _Source("input")
            elif parameter.name in fields:
                sources[parameter.name] = self._field(parameter, hint, given, where)
            elif parameter.name in results:
                if results[parameter.name] and not allows_none(hint):
                    raise DefinitionError(
                        f"{where}: the result of {parameter.name!r} may be absent, since that node has when=. Give the "
                        f"parameter of {describe(given)} a type that allows None"
                    )
                sources[parameter.name] = _Source("step", parameter.name, hint)
            elif parameter.default is parameter.empty:
                offers = [*fields, *results, *(["result"] if own else [])]
                raise UnboundParameter(
                    f"{where}: nothing can fill the parameter {parameter.name!r} of {describe(given)}. "
                    f"It may name one of: {', '.join(offers) or '(nothing yet)'}; or be annotated StepContext"
                )
        returns = look.hints.get("return", NO_TYPE)
        if returns in (typing.NoReturn, typing.Never):  # it always raises
            returns = None
        if not own:
            try:
                check_type(returns)
            except (TypeError, NotImplementedError, NameError) as error:
                raise DefinitionError(f"{where}: what {describe(given)} returns cannot be kept: {error}") from error
        return _Bound(given, sources, returns, step.timeout)

    def _field(self, parameter: inspect.Parameter, hint: Any, given: Callable[..., Any], where: str) -> _Source:
        has_default = parameter.default is not parameter.empty
        if may_be_absent(self.input, parameter.name) and not has_default and not allows_none(hint):
            raise DefinitionError(
                f"{where}: the field {parameter.name!r} of the input may be absent, and then nothing can fill that "
                f"parameter of {describe(given)}: give it a default, or a type that allows None"
            )
        return _Source("field", parameter.name, has_default=has_default)

    def _input_fields(self) -> Mapping[str, bool]:
        if self.input is None:
            return {}
        try:
            fields = field_names(self.input)
            check_type(self.input)
        except (TypeError, NotImplementedError, NameError) as error:
            raise DefinitionError(f"saga {self.name!r}: the input type cannot be used: {error}") from error
        return fields


def _may_be_absent(step: BoundStep) -> bool:
    return step.when is not None


def _payload_type(wait: Wait, where: str) -> Any:
    """Return the type of a wait's signal. Raises `DefinitionError` for one that cannot be kept."""
    try:
        check_type(wait.type)
        if wait.on_timeout is not COMPENSATE:
            dump(wait.on_timeout, wait.type)
    except (TypeError, NotImplementedError, NameError) as error:
        raise DefinitionError(
            f"{where}: the payload or on_timeout={wait.on_timeout!r} cannot be kept: {error}"
        ) from error
    return wait.type


def _outlined(step: BoundStep) -> OutlineNode:
    node = step.step
    return OutlineNode(
        step.name,
        "pivot" if node.is_pivot else node.kind,
        compensated=step.compensation is not None,
        conditional=node.when is not None,
        deferred=node.kind == "step" and node.patience is not None,
    )
