"""The pages as JSON, below /api/sagas. Like the rest of Flower's API, it is closed if Flower requires no login.

`FLOWER_UNAUTHENTICATED_API=true` opens it, but not to other sites.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flower.api import BaseApiHandler
from tornado.web import HTTPError, authenticated

from sagas.checkpoints import SagaSummary
from sagas.contrib.flower import listing, one
from sagas.contrib.flower.handler import Handler
from sagas.errors import DefinitionMissing, InvalidInput, NotAllowed, PayloadTooLarge
from sagas.operator_actions import Action
from sagas.values import parse

__all__ = ["Act", "Counts", "OneSaga", "Sagas"]


class _Api(Handler, BaseApiHandler):  # type: ignore[misc]  # Flower is not typed
    """A handler whose answers and errors are JSON."""

    def guard(self) -> None:
        # Programs have no cookie. A page of another site cannot send this type without a preflight, which is refused.
        self.refuse_other_sites()
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise HTTPError(415, "send JSON, with Content-Type: application/json")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        message = self._reason
        if isinstance(error, HTTPError) and error.log_message:
            message = error.log_message % error.args
        if status_code == 401 and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish({"error": message})


class Sagas(_Api):
    """GET: a page of sagas, newest first. The parameters are those of the list; `view=all` returns all sagas."""

    @authenticated
    async def get(self) -> None:
        asked = listing.Asked.of(self.value)
        found = await self.ask(listing.look, self.operations, asked)
        rows = [{**_head(record), "stands_at": found.stands_at(record)} for record in found.rows]
        self.write({"sagas": rows, "next": rows[-1]["id"] if found.more else None})


class Counts(_Api):
    """GET: the numbers of sagas, at most 5 s old, or older where it takes long to count."""

    @authenticated
    async def get(self) -> None:
        counts = await self.ask_counts()
        self.write(
            {
                "statuses": dict(counts.statuses),
                "sagas": [{"saga": each.name, "status": each.status, "count": each.count} for each in counts.tallies],
                "attention": counts.attention,
                "ended_per_minute": counts.ended_per_minute,
            }
        )


class OneSaga(_Api):
    """GET: one saga with its steps, history, open dead letters and allowed actions."""

    @authenticated
    async def get(self, saga_id: str) -> None:
        self.write(_whole(self, await self.ask(one.look, self.operations, saga_id)))


class Act(_Api):
    """POST `{"reason": ..., "step": ..., "result": ...}`: runs an action. 409 if the saga's state does not allow it."""

    @authenticated
    async def post(self, saga_id: str, action: str) -> None:
        if self.read_only:
            raise HTTPError(403, "this Flower is read-only")
        given = self._given()
        try:
            record = await self.ask(
                lambda: self.operations.act(
                    Action(action),
                    saga_id,
                    actor=self.who,
                    reason=given.get("reason") or "",
                    step=given.get("step"),
                    result=given.get("result"),
                )
            )
        except (NotAllowed, InvalidInput, PayloadTooLarge, DefinitionMissing) as error:
            raise HTTPError(409, str(error)) from error
        self.write(_head(record))

    def _given(self) -> dict[str, Any]:
        try:
            given = parse(self.request.body or b"{}")
        except ValueError as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from error
        texts = isinstance(given, dict) and all(isinstance(given.get(name, ""), str) for name in ("reason", "step"))
        if not texts:
            raise HTTPError(400, 'send {"reason": "why", "step": "the stuck step", "result": ...}')
        found: dict[str, Any] = given
        return found


def _head(record: SagaSummary) -> dict[str, Any]:
    return {
        "id": record.id,
        "saga": record.name,
        "version": record.version,
        "key": record.key,
        "correlation_id": record.correlation_id,
        "status": record.status,
        "direction": record.direction,
        "epoch": record.epoch,
        "error": record.error,
        "parent_id": record.parent_id,
        "parent_step": record.parent_step,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def _whole(handler: Handler, found: one.OneSaga) -> dict[str, Any]:
    operations = handler.operations
    return {
        **_head(found.record),
        "definition_missing": found.missing or None,
        "input": operations.shown(found.payloads.input),
        "steps": [
            {
                "name": step.name,
                "status": step.status,
                "attempts": step.attempts,
                "failures": step.failures,
                "lost": step.lost,
                "heartbeat_at": None if step.heartbeat_at is None else step.heartbeat_at.isoformat(),
                "progress": step.progress and asdict(step.progress),
                "result": operations.shown(found.payloads.results.get(step.name)),
                "error": step.error,
                "started_at": None if step.started_at is None else step.started_at.isoformat(),
                "finished_at": None if step.finished_at is None else step.finished_at.isoformat(),
            }
            for step in found.steps
        ],
        "children": [{**_head(child), "error": child.trouble} for child in found.relatives.children],
        "history": [
            {
                "at": entry.at.isoformat(),
                "what": entry.what,
                "step": entry.step,
                "epoch": entry.epoch,
                "detail": entry.detail,
                "actor": entry.actor,
            }
            for entry in found.history
        ],
        "dead_letters": [
            {"step": letter.step, "direction": letter.direction, "error": letter.error} for letter in found.letters
        ],
        "allowed_actions": [{"action": allowed.action, "step": allowed.step} for allowed in found.allowed_actions],
    }
