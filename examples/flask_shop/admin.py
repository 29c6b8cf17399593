"""The pages for the shop's staff: sagas that need a person, and the allowed actions."""

from __future__ import annotations

import secrets

from flask import Blueprint, current_app, flash, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from examples.flask_shop.models import Bank, db
from sagas import DefinitionMissing, NotAllowed, SagaNotFound
from sagas.approvals import PendingApproval
from sagas.contrib.flask import current_sagas
from sagas.operations import Operations
from sagas.operator_actions import Action
from sagas.stores import Filter

__all__ = ["admin", "approver"]

admin = Blueprint("admin", __name__)

WORDS = {
    Action.RETRY: "Try again:",
    Action.SKIP: "Skip:",
    Action.MARK_DONE: "Done by hand:",
    Action.COMPENSATE: "Undo everything",
    Action.CANCEL: "Cancel",
    Action.RESUME: "Resume now",
}


def approver(pending: PendingApproval) -> str | None:
    """Return who answers what sagas ask: here, whoever has logged in is the staff."""
    return "admin" if session.get("admin") and pending.is_for(["staff"]) else None


@admin.before_request
def _let_in() -> Response | None:
    if session.get("admin") or request.endpoint == "admin.login":
        return None
    return redirect(url_for("admin.login"))


@admin.route("/login", methods=["GET", "POST"])
def login() -> str | Response:
    if request.method == "POST":
        given = request.form.get("password", "")
        if secrets.compare_digest(given.encode(), str(current_app.config["ADMIN_PASSWORD"]).encode()):
            session["admin"] = True
            return redirect(url_for("admin.overview"))
        flash("Wrong password.")
    return render_template("login.html")


@admin.get("/")
def overview() -> str:
    operations = Operations(current_sagas())
    records = operations.queries.select(Filter(attention=True), with_steps=True, limit=50)
    rows = [
        {
            "record": record,
            "input": operations.shown(operations.queries.payloads(record.id).input),  # without the card
            "choices": operations.allowed_actions(record),
        }
        for record in records
    ]
    away = db.session.get_one(Bank, 1).away
    return render_template("admin.html", rows=rows, words=WORDS, tally=operations.queries.tally(), away=away)


@admin.post("/sagas/<saga_id>")
def act(saga_id: str) -> Response:
    action, _, step = request.form["choice"].partition(":")
    try:
        record = Operations(current_sagas()).act(
            Action(action), saga_id, actor="admin", reason=request.form.get("reason", ""), step=step or None
        )
    except (NotAllowed, SagaNotFound, DefinitionMissing, ValueError) as error:
        flash(str(error))
    else:
        flash(f"{action}: order {record.key} is now {record.status}")
    return redirect(url_for("admin.overview"))


@admin.post("/bank")
def bank() -> Response:
    db.session.get_one(Bank, 1).away = request.form["away"] == "yes"
    db.session.commit()
    return redirect(url_for("admin.overview"))
