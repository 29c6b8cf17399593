"""What sagas ask people: the list of questions, and the form for one of them.

Flower has users, but no groups. `--sagas-approvers=finance:ann,finance:bob`, or `FLOWER_SAGAS_APPROVERS`, says which
of its users belong to the groups that a `Wait` names. `finance:*` means every user who has logged in.
"""

from __future__ import annotations

import os

import uuid_utils
from tornado.options import define
from tornado.web import HTTPError, authenticated

from sagas.approvals import Approvals, PendingApproval
from sagas.contrib.flower.handler import NOBODY, Handler
from sagas.contrib.flower.listing import age
from sagas.errors import DefinitionMissing, InvalidInput, PayloadTooLarge, SignalRefused
from sagas.forms import InvalidForm

__all__ = ["OPTION", "Answer", "Waiting", "groups_of", "may_answer"]

#: Flower's option with this name, and `FLOWER_SAGAS_APPROVERS`, contain the members of groups.
OPTION = "sagas_approvers"

# As in `hosts`: Flower reads its environment before it reads the flowerconfig.py that may import this module.
define(
    OPTION,
    type=str,
    multiple=True,
    default=[each for each in os.environ.get(f"FLOWER_{OPTION.upper()}", "").split(",") if each.strip()],
    help='who may answer what sagas ask: "finance:ann"; "finance:*" for all who have logged in',
)


def groups_of(handler: Handler) -> frozenset[str]:
    """Return the groups of the user who has logged in. Nobody else belongs to a group."""
    who = handler.who
    if who == NOBODY:
        return frozenset()
    members = (each.strip().rpartition(":") for each in getattr(handler.application.options, OPTION, ()))
    return frozenset(group for group, _, user in members if group and user in (who, "*"))


def may_answer(handler: Handler, pending: PendingApproval) -> bool:
    """Return whether the user belongs to one of the groups, and this Flower is not read-only."""
    return not handler.read_only and pending.is_for(groups_of(handler))


class Waiting(Handler):
    """What the sagas of this app ask people."""

    @authenticated
    async def get(self) -> None:
        found = await self.ask(Approvals(self.operations).waiting)
        now = await self.ask(self.operations.store.now)
        self.show(
            "approvals.html",
            tab="approvals",
            waiting=found,
            now=now,
            age=age,
            may_answer=lambda pending: may_answer(self, pending),
        )


class Answer(Handler):
    """The form for one question."""

    @authenticated
    async def get(self, saga_id: str, wait: str) -> None:
        pending = await self._asked(saga_id, wait)
        problem = "" if pending.is_open else "the saga does not wait for this now; somebody may have answered it"
        await self._form(pending, problem=problem, status=200 if pending.is_open else 409)

    @authenticated
    async def post(self, saga_id: str, wait: str) -> None:
        pending = await self._asked(saga_id, wait)
        answers = {field.name: self.get_body_argument(field.name, "", strip=False) for field in pending.form.fields}
        number = self.get_body_argument("form-id", "")[:100] or str(uuid_utils.uuid7())
        approvals, who = Approvals(self.operations), self.who
        try:
            await self.ask(lambda: approvals.answer(pending, answers, actor=who, id=number))
        except InvalidForm as error:
            await self._form(pending, errors=dict(error.errors), status=400)
        except (SignalRefused, InvalidInput, PayloadTooLarge) as error:
            await self._form(pending, problem=str(error), status=409)
        else:
            self.redirect(self.reverse_url("saga", saga_id))

    async def _asked(self, saga_id: str, wait: str) -> PendingApproval:
        try:
            pending = await self.ask(Approvals(self.operations).get, saga_id, wait)
        except InvalidInput as error:
            raise HTTPError(404, str(error)) from error
        except DefinitionMissing as error:
            raise HTTPError(409, str(error)) from error
        if not may_answer(self, pending):
            raise HTTPError(
                403,
                "this Flower is read-only"
                if self.read_only
                else f"{self.who} does not belong to {' or '.join(sorted(pending.approvers))}: see --sagas-approvers",
            )
        return pending

    async def _form(
        self, pending: PendingApproval, *, problem: str = "", errors: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.set_status(status)
        posted = self.request.method == "POST"
        self.show(
            "answer.html",
            tab="approvals",
            pending=pending,
            record=pending.record,
            about=await self.ask(Approvals(self.operations).input_of, pending),
            problem=problem or (errors or {}).get("", ""),
            errors=errors or {},
            values={
                field.name: self.get_body_argument(field.name, "", strip=False) if posted else field.initial
                for field in pending.form.fields
            },
            number=self.get_body_argument("form-id", "") or str(uuid_utils.uuid7()),
            who=self.who,
        )
