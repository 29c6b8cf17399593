"""Text that every database, broker and terminal accepts.

PostgreSQL refuses NUL, and no encoder accepts a lone surrogate. Error texts often contain data from elsewhere, so they
are cleaned once, where they enter: an unwritable character must not change the outcome of a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["clean", "describe", "is_clean", "quoted"]

#: NUL and lone surrogates. Python's strings contain only unpaired surrogates, so each one is lone.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str, limit: int | None = None) -> str:
    r"""Return `text` with unwritable characters escaped, cut to `limit` characters.

    >>> clean("declined:\x00 \udcff")
    'declined:\\x00 \\udcff'
    """
    if limit is not None:
        text = text[:limit]  # before the search: an error text may be megabytes long
    written = _UNWRITABLE.sub(lambda match: ascii(match[0])[1:-1], text)
    return written if limit is None else written[:limit]


def is_clean(text: str) -> bool:
    r"""Return whether `text` can be written as it is.

    >>> is_clean("tea"), is_clean("tea\x00")
    (True, False)
    """
    return _UNWRITABLE.search(text) is None


def describe(error: BaseException) -> str:
    """Return the text of an exception, even if its `__str__` raises.

    >>> describe(ValueError("no tea"))
    'no tea'
    """
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - the exception's own code may raise anything
        return f"({type(second).__name__} while reading the text of {type(error).__name__})"


def quoted(names: Iterable[str]) -> str:
    """Return names for an error message.

    >>> quoted(["tea", "milk"]), quoted([])
    ("'tea', 'milk'", 'none')
    """
    return ", ".join(map(repr, names)) or "none"
