"""The operators' commands as they are typed: real processes, a real worker, PostgreSQL, and a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sagas import SagaHandle, SagaStatus
from tests import forks
from tests.conftest import Rig
from tests.rig import ROOT
from tests.servers import wait_for
from tests.terminal import in_terminal, plain


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tests.worker", "sagas", *words]


def environment(rig: Rig) -> dict[str, str]:
    settings = json.dumps(rig.settings)
    return {**os.environ, "RIG": settings, "RIG_FOLDER": str(rig.folder), "PYTHONPATH": str(ROOT)}


def run(rig: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    return forks.run(
        command(*words), cwd=ROOT, env=environment(rig), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def stuck(rig: Rig, key: str) -> SagaHandle:
    handle = rig.start("full", key=key, last="away")
    assert handle.wait(30) is SagaStatus.STUCK
    return handle


def test_a_stuck_saga_is_found_repaired_and_watched_to_its_end(rig: Rig, tmp_path: Path) -> None:
    rig.worker(concurrency=4)
    handle = stuck(rig, "order-1")
    rig.start("line", key="order-2").wait(30)

    found = run(rig, "list", "--attention", "--json")
    assert found.returncode == 0, found.stderr
    [told] = json.loads(found.stdout)
    assert (told["id"], told["key"], told["status"], told["step"]) == (handle.id, "order-1", "STUCK", ["last"])
    assert "the bank is away" in told["error"]

    [retry] = [
        c for c in json.loads(run(rig, "show", "order-1", "--json").stdout)["allowed_actions"] if c["action"] == "retry"
    ]
    typed = f"-m celery -A tests.worker sagas retry {handle.id} --step last --reason WHY"
    assert retry["command"].endswith(typed)

    rig.go(handle)  # the bank is back
    done = run(rig, "retry", "order-1", "--reason", "the bank is back", "--actor", "ann")
    assert done.returncode == 0, done.stderr
    watched = run(rig, "watch", "order-1", "--timeout", "30s")
    assert watched.returncode == 0, (watched.stdout, watched.stderr)
    assert watched.stdout.splitlines()[-1].split("\t")[1:3] == ["", "COMPLETED"]
    [entry] = json.loads(run(rig, "audit", "--json").stdout)
    assert (entry["actor"], entry["what"], entry["key"]) == ("ann", "operator: retry", "order-1")


def test_what_is_watched_is_told_as_it_happens(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("long", two="slow")
    options = {"cwd": ROOT, "env": environment(rig)}
    told, listed = rig.folder / "told", rig.folder / "listed"
    with told.open("wb") as one, listed.open("wb") as many:
        watch = forks.Popen(command("watch", handle.id, "--interval", "0.1s"), stdout=one, **options)
        board = forks.Popen(command("watch", "--saga", "long", "--interval", "0.1s"), stdout=many, **options)
        wait_for(lambda: "\ttwo\tRUNNING\t" in told.read_text(), 30, "the second step is told")
        wait_for(lambda: "\tRUNNING\ttwo\t" in listed.read_text(), 30, "it is in the list")
        assert watch.poll() is None
        rig.go(handle)
        assert watch.wait(30) == 0
        wait_for(lambda: "\tCOMPLETED\t" in listed.read_text(), 30, "its end is in the list")
        board.send_signal(signal.SIGINT)
        assert board.wait(30) == 130
    assert [line.split("\t")[1:3] for line in told.read_text().splitlines()][-2:] == [
        ["two", "DONE"],
        ["", "COMPLETED"],
    ]


@pytest.fixture
def quiet(rig: Rig) -> Rig:
    """A rig with two sagas that are stuck, and no worker any more."""
    worker = rig.worker(concurrency=4)
    for number in (1, 2):
        stuck(rig, f"order-{number}")
    worker.kill()
    return rig


def test_in_a_terminal(quiet: Rig, tmp_path: Path) -> None:
    first, second = (quiet.sagas.find("full", f"order-{number}").id for number in (1, 2))
    code, written = in_terminal(command("list", "--attention"), environment(quiet))
    lines = plain(written).splitlines()
    assert code == 0
    assert lines[0].split() == ["id", "status", "age", "step"]
    assert [line.split()[:2] for line in lines if line.startswith((first, second))] == [
        [second, "STUCK"],
        [first, "STUCK"],
    ]
    assert max(map(len, lines)) <= 80
    assert "\x1b[1;31mSTUCK\x1b[0m" in written

    code, written = in_terminal(
        [*command()[:-1], "--no-color", "sagas", "show", "order-1"], environment(quiet), columns=200
    )
    assert code == 0
    assert "\x1b[1;31m" not in written
    lines = plain(written).splitlines()
    assert lines[0].split() == ["STUCK", "full", "v1", "order-1"]
    assert (
        lines.index("Allowed actions") < lines.index("Steps") < lines.index("Input") < lines.index("Open dead letters")
    )

    code, written = in_terminal(command("watch", "order-1"), environment(quiet))
    assert code == 3
    assert f"sagas show {first}" in plain(written).replace("\n", "")

    # Nothing is done before somebody says yes.
    for answer, expected, status in (("n\n", 2, SagaStatus.STUCK), ("y\n", 0, SagaStatus.COMPLETED)):
        skip = command("skip", "--saga", "full", "--reason", "written off")
        code, written = in_terminal(skip, environment(quiet), answers={"these 2 sagas?": answer})
        assert (code, quiet.sagas.handle(first).status) == (expected, status), plain(written)
    assert "2 done" in plain(written)


def test_in_a_terminal_without_rich(quiet: Rig, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['rich'] = None\n")
    bare = environment(quiet) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for words in ("list", "--attention"), ("show", "order-1"):
        code, written = in_terminal(command(*words), bare, columns=200)
        assert code == 0, plain(written)
        assert "\x1b[" not in written
        assert "\tSTUCK" in written
