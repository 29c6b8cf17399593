"""A bare virtual environment: the wheel of this checkout and what it depends on, nothing else.

What it depends on is taken from the environment of the tests, so no network is needed; what it does not declare is
not there.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rig import ROOT

__all__ = ["Bare", "build_wheel"]


def build_wheel(folder: Path) -> Path:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


class Bare:
    """A virtual environment with a wheel of ours in it, with some of its extras."""

    def __init__(self, folder: Path, wheel: Path, extras: Iterable[str] = ()) -> None:
        venv.create(folder, with_pip=False)
        self.programs = folder / "bin"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        python = str(self.programs / "python")
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel)]
        subprocess.run(install, check=True, capture_output=True)
        [info] = self.packages.glob("celery_sagas-*.dist-info")
        linked: set[str] = {"celery-sagas"}
        self._link(Distribution.at(info), set(extras), linked)
        program = self.programs / "celery"
        program.write_text(f"#!{python}\nfrom celery.__main__ import main\nmain()\n")
        program.chmod(0o755)

    def _link(self, installed: Distribution, extras: set[str], linked: set[str]) -> None:
        for text in installed.requires or ():
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            name = canonicalize_name(wanted.name)
            found = distribution(name)
            if name not in linked:
                linked.add(name)
                for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
                    target = Path(str(found.locate_file(top)))
                    if top != "__pycache__" and target.exists() and not (self.packages / top).exists():
                        (self.packages / top).symlink_to(target)
            elif not wanted.extras:
                continue
            self._link(found, set(wanted.extras), linked)
