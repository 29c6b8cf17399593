"""Figures as a table in the terminal, as JSON, and in a page of docs/."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT
from tests.servers import MissingServer, binary

__all__ = ["Report", "median", "ratio", "spread"]

DOCUMENT = ROOT / "docs" / "performance.md"
PACKAGES = (
    "celery-sagas", "celery", "kombu", "redis", "confluent-kafka", "sqlalchemy", "psycopg", "dbos", "restate-sdk",
    "absurd-sdk", "oban", "temporalio", "eventsourcing", "faststream",
)  # fmt: skip
SERVERS = (
    ("postgres", "--version"),
    ("redis-server", "--version"),
    ("dpkg-query", "-W", "rabbitmq-server"),
    ("restate-server", "--version"),
)


def median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (lowest..highest)`, or a dash."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}..{high:,.{digits}f})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """The ratios of figures that were measured in the same rounds."""
    return spread([value / other for value, other in zip(values, others, strict=True) if other], 2)


@dataclass
class Report:
    """Tables of one command, and the samples they are made of."""

    command: str
    document: Path = DOCUMENT
    samples: dict[str, Any] = field(default_factory=dict)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)  #: name of a file in docs/ -> SVG

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.tables.append((title, columns, rows))

    def show(self) -> None:
        console = Console(width=170)
        for title, columns, rows in self.tables:
            table = Table(title=title, title_justify="left")
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for note in self.notes:
            console.print(note, markup=False)

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"about": about(), "samples": self.samples}, indent=1) + "\n")

    def write(self) -> None:
        """Put the tables between this command's markers in the document."""
        begin, end = f"<!-- {self.command}:begin -->", f"<!-- {self.command}:end -->"
        text = self.document.read_text()
        if begin not in text:
            text += f"\n{begin}\n{end}\n"
        body = "\n".join([begin, *self._markdown(), end])
        self.document.write_text(re.sub(f"{begin}.*?{end}", lambda _: body, text, flags=re.DOTALL))
        self.draw()

    def draw(self) -> None:
        for name, svg in self.plots.items():
            (self.document.parent / name).write_text(svg)

    def _markdown(self) -> Iterable[str]:
        for title, columns, rows in self.tables:
            yield f"**{title}**\n"
            yield "| " + " | ".join(columns) + " |"
            yield "|---" + "|---:" * (len(columns) - 1) + "|"
            for row in rows:
                yield "| " + " | ".join(row) + " |"
            yield ""
        yield from (f"{note}\n" if "\n" in note else f"- {note}" for note in self.notes)
        yield ""
        yield "; ".join(f"{what}: {value}" for what, value in about().items()) + "."


def about() -> dict[str, str]:
    """Say what was measured, on what, how and when."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "Command": "`python -m benchmarks " + " ".join(sys.argv[1:]) + "`",
        "Date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Machine": f"{psutil.cpu_count()} cores ({model[1] if model else platform.processor()}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}",
        "Load before and during (15 min)": f"{psutil.getloadavg()[2]:.1f}",
        "Versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }


def _versions() -> Iterable[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    for name, *arguments in SERVERS:
        try:
            said = subprocess.run([binary(name), *arguments], capture_output=True, text=True, check=False).stdout
        except MissingServer:
            continue
        if found := re.search(r"(?:v=)?(\d+\.\d+(?:\.\d+)?)", said):
            yield f"{arguments[-1] if name == 'dpkg-query' else name} {found[1]}"
