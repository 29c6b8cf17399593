"""Everything that changes a saga: messages, recovery and people.

The orchestrator loads a record, lets `transitions` decide, and stores the outcome with a compare-and-set; whoever
loses that race loads and decides again. It returns what is to be dispatched and never dispatches anything itself.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagas import family, fan_out, transitions
from sagas.attempts import Attempts
from sagas.checkpoints import AT_REST, Direction, SagaRecord, SagaSummary, StepStatus, replace, tells_parent
from sagas.creation import LONGEST_KEY, Limits
from sagas.definition import Saga
from sagas.engine import CLAIM_PATIENCE, Decide, Next, insist
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    InvalidInput,
    NotAllowed,
    PayloadTooLarge,
    StoreUnavailable,
)
from sagas.execution import LONGEST_ERROR, Execution, Publisher
from sagas.leases import Leases
from sagas.observers import Observers
from sagas.plan import Plan, plan
from sagas.registry import Definitions
from sagas.results import has_result, result_of
from sagas.text import clean
from sagas.transitions import (
    Case,
    Change,
    Repair,
    Timing,
    Verdict,
)
from sagas.values import dump, load

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["Orchestrator"]

logger = logging.getLogger(__name__)

#: A step that comes to one of these has done what it was asked for, or has asked somebody else.
_SUCCEEDED = (StepStatus.DONE, StepStatus.WAITING, StepStatus.COMPENSATED)

#: The verdicts whose messenger needs to know what is left.
_PLANNED = (Verdict.DISPATCH, Verdict.ACT, Verdict.OVERDUE)


class Orchestrator:
    """Changes sagas. One per app; safe to use from any thread."""

    def __init__(
        self,
        store: CheckpointStore,
        *,
        timing: Timing,
        max_payload: int,
        events: Publisher | None = None,
        observers: Observers | None = None,
        redact: frozenset[str] = frozenset(),
        leases: type[Leases] = Leases,
    ) -> None:
        self.store = store
        self.redact = redact
        self.observers = Observers() if observers is None else observers
        self.events = events
        self.timing = timing
        self.max_payload = max_payload
        self.limits = Limits(max_payload=max_payload, redispatch_after=timing.redispatch_after)
        #: Sends what is left of another saga than the one that was asked for: a child, or a parent.
        self.send: Callable[[Plan], object] = _leave
        #: Sends what is left of several.
        self.send_many: Callable[[Iterable[Plan]], object] = self._send_each
        #: Calls what a change leads to in other sagas: at once, or in another thread where this one must not block.
        self.follow_up: Callable[[Callable[[], None]], object] = _at_once
        self.sagas = Definitions()
        #: Does what the message of a step asks for: check, act, record.
        self.perform = Attempts(self, leases).perform

    def _send_each(self, plans: Iterable[Plan]) -> None:
        for each in plans:
            self.send(each)

    # -- definitions --------------------------------------------------------------------------------------------

    def register(self, saga: Saga) -> None:
        if saga.publish_lifecycle and self.events is None:
            raise ConfigurationError(
                f"saga {saga.name!r} publishes its life, but there is nothing to publish through: "
                "Sagas(..., events=Events(...))"
            )
        self.sagas.add(saga)

    def definition(self, record: SagaSummary, step: str | None = None) -> Saga:
        """Return the definition that a saga goes on with; see `Definitions.of`. Raises `DefinitionMissing`."""
        return self.sagas.of(record, step)

    # -- messages -----------------------------------------------------------------------------------------------

    def join(self, saga_id: str, name: str, epoch: int) -> Next:
        return insist(
            lambda: self.change(saga_id, lambda case: transitions.join(case, name, epoch), step=name),
            CLAIM_PATIENCE,
        )

    def report(self, saga_id: str, name: str, epoch: int) -> Next:
        """link_error fired: start compensating, unless that has happened."""
        return insist(
            lambda: self.change(saga_id, lambda case: transitions.report(case, name, epoch), step=name),
            CLAIM_PATIENCE,
        )

    def arrived(self, task: str, sent_at: datetime) -> None:
        """A probe came through the queue: what was sent for its task before has come, or never will."""
        try:
            self.store.arrived(task, sent_at)
        except StoreUnavailable as error:  # recovery sends another
            logger.warning("the arrival of a probe for %s could not be noted: %s", task, error)

    # -- recovery -----------------------------------------------------------------------------------------------

    def look_at(self, saga_ids: Sequence[str]) -> tuple[Sequence[Next], Sequence[str]]:
        """Look at sagas that are due, in a few statements for all of them: most can only wait, in a long queue.

        Returns what comes of those, OVERDUE or GO_AWAY, and the ids of the others. `examine` them one by one.
        """
        waiting: list[Next] = []
        now = self.store.now()
        for summary in self.store.summaries(saga_ids) if saga_ids else ():
            record = summary.without_payloads()
            try:
                saga = self.definition(record)
                case = Case.of(saga, transitions.rewound(record, now), now, self.timing)
                if transitions.due_children(case) or transitions.due_items(case):
                    continue
                change = transitions.examine(case)
                after = change.record
                opened = replace(record, steps=case.record.steps, outline=case.record.outline)
                if after == replace(opened, idle_checks=after.idle_checks, next_check_at=after.next_check_at):
                    left = plan(saga, after) if change.verdict in _PLANNED else None
                    waiting.append(Next(change.verdict, change.note, after, left))
            except Exception:  # looked at alone, its failure is its own
                logger.debug("saga %s (%s) is looked at alone", record.name, record.id, exc_info=True)
        if waiting:
            self.store.reschedule([next_.record for next_ in waiting])
        found = {next_.record.id for next_ in waiting}
        return waiting, [saga_id for saga_id in saga_ids if saga_id not in found]

    def examine(self, saga_id: str) -> Next:
        """Look at a saga that is due. DISPATCH: send its plan. OVERDUE: find out whether its message is lost."""
        found = self.change(
            saga_id,
            lambda case: transitions.examine(case, family.children(self.store, case), fan_out.counts(self.store, case)),
        )
        if found.record.parent_item is not None and found.record.status in AT_REST:
            fan_out.tell_items(self, found.record)
        return found

    def redispatch(self, saga_id: str, step: str, sent_at: datetime) -> Next:
        """Have an overdue saga's messages sent once more."""
        return self.change(saga_id, lambda case: transitions.redispatch(case, step, sent_at))

    def not_sent(self, saga_id: str, why: str, *, broker_answers: bool) -> None:
        """No broker took the plan of a saga: show that on the saga, and look at it again before long."""
        self.change(
            saga_id,
            lambda case: transitions.not_sent(case, why, broker_answers=broker_answers),
        )

    # -- people -------------------------------------------------------------------------------------------------

    def cancel(self, saga_id: str, reason: str, actor: str | None = None) -> Next:
        reason, actor = _said(reason), _named(actor)
        return self.change(saga_id, lambda case: transitions.cancel(case, reason, actor))

    def resume(self, saga_id: str, reason: str, actor: str | None = None) -> Next:
        reason, actor = _said(reason), _named(actor)
        return self.change(saga_id, lambda case: transitions.resume(case, reason, actor))

    def repair(
        self, saga_id: str, step: str, how: Repair, *, reason: str, actor: str | None = None, result: Any = None
    ) -> Next:
        if not reason.strip():
            raise NotAllowed(f"saga {saga_id}, step {step!r}: say why; it is kept with the saga")
        reason, actor = _said(reason), _named(actor)

        def decide(case: Case) -> Change:
            text = None
            if how is Repair.DONE and case.forward and (found := case.record.steps.get(step)):
                try:
                    text = dump(result, case.node(found).action.returns)
                except TypeError as error:
                    raise InvalidInput(f"saga {case.record.name!r}, result of step {step!r}: {error}") from error
                if (size := len(text.encode())) > self.max_payload:
                    raise PayloadTooLarge(
                        f"saga {case.record.name!r}, result of step {step!r}: {size:,} bytes are more than "
                        f"max_payload={self.max_payload:,}"
                    )
            return transitions.repair(case, step, how, reason, actor=actor, result=text)

        return self.change(saga_id, decide, step=step)

    def result(self, record: SagaRecord) -> Mapping[str, Any]:
        """Return what the steps of a saga returned, as the types that their actions declare."""
        saga = self.definition(record)
        return {
            step.name: None
            if step.status is StepStatus.SKIPPED
            else load(
                result_of(self.store, saga.steps[step.node], record, step.name) or "null",
                saga.steps[step.node].action.returns,
            )
            for step in record.steps.values()
            if has_result(step)
        }

    # -- the one way to change a saga ---------------------------------------------------------------------------

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
        """Load, decide, compare and set; again until nobody was quicker.

        `emitted`: an attempt that succeeded; what it emitted is stored if it counts.
        `children`: sagas that are stored too, if the change says that a step waits for them. Raises `KeyConflict`.
        `told`: where to put what observers are told, for after the commit of `session`.
        """
        while True:
            before = loaded or self.store.load(saga_id, session)
            loaded = None
            try:
                saga = self.definition(before, step)
            except DefinitionMissing as error:
                self._note(before, str(error))
                raise
            now = self.store.now()
            case = Case.of(saga, transitions.rewound(before, now), now, self.timing)
            change = decide(case)
            after = change.record
            if after is not case.record:
                outbox = self._outbox(saga, before, after, emitted)
                begun = [child for child in children if family.waits_for(after, child)]
                saved = self.store.save(before, after, change.history, change.dead_letters, outbox, session, begun)
                if saved is None:
                    time.sleep(random.uniform(0, 0.005))  # noqa: S311 - siblings of a chord meet here; let them part
                    continue
                after = saved
                follow: list[Callable[[], object]] = []
                if self.observers:
                    follow.append(functools.partial(self.observers.changed, before, after, change.history))
                if begun or tells_parent(before, after):
                    follow.append(
                        functools.partial(self.follow_up, functools.partial(family.tell, self, before, after, begun))
                    )
                for tell in follow:
                    if told is None:
                        self.store.after_commit(session, tell)
                    else:
                        told.append(tell)
            dispatch = plan(saga, after) if change.verdict in _PLANNED else None
            return Next(change.verdict, change.note, after, dispatch)

    def _outbox(
        self, saga: Saga, before: SagaRecord, after: SagaRecord, emitted: Execution | None
    ) -> Sequence[Mapping[str, Any]]:
        """Return what leaves with a change: what its step emitted, if that counts as done now, and the saga's life."""
        rows: list[Mapping[str, Any]] = []
        if emitted is not None and emitted.messages:
            status = after.step(emitted.name).status
            if status in _SUCCEEDED and before.step(emitted.name).status is not status:
                rows += emitted.messages
        if saga.publish_lifecycle and self.events is not None:
            rows += self.events.lifecycle(before, after)
        return rows

    def _note(self, record: SagaRecord, error: str) -> None:
        """Show on the saga itself why it stands still; a worker with other code may bring it on."""
        # While the saga compensates, its error says why, and that is worth more.
        if record.next_check_at is not None and record.direction is Direction.FORWARD and record.error != error:
            self.store.save(record, replace(record, error=error))


def _at_once(do: Callable[[], None]) -> None:
    do()


def _leave(left: Plan) -> None:
    """Send nothing: recovery will."""


def _said(reason: str) -> str:
    return clean(reason, LONGEST_ERROR)


def _named(actor: str | None) -> str | None:
    return None if actor is None else clean(actor, LONGEST_KEY)
