"""What a step may ask about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagas.errors import NotAllowed
from sagas.heartbeats import Heartbeats
from sagas.values import NO_TYPE, load

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["StepContext"]


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
    _heartbeats: Heartbeats = field(default_factory=Heartbeats, repr=False)

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

    def heartbeat(self, details: Any = None) -> None:
        """Report that the step goes on. Call it as often as you like: it is stored every 2 seconds at most.

        `details`: where another attempt would resume, of at most 64 kB as JSON. It gets the last of them as
        `heartbeat_details`. Left out, the details that were reported before stay.

        Raises `StepCancelled` when the saga no longer wants what this attempt does: it compensates, or another attempt
        has taken over. Raises `PayloadTooLarge` for longer details, and `TypeError` for what is not JSON.

        >>> def import_rows(rows: list[str], step: StepContext) -> None:
        ...     for number in range(step.heartbeat_details or 0, len(rows)):
        ...         print(rows[number])
        ...         step.heartbeat(number + 1)
        """
        self._heartbeats.report(details)

    @property
    def heartbeat_details(self) -> Any:
        """What an earlier attempt reported last, as plain JSON values; None where it reported nothing.

        A compensation gets what the action reported last and, once it has reported details of its own, those.
        """
        before = self._heartbeats.before
        return None if before is None else load(before, NO_TYPE)

    def progress(self, done: int, total: int | None = None) -> None:
        """Report how far the step has come, for people to see. It is a heartbeat, too.

        `done`, `total`: in units of your choice; leave out a total that you do not know. Raises `StepCancelled`, as
        `heartbeat` does, and `ValueError` for negative numbers.
        """
        self._heartbeats.progress(done, total)

    def emit(self, message: Any, *, key: str | None = None) -> None:
        """Publish an event, or send a command, if and only if this step succeeds.

        It is stored in the transaction of the step's checkpoint, and carries the saga's correlation id. `key`: messages
        of one key stay in order; left out, the saga's key. What a failed attempt emitted is forgotten.
        Raises `NotOwner` for an event of a service that this process does not declare, `ConfigurationError` where
        `Sagas` was given no `events`.
        """
        self._emit(message, key)
