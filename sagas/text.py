"""Text that every database, broker and terminal can take.

PostgreSQL refuses NUL, and no encoder takes a lone surrogate. An error text often holds what a stranger sent, so it is
cleaned once, where it enters: what cannot be written must not change what happened.
"""

from __future__ import annotations

import re

__all__ = ["clean", "describe", "is_clean"]

#: NUL and lone surrogates. Python keeps surrogates unpaired only, so each of them is a lone one.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str, limit: int | None = None) -> str:
    r"""Return `text` with what cannot be written spelled out, and cut to `limit` characters.

    >>> clean("declined:\x00 \udcff")
    'declined:\\x00 \\udcff'
    """
    if limit is not None:
        text = text[:limit]  # before the search: an error text may have megabytes
    written = _UNWRITABLE.sub(lambda match: ascii(match[0])[1:-1], text)
    return written if limit is None else written[:limit]


def is_clean(text: str) -> bool:
    r"""Tell whether `text` can be written as it is.

    >>> is_clean("tea"), is_clean("tea\x00")
    (True, False)
    """
    return _UNWRITABLE.search(text) is None


def describe(error: BaseException) -> str:
    """Return what an exception says, even when its `__str__` raises.

    >>> describe(ValueError("no tea"))
    'no tea'
    """
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - it is the exception's own code, and may raise anything
        return f"({type(second).__name__} while reading the text of {type(error).__name__})"
