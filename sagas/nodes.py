"""Nodes of a saga: what its author writes. `Step` acts, `Wait` and `Sleep` wait, `Parallel` runs nodes together."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sagas.durations import seconds, whole_number
from sagas.errors import DefinitionError
from sagas.functions import describe
from sagas.retries import Retry
from sagas.text import is_clean
from sagas.values import NO_TYPE

__all__ = ["COMPENSATE", "UNSAID", "Node", "OnTimeout", "Parallel", "Pivot", "Sleep", "Step", "Wait"]

_Kind = Literal["step", "wait", "timer", "child", "each"]

#: In bytes: the id of a step's task is made of its name, and AMQP carries no more than 255 of them.
_NAME_LENGTH = 100

#: In bytes, too. AMQP has no room for more.
_QUEUE_NAME_LENGTH = 255

#: Seconds: a heartbeat is stored within a quarter of the timeout, and the database takes its time.
_LEAST_SILENCE = 1.0

#: Stands for "the author said nothing", which before the pivot is an error.
UNSAID: Any = object()


class OnTimeout(enum.Enum):
    """What a `Wait` does when its timeout is over."""

    COMPENSATE = "compensate"


#: The saga compensates when the timeout of a `Wait` is over.
COMPENSATE = OnTimeout.COMPENSATE


class Node:
    """What all nodes of a saga have in common. A node opens the steps that run, wait and are compensated."""

    kind: _Kind = "step"
    is_pivot = False
    #: Seconds until the step is given up that waits for a signal or an external completion; None where it does not.
    patience: float | None = None
    #: Seconds for which the action may answer "not yet"; None where it does not poll.
    poll_timeout: float | None = None
    #: Seconds for which the action may go without a heartbeat; None where it need not report.
    heartbeat_timeout: float | None = None
    retry: Retry | None = None
    compensation_retry: Retry | None = None

    def __init__(
        self,
        name: str,
        action: Callable[..., Any],
        *,
        compensation: Callable[..., Any] | None,
        when: Callable[..., Any] | None = None,
        queue: str | None = None,
        timeout: float | timedelta = 300.0,
        start_timeout: float | timedelta | None = None,
        max_deliveries: int = 5,
    ) -> None:
        where = f"{self.kind} {name!r}"
        if not name.isidentifier() or len(name.encode()) > _NAME_LENGTH:
            raise DefinitionError(
                f"{self.kind} name {name!r} must be a Python identifier of at most {_NAME_LENGTH} bytes in UTF-8: "
                "later steps ask for its result by a parameter of that name, and brokers carry no long names"
            )
        if queue is not None:
            _check_queue_name(queue, where)
        self.name = name
        self.action = action
        self.compensation = compensation
        self.when = when
        self.queue = queue
        self.timeout = seconds(timeout, f"{where}: timeout", DefinitionError)
        self.start_timeout = (
            None if start_timeout is None else seconds(start_timeout, f"{where}: start_timeout", DefinitionError)
        )
        self.max_deliveries = whole_number(
            max_deliveries, f"{where}: max_deliveries", DefinitionError, why="else it would never run"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def is_open_at_once(self) -> bool:
        """Whether the node needs no function of the author's to begin to wait: then it needs no worker either."""
        return False

    @property
    def waits(self) -> bool:
        """Whether its step waits, without a worker, after its function has returned."""
        return self.kind != "step" or self.patience is not None

    def until(self, returned: Any, opened_at: datetime) -> datetime:  # noqa: ARG002
        """Return until when its step waits. `returned`: by its function. `opened_at`: by the database's clock."""
        assert self.patience is not None
        return opened_at + timedelta(seconds=self.patience)


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
    `heartbeat_timeout`: seconds (or a timedelta) for which the action may go without `step.heartbeat()`, where `step`
        is the context. After that, the attempt counts as failed, though it may still be running.
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
        heartbeat_timeout: float | timedelta | None = None,
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
        if heartbeat_timeout is not None:
            self.heartbeat_timeout = self._checked_silence(heartbeat_timeout)
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

    def _checked_silence(self, given: float | timedelta) -> float:
        limit = seconds(given, f"step {self.name!r}: heartbeat_timeout", DefinitionError)
        if not _LEAST_SILENCE <= limit < self.timeout:
            raise DefinitionError(
                f"step {self.name!r}: heartbeat_timeout is {limit:g} s; it must be at least {_LEAST_SILENCE:g} s, and "
                f"less than timeout={self.timeout:g} s, which ends every attempt"
            )
        return limit


class Pivot(Step):
    """The step of no return: before it everything can be undone, after it everything is retried until it is done."""

    is_pivot = True


def _nothing() -> None:
    """Ask nobody: the signal comes by itself."""


