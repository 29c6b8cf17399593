"""A blueprint that receives the outcome of a deferred step from another system. See docs/how-to/webhooks.md."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from sagas.contrib.flask.current import current_sagas
from sagas.webhooks import Webhook, WebhookRequest

__all__ = ["webhook_blueprint"]


def webhook_blueprint(hook: Webhook | None = None, *, name: str = "sagas_webhook") -> Blueprint:
    """Return a blueprint for the callbacks of another system: POST `/<token>`, or `/` with an `Authorization` header.

    `hook`: a `Webhook` with other settings, or with a function that translates what the other system sends. `name`: of
    the blueprint; give one to each if you have several. The client is `request.remote_addr`: behind a proxy, use
    werkzeug's `ProxyFix`. With Flask-WTF, call `csrf.exempt(blueprint)`.

    >>> app.register_blueprint(webhook_blueprint(), url_prefix="/hooks/bank")  # doctest: +SKIP
    """
    hook = Webhook() if hook is None else hook
    blueprint = Blueprint(name, __name__)

    @blueprint.post("/")
    @blueprint.post("/<token>")
    def receive(token: str | None = None) -> Response:
        answer = hook.receive(
            current_sagas(),
            WebhookRequest(
                path_token=token,
                authorization=request.headers.get("Authorization", ""),
                content_type=request.headers.get("Content-Type", ""),
                content_length=request.content_length,
                client=request.remote_addr or "",
                read=request.stream.read,
            ),
        )
        response = jsonify(answer.body)
        response.status_code = answer.status
        response.headers.update(answer.headers)
        return response

    return blueprint
