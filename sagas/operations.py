"""What an operator sees of sagas and does to them. The command line, Flower and the admin all work from this desk."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sagas import transitions
from sagas.app import Sagas
from sagas.checkpoints import Direction, SagaStatus, SagaSummary, StepStatus
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    InvalidInput,
    NotAllowed,
    PayloadUnreadable,
    SagaNotFound,
)
from sagas.redaction import shown
from sagas.stores import Filter, SqlStore
from sagas.transitions import Case
from sagas.values import encode, explain, load, same

__all__ = ["LONGEST_REASON", "Action", "AllowedAction", "Operations", "ActionResult", "pretty"]

#: Characters that a reason may have. Longer ones are refused, not cut: the end may be what matters.
LONGEST_REASON = 2_000

#: Characters of an input or a result that people are shown.
_LONGEST_SHOWN = 20_000

#: Sagas taken at once by what is done to all that fit a filter.
_PAGE = 100


class Action(enum.StrEnum):
    """What an operator can do to a saga. Each is kept in its history, with the reason and the name."""

    RETRY = "retry"  #: try its stuck step again, with all attempts
    SKIP = "skip"  #: leave its stuck step as it is, and go on
    MARK_DONE = "mark-done"  #: take its stuck step as done, or as undone, by hand
    COMPENSATE = "compensate"  #: turn it back, also when it is stuck at its pivot
    CANCEL = "cancel"  #: turn it back
    RESUME = "resume"  #: dispatch what is left of it now


@dataclass(frozen=True, slots=True)
class AllowedAction:
    """Something that may be done to a saga as it is now."""

    action: Action
    step: str | None = None  #: the stuck step that it is about


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What became of one saga of many."""

    record: SagaSummary
    error: str | None = None  #: why nothing was done


class Operations:
    """The operator's side of an app with sagas in SQL.

    Raises `ConfigurationError` where they are kept in anything else: that has no lists.
    """

    def __init__(self, sagas: Sagas) -> None:
        if not isinstance(sagas.store, SqlStore):
            raise ConfigurationError(f"{sagas.store!r} has no lists for operators; keep the sagas in a SqlStore")
        self.sagas = sagas
        self.store = sagas.store

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
        _check_reason(f"saga {saga_id}, {action}", reason)
        sagas = self.sagas
        match action:
            case Action.CANCEL:
                return sagas.cancel(self._not_yet_back(saga_id), reason, actor=actor)
            case Action.COMPENSATE:
                return sagas.compensate(self._not_yet_back(saga_id), reason=reason, actor=actor)
            case Action.RESUME:
                return sagas.resume(saga_id, reason=reason, actor=actor)
        record: SagaSummary = self.store.summary(saga_id)
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
        record = self.store.summary(saga_id)
        if record.direction is Direction.BACKWARD:
            hint = "; retry, skip or mark its stuck step" if record.status is SagaStatus.STUCK else ""
            raise NotAllowed(f"saga {record.name!r} ({saga_id}) has turned back already: it is {record.status}{hint}")
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
            page = self.store.select(where, after=after, limit=min(_PAGE, left))
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


def _check_reason(where: str, reason: str) -> None:
    if not reason.strip():
        raise NotAllowed(f"{where}: say why; it is kept with the saga")
    if len(reason) > LONGEST_REASON:
        raise InvalidInput(f"{where}: the reason has {len(reason):,} characters; give at most {LONGEST_REASON:,}")
