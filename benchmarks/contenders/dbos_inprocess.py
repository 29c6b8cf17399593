"""DBOS Transact without its queue: who starts a workflow also runs it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.contenders import Base
from benchmarks.contenders.dbos_app import launch
from tests.servers import Postgres


class Contender(Base):
    note = "publisher and worker are one process, of 8 threads; no hand-over to another process"

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.server: Postgres | None = None

    def setup(self) -> None:
        self.server = Postgres(fsync=True).start()
        self._workflow = launch(self.server.database().replace("+psycopg", ""), self.steps)
        self._threads = ThreadPoolExecutor(8)

    def run(self, n: int) -> float:
        began = time.perf_counter()
        for future in [self._threads.submit(self._workflow) for _ in range(n)]:
            future.result(240)
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self._workflow()
        return time.perf_counter() - began

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.server is not None
        assert self.server.process is not None
        return {"database": [self.server.process.pid]}

    def teardown(self) -> None:
        from dbos import DBOS  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only where it runs

        self._threads.shutdown(cancel_futures=True)
        DBOS.destroy()
        if self.server is not None:
            self.server.stop()
