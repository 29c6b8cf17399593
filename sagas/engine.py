"""What the parts of the engine ask of each other. `Orchestrator` is the engine that they get."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sagas.checkpoints import SagaRecord, SagaSummary
from sagas.creation import Limits
from sagas.definition import Saga
from sagas.errors import StoreUnavailable
from sagas.execution import Claim, Execution, Publisher
from sagas.observers import Observers
from sagas.plan import Plan
from sagas.transitions import Case, Change, Timing, Verdict

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["CLAIM_PATIENCE", "Decide", "Engine", "Next", "insist"]

#: Seconds for which a message insists on a database that does not answer, before it is put off.
CLAIM_PATIENCE = 3.0

#: A rule, with all that it takes beside the case.
Decide = Callable[[Case], Change]


@dataclass(frozen=True)
class Next:
    """What the messenger does now."""

    verdict: Verdict
    note: str
    record: SagaRecord
    plan: Plan | None = None  #: what to dispatch, if the verdict is DISPATCH; what is waited for, if it is OVERDUE
    claim: Claim | None = None  #: the claim on the following step, if it was asked for and granted
    error: BaseException | None = None  #: what the attempt raised, if it failed


class Engine(Protocol):
    """Changes sagas, and sends what is left of them."""

    store: CheckpointStore
    observers: Observers
    events: Publisher | None
    timing: Timing
    limits: Limits
    redact: frozenset[str]
    #: Sends what is left of another saga than the one that was asked for: a child, or a parent.
    send: Callable[[Plan], object]
    #: Sends what is left of several.
    send_many: Callable[[Iterable[Plan]], object]

    def definition(self, record: SagaSummary, step: str | None = None) -> Saga:
        """Return the definition that a saga goes on with. Raises `DefinitionMissing`."""

    def change(
        self,
        saga_id: str,
        decide: Decide,
        *,
        step: str | None = None,
        loaded: SagaRecord | None = None,
        session: AnySession | None = None,
        emitted: Execution | None = None,
        children: Sequence[SagaRecord] = (),
        told: list[Callable[[], object]] | None = None,
    ) -> Next:
        """Load, decide, compare and set; again until nobody was quicker. See `Orchestrator.change`."""

    def examine(self, saga_id: str) -> Next:
        """Look at a saga that is due."""


def insist(write: Callable[[], Next], patience: float) -> Next:
    """Try again while the database does not answer, for a while."""
    give_up, pause = time.monotonic() + patience, 0.05
    while True:
        try:
            return write()
        except StoreUnavailable:
            if time.monotonic() + pause > give_up:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
