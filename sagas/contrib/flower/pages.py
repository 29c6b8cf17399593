"""The pages."""

from __future__ import annotations

from typing import Any

from flower.utils.tasks import get_task_by_id
from tornado.web import HTTPError, authenticated

from sagas.checkpoints import SagaStatus
from sagas.contrib.flower import definitions, listing, one
from sagas.contrib.flower.approvals import may_answer
from sagas.contrib.flower.handler import Handler
from sagas.contrib.flower.timeline import timeline
from sagas.drawing import STYLE, look_of, render
from sagas.errors import DefinitionMissing, InvalidInput, NotAllowed, PayloadTooLarge
from sagas.events.choreography import graph, problems
from sagas.events.drawing import render as render_choreography
from sagas.operator_actions import Action, AllowedAction
from sagas.values import parse

__all__ = ["Act", "Choreography", "ChoreographyImage", "DeadLetters", "Definitions", "OneSaga", "Sagas"]

#: How many open dead letters are shown.
_LETTERS = 200


class Sagas(Handler):
    """The list. By default it shows the sagas that need a person."""

    @authenticated
    async def get(self) -> None:
        problem = ""
        if text := self.value("q"):
            saga_id, problem = await self.ask(listing.find, self.operations, text)
            if saga_id is not None:
                self.redirect(self.reverse_url("saga", saga_id))
                return
        asked = listing.Asked(correlation=text) if text else listing.Asked.of(self.value)
        counts, found = await self.ask_counts(), await self.ask(listing.look, self.operations, asked)
        self.show(
            "list.html",
            tab="list",
            counts=counts,
            found=found,
            asked=asked,
            text=text,
            problem="" if found.rows else problem,
            names=sorted({*counts.names, *(name for name, _ in self.operations.sagas.orchestrator.sagas)}),
            statuses=list(SagaStatus),
            ages=list(listing.AGES),
            age=listing.age,
        )


class OneSaga(Handler):
    """One saga: its allowed actions, drawing, timeline and details."""

    @authenticated
    async def get(self, saga_id: str) -> None:
        found = await self.ask(one.look, self.operations, saga_id)
        record = found.record
        tasks = {step.name: self._tasks(record, step.name) for step in found.steps}
        self.show(
            "saga.html",
            tab="saga",
            found=found,
            record=record,
            drawing=render(record, "svg", styled=False),
            style=STYLE,
            rows=timeline(record, found.history, found.now),
            looks={step.name: look_of(step, record.direction) for step in found.steps},
            tasks=tasks,
            age=listing.age,
            may_answer=lambda pending: may_answer(self, pending),
        )

    def _tasks(self, record: Any, step: str) -> list[tuple[str, str, str]]:
        """Return the Celery tasks of a step that Flower has seen: id, description and state."""
        seen = [
            (task_id, what, get_task_by_id(self.application.events, task_id))
            for task_id, what in one.tasks_of(record, step)
        ]
        return [(task_id, what, str(task.state)) for task_id, what, task in seen if task is not None]


class Act(Handler):
    """The page of one action: it asks for a reason and acts. A separate page works without scripts."""

    @authenticated
    async def get(self, saga_id: str, action: str) -> None:
        self._refuse_if_read_only()
        await self._form(saga_id, self._asked(action))

    @authenticated
    async def post(self, saga_id: str, action: str) -> None:
        self._refuse_if_read_only()
        asked, reason = self._asked(action), self.get_body_argument("reason", "")
        given = self.get_body_argument("result", "")
        try:
            result = parse(given) if given.strip() else None
        except ValueError as error:
            await self._form(saga_id, asked, problem=f"the result is not JSON: {error}", status=400)
            return
        try:
            await self.ask(lambda: self._act(asked, saga_id, reason, result))
        except (NotAllowed, InvalidInput, PayloadTooLarge, DefinitionMissing) as error:
            await self._form(saga_id, asked, problem=str(error), status=409)
            return
        self.redirect(self.reverse_url("saga", saga_id))

    def _act(self, asked: AllowedAction, saga_id: str, reason: str, result: Any) -> None:
        self.operations.act(asked.action, saga_id, actor=self.who, reason=reason, step=asked.step, result=result)

    def _asked(self, action: str) -> AllowedAction:
        return AllowedAction(Action(action), self.value("step") or None)

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise HTTPError(403, "this Flower is read-only")

    async def _form(self, saga_id: str, asked: AllowedAction, *, problem: str = "", status: int = 200) -> None:
        found = await self.ask(one.look, self.operations, saga_id)
        allowed = asked in found.allowed_actions
        if not allowed and not problem:
            problem, status = "the saga's current state does not allow this; another operator may have been faster", 409
        self.set_status(status)
        self.show(
            "act.html",
            tab="saga",
            found=found,
            record=found.record,
            asked=asked,
            allowed=allowed,
            problem=problem,
            reason=self.get_body_argument("reason", ""),
            result=self.get_body_argument("result", ""),
            who=self.who,
        )


class Definitions(Handler):
    """Each saga and version in the running code, and its sagas in flight."""

    @authenticated
    async def get(self) -> None:
        known, unknown = await self.ask(definitions.look, self.operations)
        self.show("definitions.html", tab="definitions", known=known, unknown=unknown, style=STYLE)


class DeadLetters(Handler):
    """What needs a person: steps of sagas, and messages of queues."""

    @authenticated
    async def get(self) -> None:
        steps = await self.ask(self.operations.queries.dead_letters)
        events = self.operations.sagas.events
        messages = [] if events is None else await self.ask(lambda: events.dead_letters(limit=_LETTERS))
        self.show("dead_letters.html", tab="dead-letters", steps=steps, shown=steps[:_LETTERS], messages=messages)


class Choreography(Handler):
    """The choreography of an app with events: which services handle and emit what."""

    @authenticated
    async def get(self) -> None:
        events = self.operations.sagas.events
        if events is None:
            raise HTTPError(404, "this app has no events. Pass them: Sagas(app, store, [...], events=Events(...))")
        found = problems(graph(events.services.values()))
        self.show("choreography.html", tab="choreography", problems=found)


class ChoreographyImage(Handler):
    """The drawing of the choreography, as a separate image: its styles must not affect the page."""

    @authenticated
    async def get(self) -> None:
        events = self.operations.sagas.events
        if events is None:
            raise HTTPError(404)
        self.set_header("Content-Type", "image/svg+xml")
        self.write(render_choreography(graph(events.services.values()), "svg"))
