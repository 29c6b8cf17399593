"""What sagas ask people: `Wait(..., approvers=...)`. The pages and the command line list, show and answer it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sagas.checkpoints import AT_REST, SagaStatus, SagaSummary, StepStatus
from sagas.definition import Saga
from sagas.errors import DefinitionMissing, InvalidInput
from sagas.forms import Form, form_of
from sagas.nodes import Wait
from sagas.operations import Operations, pretty
from sagas.stores import Filter

__all__ = ["Approvals", "PendingApproval"]

#: A saga that begins with a wait is PENDING until somebody answers.
_FORWARD = frozenset({SagaStatus.PENDING, SagaStatus.RUNNING})


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingApproval:
    """A wait of a saga that people answer."""

    record: SagaSummary
    wait: str  #: the name of the `Wait`
    approvers: frozenset[str]  #: the groups whose members may answer
    form: Form
    is_open: bool  #: whether the saga waits for it now
    since: datetime | None  #: when it began to wait
    until: datetime | None  #: when its timeout is over

    def is_for(self, groups: Iterable[str]) -> bool:
        """Return whether members of these groups may answer."""
        return not self.approvers.isdisjoint(groups)


class Approvals:
    """The questions of the sagas of an app. Who may answer one is for the caller to check: `PendingApproval.is_for`."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def of(self, record: SagaSummary) -> tuple[PendingApproval, ...]:
        """Return what a saga asks people now. `record`: with its steps."""
        try:
            definition = self.operations.sagas.orchestrator.definition(record)
        except DefinitionMissing:
            return ()
        found = (self._pending(record, wait) for wait in _asking(definition))
        return tuple(pending for pending in found if pending.is_open)

    def get(self, saga_id: str, wait: str) -> PendingApproval:
        """Return one question of a saga, also one that is no longer open.

        Raises `SagaNotFound`, `DefinitionMissing`, and `InvalidInput` where the saga asks nothing of this name.
        """
        record = self.operations.queries.summary(saga_id)
        for each in _asking(self.operations.sagas.orchestrator.definition(record)):
            if each.name == wait:
                return self._pending(record, each)
        raise InvalidInput(f"saga {record.name!r} ({saga_id}) has no wait {wait!r} with approvers")

    def kinds(self) -> Sequence[tuple[str, str]]:
        """Return what the sagas of this app may ask people: the names of the sagas and of their waits."""
        sagas = self.operations.sagas.orchestrator.sagas.values()
        return sorted({(saga.name, wait.name) for saga in sagas for wait in _asking(saga)})

    def waiting(self, *, groups: Iterable[str] | None = None, limit: int = 100) -> Sequence[PendingApproval]:
        """Return what the sagas of this app ask people now, the oldest sagas first.

        `groups`: only what their members may answer. `limit`: the most of each `Wait`.
        """
        groups = None if groups is None else frozenset(groups)
        found: dict[tuple[str, str], PendingApproval] = {}
        for name, wait in self.kinds():
            where = Filter(name=name, statuses=_FORWARD, step=wait)
            for record in self.operations.queries.select(where, limit=limit, after="", with_steps=True):
                for pending in self.of(record):
                    if groups is None or pending.is_for(groups):
                        found[record.id, pending.wait] = pending
        return [found[key] for key in sorted(found)]

    def input_of(self, pending: PendingApproval) -> str:
        """Return the saga's input as people may see it: what the question is about."""
        return pretty(self.operations.shown(self.operations.queries.payloads(pending.record.id).input))

    def answer(self, pending: PendingApproval, answers: Mapping[str, str], *, actor: str, id: str) -> None:  # noqa: A002
        """Send the answer of a person as the signal. The history keeps who answered, and when.

        `id`: of the form that was filled in; sent twice, it counts once.
        Raises `InvalidForm`, and what `Sagas.send_signal` raises.
        """
        payload = pending.form.read(answers)
        self.operations.sagas.send_signal(pending.record.id, pending.wait, payload, id=id, sender=actor)

    @staticmethod
    def _pending(record: SagaSummary, wait: Wait) -> PendingApproval:
        step = record.step(wait.name)
        return PendingApproval(
            record=record,
            wait=wait.name,
            approvers=wait.approvers,
            form=form_of(wait.type, wait.name),
            is_open=step.status is StepStatus.WAITING and record.status not in AT_REST,
            since=step.started_at,
            until=step.due_at,
        )


def _asking(saga: Saga) -> list[Wait]:
    return [bound.step for bound in saga.steps.values() if isinstance(bound.step, Wait) and bound.step.approvers]
