"""The page of schedules: when each runs, what became of its ticks, and what may be done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tornado.web import HTTPError, authenticated

from sagas.contrib.flower.handler import Handler
from sagas.errors import InvalidInput, NotAllowed
from sagas.schedule_operations import ScheduleAction, ScheduleOperations, ScheduleView
from sagas.ticks import Tick

__all__ = ["ActOnSchedule", "Schedules"]

#: Ticks of each schedule that are shown.
_TICKS = 20

_EXPLAINED: Mapping[ScheduleAction, str] = {
    ScheduleAction.PAUSE: "Its ticks are skipped until it is resumed, and are not caught up.",
    ScheduleAction.RESUME: "It goes on with its next tick.",
    ScheduleAction.RUN: "Its saga starts now. While the saga of an earlier tick runs, its overlap decides.",
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A schedule on the page."""

    view: ScheduleView
    next_times: Sequence[datetime]
    ticks: Sequence[Tick]


def _look(operations: ScheduleOperations) -> list[_Shown]:
    return [
        _Shown(
            view,
            [] if view.schedule is None else operations.next_times(view.name),
            operations.ticks(view.name, limit=_TICKS),
        )
        for view in operations.list()
    ]


class Schedules(Handler):
    """All schedules of the app, and those that the database still knows."""

    @authenticated
    async def get(self) -> None:
        shown = await self.ask(_look, ScheduleOperations(self.operations))
        self.show("schedules.html", tab="schedules", shown=shown, explained=_EXPLAINED)


class ActOnSchedule(Handler):
    """One button: asks why, and does it."""

    @authenticated
    async def get(self, name: str, action: str) -> None:
        self._refuse_if_read_only()
        await self._form(name, ScheduleAction(action))

    @authenticated
    async def post(self, name: str, action: str) -> None:
        self._refuse_if_read_only()
        reason, choice = self.get_body_argument("reason", ""), ScheduleAction(action)
        operations = ScheduleOperations(self.operations)
        try:
            await self.ask(lambda: operations.act(choice, name, actor=self.who, reason=reason))
        except (NotAllowed, InvalidInput) as error:
            await self._form(name, choice, problem=str(error))
            return
        self.redirect(self.reverse_url("sagas-schedules"))

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise HTTPError(403, "this Flower is read-only")

    async def _form(self, name: str, action: ScheduleAction, *, problem: str = "") -> None:
        views = await self.ask(ScheduleOperations(self.operations).list)
        view = next((each for each in views if each.name == name), None)
        if view is None:
            raise HTTPError(404, f"there is no schedule {name!r}")
        allowed = action in view.allowed
        if not allowed and not problem:
            problem = "this cannot be done to the schedule as it is now; somebody may have been quicker"
        self.set_status(409 if problem else 200)
        self.show(
            "act_on_schedule.html",
            tab="schedules",
            view=view,
            action=action,
            allowed=allowed,
            problem=problem,
            reason=self.get_body_argument("reason", ""),
            explained=_EXPLAINED,
            who=self.who,
        )
