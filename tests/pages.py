"""The pages of the documentation, and what is in their fences.

A fence of Python runs, in one namespace with the others of its page. Marks change that:

- `title="shop.py"` behind the language: it is a file of that name, which later fences and commands can use.
- `<!-- skip: next "why" -->` before it: it does not run.

Pages that are typed as they stand have more: see `tests/reader.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from sybil.region import Region

from tests.rig import ROOT

__all__ = ["ELSEWHERE", "PAGES", "Fence", "fences", "run"]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: Pages whose code runs in a test of their own, because it needs processes or settings.
ELSEWHERE = {
    ROOT / "README.md": "tests/integration/test_pages_typed.py",
    ROOT / "docs" / "tutorial.md": "tests/integration/test_pages_typed.py",
    ROOT / "docs" / "how-to" / "production.md": "tests/integration/test_pages_typed.py",
    ROOT / "docs" / "how-to" / "two-services.md": "tests/integration/test_pages_typed.py",
    ROOT / "docs" / "fastapi.md": "tests/integration/test_fastapi.py",
    ROOT / "docs" / "django.md": "tests/integration/test_pages_typed.py",
    ROOT / "docs" / "monitoring.md": "tests/unit/test_monitoring.py",
    ROOT / "docs" / "flask.md": "tests/integration/test_pages_typed.py",
}

_INFO = re.compile(r'(?P<language>[\w+-]*)(?: title="(?P<title>[^"]+)")?[^\n]*\n')
_MARK = re.compile(r'<!-- (?:(?P<add>add)|skip: next "(?P<skip>[^"]+)") -->\s*\Z')


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code on a page."""

    language: str
    source: str
    line: int
    title: str | None = None
    skip: str | None = None
    add: bool = False  #: to the end of the file of its title


def _parse(page: Path) -> Iterator[tuple[Fence, Example]]:
    document = Document.parse(str(page), _regions)
    for example in document.examples():
        mark = _MARK.search(document.text, 0, example.region.start)
        lexemes = example.region.lexemes
        yield (
            Fence(
                lexemes["language"],
                str(lexemes["source"]),
                example.line,
                lexemes["title"],
                skip=mark["skip"] if mark else None,
                add=bool(mark and mark["add"]),
            ),
            example,
        )


def _regions(document: Document) -> Iterator[Region]:
    for region in RawFencedCodeBlockLexer(_INFO)(document):
        region.parsed, region.evaluator = region.lexemes["source"], PythonEvaluator()
        yield region


def fences(page: Path, language: str | None = None) -> list[Fence]:
    """Return the fences of a page, those of one language if it is given."""
    return [fence for fence, _ in _parse(page) if language in (None, fence.language)]


def run(page: Path, folder: Path, namespace: dict[str, object]) -> int:
    """Run the Python on a page, in a folder and a namespace; return how many fences ran.

    Errors are at the line of the page. What is skipped is left out.
    """
    ran = 0
    for fence, example in _parse(page):
        if fence.language != "python" or fence.skip:
            continue
        if fence.title:
            (folder / fence.title).write_text(fence.source)
        else:
            example.document.namespace = example.namespace = namespace
            example.evaluate()
        ran += 1
    return ran
