"""Receives the outcome of a deferred step, or of a `Wait` with `begin=`, from another system.

The views for Django and Flask pass a request to `Webhook.receive`. See docs/how-to/webhooks.md.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sagas import tokens
from sagas.app import Sagas
from sagas.durations import whole_number
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    InvalidInput,
    InvalidToken,
    PayloadTooLarge,
    PayloadUnreadable,
    StoreUnavailable,
)
from sagas.rates import Rate, Rates
from sagas.signals import Completion
from sagas.values import parse

__all__ = ["Webhook", "WebhookAnswer", "WebhookRequest"]

logger = logging.getLogger(__name__)

#: Seconds after which a sender should try again if the database does not answer.
_AGAIN = 5

_SHAPE = 'send {"result": ...}, or {"error": "why it failed, without an effect"}'

_BEARER = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """What a framework knows of a request, before it has read the body."""

    path_token: str | None  #: the token in the path, if it has one
    authorization: str = ""  #: the header
    content_type: str = ""  #: the header
    content_length: int | None = None  #: the header
    client: str  #: who sends it, such as an IP address
    read: Callable[[int], bytes] = field(repr=False)  #: returns at most this many bytes of the body

    @property
    def token(self) -> str | None:
        """The token in the path, or else that of `Authorization: Bearer ...`."""
        if self.path_token is None and self.authorization[: len(_BEARER)].lower() == _BEARER:
            return self.authorization[len(_BEARER) :].strip()
        return self.path_token


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What to answer."""

    status: int
    body: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=lambda: {"Cache-Control": "no-store"})


class Webhook:
    """Completes deferred steps by HTTP. The token in the request is all that a sender needs to prove.

    `translate`: turns the JSON of the other system into `{"result": ...}`, or `{"error": "..."}` for a step that
        failed without an effect. Left out, the other system sends that itself.
    `max_body`: bytes that a body may have. A longer one is not read.
    `rate_per_client`, `rate_per_step`: how many requests are accepted, such as "600/minute"; None: any number. They
        need `pip install celery-sagas[webhooks]`.
    `storage`: where requests are counted. "memory://" counts in this process; "redis://host:6379/0" is shared by all.

    Raises `ConfigurationError` for invalid settings. Safe to use from any thread.
    """

    def __init__(
        self,
        *,
        translate: Callable[[Any], Mapping[str, Any]] | None = None,
        max_body: int = 65_536,
        rate_per_client: str | None = "600/minute",
        rate_per_step: str | None = "30/minute",
        storage: str = "memory://",
    ) -> None:
        self._translate = translate
        self._max_body = whole_number(max_body, "Webhook: max_body", ConfigurationError)
        self._per_client = None if rate_per_client is None else Rate(rate_per_client, "Webhook: rate_per_client")
        self._per_step = None if rate_per_step is None else Rate(rate_per_step, "Webhook: rate_per_step")
        self._rates = Rates(storage, "Webhook: storage")

    def receive(self, sagas: Sagas, request: WebhookRequest) -> WebhookAnswer:
        """Return the answer to a request: see docs/how-to/webhooks.md for the status codes."""
        try:
            token = self._admitted(request)
            return _complete(sagas, token, self._outcome(self._body(request)))
        except _RefusedError as refused:
            return refused.answer

    def _admitted(self, request: WebhookRequest) -> str:
        """Return the token of a request that is within the rates."""
        self._count(self._per_client, "client", request.client)
        token = request.token
        if token is None:
            raise _RefusedError(401, "there is no token", **{"WWW-Authenticate": "Bearer"})
        # A token is not kept where requests are counted.
        self._count(self._per_step, "step", hashlib.sha256(token.encode(errors="replace")).hexdigest())
        return token

    def _count(self, rate: Rate | None, *whose: str) -> None:
        if rate is not None and (seconds := self._rates.over(rate, "webhook", *whose)) > 0:
            raise _RefusedError(429, "too many requests", **{"Retry-After": str(math.ceil(seconds))})

    def _body(self, request: WebhookRequest) -> Any:
        if request.content_type.partition(";")[0].strip().lower() != "application/json":
            raise _RefusedError(415, "send JSON, with Content-Type: application/json")
        text = b""
        if (request.content_length or 0) <= self._max_body:
            text = request.read(self._max_body + 1)
        if max(len(text), request.content_length or 0) > self._max_body:
            raise _RefusedError(413, f"a body has at most {self._max_body:,} bytes")
        try:
            return parse(text)
        except ValueError as error:
            raise _RefusedError(400, f"the body is not JSON: {error}") from error

    def _outcome(self, body: Any) -> Mapping[str, Any]:
        """Return what the body says, in our own words."""
        if self._translate is not None:
            try:
                body = self._translate(body)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                logger.warning("a callback could not be translated", exc_info=error)
                raise _RefusedError(400, "the body is not what was expected") from error
        if not isinstance(body, Mapping) or len(body) != 1 or not body.keys() <= {"result", "error"}:
            raise _RefusedError(400, _SHAPE)
        if "error" in body and not isinstance(body["error"], str):
            raise _RefusedError(400, _SHAPE)
        return body


class _RefusedError(Exception):
    """A request is refused."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.answer = WebhookAnswer(status, {"error": why}, {"Cache-Control": "no-store", **headers})


def _complete(sagas: Sagas, token: str, outcome: Mapping[str, Any]) -> WebhookAnswer:
    try:
        saga_id, step, _ = tokens.parse(token)
        if "error" in outcome:
            completion = sagas.fail(token, outcome["error"])
        else:
            completion = sagas.complete(token, outcome["result"])
    except InvalidToken as error:
        raise _RefusedError(410, "this token is not valid, or no longer") from error
    except InvalidInput as error:
        logger.warning("a callback was refused: %s", error)
        raise _RefusedError(400, str(error)) from error
    except PayloadTooLarge as error:
        logger.warning("a callback was refused: %s", error)
        raise _RefusedError(413, str(error)) from error
    except (StoreUnavailable, DefinitionMissing, PayloadUnreadable) as error:
        logger.warning("a callback could not be stored: %s", error)
        raise _RefusedError(503, "try again later", **{"Retry-After": str(_AGAIN)}) from error
    logger.info("a callback for step %s of saga %s: %s", step, saga_id, completion)
    return WebhookAnswer(200 if completion is Completion.ACCEPTED else 409, {"status": completion.value})
