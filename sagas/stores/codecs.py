"""How payloads are kept: the inputs of sagas and the results of steps, on their way into the tables and out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sagas.errors import PayloadUnreadable

__all__ = ["AS_STORED", "MARK", "PLAIN", "STEP_PAYLOADS", "Codec", "decoded", "input_of", "result_of"]

#: What encoded text begins with. No JSON does, so the two are never taken for each other.
MARK = "~"


class Codec(Protocol):
    """Turns the JSON of a payload into what is stored, and back. Safe to use from any thread.

    `about`: which value of which saga it is. What was encoded for one must not be read as another.
    """

    def encode(self, text: str, about: str) -> str:
        """Return what is stored. It begins with `MARK`, unless it is the text itself."""

    def decode(self, text: str, about: str) -> str:
        """Return what was encoded. Raises `PayloadUnreadable`."""

    def is_current(self, stored: str) -> bool:
        """Tell whether this is how it would be stored today. Else `reencrypt` writes it anew."""


def input_of(saga_id: str) -> str:
    """Return what the input of a saga is called to a codec."""
    return f"{saga_id}:input"


def _own_input_of(saga_id: str, step: str) -> str:
    """Return what the input of a step's own is called to a codec."""
    return f"{saga_id}:input:{step}"


def result_of(saga_id: str, step: str) -> str:
    """Return what the result of a step is called to a codec."""
    return f"{saga_id}:result:{step}"


def _details_of(saga_id: str, step: str) -> str:
    """Return what the details of a step's heartbeat are called to a codec."""
    return f"{saga_id}:details:{step}"


#: The payloads of a step, by the name of their column: what each of them is called to a codec.
STEP_PAYLOADS: Mapping[str, Callable[[str, str], str]] = {
    "input": _own_input_of,
    "result": result_of,
    "heartbeat_details": _details_of,
}


def decoded(stored: Mapping[str, Any], saga_id: str, step: str, codec: Codec) -> dict[str, Any]:
    """Return the payloads that a step has, by the name of their column. Raises `PayloadUnreadable`.

    `stored`: what is stored of the step, by column.
    """
    return {
        column: codec.decode(stored[column], about(saga_id, step))
        for column, about in STEP_PAYLOADS.items()
        if stored[column] is not None
    }


class _Plain:
    """Stores the JSON itself."""

    def encode(self, text: str, about: str) -> str:  # noqa: ARG002
        return text

    def decode(self, text: str, about: str) -> str:
        # Read as JSON it would count as broken for good, and the saga would compensate.
        if text.startswith(MARK):
            raise PayloadUnreadable(
                f"{about} is encrypted, and this store has no codec: give it the one that the others have, "
                "SqlStore(url, codec=AesGcm(...))"
            )
        return text

    def is_current(self, stored: str) -> bool:
        return not stored.startswith(MARK)


class _AsStored:
    """Leaves everything as it is, encoded or not: for what only carries it on."""

    def encode(self, text: str, about: str) -> str:  # noqa: ARG002
        return text

    def decode(self, text: str, about: str) -> str:  # noqa: ARG002
        return text

    def is_current(self, stored: str) -> bool:  # noqa: ARG002
        return True


#: The codec of a store that was given none.
PLAIN: Codec = _Plain()
AS_STORED: Codec = _AsStored()
