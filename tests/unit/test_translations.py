"""The texts of the Django parts: all of them can be translated, and German is whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "translations.py"
DJANGO = ROOT / "sagas" / "contrib" / "django"


def check(root: Path) -> list[str]:
    command = [sys.executable, str(root / "scripts" / "translations.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == bool(done.stdout)
    return [re.sub(r"^\S*/", "", line) for line in done.stdout.splitlines()]


def test_german_is_whole_and_compiled(tmp_path: Path) -> None:
    assert check(ROOT) == []
    for folder in ("scripts", "sagas/contrib/django"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "sagas/operator_actions.py", tmp_path / "sagas")
    file = tmp_path / "sagas/contrib/django/locale/de/LC_MESSAGES/django.po"
    text = file.read_text()
    file.write_text(text.replace('"Schritte"', '"Stufen"').replace('"Begründung"', '""'))
    (tmp_path / "sagas/contrib/django/more.html").write_text('{% load i18n %}{% translate "Tea" context "saga" %}')
    assert check(tmp_path) == [
        "django.po: no translation of 'Reason'", "django.po: no translation of 'Tea'", "django.mo is out of date",
    ]  # fmt: skip


def test_no_template_has_words_that_cannot_be_translated() -> None:
    files = sorted(DJANGO.rglob("*.html"))
    assert files
    for file in files:
        source = re.sub(r"{%.*?blocktranslate.*?endblocktranslate\s*%}", "", file.read_text(), flags=re.DOTALL)
        source = source.replace("{% block coltype %}colM{% endblock %}", "")  # a class of Django's
        shown = re.sub(r"{%.*?%}|{{.*?}}|<[^>]*>|&\w+;", " ", source, flags=re.DOTALL)
        assert not re.search(r"\w", shown), f"{file.name}: {shown.split()}"
