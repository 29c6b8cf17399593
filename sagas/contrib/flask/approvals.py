"""A blueprint with what sagas ask people: a list, and a form for each question."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

import uuid_utils
from flask import Blueprint, Response, abort, current_app, make_response, redirect, render_template, request, session
from flask import url_for as _url_for

from sagas.approvals import Approvals, PendingApproval
from sagas.contrib.flask.current import current_sagas
from sagas.errors import DefinitionMissing, InvalidInput, PayloadTooLarge, SagaNotFound, SignalRefused, StoreUnavailable
from sagas.forms import InvalidForm
from sagas.operations import Operations

__all__ = ["approvals_blueprint"]

#: The key in the session, and the name of the form's field. No payload has a field with a hyphen.
_CSRF = "sagas-csrf"
_NUMBER = "form-id"

#: Bytes that a form may have in addition to a payload of `max_payload`.
_ENVELOPE = 65_536


def approvals_blueprint(approver: Callable[[PendingApproval], str | None]) -> Blueprint:
    """Return a blueprint with two pages: `/` lists what waits for the current user, `/<saga_id>/<wait>` answers it.

    `approver`: returns the name of the current user if they may answer, and None otherwise. It is called in the
    request. `PendingApproval.is_for(groups)` tells whether the question is for one of the user's groups. A question
    that the user may not answer looks like a question that does not exist.

    The saga's history keeps the name and the time. Forms are protected by a token in Flask's session, so the app needs
    a `SECRET_KEY`. Your app may have its own `sagas/approvals.html` and `sagas/answer.html` among its templates.

    >>> from flask_login import current_user  # doctest: +SKIP
    >>> def approver(pending):  # doctest: +SKIP
    ...     return current_user.email if pending.is_for(current_user.groups) else None
    >>> app.register_blueprint(approvals_blueprint(approver), url_prefix="/approvals")  # doctest: +SKIP
    """
    blueprint = Blueprint("sagas_approvals", __name__, template_folder="templates")

    @blueprint.after_request
    def protect(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Frame-Options"] = "DENY"
        return response

    @blueprint.errorhandler(StoreUnavailable)
    def away(_error: StoreUnavailable) -> tuple[str, int, dict[str, str]]:
        return "the database does not answer; try again", 503, {"Retry-After": "1"}

    @blueprint.get("/")
    def waiting() -> str:
        found = [each for each in _approvals().waiting() if approver(each) is not None]
        return render_template("sagas/approvals.html", waiting=found)

    @blueprint.route("/<saga_id>/<wait>", methods=["GET", "POST"])
    def answer(saga_id: str, wait: str) -> Response:
        approvals = _approvals()
        try:
            pending = approvals.get(saga_id, wait)
        except (SagaNotFound, InvalidInput, DefinitionMissing):
            abort(404)
        actor = approver(pending)
        if actor is None:
            abort(404)
        if request.method == "GET":
            return _form(approvals, pending, actor, status=200 if pending.is_open else 409)
        _refuse_other_sites()
        answers = {field.name: request.form.get(field.name, "") for field in pending.form.fields}
        number = request.form.get(_NUMBER, "")[:100] or str(uuid_utils.uuid7())
        try:
            approvals.answer(pending, answers, actor=actor, id=number)
        except InvalidForm as error:
            return _form(approvals, pending, actor, errors=dict(error.errors), status=400)
        except (SignalRefused, InvalidInput, PayloadTooLarge) as error:
            return _form(approvals, pending, actor, errors={"": str(error)}, status=409)
        return make_response(redirect(_url_for(".waiting"), 303))

    return blueprint


def _approvals() -> Approvals:
    return Approvals(Operations(current_sagas()))


def _form(
    approvals: Approvals, pending: PendingApproval, actor: str, *, errors: dict[str, str] | None = None, status: int
) -> Response:
    posted = request.method == "POST"
    token = session.setdefault(_CSRF, secrets.token_urlsafe(32))
    page = render_template(
        "sagas/answer.html",
        pending=pending,
        record=pending.record,
        about=approvals.input_of(pending),
        errors=errors or {},
        values={
            field.name: request.form.get(field.name, "") if posted else field.initial for field in pending.form.fields
        },
        hidden={_CSRF: token, _NUMBER: request.form.get(_NUMBER) or str(uuid_utils.uuid7())},
        actor=actor,
        has_own_csrf="csrf_token" in current_app.jinja_env.globals,  # of Flask-WTF, which checks it itself
    )
    return make_response(page, status)


def _refuse_other_sites() -> None:
    most = current_sagas().orchestrator.max_payload + _ENVELOPE
    if request.content_length is None or request.content_length > most:
        abort(413)
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        abort(403, "the request came from a page of another site")
    expected = session.get(_CSRF, "")
    if not expected or not hmac.compare_digest(expected.encode(), request.form.get(_CSRF, "").encode()):
        abort(403, "the form has expired. Open it again")
