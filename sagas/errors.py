"""Everything that can go wrong, and whose move it is.

::

    SagaError
    ├── DefinitionError          the saga as written cannot work; raised at import
    │   ├── UnboundParameter       a parameter that nothing can fill
    │   └── DuplicateName          two sagas, or two steps, of one name
    ├── ConfigurationError       the app around the sagas is not set up for them
    │   └── QueueMismatch          queues at the broker are not what this code declares; the others are
    ├── StartError               start() refused; nothing was written
    │   ├── InvalidInput           unknown, missing or wrongly typed fields
    │   ├── PayloadTooLarge        more than the store is asked to hold
    │   └── KeyConflict              the same key with another input
    ├── SagaNotFound             no saga has this id or key
    ├── AmbiguousSaga            several sagas have what was given
    ├── DefinitionMissing        the running code cannot carry this saga; nothing was run
    ├── NotAllowed               the saga's state forbids what was asked
    │   ├── SignalRefused          the saga no longer wants this signal, or has another one
    │   └── TransactionMisuse      a handler, a step or a projection ends a transaction that is not its own to end
    ├── InvalidToken             no step has given out this token
    ├── SagaNotCompleted         a result was asked of a saga that has none
    ├── WaitTimeout              wait() gave up; the saga goes on
    ├── StoreUnavailable         the database did not answer; try again
    ├── StoreRefused             the database answered, and refused: a table, a right or a column is missing
    ├── TransactionLost          a transaction was undone by an error that was caught; nothing was committed
    ├── PayloadUnreadable        a stored input or result cannot be decrypted; nothing was run
    ├── UnserialisableResult     what a step returned cannot be kept
    ├── StepFailed               a step failed for good; the saga compensates
    ├── StepCancelled            a heartbeat found that the saga no longer wants this attempt
    └── EventError               something about events and commands
        ├── InvalidMessage         it is not what its type declares, or no envelope at all
        ├── UnknownType            a stored event is of a type that was not given to its store
        ├── UnknownVersion         no upcaster leads from the version that arrived to the one that is read
        ├── NotOwner               an event is published by its owner alone
        ├── NoHandler              nobody receives this command
        ├── HandlersFailed         handlers of an event failed, within this process; each failure is in it
        ├── BrokerUnavailable      the broker did not confirm; try again
        ├── SchemaRefused          the registry does not take a schema: it would break readers or writers
        ├── WrongExpectedVersion         an append expected a stream at another version
        └── ProjectionStopped      a projection stopped at an event that it cannot handle

    StepSignal                   raised *by* an action or compensation
    ├── TerminalError                   it had no effect and trying again is useless
    └── RetryableError                  try again, as the step's policy says
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from sagas.durations import seconds

__all__ = [
    "AmbiguousSaga",
    "BrokerUnavailable",
    "ConfigurationError",
    "DefinitionError",
    "DefinitionMissing",
    "DuplicateName",
    "EventError",
    "HandlersFailed",
    "InvalidInput",
    "InvalidMessage",
    "InvalidToken",
    "KeyConflict",
    "NoHandler",
    "NotAllowed",
    "NotOwner",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "ProjectionStopped",
    "QueueMismatch",
    "RetryableError",
    "SagaError",
    "SagaNotCompleted",
    "SagaNotFound",
    "SchemaRefused",
    "SignalRefused",
    "StartError",
    "StepCancelled",
    "StepFailed",
    "StepSignal",
    "StoreRefused",
    "StoreUnavailable",
    "WrongExpectedVersion",
    "TerminalError",
    "TransactionLost",
    "TransactionMisuse",
    "UnboundParameter",
    "UnknownType",
    "UnknownVersion",
    "UnserialisableResult",
    "WaitTimeout",
]


class SagaError(Exception):
    """Base of every error that the library raises."""


class DefinitionError(SagaError):
    """A saga as written cannot work. Raised when it is defined, which is at import."""


class UnboundParameter(DefinitionError):
    """An action or compensation asks for something that nothing can fill."""


class DuplicateName(DefinitionError):
    """Two sagas of one name and version, or two steps of one name."""


class ConfigurationError(SagaError):
    """The Celery app or the database around the sagas is not set up for them."""


class QueueMismatch(ConfigurationError):
    """Queues exist at the broker that are not what is declared. Everything else was declared, and works.

    `queues`: what is wrong with each of them.
    """

    def __init__(self, queues: Mapping[str, str]) -> None:
        super().__init__("; ".join(queues.values()))
        self.queues = queues


class StartError(SagaError):
    """`start()` refused what it was given. Nothing was written."""


class InvalidInput(StartError):
    """The input has unknown, missing or wrongly typed fields, or cannot be kept as JSON."""


class PayloadTooLarge(StartError):
    """The input is larger than `Sagas(max_payload=...)` bytes."""


class KeyConflict(StartError):
    """The key belongs to a saga that was started with another input."""


class SagaNotFound(SagaError, LookupError):
    """No saga has this id, or this name and key."""


class AmbiguousSaga(SagaError):
    """The start of an id, or a key, is that of several sagas."""


class DefinitionMissing(SagaError):
    """The running code has no definition that fits a saga in flight. Nothing was run."""


class NotAllowed(SagaError):
    """What was asked does not fit the state that the saga is in."""


class SignalRefused(NotAllowed):
    """The saga no longer wants this signal, or has received another one. The error says what happened, and when."""


class InvalidToken(SagaError):
    """No step has given out this token."""


class TransactionMisuse(NotAllowed):
    """A handler, a step or a projection commits or rolls back the transaction that it shares with the library."""


class SagaNotCompleted(SagaError):
    """A result was asked of a saga that is not COMPLETED."""


class WaitTimeout(SagaError, TimeoutError):
    """`wait()` gave up. The saga itself goes on."""


class StoreUnavailable(SagaError):
    """The database did not answer or asked to be tried again."""


class StoreRefused(SagaError):
    """The database answered, and refused what was asked of it.

    Trying again does not help: a table is missing, the role may not write, the transaction of the session has failed.
    """


class TransactionLost(SagaError):
    """The database undid a transaction after an error that the code in it caught. It was not committed; try again."""


class PayloadUnreadable(SagaError):
    """A stored input or result cannot be decrypted: its key is missing, or it was tampered with. Nothing was run."""


class UnserialisableResult(SagaError):
    """What a step returned cannot be kept as JSON and read back as what it was."""


class StepFailed(SagaError):
    """A step failed for good. Raised in its Celery task, so that link_error fires and Flower shows it."""


class StepCancelled(SagaError):
    """A heartbeat found that the saga no longer wants what this attempt does, and says why.

    The saga compensates, or another attempt has taken over. Clean up and let the error pass: what the attempt did is
    compensated.
    """


class EventError(SagaError):
    """Base of what can go wrong with events and commands."""


class InvalidMessage(EventError):
    """What is to be written, or was read, is not what its type declares, or is no envelope at all."""


class UnknownType(EventError):
    """An event is of a type that is not among those that its store was given."""


class UnknownVersion(EventError):
    """No upcaster leads from the version that arrived to the one that is read here."""


class NotOwner(EventError):
    """An event was to be published by somebody else than its owner."""


class NoHandler(EventError):
    """Nobody here receives this command, or handles this event."""


class HandlersFailed(EventError, ExceptionGroup[Exception]):
    """Handlers of an event failed on the in-process bus: `exceptions` has what each raised, noted with its name."""

    def derive(self, excs: Sequence[Exception]) -> HandlersFailed:  # type: ignore[override]
        """Make one of some of the failures, for `except*`."""
        return HandlersFailed(self.message, excs)


class BrokerUnavailable(EventError):
    """The broker did not answer, or did not confirm. What was published may or may not be there: publish it again."""


class SchemaRefused(EventError):
    """The schema registry does not take a schema: it would break readers or writers, or is not the owner's."""


