"""What operators can do to a saga, and how the command line, Flower and the admin call it and explain it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from sagas.checkpoints import SagaStatus

__all__ = ["ACTIONS", "Action", "ActionInfo", "AllowedAction", "pgettext_noop"]


class Action(enum.StrEnum):
    """What an operator can do to a saga. The history keeps each with its reason and the operator's name."""

    RETRY = "retry"
    SKIP = "skip"
    MARK_DONE = "mark-done"
    COMPENSATE = "compensate"
    CANCEL = "cancel"
    RESUME = "resume"

    @property
    def info(self) -> ActionInfo:
        """What it is called and what it does."""
        return ACTIONS[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionInfo:
    """What an action is called, what it does, and to which sagas."""

    title: str
    summary: str  #: one sentence
    detail: str = ""  #: what else to know before doing it
    statuses: frozenset[SagaStatus]  #: the sagas that a bulk action is about, unless the operator says otherwise
    needs_stuck_step: bool = False  #: it is about a stuck step, and not about the saga as a whole
    takes_result: bool = False  #: going forward, the operator may give the result of the step
    dangerous: bool = False  #: it undoes what has been done

    @property
    def explanation(self) -> str:
        return f"{self.summary} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class AllowedAction:
    """An action that the state of a saga allows."""

    action: Action
    step: str | None = None  #: the stuck step that it is about

    @property
    def info(self) -> ActionInfo:
        return self.action.info


def pgettext_noop(context: str, text: str) -> str:  # noqa: ARG001 - called as gettext's own functions are
    """Mark a text for `make translations`, and return it as it is: whoever shows it translates it."""
    return text


_STUCK = frozenset({SagaStatus.STUCK})
_FORWARD = frozenset({SagaStatus.PENDING, SagaStatus.RUNNING})

#: The one table of what operators can do. In the order in which the actions are offered.
ACTIONS: Mapping[Action, ActionInfo] = {
    Action.RETRY: ActionInfo(
        title=pgettext_noop("saga", "Retry"),
        summary=pgettext_noop("saga", "Retry the stuck step, with all its attempts."),
        statuses=_STUCK,
        needs_stuck_step=True,
    ),
    Action.SKIP: ActionInfo(
        title=pgettext_noop("saga", "Skip"),
        summary=pgettext_noop("saga", "Leave the stuck step as it is, and continue with the others."),
        detail=pgettext_noop("saga", "If the saga goes forward, the result of the step is null."),
        statuses=_STUCK,
        needs_stuck_step=True,
    ),
    Action.MARK_DONE: ActionInfo(
        title=pgettext_noop("saga", "Mark done"),
        summary=pgettext_noop("saga", "Record the stuck step as done, or compensated, by hand."),
        detail=pgettext_noop("saga", "The saga then continues."),
        statuses=_STUCK,
        needs_stuck_step=True,
        takes_result=True,
    ),
    Action.COMPENSATE: ActionInfo(
        title=pgettext_noop("saga", "Compensate"),
        summary=pgettext_noop(
            "saga", "Start compensating, even if the saga is stuck at its pivot: started steps are undone."
        ),
        detail=pgettext_noop("saga", "A stuck pivot counts as not done, so make sure that it had no effect."),
        statuses=_FORWARD | _STUCK,
        dangerous=True,
    ),
    Action.CANCEL: ActionInfo(
        title=pgettext_noop("saga", "Cancel"),
        summary=pgettext_noop("saga", "Start compensating: started steps are undone."),
        statuses=_FORWARD,
        dangerous=True,
    ),
    Action.RESUME: ActionInfo(
        title=pgettext_noop("saga", "Resume"),
        summary=pgettext_noop("saga", "Dispatch what is left now, without waiting for a retry or for recovery."),
        statuses=_FORWARD | {SagaStatus.COMPENSATING},
    ),
}
