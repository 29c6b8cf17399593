"""Values that operators must not see: the fields of inputs and results that `Sagas(redact=[...])` names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sagas.nesting import cut

__all__ = ["MASK", "Redaction", "shown"]

#: Replaces a redacted value.
MASK = "•••"

#: Shorter values are not redacted in error texts: they would also match parts of unrelated words.
_SHORTEST = 4


def shown(payload: str, names: frozenset[str]) -> Any:
    """Return the JSON value of an input or result, without redacted values and without values nested too deep.

    For a payload that is not JSON, returns a text that says so.

    >>> shown('{"order": 7, "card": {"number": "4111"}}', frozenset({"card"}))
    {'order': 7, 'card': '•••'}
    """
    try:
        value = json.loads(cut(payload))
    except ValueError as error:
        where = f", at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        return f"cannot be shown: it is not JSON{where}"
    return _hidden(value, names)


def _hidden(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {name: MASK if name in names else _hidden(inner, names) for name, inner in value.items()}
    return [_hidden(inner, names) for inner in value] if isinstance(value, list) else value


class Redaction:
    """Removes the redacted values of one saga from text, such as errors, which are copied to many places.

    `payloads`: the JSON of the saga's input and results, which contain the values.

    >>> Redaction(frozenset({"card"}), ['{"card": "4111-22"}']).text("card 4111-22 declined")
    'card ••• declined'
    """

    def __init__(self, names: frozenset[str], payloads: Iterable[str]) -> None:
        found = {text for payload in payloads for text in _secrets(payload, names)} if names else set()
        self._secrets = sorted(found, key=len, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def text(self, text: str) -> str:
        """Return the text with `MASK` in place of each redacted value of four or more characters."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


def _secrets(payload: str, names: frozenset[str]) -> Iterator[str]:
    try:
        value = json.loads(cut(payload), parse_float=str, parse_int=str)  # as written
    except ValueError:
        return
    for leaf in _leaves(value, names, inside=False):
        # Also as written by `repr` and JSON: an exception often quotes its arguments.
        for form in {leaf, repr(leaf)[1:-1], json.dumps(leaf)[1:-1]}:
            if len(form) >= _SHORTEST:
                yield form


def _leaves(value: Any, names: frozenset[str], *, inside: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, names, inside=inside or name in names)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, names, inside=inside)
    elif inside and isinstance(value, str):
        yield value
