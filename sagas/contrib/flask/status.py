"""A blueprint that returns a saga's progress as JSON, for pages that poll it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flask import Blueprint, Response, jsonify, request

from sagas.checkpoints import AT_REST, SagaRecord, StepStatus
from sagas.contrib.flask.current import current_sagas
from sagas.errors import PayloadUnreadable, SagaNotFound, StoreUnavailable
from sagas.outline import steps_of

__all__ = ["status_blueprint"]

#: Seconds after which a page should poll again.
_AGAIN = 1


def status_blueprint(
    allow: Callable[[SagaRecord], bool], *, show_error: Callable[[SagaRecord], bool] | None = None
) -> Blueprint:
    """Return a blueprint with one route, `/<saga_id>`: the status of a saga and its steps.

    `allow`: whether the current user may see this saga. It is called in the request. If not, the answer is the same as
    for a saga that does not exist.
    `show_error`: whether the user may also see why the saga started compensating. By default nobody may, because an
    error can contain anything.

    The answer has `id`, `status`, and `steps` with `name` and `status`; never the input, results or the key. It has an
    `ETag`, and `Retry-After` (seconds) until the saga has ended. 404: no such saga; 503: the database is unavailable.

    >>> from flask_login import current_user  # doctest: +SKIP
    >>> mine = lambda record: record.key.startswith(f"{current_user.id}:")  # doctest: +SKIP
    >>> app.register_blueprint(status_blueprint(mine), url_prefix="/sagas")  # doctest: +SKIP
    """
    blueprint = Blueprint("sagas", __name__)

    @blueprint.get("/<saga_id>")
    def status(saga_id: str) -> Response:
        try:
            record = current_sagas().load(saga_id)
        except SagaNotFound:
            return _refusal(404, "there is no such saga")
        except StoreUnavailable:
            return _refusal(503, "the database does not answer")
        except PayloadUnreadable:  # this process has another encryption key than the one that wrote it
            return _refusal(503, "the saga cannot be read")
        if not allow(record):
            return _refusal(404, "there is no such saga")
        shown: dict[str, object] = {
            "id": record.id,
            "status": record.status,
            "steps": [{"name": name, "status": state} for name, state in _steps(record)],
        }
        if record.error is not None and show_error is not None and show_error(record):
            shown["error"] = record.error
        response = jsonify(shown)
        response.headers["Cache-Control"] = "private, no-cache"
        if record.status not in AT_REST:
            response.headers["Retry-After"] = str(_AGAIN)
        response.set_etag(f"{record.revision}{'e' if 'error' in shown else ''}")
        response.make_conditional(request)
        return response

    return blueprint


def _steps(record: SagaRecord) -> Iterable[tuple[str, StepStatus]]:
    """Return all steps in the order of the definition, including those that have not started."""
    return [(step.name, step.status) for step in steps_of(current_sagas().orchestrator.sagas.foreseen(record))]


def _refusal(code: int, why: str) -> Response:
    response = jsonify({"error": why})
    response.status_code = code
    response.headers["Cache-Control"] = "no-store"
    if code == 503:
        response.headers["Retry-After"] = str(_AGAIN)
    return response
