"""What an operator sees of sagas and does to them. The command line, Flower and the admin all work from this desk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sagas import transitions
from sagas.app import Sagas
from sagas.checkpoints import Direction, SagaStatus, SagaSummary, StepStatus
from sagas.errors import (
    DefinitionMissing,
    InvalidInput,
    NotAllowed,
    PayloadUnreadable,
    SagaNotFound,
)
from sagas.operator_actions import Action, AllowedAction
from sagas.redaction import shown
from sagas.stores import Filter, operator_store
from sagas.transitions import Case
from sagas.values import encode, explain, load, same

__all__ = [
    "LONGEST_REASON",
    "MOST_CHILDREN",
    "ActionResult",
    "Operations",
    "Relatives",
    "check_reason",
    "pretty",
]

#: Characters that a reason may have. Longer ones are refused, not cut: the end may be what matters.
LONGEST_REASON = 2_000

#: Characters of an input or a result that people are shown.
_LONGEST_SHOWN = 20_000

#: Children of a saga that are shown with it.
MOST_CHILDREN = 100

#: Sagas taken at once by what is done to all that fit a filter.
_PAGE = 100


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What became of one saga of many."""

    record: SagaSummary
    error: str | None = None  #: why nothing was done


@dataclass(frozen=True, slots=True)
class Relatives:
    """The sagas next to one in its tree."""

    parent: SagaSummary | None = None
    children: Sequence[SagaSummary] = ()  #: oldest first; at most `MOST_CHILDREN`


