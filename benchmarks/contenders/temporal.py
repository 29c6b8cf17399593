"""Temporal's dev server, which keeps its history in SQLite, with the Python SDK.

No registry has the server as a binary, but the Go module proxy has its source:
`go install github.com/temporalio/cli/cmd/temporal@v1.5.1`; TEMPORAL names the binary.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contenders import Base
from benchmarks.processes import Program
from tests.servers import Server, free_port


class TemporalServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.http = free_port()

    def command(self) -> Sequence[str]:
        found = os.environ.get("TEMPORAL") or shutil.which("temporal")
        if found is None:
            raise ImportError("the temporal binary is not installed")
        return [
            found, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(self.port),
            "--http-port", str(self.http), "--metrics-port", str(free_port()), "--log-level", "error",
            "--db-filename", str(self.folder / "history.db"),
            "--sqlite-pragma", "synchronous=full", "--sqlite-pragma", "journal_mode=wal",
        ]  # fmt: skip

    def ping(self) -> None:
        from temporalio.client import Client  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415

        async def ask() -> None:
            client = await Client.connect(f"127.0.0.1:{self.port}")
            [_ async for _ in client.list_workflows()]

        asyncio.run(ask())


class Contender(Base):
    note = (
        "dev server 1.29 on SQLite (synchronous=full), not a production cluster; 1 worker process, 16 callers that wait"
    )

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.server: TemporalServer | None = None
        self.worker: Program | None = None
        self._loop = asyncio.new_event_loop()

    def setup(self) -> None:
        from temporalio.client import Client  # noqa: PLC0415 - only where it runs

        self.server = TemporalServer().start()
        address = f"127.0.0.1:{self.server.port}"
        self.worker = Program("-m", "benchmarks.contenders.temporal_app", address)
        self._client: Any = self._loop.run_until_complete(Client.connect(address))

    async def _one(self) -> None:
        await self._client.execute_workflow("Bench", self.steps, id=str(uuid.uuid4()), task_queue="bench")

    async def _many(self, n: int) -> None:
        async def caller(share: int) -> None:
            for _ in range(share):
                await self._one()

        await asyncio.wait_for(asyncio.gather(*(caller((n + i) // 16) for i in range(16))), 240)

    def run(self, n: int) -> float:
        began = time.perf_counter()
        self._loop.run_until_complete(self._many(n))
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self._loop.run_until_complete(self._one())
        return time.perf_counter() - began

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.worker is not None
        assert self.server is not None
        assert self.server.process is not None
        return {"worker": [self.worker.pid], "broker": [self.server.process.pid]}

    def teardown(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        if self.server is not None:
            self.server.stop()
        self._loop.close()
