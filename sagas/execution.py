"""One attempt at a step: fills the parameters of its function, calls it, and turns what comes back into an outcome."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from sagas.binding import BoundStep
from sagas.causes import Cause
from sagas.checkpoints import Direction, SagaRecord, replace
from sagas.context import StepContext
from sagas.creation import Limits, new_record
from sagas.definition import Saga
from sagas.each import Each
from sagas.endings import meant
from sagas.errors import (
    ConfigurationError,
    InvalidInput,
    KeyConflict,
    PayloadTooLarge,
    RetryableError,
    TerminalError,
    UnserialisableResult,
)
from sagas.functions import refuse_unfinished
from sagas.heartbeats import Heartbeats
from sagas.nodes import Sleep
from sagas.opening import is_undecided
from sagas.parameters import Bound, Source
from sagas.redaction import Redaction
from sagas.results import result_of
from sagas.retries import Retry
from sagas.text import clean, describe
from sagas.transitions import Begun, Failure, Outcome, Waiting
from sagas.values import ABSENT, NO_TYPE, dump, explain, field_of, load

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sagas.stores import CheckpointStore

__all__ = ["LONGEST_ERROR", "Claim", "Execution", "Fenced", "Publisher", "Turn", "failure_of"]

#: What is entered around a function of the user's.
Turn = Callable[[], AbstractContextManager[object]]

#: Characters of an error that are kept.
LONGEST_ERROR = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that was granted to an owner."""

    record: SagaRecord
    name: str
    owner: str
    token: str = field(repr=False)  #: with which another system may complete it


class Publisher(Protocol):
    """What makes rows of the outbox for sagas. `sagas.events.Events` does."""

    def prepare(self, message: Any, *, key: str, cause: Cause) -> Mapping[str, Any]:
        """Return the row for a message that a step emits."""

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        """Return the rows for the events of a saga's own life."""


class Fenced(Exception):
    """The transaction of a step found that the saga has moved on without it. What else the step did is not known."""


