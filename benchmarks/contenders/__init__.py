"""The systems that are compared, one a module, each with a class `Contender`. A module is imported only to run it.

Peers need packages of their own, see benchmarks/requirements.txt.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = ["ALL", "Base", "load"]

ALL = (
    "celery_chain",
    "celery_message",
    "sagas_redis",
    "sagas_callers",
    "sagas_threads",
    "sagas_start_many",
    "sagas_rabbitmq",
    "dbos_queue",
    "dbos_inprocess",
    "absurd",
    "oban",
    "oban_many",
    "restate",
    "temporal",
    "floor",
    "floor_grouped",
)


class Base(ABC):
    """Runs sagas of no-op steps on servers of its own, from `setup` to `teardown`."""

    note: ClassVar[str] = ""

    @abstractmethod
    def setup(self) -> None:
        """Start the servers and the worker."""

    @abstractmethod
    def teardown(self) -> None:
        """End everything that `setup` started. Called also when `setup` failed."""

    @abstractmethod
    def run(self, n: int) -> float:
        """Start n sagas as fast as one publisher can; return the seconds until the last is complete."""

    @abstractmethod
    def one(self) -> float:
        """Run one saga; return its seconds."""

    def run_started(self, n: int) -> float | None:  # noqa: ARG002 - not every contender can
        """Start n sagas while no worker is at work; return the seconds from there to the last completion."""
        return None

    def extra(self) -> Mapping[str, float]:
        """Return counts since `setup` that the report divides by the sagas run."""
        return {}

    def roots(self) -> Mapping[str, Sequence[int]]:
        """Return what each role's processes descend from. The publisher is this process itself."""
        return {}

    def publisher(self) -> int:
        return os.getpid()


def load(name: str, options: Mapping[str, Any]) -> Base:
    """Return a contender by its module's name. Raises `ImportError` when its packages are missing."""
    contender: Base = importlib.import_module(f"benchmarks.contenders.{name}").Contender(**options)
    return contender
