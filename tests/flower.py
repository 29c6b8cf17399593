"""A real Flower process, with the tab for sagas, and what a client asks of it."""

from __future__ import annotations

import base64
import http.cookiejar
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sagas import SagaHandle
from tests import forks
from tests.conftest import Rig
from tests.rig import ROOT
from tests.servers import Postgres, Redis, free_port, wait_for


class FlowerProcess:
    """`celery -A ... sagas flower`, or plain `flower` with a configuration file."""

    count = 0

    def __init__(
        self,
        folder: Path,
        *options: str,
        app: str = "tests.worker",
        words: tuple[str, ...] = ("sagas", "flower"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        FlowerProcess.count += 1
        self.port = free_port()
        self.log = folder / f"flower-{FlowerProcess.count}.log"
        self.command = [
            sys.executable, "-m", "celery", "-A", app, *words,
            "--address=127.0.0.1", f"--port={self.port}", "--inspect_timeout=200", *options,
        ]  # fmt: skip
        outer = {name: value for name, value in os.environ.items() if not name.startswith("FLOWER_")}
        self.environment = {**outer, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = forks.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(self._answers, 40, "Flower answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"Flower ended with {self.process.returncode}\n{self.output()[-3000:]}")
        try:
            return Client(self.url).get("/").status > 0
        except urllib.error.URLError:
            return False

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.kill()  # nothing is left to be finished
        self.process.wait(10)


class Answer:
    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status
        self.headers = response.headers
        self.url = url
        self.text: str = response.read().decode()

    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """Asks as a browser or as a program would, without following anywhere."""

    def __init__(self, url: str, *, login: str | None = None) -> None:
        self.url = url
        self.headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies, _StayHere())

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask(urllib.request.Request(self.url + path, headers={**self.headers, **headers}))

    def post(self, path: str, form: Mapping[str, str], **headers: str) -> Answer:
        body = urllib.parse.urlencode(form).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._ask(urllib.request.Request(self.url + path, body, {**self.headers, **headers}, method="POST"))

    def post_json(self, path: str, body: Any, **headers: str) -> Answer:
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url + path, data, {**self.headers, **headers}, method="POST"))

    def token(self, path: str) -> str:
        """Open a form, and return the token that it would send."""
        found = re.search('name="_xsrf" value="([^"]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def _ask(self, request: urllib.request.Request) -> Answer:
        try:
            return Answer(self._opener.open(request, timeout=30), request.full_url)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error, request.full_url)


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def running_rig(redis: Redis, postgres: Postgres, folder: Path, name: str) -> Iterator[Rig]:
    """A rig with a worker that sends events, for the tests of a module."""
    rig = Rig(redis.url, postgres.database(), folder)
    rig.configure(task_default_queue=name)
    rig.worker("-E", "-Q", name)
    try:
        yield rig
    finally:
        rig.close()


def environment(rig: Rig, **more: str) -> dict[str, str]:
    return {"RIG": json.dumps(rig.settings, default=str), "RIG_FOLDER": str(rig.folder), **more}


def stuck(rig: Rig, **faults: str) -> SagaHandle:
    """Start a saga whose pivot is out of attempts."""
    handle = rig.start("full", **(faults or {"pivot": "away"}))
    wait_for(lambda: handle.status == "STUCK", 30, "it is stuck")
    return handle