class Wait(Node):
    """Waits for a signal: an answer of a person or another system, of a type that you declare.

    `type`: the type of the signal's payload. Later steps ask for it by the node's name. With `on=`, leave it out.
    `timeout`: seconds (or a timedelta) to wait. There is no default: choose one.
    `on_timeout`: `COMPENSATE`, or a value of the payload's type to go on with. After the pivot, give a value.
    `begin`: a function that asks for the signal, such as one that sends a mail; `compensation` undoes that.
    `when`: wait only if this function returns true; otherwise the result is None.
    `approvers`: the name of a group, or several names. Flower, the Django admin, the blueprint for Flask and the
        command line then show a form, and its members may answer. Code that sends the signal itself is not checked.
    `on`: a class of events, see `sagas.events`. The event is the signal, and its payload. `key`: the name of the
        event's field that is the business key of the saga, or a function that takes the event and returns the key.

    A signal that arrives before the wait begins is kept. Waiting takes no worker, no attempt and no lease.

    >>> Wait("approval", bool, timeout=timedelta(days=3), on_timeout=False)
    Wait('approval')
    """

    kind: _Kind = "wait"

    def __init__(
        self,
        name: str,
        type: Any = UNSAID,  # noqa: A002
        *,
        timeout: float | timedelta,
        on_timeout: Any = COMPENSATE,
        begin: Callable[..., Any] | None = None,
        compensation: Callable[..., Any] | None = UNSAID,
        when: Callable[..., Any] | None = None,
        queue: str | None = None,
        approvers: str | Iterable[str] = (),
        on: type | None = None,
        key: str | Callable[[Any], str] | None = None,
    ) -> None:
        if begin is None and compensation not in (UNSAID, None):
            raise DefinitionError(
                f"wait {name!r}: it begins nothing, so there is nothing that a compensation could undo"
            )
        super().__init__(
            name,
            begin or _nothing,
            compensation=None if begin is None else compensation,
            when=when,
            queue=queue,
        )
        self.begins = begin is not None
        if (type is UNSAID) == (on is None):
            raise DefinitionError(
                f"wait {name!r}: give the type of its payload"
                if on is None
                else f"wait {name!r}: the payload is the event {on.__qualname__}, so it takes no other type"
            )
        if (on is None) != (key is None):
            raise DefinitionError(f"wait {name!r}: on= and key= belong together: key= says which saga an event is for")
        self.type = type if on is None else on
        self.on = on
        self.key = key
        self.approvers = _groups(approvers, name)
        self.patience = seconds(timeout, f"wait {name!r}: timeout", DefinitionError)
        self.on_timeout = on_timeout

    @property
    def is_open_at_once(self) -> bool:
        return not self.begins and self.when is None


def _groups(approvers: str | Iterable[str], wait: str) -> frozenset[str]:
    groups: frozenset[Any] = frozenset([approvers] if isinstance(approvers, str) else approvers)
    if wrong := [group for group in groups if not (isinstance(group, str) and group.strip() and is_clean(group))]:
        raise DefinitionError(f"wait {wait!r}: approvers has {wrong[0]!r}, which is no name of a group")
    return groups


class Sleep(Node):
    """Waits for a length of time, or until a moment.

    `duration`: seconds or a timedelta, from the moment that the node is reached. `until`: in its place, a function
    that returns a `datetime` with a time zone or a `timedelta`; its parameters are filled by name. The moment is fixed
    once. `jitter`: seconds (or a timedelta) over which sagas that sleep until the same moment are spread.
    `when`: sleep only if this function returns true.

    No worker, message or thread is held meanwhile, and compensation does not wait for it.

    >>> Sleep("cooling_off", timedelta(days=14))
    Sleep('cooling_off')
    """

    kind: _Kind = "timer"

    def __init__(
        self,
        name: str,
        duration: float | timedelta | None = None,
        *,
        until: Callable[..., Any] | None = None,
        jitter: float | timedelta = 0.0,
        when: Callable[..., Any] | None = None,
        queue: str | None = None,
    ) -> None:
        if (duration is None) == (until is None):
            raise DefinitionError(f"sleep {name!r}: give either a duration or until=")
        length = (
            None if duration is None else seconds(duration, f"sleep {name!r}: duration", DefinitionError, zero=True)
        )

        def fixed() -> timedelta:
            assert length is not None
            return timedelta(seconds=length)

        super().__init__(name, until or fixed, compensation=None, when=when, queue=queue)
        self.duration = length
        self.jitter = seconds(jitter, f"sleep {name!r}: jitter", DefinitionError, zero=True)

    @property
    def is_open_at_once(self) -> bool:
        return self.duration is not None and self.when is None

    def until(self, returned: Any, opened_at: datetime) -> datetime:
        if isinstance(returned, datetime) and returned.tzinfo is not None:
            return returned.astimezone(UTC)
        if isinstance(returned, timedelta):
            return opened_at + returned
        raise TypeError(
            f"sleep {self.name!r}: {describe(self.action)} returned {type(returned).__name__} {returned!r}; it must "
            "return a datetime with a time zone, or a timedelta"
        )


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


def _check_queue_name(queue: Any, where: str) -> None:
    if not isinstance(queue, str):
        raise DefinitionError(
            f"{where}: queue={queue!r} must be a name; what else there is to say of the queue goes into task_queues"
        )
    if not queue or not is_clean(queue) or len(queue.encode()) > _QUEUE_NAME_LENGTH:
        raise DefinitionError(
            f"{where}: queue={queue!r} cannot be the name of a queue: brokers carry 1 to {_QUEUE_NAME_LENGTH} bytes of "
            "UTF-8, without NUL"
        )
    if queue.startswith("amq."):
        raise DefinitionError(f"{where}: queue={queue!r} cannot be declared: RabbitMQ keeps names with amq. for itself")