class WrongExpectedVersion(EventError):
    """An append expected its stream at another version: somebody else was quicker. Read again and decide again."""

    def __init__(self, message: str, *, stream: str = "", expected: int = 0, actual: int = 0) -> None:
        super().__init__(message)
        self.stream = stream
        self.expected = expected  #: the version that was asked for; 0: that there is no such stream
        self.actual = actual  #: the version that the stream has


class ProjectionStopped(EventError):
    """A projection stopped at an event that it cannot handle. Mend its code, then let it resume."""


class StepSignal(SagaError):
    """What an action or a compensation may raise to say more than that it failed."""


class TerminalError(StepSignal):
    """It had no effect, and trying again would not help: compensate now. A group of nothing but these counts as one.

    >>> raise TerminalError("card declined")
    Traceback (most recent call last):
    sagas.errors.TerminalError: card declined
    """


class RetryableError(StepSignal):
    """Try again as the step's `Retry` says; `after` (seconds or a timedelta) overrides the delay.

    Of a group of them, the longest `after` does.

    Raises `TypeError` or `ValueError`, with `message` in it, for an `after` that is no length of time, such as the text
    of a Retry-After header. Within a step that is a failure like any other: it is tried again as its `Retry` says.

    >>> RetryableError("busy", after=30).after
    30.0
    """

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(message)
        if after is not None:
            after = seconds(after, f"RetryableError({message!r}): after", zero=True)
        self.after: float | None = after
