"""What the contenders that are a queue in PostgreSQL have in common."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import psycopg

from benchmarks.contenders import Base
from benchmarks.processes import Program
from tests.servers import Postgres, wait_for

#: Seconds after which a benchmark that does not come to its end is given up.
_PATIENCE = 240.0


class PostgresBased(Base):
    """Publishes from this process to worker processes, with nothing but PostgreSQL between them."""

    processes: ClassVar[int] = 2
    unfinished: ClassVar[str]  #: SQL that asks whether anything has not ended; served by an index
    failed: ClassVar[str]  #: SQL that counts what did not end well

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.server: Postgres | None = None
        self.workers: list[Program] = []

    def setup(self) -> None:
        self.server = Postgres(fsync=True).start()
        self.url = self.server.database().replace("+psycopg", "")
        self._watch = psycopg.connect(self.url, autocommit=True)
        self.install()
        self.workers += [self.work() for _ in range(self.processes)]
        wait_for(self._is_ready, 60, "the workers are ready")
        self.connect()

    def install(self) -> None:
        """Create the tables, unless the worker does."""

    @abstractmethod
    def work(self) -> Program:
        """Start one worker process."""

    def ready(self) -> bool:
        """Whether there is something to publish to."""
        return True

    @abstractmethod
    def connect(self) -> None:
        """Get ready to publish."""

    @abstractmethod
    def start(self, n: int) -> None:
        """Start so many."""

    def _is_ready(self) -> bool:
        self._check()
        try:
            return self.ready()
        except psycopg.Error:
            return False

    def _check(self) -> None:
        for worker in self.workers:
            worker.check()

    def run(self, n: int) -> float:
        began = time.perf_counter()
        self.start(n)
        self._wait(0.01)
        return time.perf_counter() - began

    def run_started(self, n: int) -> float:
        for worker in self.workers:
            worker.pause()
        self.start(n)
        began = time.perf_counter()
        for worker in self.workers:
            worker.resume()
        self._wait(0.01)
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self.start(1)
        self._wait(0.002)
        return time.perf_counter() - began

    def _wait(self, pause: float) -> None:
        def over() -> bool:
            self._check()
            return not self.ask(self.unfinished)

        wait_for(over, _PATIENCE, "all are complete", pause)

    def ask(self, question: str) -> Any:
        row = self._watch.execute(question).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        return row[0]

    def extra(self) -> Mapping[str, float]:
        failed = self.ask(self.failed)
        assert not failed, f"{failed} did not end well"
        return {}

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.server is not None
        assert self.server.process is not None
        return {"worker": [worker.pid for worker in self.workers], "database": [self.server.process.pid]}

    def teardown(self) -> None:
        for worker in self.workers:
            worker.stop()
        if self.server is not None:
            self.server.stop()
