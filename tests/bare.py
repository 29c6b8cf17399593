"""A bare virtual environment: it has the wheel of this checkout, what was asked for, and what that depends on.

All of that is taken from the environment of the tests, by links, so no network is needed and it takes no time. What is
not declared is not there. A reader of our pages has two programs for it: `python -m venv` and `pip install`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["OURS", "build", "install", "make", "start"]

ROOT = Path(__file__).parent.parent
OURS = "celery-sagas"
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_SELF = f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.bare {{words}} "$@"\n'


def build(folder: Path) -> Path:
    """Build the wheel of this checkout, and return the folder that it is unpacked in."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    [wheel] = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def start(folder: Path, wheel: Path) -> Path:
    """Return a folder of programs for `PATH`, of which `python` can do no more than `-m venv`."""
    folder.mkdir()
    _program(folder / "python", _SELF.format(words=f'make "{wheel}"'))
    return folder


def make(wheel: Path, folder: Path) -> None:
    """Make a virtual environment with nothing in it, whose `pip` installs from the wheel and from what is here."""
    venv.create(folder, with_pip=False)
    _program(folder / "bin" / "pip", _SELF.format(words=f'install "{wheel}" "{folder.absolute()}"'))
    (folder / "bin" / "activate").write_text(f'export PATH="{folder.absolute()}/bin:$PATH"\nhash -r\n')


def install(wheel: Path, folder: Path, requirements: Iterable[str]) -> None:
    """Install what is asked for: `celery-sagas[flask]`, `gunicorn`."""
    installed: dict[str, set[str]] = {}
    for text in requirements:
        _install(Requirement(text), wheel, folder, installed)


def _install(wanted: Requirement, wheel: Path, folder: Path, installed: dict[str, set[str]]) -> None:
    name = canonicalize_name(wanted.name)
    new = wanted.extras - installed.get(name, set())
    if name in installed and not new:
        return
    if name == OURS:
        [info] = wheel.glob("*.dist-info")
        found: Distribution = Distribution.at(info)
        tops = set(wheel.iterdir())
    else:
        found = distribution(name)
        tops = {Path(str(found.locate_file(file.parts[0]))) for file in found.files or () if ".." not in file.parts}
    first = name not in installed
    installed.setdefault(name, set()).update(wanted.extras)
    if first:
        _link(folder, tops)
        for entry in found.entry_points.select(group="console_scripts"):
            run = f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
            _program(folder / "bin" / entry.name, f"#!{folder.absolute()}/bin/python\n{run}")
    for text in found.requires or ():
        needed = Requirement(text)
        extras = new | ({""} if first else set())  # what it always needs is installed with it
        marker = needed.marker
        if first if marker is None else any(marker.evaluate({"extra": extra}) for extra in extras):
            _install(needed, wheel, folder, installed)


def _link(folder: Path, tops: Iterable[Path]) -> None:
    packages = folder / "lib" / _VERSION / "site-packages"
    for top in tops:
        link = packages / top.name
        if top.name != "__pycache__" and top.exists() and not link.exists():
            link.symlink_to(top)


def _program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", wheel, "-m", "venv", folder]:
            make(Path(wheel), Path(folder))
        case ["install", wheel, folder, "install", *requirements]:
            install(Path(wheel), Path(folder), [word for word in requirements if not word.startswith("-")])
        case words:
            sys.exit(f"there is no such program before a virtual environment is active: {os.fspath(' '.join(words))}")
