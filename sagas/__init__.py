"""Sagas for Celery: steps with compensations, checkpointed in SQL, that finish or are undone."""

from sagas.app import Sagas
from sagas.checkpoints import Direction, SagaRecord, SagaStatus, SagaSummary, StepProgress, StepRecord, StepStatus
from sagas.children import Child
from sagas.context import StepContext
from sagas.definition import Saga
from sagas.each import Each
from sagas.errors import (
    AmbiguousSaga,
    ConfigurationError,
    DefinitionError,
    DefinitionMissing,
    DuplicateName,
    InvalidInput,
    InvalidToken,
    KeyConflict,
    NotAllowed,
    PayloadTooLarge,
    PayloadUnreadable,
    RetryableError,
    SagaError,
    SagaNotCompleted,
    SagaNotFound,
    SignalRefused,
    StartError,
    StepCancelled,
    StepFailed,
    StoreRefused,
    StoreUnavailable,
    TerminalError,
    UnboundParameter,
    UnserialisableResult,
    WaitTimeout,
)
from sagas.handle import SagaHandle, StartResult, StartStatus
from sagas.nodes import COMPENSATE, Parallel, Pivot, Sleep, Step, Wait
from sagas.retries import NEVER, Retry
from sagas.schedules import Schedule
from sagas.signals import Completion
from sagas.stores import SqlStore

__all__ = [
    # writing a saga
    "Saga",
    "Step",
    "Parallel",
    "Pivot",
    "Wait",
    "Sleep",
    "Child",
    "Each",
    "COMPENSATE",
    "Retry",
    "NEVER",
    "StepContext",
    "TerminalError",
    "RetryableError",
    # running it
    "Sagas",
    "SqlStore",
    "Schedule",
    "SagaHandle",
    "Completion",
    "StartResult",
    "StartStatus",
    # reading it
    "SagaStatus",
    "StepStatus",
    "Direction",
    "SagaRecord",
    "SagaSummary",
    "StepRecord",
    "StepProgress",
    # what can go wrong
    "SagaError",
    "DefinitionError",
    "UnboundParameter",
    "DuplicateName",
    "ConfigurationError",
    "StartError",
    "InvalidInput",
    "PayloadTooLarge",
    "KeyConflict",
    "SagaNotFound",
    "AmbiguousSaga",
    "DefinitionMissing",
    "NotAllowed",
    "SignalRefused",
    "InvalidToken",
    "SagaNotCompleted",
    "WaitTimeout",
    "StoreRefused",
    "StoreUnavailable",
    "PayloadUnreadable",
    "UnserialisableResult",
    "StepCancelled",
    "StepFailed",
]
