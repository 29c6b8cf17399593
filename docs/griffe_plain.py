"""Makes Markdown of the library's plain docstrings, for the pages under docs/reference."""  # noqa: INP001 - not a package

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["PlainDocstrings", "markdown"]

#: A line that tells of parameters: "`lease`: seconds ...", "`action`, `compensation`: functions ...".
_TELLS = re.compile(r"(`[\w*]+(\(\))?`(, )?)+: ")


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring as Markdown: parameters as a list, examples and drawings as blocks."""
    made: list[str] = []
    fence = ""  # what ends the block that a line is in: an empty line, or one that is not indented
    in_list = False
    for line in text.splitlines():
        if fence and (not line if fence == "blank" else line and not line.startswith(" ")):
            made.append("```")
            fence = ""
        if fence:
            made.append(line.removeprefix("    ") if fence == "dedent" else line)
        elif line == "::":
            made.append("```text")
            fence = "dedent"
        elif line.startswith(">>>"):
            made += ["```pycon", line]
            fence = "blank"
        elif _TELLS.match(line):
            made += [*([] if in_list else [""]), f"- {line}"]
            in_list = True
        elif in_list and line.startswith("Raises "):
            made += ["", line]
            in_list = False
        else:
            in_list = in_list and bool(line)
            made.append(line)
    return "\n".join([*made, "```"] if fence else made)