class Operations:
    """The operator's side of an app with sagas in SQL.

    Raises `ConfigurationError` where they are kept in anything else: that has no lists.
    """

    def __init__(self, sagas: Sagas) -> None:
        self.sagas = sagas
        self.store = operator_store(sagas.store)
        self.queries = self.store.queries

    def relatives(self, record: SagaSummary) -> Relatives:
        """Return the parent and the children of a saga. `record`: with its steps."""
        parent, children = None, list[SagaSummary]()
        if record.parent_id is not None:
            with suppress(SagaNotFound):  # purged
                parent = self.queries.summary(record.parent_id)
        if any(step.child_id for step in record.steps.values()):
            where = Filter(family=record.family, parent=record.id)
            children += self.queries.select(where, limit=MOST_CHILDREN, after="", with_steps=True)
        return Relatives(parent, children)

    def allowed_actions(self, record: SagaSummary) -> tuple[AllowedAction, ...]:
        """Return what may be done to a saga as it is in `record`, with its steps. Somebody else may be quicker."""
        try:
            definition = self.sagas.orchestrator.definition(record)
        except DefinitionMissing:
            return ()
        if record.status is SagaStatus.STUCK:
            stuck = [step.name for step in record.steps.values() if step.status is StepStatus.STUCK]
            found = [
                AllowedAction(action, step)
                for step in stuck
                for action in (Action.RETRY, Action.SKIP, Action.MARK_DONE)
            ]
            if definition.pivot is not None and definition.pivot.name in stuck:
                found.append(AllowedAction(Action.COMPENSATE))
            return tuple(found)
        # The rules are pure, so whether they allow something can be tried.
        found = []
        case = Case.of(definition, record.without_payloads(), self.store.now(), self.sagas.orchestrator.timing)
        if record.direction is Direction.FORWARD:
            with suppress(NotAllowed):
                transitions.cancel(case, "")
                found.append(AllowedAction(Action.CANCEL))
        with suppress(NotAllowed):
            transitions.resume(case, "")
            found.append(AllowedAction(Action.RESUME))
        return tuple(found)

    def act(
        self, action: Action, saga_id: str, *, actor: str, reason: str, step: str | None = None, result: Any = None
    ) -> SagaSummary:
        """Do something to one saga, and return what it is then.

        `step`: the stuck step that is meant; left out, each one that is stuck.
        `result`: of a step that is done, as JSON has it; it is read as the type that the action declares.
        Raises `NotAllowed` when its state forbids it, or no reason is given; `InvalidInput` for a reason of more than
        2,000 characters and a result that is not of its type; `PayloadTooLarge` for one of more than `max_payload`.
        """
        check_reason(f"saga {saga_id}, {action}", reason)
        sagas = self.sagas
        match action:
            case Action.CANCEL:
                return sagas.cancel(self._not_yet_back(saga_id), reason, actor=actor)
            case Action.COMPENSATE:
                return sagas.compensate(self._not_yet_back(saga_id), reason=reason, actor=actor)
            case Action.RESUME:
                return sagas.resume(saga_id, reason=reason, actor=actor)
        record: SagaSummary = self.queries.summary(saga_id)
        stuck = [each.name for each in record.steps.values() if each.status is StepStatus.STUCK]
        if not stuck:
            raise NotAllowed(f"saga {record.name!r} ({saga_id}) is {record.status}; none of its steps is stuck")
        if action is Action.MARK_DONE and step is None and len(stuck) > 1:
            raise NotAllowed(f"saga {record.name!r} ({saga_id}) is stuck at {', '.join(stuck)}: say which step is done")
        for name in stuck if step is None else [step]:
            match action:
                case Action.RETRY:
                    record = sagas.retry(saga_id, name, reason=reason, actor=actor)
                case Action.SKIP:
                    record = sagas.skip(saga_id, name, reason=reason, actor=actor)
                case _:
                    typed = self._typed(record, name, result)
                    record = sagas.mark_done(saga_id, name, reason=reason, actor=actor, result=typed)
        return record

    def _not_yet_back(self, saga_id: str) -> str:
        record = self.queries.summary(saga_id)
        if record.direction is Direction.BACKWARD:
            hint = "; retry, skip or mark its stuck step" if record.status is SagaStatus.STUCK else ""
            raise NotAllowed(
                f"saga {record.name!r} ({saga_id}) has already started compensating: it is {record.status}{hint}"
            )
        return saga_id

    def _typed(self, record: SagaSummary, step: str, result: Any) -> Any:
        if result is None:
            return None
        where = f"saga {record.name!r} ({record.id}), result of step {step!r}"
        if record.direction is Direction.BACKWARD:
            raise NotAllowed(f"{where}: it goes backward, so that its step is undone by hand; that has no result")
        bound = self.sagas.orchestrator.definition(record).steps.get(step)
        try:
            text = encode(result).decode()
            if not same(load(text), result):  # such as NaN, which JSON does not have: it would become null
                raise ValueError("it is not plain JSON, so that it would be kept as something else")  # noqa: TRY301
            return result if bound is None else load(text, bound.action.returns)
        except (TypeError, ValueError, RecursionError) as error:  # msgspec's and pydantic's are ValueErrors
            raise InvalidInput(f"{where}: {explain(error)}") from error

    def act_on_all(
        self,
        action: Action,
        where: Filter,
        *,
        actor: str,
        reason: str,
        limit: int,
        step: str | None = None,
        result: Any = None,
    ) -> Iterator[ActionResult]:
        """Do something to the sagas that fit a filter, oldest first, at most `limit`; yield what became of each.

        One that cannot be done does not keep the others from it. A database that does not answer ends it.
        """
        after, left = "", limit
        while left > 0:
            page = self.queries.select(where, after=after, limit=min(_PAGE, left))
            for record in page:
                try:
                    done = self.act(action, record.id, actor=actor, reason=reason, step=step, result=result)
                except (NotAllowed, DefinitionMissing, InvalidInput, SagaNotFound, PayloadUnreadable) as error:
                    yield ActionResult(record, str(error))
                else:
                    yield ActionResult(done)
            if len(page) < min(_PAGE, left):
                return
            after, left = page[-1].id, left - len(page)

    def shown(self, payload: str | PayloadUnreadable | None) -> Any:
        """Return what an input or a result may be shown as: its JSON, without the values that are redacted or too deep.

        In the place of one that cannot be read is why.
        """
        if isinstance(payload, PayloadUnreadable):
            return f"cannot be read: {payload}"
        return None if payload is None else shown(payload, self.sagas.redact)


def pretty(value: Any, indent: int | None = 2) -> str:
    """Return JSON for people, cut where it is very long."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[:_LONGEST_SHOWN]}\n… cut: {len(text) - _LONGEST_SHOWN:,} characters more"


def check_reason(where: str, reason: str) -> None:
    """Refuse what an operator does without saying why, or at too great length."""
    if not reason.strip():
        raise NotAllowed(f"{where}: say why; it is kept with the saga")
    if len(reason) > LONGEST_REASON:
        raise InvalidInput(f"{where}: the reason has {len(reason):,} characters; give at most {LONGEST_REASON:,}")
