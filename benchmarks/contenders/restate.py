"""Restate: its server keeps the journal, its Python SDK runs the steps behind HTTP/2."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.contenders import Base
from benchmarks.processes import Program
from tests.servers import Server, free_port, wait_for


class RestateServer(Server):
    def __init__(self) -> None:
        super().__init__()
        self.admin, self.node = free_port(), free_port()

    def command(self) -> Sequence[str]:
        found = os.environ.get("RESTATE_SERVER") or shutil.which("restate-server")
        if found is None:
            raise ImportError("restate-server is not installed: npm install @restatedev/restate-server")
        return [found, "--no-logo", "--listen-mode", "tcp", "--bind-ip", "127.0.0.1"]

    def environment(self) -> dict[str, str]:
        return {
            "RESTATE_BASE_DIR": str(self.folder / "data"),
            "RESTATE_NODE_NAME": "bench",
            "RESTATE_BIND_PORT": str(self.node),
            "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{self.node}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.port}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin}",
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
        }

    def ping(self) -> None:
        for port, path in ((self.admin, "/health"), (self.port, "/restate/health")):
            request(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", path)


def request(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> bytes:
    text = None if body is None else json.dumps(body)
    connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
    response = connection.getresponse()
    content = response.read()
    if response.status >= 300:
        raise RuntimeError(f"{method} {path}: {response.status} {content[:500]!r}")
    return content


class Contender(Base):
    note = "journal on the server's own disk; hypercorn with 2 processes; 16 callers that wait for the answer"

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.server: RestateServer | None = None
        self.service: Program | None = None

    def setup(self) -> None:
        self.server = RestateServer().start()
        port = free_port()
        self.service = Program(
            *("-m", "hypercorn", "-w", "2", "-b", f"127.0.0.1:{port}", "benchmarks.contenders.restate_app:app"),
            env={"BENCH_STEPS": str(self.steps)},
        )
        admin = http.client.HTTPConnection("127.0.0.1", self.server.admin, timeout=30)

        def deployed() -> bool:
            assert self.service is not None
            self.service.check()
            try:
                request(admin, "POST", "/deployments", {"uri": f"http://127.0.0.1:{port}"})
            except (RuntimeError, OSError):
                return False
            return True

        wait_for(deployed, 60, "the service is deployed", 0.5)
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(16)

    def one(self) -> float:
        assert self.server is not None
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        began = time.perf_counter()
        request(self._local.connection, "POST", "/bench/run", {})
        return time.perf_counter() - began

    def run(self, n: int) -> float:
        began = time.perf_counter()
        for future in [self._threads.submit(self.one) for _ in range(n)]:
            future.result(240)
        return time.perf_counter() - began

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.service is not None
        assert self.server is not None
        assert self.server.process is not None
        return {"worker": [self.service.pid], "broker": [self.server.process.pid]}

    def teardown(self) -> None:
        if hasattr(self, "_threads"):
            self._threads.shutdown(cancel_futures=True)
        if self.service is not None:
            self.service.stop()
        if self.server is not None:
            self.server.stop()
