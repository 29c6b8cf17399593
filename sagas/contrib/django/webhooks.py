"""A view that receives the outcome of a deferred step from another system. See docs/how-to/webhooks.md."""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from sagas.contrib.django.conf import alias
from sagas.contrib.django.project import PROJECT
from sagas.webhooks import Webhook, WebhookRequest

__all__ = ["webhook"]


def _address(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR", ""))


def _unlogged(response: HttpResponse) -> HttpResponse:
    """Keep Django from logging the path of a request that is refused: it has the token in it."""
    response._has_been_logged = True  # noqa: SLF001 - as Django calls it
    return response


def webhook(
    hook: Webhook | None = None, *, client: Callable[[HttpRequest], str] = _address
) -> Callable[..., HttpResponse]:
    """Return a view for the callbacks of another system, with the token in the path or the `Authorization` header.

    `hook`: a `Webhook` with other settings, or with a function that translates what the other system sends.
    `client`: returns who sends a request, for the rate. By default it is `REMOTE_ADDR`; behind a proxy, that is the
        proxy.

    >>> path("hooks/bank/<str:token>/", webhook())  # doctest: +SKIP
    """
    hook = Webhook() if hook is None else hook

    @csrf_exempt  # the token is the proof, and no cookie is used
    @transaction.non_atomic_requests(using=alias())
    def receive(request: HttpRequest, token: str | None = None) -> HttpResponse:
        if request.method != "POST":  # not with `require_POST`, which logs the path
            return _unlogged(JsonResponse({"error": "send a POST request"}, status=405, headers={"Allow": "POST"}))
        length = request.headers.get("Content-Length", "")
        answer = hook.receive(
            PROJECT.get(),
            WebhookRequest(
                path_token=token,
                authorization=request.headers.get("Authorization", ""),
                content_type=request.headers.get("Content-Type", ""),
                content_length=int(length) if length.isdecimal() else None,
                client=client(request),
                read=request.read,
            ),
        )
        return _unlogged(JsonResponse(answer.body, status=answer.status, headers=answer.headers))

    view: Callable[..., HttpResponse] = receive
    return view
