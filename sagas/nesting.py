"""The limit on the nesting of JSON, and what happens to text beyond it.

Recursive readers and writers, including Python's, fail on deep values. The scan here is not recursive, so it works for
any depth.
"""

from __future__ import annotations

import re

__all__ = ["DEEPEST", "cut", "is_too_deep"]

#: The most levels of nested arrays and objects. Readers in every language support this, and every page can show it.
#: pydantic fails at 200, other Python readers at about 1,000.
DEEPEST = 100

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def is_too_deep(text: str) -> bool:
    """Return whether JSON text has more than `DEEPEST` levels.

    >>> is_too_deep("[" * 100 + "]" * 100), is_too_deep("[" * 101 + "]" * 101)
    (False, True)
    """
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > DEEPEST:
                return True
        elif token[0] in "]}":
            depth -= 1
    return False


def cut(text: str) -> str:
    """Return JSON text with a string in place of each value that is nested deeper than `DEEPEST` levels.

    >>> cut("[" * 500 + "]" * 500)[98:-98]
    '[["… cut: nested more than 100 levels deep"]]'
    """
    if not is_too_deep(text):
        return text
    kept, depth, begin = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept += [text[begin : token.start()], f'"… cut: nested more than {DEEPEST} levels deep"']
        elif token[0] in "]}":
            depth -= 1
            if depth == DEEPEST:
                begin = token.end()
    return "".join([*kept, text[begin:]] if depth <= DEEPEST else kept)
