"""Makes Markdown of the library's plain docstrings, for the pages under docs/reference."""  # noqa: INP001 - not a package

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["PlainDocstrings", "markdown"]

#: What begins to tell of a parameter: "`lease`: seconds ...", "`action`, `compensation`: functions ...".
_TELLS = r"(?:`[\w*]+(?:\(\))?`(?:, )?)+: "
#: Between what is told of one and what is told of the next, be it on a line of its own or not.
_NEXT = re.compile(rf"(?:\n|(?<=[.;)]) )(?={_TELLS})")


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring as it is read, and leaves out what nobody documents."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out what `__init__` only keeps: what it was given is in its signature."""
        made = cls.members.get("__init__")
        if made is None or made.lineno is None or made.endlineno is None:
            return
        for name, member in list(cls.members.items()):
            if member.is_attribute and not member.docstring and made.lineno <= (member.lineno or 0) <= made.endlineno:
                del cls.members[name]


def markdown(text: str) -> str:
    """Return a docstring as Markdown: parameters as a list, examples and drawings as blocks."""
    return "\n\n".join(part for block in re.split(r"\n\s*\n", text) for part in _blocks(block.strip("\n")))


def _blocks(block: str) -> list[str]:
    if block == "::":  # what follows is indented, and so a block already
        return []
    if block.startswith(">>>"):
        return [f"```pycon\n{block}\n```"]
    start = re.search(rf"^{_TELLS}", block, re.MULTILINE)
    if block.startswith(" ") or not start:
        return [block]
    told, raises, rest = block[start.start() :].partition("\nRaises ")
    items = [" ".join(line.strip() for line in item.splitlines()) for item in _NEXT.split(told)]
    parts = [block[: start.start()].rstrip("\n"), "\n".join(f"- {item}" for item in items), raises[1:] + rest]
    return [part for part in parts if part]
