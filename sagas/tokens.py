"""Tokens by which other systems complete deferred steps. Only their hashes are stored."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Any

from sagas.errors import InvalidToken

__all__ = ["holds", "new", "parse", "with_hash"]

_TOKENS = "tokens"


def new(saga_id: str, step: str) -> tuple[str, str]:
    """Return a new token for a step, and its hash. The token names the step, not the attempt.

    >>> token, digest = new("0198", "pay")
    >>> token.rpartition(".")[0], parse(token)[2] == digest
    ('0198.pay', True)
    """
    secret = secrets.token_urlsafe(32)
    return f"{saga_id}.{step}.{secret}", _hash(secret)


def parse(token: str) -> tuple[str, str, str]:
    """Return the saga's id, the step and the hash that a token stands for. Raises `InvalidToken`."""
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise InvalidToken("this is not a token of a step")
    return parts[0], parts[1], _hash(parts[2])


def with_hash(stored: str | None, digest: str) -> str:
    """Add a hash to the JSON that a step keeps. Tokens of earlier attempts stay good."""
    about: dict[str, Any] = {} if stored is None else json.loads(stored)
    about[_TOKENS] = [*about.get(_TOKENS, ()), digest]
    return json.dumps(about)


def holds(stored: str | None, digest: str) -> bool:
    """Tell whether a token with this hash was given out for the step."""
    known = json.loads(stored).get(_TOKENS, ()) if stored else ()
    return any(hmac.compare_digest(digest, each) for each in known)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
