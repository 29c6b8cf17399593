"""The bank, as if it were another company: its page, and its callbacks to the shop by HTTP, in its own format."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from sqlalchemy import select
from werkzeug.wrappers import Response

from examples.flask_shop.models import BankOrder, db

__all__ = ["bank", "translate"]

bank = Blueprint("bank", __name__)


def translate(body: Any) -> Mapping[str, Any]:
    """Translate what this bank sends into the outcome of a step."""
    match body["state"]:
        case "paid":
            return {"result": body["payment"]}
        case "refused":
            return {"error": f"the bank refused: {body['reason']}"}
        case other:
            raise ValueError(other)


@bank.get("/")
def overview() -> str:
    return render_template("bank.html", orders=db.session.scalars(select(BankOrder)).all())


@bank.post("/<order_id>")
def answer(order_id: str) -> Response:
    order = db.session.get(BankOrder, order_id) or abort(404)
    body = {"state": "paid", "payment": f"b-{order_id[2:10]}"}
    if request.form.get("answer") == "refuse":
        body = {"state": "refused", "reason": "no such account"}
    callback = url_for("from_bank.receive", token=order.token, _external=True)
    db.session.rollback()  # do not hold a transaction while another process answers
    call = urllib.request.Request(
        callback, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(call, timeout=10) as answered:
            flash(f"The shop answered {answered.status}.")
    except urllib.error.HTTPError as error:
        flash(f"The shop answered {error.code}.")
    return redirect(url_for("bank.overview"))
