"""The project that docs/django.md tells how to write, written as it says, and its tests run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.rig import ROOT

CELERY = """
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
app = Celery("proj", broker="memory://")
app.config_from_object("django.conf:settings", namespace="CELERY")
"""
URLS = """
from django.urls import path
from shop import views
urlpatterns = [path("place/", views.place), path("look/<int:order>/", views.look)]
"""


def test_the_page_leads_to_a_project_that_works(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("-m", "django", "startproject", "proj", ".")
    run("manage.py", "startapp", "shop")
    (tmp_path / "proj" / "celery.py").write_text(CELERY)
    (tmp_path / "proj" / "__init__.py").write_text("from .celery import app as celery_app\n")
    (tmp_path / "proj" / "urls.py").write_text(URLS)
    page = (ROOT / "docs" / "django.md").read_text()
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == len(re.findall("```python", page)) == 5
    for name, block in blocks:
        with (tmp_path / name).open("a" if name == "proj/settings.py" else "w") as file:
            file.write(block)
    run("manage.py", "makemigrations", "shop")
    run("manage.py", "migrate")
    run("manage.py", "check")
    assert "Ran 4 tests" in run("manage.py", "test")