class Execution:
    """One attempt at an action or a compensation."""

    def __init__(
        self,
        claim: Claim,
        saga: Saga,
        resources: ExitStack,
        store: CheckpointStore,
        events: Publisher | None,
        *,
        limits: Limits,
        lease: float,
        turn: Turn,
    ) -> None:
        record, name = claim.record, claim.name
        self.saga = saga
        self.step: BoundStep = self.saga.steps[record.step(name).node]
        self.record = record
        self.name = name
        self.direction = record.direction
        self.resources = resources
        self.session: Session | None = None
        self.messages: list[Mapping[str, Any]] = []  #: rows of the outbox, for when it succeeds
        self.heartbeats = Heartbeats(
            record.step(name).heartbeat_details,
            about=f"saga {record.name!r} ({record.id}), step {name!r}",
            timeout=self.step.step.heartbeat_timeout if self.direction is Direction.FORWARD else None,
        )
        self._token = claim.token if self.step.gives_token and self.direction is Direction.FORWARD else None
        self._store = store
        self._events = events
        self._limits = limits
        self._lease = lease
        self._turn = turn
        self._transaction = ExitStack()
        #: Whether its condition is to be asked in this attempt.
        self.is_undecided = self.direction is Direction.FORWARD and is_undecided(self.saga, record.step(name))

    @property
    def bound(self) -> Bound | None:
        """The function that it calls. None where there is none to call."""
        return self.step.action if self.direction is Direction.FORWARD else self.step.compensation

    @property
    def reports(self) -> Heartbeats | None:
        """What its function may report; None where that has nothing to report with."""
        return self.heartbeats if self.bound is not None and self.bound.takes_context else None

    @property
    def retry(self) -> Retry:
        return self.step.retry if self.direction is Direction.FORWARD else self.step.compensation_retry

    @property
    def polls(self) -> bool:
        return self.direction is Direction.FORWARD and self.step.step.poll_timeout is not None

    def decide(self) -> bool:
        """Ask the condition of the step, unless it has been answered. True where there is none."""
        return not self.is_undecided or bool(self._call(self.step.when))

    @property
    def undoes_child(self) -> bool:
        """Whether it has a child saga compensate."""
        return self.direction is Direction.BACKWARD and self.step.child is not None

    def act(self) -> str | Waiting | Begun | None:
        """Call the function with what it asks for; return its result as JSON, or what the step waits for."""
        bound = self.bound
        returned = self._call(bound)
        if self.direction is Direction.BACKWARD:
            refuse_unfinished(returned)  # whatever else it returns is of no use to anybody
            return None
        if isinstance(self.step.step, Each):
            return Begun(self._new_items(self.step.step, returned))
        if self.step.child is not None:
            return Begun([self._new_child(self.step.child, returned)])
        if self.step.step.waits:
            return Waiting(self._until(returned))
        assert bound is not None
        try:
            refuse_unfinished(returned)
            text = dump(returned, bound.returns)
        except TypeError as error:
            raise UnserialisableResult(f"what step {self.name!r} returned cannot be kept: {error}") from error
        if (size := len(text.encode())) > self._limits.max_payload:
            raise UnserialisableResult(
                f"what step {self.name!r} returned is {size:,} bytes, more than "
                f"max_payload={self._limits.max_payload:,}; keep large things elsewhere and return a reference"
            )
        return text

    def _until(self, returned: Any) -> datetime:
        try:
            until = self.step.step.until(returned, self._store.now())
        except TypeError as error:
            raise TerminalError(str(error)) from error
        if isinstance(self.step.step, Sleep) and self.step.step.jitter:
            until += timedelta(seconds=self.step.step.jitter * random.random())  # noqa: S311 - it spreads load
        return until

    def _new_child(self, saga: Saga, given: Any) -> SagaRecord:
        """Return the record of a child saga. Nothing of it is stored yet."""
        refuse_unfinished(given)
        key = f"{self.record.id}:{self.name}" if self.step.key is None else self._call(self.step.key)
        if self.record.step(self.name).child_id is not None:  # an operator has this step tried again
            family = self._store.family(self.record.family)
            before = sum((each.parent_id, each.parent_step) == (self.record.id, self.name) for each in family)
            key = f"{key}:{before + 1}"
        try:
            return new_record(
                self._store,
                self._limits,
                saga,
                given,
                key=key,
                correlation_id=self.record.correlation_id,
                parent=self.record,
                parent_step=self.name,
            )
        except (InvalidInput, PayloadTooLarge) as error:
            raise TerminalError(f"its child saga cannot be started: {error}") from error

    def _new_items(self, each: Each, given: Any) -> Sequence[SagaRecord]:
        """Return the records of an item each, in order. So many of them begin as may be in progress."""
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
            raise TerminalError(f"over= gave {type(given).__name__} {given!r:.100}; it must be a list of items")
        bound, saga = self.step.items, self.step.child
        assert bound is not None
        assert saga is not None
        arguments = self._arguments({name: source for name, source in bound.sources.items() if source.kind != "item"})
        begins = self._store.now() + timedelta(seconds=self._limits.redispatch_after)
        made: list[SagaRecord] = []
        keys: set[str] = set()
        for number, item in enumerate(given):
            key = str(number) if each.key is None else each.key(item)
            if key in keys:
                raise TerminalError(f"two items have the key {key!r}: key= must give each item another one")
            keys.add(key)
            try:
                record = new_record(
                    self._store,
                    self._limits,
                    saga,
                    bound(item=item, **arguments),
                    key=f"{self.record.id}:{self.name}:{key}",
                    correlation_id=self.record.correlation_id,
                    parent=self.record,
                    parent_step=self.name,
                )
            except (InvalidInput, PayloadTooLarge) as error:
                raise TerminalError(f"item {number} cannot be started: {error}") from error
            begun = number < each.max_concurrency
            due = max(record.next_check_at or begins, begins) if begun else None
            record = replace(record, dispatches=record.dispatches if begun else 0, next_check_at=due)
            made.append(replace(record, parent_item=number))
        if (failed := self._store.items.failed(self.record.id, self.name)) is None:
            return made
        # An operator has this step tried again: the items that are done stand, and those that failed begin anew.
        return [
            replace(made[number], key=f"{made[number].key}:{old}", dispatches=1, next_check_at=begins)
            for number, old in failed.items()
        ]

    def _call(self, bound: Any) -> Any:
        assert bound is not None
        arguments = self._arguments(bound.sources)
        with self._turn():
            return bound(**arguments)

    def _arguments(self, sources: Mapping[str, Source]) -> dict[str, Any]:
        try:
            values = {name: self._value(source) for name, source in sources.items()}
        except Exception as error:
            told = explain(error) if isinstance(error, ValueError) else describe(error)  # without what it was given
            raise TerminalError(f"its arguments cannot be read from what is stored: {told}") from error
        return {name: value for name, value in values.items() if value is not ABSENT}

    def _value(self, source: Any) -> Any:
        match source.kind:
            case "context":
                return self._context()
            case "input":
                return load(self.record.input, self.saga.input)
            case "field":
                value = load(self.record.input, self.saga.input)
                return field_of(value, source.name, ABSENT if source.has_default else None)
            case "step":
                node = self.saga.steps[source.name]
                stored, declared = result_of(self._store, node, self.record, source.name), node.action.returns
            case _:
                stored, declared = self.record.step(self.name).result, self.step.action.returns
        if stored is None:
            return None
        # What the producer declares is what was kept; without that, what the consumer asks for is the best guess.
        return load(stored, source.type if declared is NO_TYPE else declared)

    def _context(self) -> StepContext:
        return StepContext(
            saga=self.record.name,
            saga_id=self.record.id,
            key=self.record.key,
            step=self.name,
            attempt=self.record.step(self.name).attempt,
            correlation_id=self.record.correlation_id,
            started_at=self.record.step(self.name).started_at or self._store.now(),
            _now=self._store.now,
            _open_session=self.open_session,
            _token=self._token,
            _emit=self._emit,
            _heartbeats=self.heartbeats,
        )

    def _emit(self, message: Any, key: str | None) -> None:
        events, record = self._events, self.record
        if events is None:
            raise ConfigurationError(
                f"saga {record.name!r}, step {self.name!r} emits {type(message).__qualname__}, but there is nothing to "
                "publish through: Sagas(..., events=Events(...))"
            )
        self.messages.append(
            events.prepare(
                message,
                key=record.key if key is None else key,
                cause=record.cause(self.name),
            )
        )

    def open_session(self) -> Session:
        if self.session is None:
            who = f"saga {self.saga.name!r}, step {self.name!r}"
            limit = self.step.step.timeout + self._lease
            self._transaction = self.resources.enter_context(ExitStack())
            self.session = self._transaction.enter_context(self._store.transaction(who, limit))
        return self.session

    def commit(self) -> None:
        """Commit the transaction of `step.session`. The next function that asks for a session begins another one."""
        self._transaction.close()
        self.session = None


def failure_of(error: BaseException, redaction: Redaction, execution: Execution) -> Failure:
    """Say how an attempt failed from what it raised."""
    error = meant(error)
    said = clean(redaction.text(describe(error)), LONGEST_ERROR)
    text = clean(f"{type(error).__name__}: {said}", LONGEST_ERROR)
    match error:
        case TerminalError():
            return Failure(Outcome.TERMINAL, said or text)
        case KeyConflict():  # of a child saga, which was not stored then
            return Failure(Outcome.TERMINAL, said)
        case RetryableError() if execution.polls and error.after is not None:
            return Failure(Outcome.NOT_YET, said or text, error.after)
        case RetryableError():
            return Failure(Outcome.FAILED, said or text, error.after, execution.retry.policy_for(error))
        case UnserialisableResult() | Fenced():
            return Failure(Outcome.IN_DOUBT, said)
        case _:
            return Failure(Outcome.FAILED, text, retry=execution.retry.policy_for(error))
