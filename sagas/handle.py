"""The caller's end of a saga: what `start()` returns."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sagas.checkpoints import AT_REST, HistoryEntry, SagaRecord, SagaStatus, StepProgress
from sagas.durations import seconds
from sagas.errors import SagaNotCompleted, StartError, StoreUnavailable, WaitTimeout
from sagas.waiting import FIRST_LOOK, LAST_LOOK

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from sagas.stores.sessions import AnySession

__all__ = ["SagaHandle", "StartResult", "StartStatus"]

T = TypeVar("T")


class _Operations(Protocol):
    """What a handle needs of the app behind it."""

    def load(self, saga_id: str) -> SagaRecord: ...
    def history(self, saga_id: str) -> Sequence[HistoryEntry]: ...
    def result(self, record: SagaRecord) -> Mapping[str, Any]: ...
    def cancel(self, saga_id: str, reason: str) -> SagaRecord: ...
    def send_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any,
        *,
        id: str | None,  # noqa: A002
        sender: str | None,
        session: AnySession | None,
    ) -> None: ...
    async def asend_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any,
        *,
        id: str | None,  # noqa: A002
        sender: str | None,
        session: AsyncSession | AsyncConnection | None,
    ) -> None: ...
    async def to_thread(self, function: Callable[[], T]) -> T: ...
    async def await_end(self, saga_id: str, timeout: float | None) -> SagaStatus: ...  # noqa: ASYNC109


class SagaHandle:
    """Refers to one saga by its id. Cheap to make, and as good in another process as in the one that started it.

    >>> handle = place_order.start(PlaceOrder(...), key="order-123")  # doctest: +SKIP
    >>> handle.wait(timeout=10)  # doctest: +SKIP
    <SagaStatus.COMPLETED: 'COMPLETED'>
    """

    __slots__ = ("_operations", "id")

    def __init__(self, saga_id: str, operations: _Operations) -> None:
        self.id = saga_id
        self._operations = operations

    def __repr__(self) -> str:
        return f"<SagaHandle {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SagaHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def record(self) -> SagaRecord:
        """Everything that is stored of the saga, read now. Raises `SagaNotFound` when it is not there."""
        return self._operations.load(self.id)

    @property
    def status(self) -> SagaStatus:
        return self.record.status

    @property
    def error(self) -> str | None:
        """Why the saga compensates or is stuck; None if it does neither."""
        return self.record.error

    @property
    def history(self) -> Sequence[HistoryEntry]:
        """What happened beside the plain way forward, oldest first: failures, compensation, operators, answers."""
        return self._operations.history(self.id)

    @property
    def progress(self) -> Mapping[str, StepProgress]:
        """How far the steps have come that report it by `step.progress()`, by step name."""
        return {name: step.progress for name, step in self.record.steps.items() if step.progress is not None}

    @property
    def result(self) -> Mapping[str, Any]:
        """What each step returned, by step name, as the type its action declares.

        Raises `SagaNotCompleted` unless the saga is COMPLETED.
        """
        record = self.record
        if record.status is not SagaStatus.COMPLETED:
            why = f": {record.error}" if record.error else ""
            raise SagaNotCompleted(f"saga {record.name!r} ({self.id}) is {record.status} and has no result{why}")
        return self._operations.result(record)

    def wait(self, timeout: float | timedelta | None = None) -> SagaStatus:
        """Wait until the saga is COMPLETED, COMPENSATED or STUCK and return which.

        Raises `WaitTimeout` after `timeout` seconds; the saga itself goes on.
        """
        if timeout is not None:
            timeout = seconds(timeout, "wait: timeout", zero=True)
        give_up = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK
        while True:
            try:
                status = self.status
            except StoreUnavailable as error:  # it may be back before the time is up
                if give_up is None:
                    raise
                why = str(error)
            else:
                if status in AT_REST:
                    return status
                why = f"it is {status}"
            if give_up is not None and time.monotonic() >= give_up:
                raise WaitTimeout(
                    f"saga {self.id} is not at its end after {timeout:g} s: {why}. It goes on without you"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK)

    def signal(
        self,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AnySession | None = None,
    ) -> None:
        """Send a signal to the wait `name` of the saga. See `Sagas.signal`."""
        self._operations.send_signal(self.id, name, payload, id=id, sender=sender, session=session)

    def cancel(self, reason: str = "cancelled") -> SagaStatus:
        """Cancel the saga: steps that have begun are compensated. Returns the status at once; `wait()` for the end.

        A saga that is already going back, or has been undone, stays as it is.
        Raises `NotAllowed` when it is completed, or at or past its pivot.
        """
        return self._operations.cancel(self.id, reason).status

    # -- the same for callers in an event loop ------------------------------------------------------------------

    async def arecord(self) -> SagaRecord:
        """Do as `record`, without blocking the event loop."""
        return await self._operations.to_thread(lambda: self.record)

    async def astatus(self) -> SagaStatus:
        """Do as `status`, without blocking the event loop."""
        return (await self.arecord()).status

    async def aresult(self) -> Mapping[str, Any]:
        """Do as `result`, without blocking the event loop. `await_end()` comes before it."""
        return await self._operations.to_thread(lambda: self.result)

    async def asignal(
        self,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> None:
        """Do as `signal`, without blocking the event loop."""
        await self._operations.asend_signal(self.id, name, payload, id=id, sender=sender, session=session)

    async def acancel(self, reason: str = "cancelled") -> SagaStatus:
        """Do as `cancel`, without blocking the event loop."""
        return await self._operations.to_thread(lambda: self.cancel(reason))

    async def await_end(self, timeout: float | timedelta | None = None) -> SagaStatus:  # noqa: ASYNC109 - as `wait`
        """Do as `wait`, without blocking the event loop, and without a thread.

        All who wait in one event loop share one query. A waiter may be cancelled; the saga goes on.
        """
        if timeout is not None:
            timeout = seconds(timeout, "await_end: timeout", zero=True)
        return await self._operations.await_end(self.id, timeout)


class StartStatus(enum.StrEnum):
    """What became of one input of `start_many`."""

    STARTED = "STARTED"
    EXISTING = "EXISTING"  #: a saga with this key and input was there before
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class StartResult:
    """What `start_many` did with one of its inputs."""

    status: StartStatus
    handle: SagaHandle | None = None  #: of the saga that is started or was there; None where it was refused
    error: StartError | None = None  #: why it was refused: `InvalidInput`, `PayloadTooLarge` or `KeyConflict`

    @classmethod
    def of(cls, end: tuple[str, bool] | StartError, operations: _Operations) -> StartResult:
        """Return the result for the id of a saga and whether it is new, or for why it was refused."""
        if isinstance(end, StartError):
            return cls(StartStatus.REFUSED, error=end)
        saga_id, new = end
        return cls(StartStatus.STARTED if new else StartStatus.EXISTING, SagaHandle(saga_id, operations))
