"""Bring the translations of the Django parts up to date: `python scripts/translations.py`, and translate what is new.

Texts come from the Python files and templates of `sagas/contrib/django`, and from the table of what operators can do
(`sagas/operator_actions.py`), into `locale/*/LC_MESSAGES/django.po`, and
from there into `django.mo`. `--check` writes nothing; it says what is missing or out of date, and exits with 1.

Ours have the context "saga", so that they are no translation of anybody else's "Key". Texts without a context are
Django's own, and translated by Django.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import Any

import django
from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.utils.translation.template import templatize

ROOT = Path(__file__).parent.parent / "sagas" / "contrib" / "django"
ACTIONS = ROOT.parent.parent / "operator_actions.py"
CONTEXT = "saga"

#: Lines of the header that would only differ from one run to the next.
_NOBODY_READS = tuple(
    f'"{name}:'
    for name in (
        "Report-Msgid-Bugs-To", "POT-Creation-Date", "PO-Revision-Date", "Last-Translator", "Language-Team",
        "Generated-By",
    )
)  # fmt: skip

_KEYWORDS: Any = {
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
    "pgettext_noop": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
    "gettext": None,
    "gettext_lazy": None,
    "ngettext": (1, 2),
}


def wanted() -> Catalog:
    """Return the texts that there are, without translations."""
    catalog = Catalog(charset="utf-8")
    for file in sorted([ACTIONS, *ROOT.rglob("*.py"), *ROOT.rglob("*.html")]):
        source = file.read_text(encoding="utf-8")
        if file.suffix == ".html":
            source = templatize(source)
        found = extract("python", io.BytesIO(source.encode()), keywords=_KEYWORDS)
        for _line, text, _comments, context in found:
            if context == CONTEXT:
                where = [(os.path.relpath(file, ROOT), None)]
                catalog.add(text, locations=where, context=context)  # type: ignore[arg-type]
            elif context is not None:
                raise SystemExit(f"{file}: {text!r} has the context {context!r}; use {CONTEXT!r}")
    return catalog


def problems(file: Path, texts: Catalog) -> list[str]:
    """Return what is wrong with the catalogue of one language."""
    with file.open("rb") as opened:
        catalog = read_po(opened)
    known = {text.id for text in texts if text.id}
    lacking = [text for text in known if not _is_translated(catalog.get(text, CONTEXT))]
    found = [f"{file}: no translation of {text!r}" for text in sorted(map(str, lacking))]
    found += [f"{file}: {text.id!r} is not used any more" for text in catalog if text.id and text.id not in known]
    for text in catalog:
        found += [f"{file}: {text.id!r}: {error}" for error in text.check(catalog)]
    compiled = file.with_suffix(".mo")
    if not compiled.exists() or _pairs(_read_mo(compiled)) != _pairs(catalog):
        found.append(f"{compiled} is out of date")
    return found


def update(file: Path, texts: Catalog) -> None:
    """Add what is new to a catalogue, drop what is gone, and compile it."""
    with file.open("rb") as opened:
        catalog = read_po(opened)
    catalog.update(texts, no_fuzzy_matching=True)
    catalog.obsolete.clear()
    written = io.BytesIO()
    write_po(written, catalog, width=110, sort_output=True)
    lines = written.getvalue().decode().lstrip("\n").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(_NOBODY_READS)), encoding="utf-8")
    with file.with_suffix(".mo").open("wb") as opened:
        write_mo(opened, catalog)


def _is_translated(text: Any) -> bool:
    if text is None or text.fuzzy:
        return False
    return all(text.string) if isinstance(text.string, (list, tuple)) else bool(text.string)


def _pairs(catalog: Catalog) -> dict[Any, Any]:
    return {(text.context, _tuple(text.id)): _tuple(text.string) for text in catalog if text.id and text.string}


def _tuple(text: Any) -> Any:
    return tuple(text) if isinstance(text, list) else text


def _read_mo(file: Path) -> Catalog:
    with file.open("rb") as opened:
        return read_mo(opened)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring the translations of the Django parts up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is missing")
    check = parser.parse_args().check
    settings.configure(USE_I18N=False)
    django.setup()
    texts, found = wanted(), []
    for file in sorted(ROOT.glob("locale/*/LC_MESSAGES/django.po")):
        if not check:
            update(file, texts)
        found += problems(file, texts)
    sys.stdout.writelines(f"{problem}\n" for problem in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
