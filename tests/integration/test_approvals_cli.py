"""What sagas ask people, on the command line: the list, and a form in a terminal."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sagas import SagaHandle, SqlStore
from tests import forks
from tests.conftest import MakeRig, Rig
from tests.rig import ROOT
from tests.servers import wait_for
from tests.terminal import in_terminal, plain

COMMAND = [sys.executable, "-m", "celery", "-A", "tests.worker", "sagas"]


@pytest.fixture
def rig(make_rig: MakeRig) -> Iterator[Rig]:
    rig = make_rig("filesystem", "sqlite")
    rig.configure(more=["asks_people"])
    rig.worker()
    yield rig


@pytest.fixture
def handle(rig: Rig) -> SagaHandle:
    handle = rig.start("asks_people")
    wait_for(lambda: handle.record.step("approval").status == "WAITING", 30, "it asks")
    return handle


def environment(rig: Rig) -> dict[str, str]:
    settings = {"RIG": json.dumps(rig.settings, default=str), "RIG_FOLDER": str(rig.folder)}
    return {**os.environ, **settings, "PYTHONPATH": str(ROOT)}


def run(rig: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    return forks.run(
        [*COMMAND, *words], cwd=ROOT, env=environment(rig), capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_what_waits_is_listed_and_answered(rig: Rig, handle: SagaHandle) -> None:
    [listed] = json.loads(run(rig, "waiting", "--json").stdout)
    assert (listed["id"], listed["wait"], listed["approvers"]) == (handle.id, "approval", ["board", "finance"])
    assert listed["since"] < listed["until"]
    assert handle.id in run(rig, "waiting", "--group", "board").stdout
    none = run(rig, "waiting", "--group", "sales")
    assert (none.stdout, none.stderr.strip()) == ("", "no saga waits for an approval")
    refused = run(rig, "signal", handle.id, "approval")
    assert (refused.returncode, "there is no terminal to ask for the payload: add --payload" in refused.stderr) == (
        2,
        True,
    )
    answers = {
        "Approved [true, false]:": "perhaps\n",
        "choose one of: true, false": "true\n",
        "Amount [decimal]:": "12.00\n",
        "Comment:": "\n",
    }
    code, said = in_terminal(
        [*COMMAND, "signal", handle.id, "approval"], environment(rig), columns=120, answers=answers
    )
    assert code == 0, said
    assert "has the signal approval" in plain(said)
    assert json.loads(handle.record.step("approval").result or "") == {"approved": True, "amount": "12.00"}
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    [entry] = store.queries.audit()
    assert (entry.entry.what, entry.entry.actor) == ("signal", getpass.getuser())
    answers = {"Second [true, false]:": "true\n"}
    code, said = in_terminal([*COMMAND, "signal", handle.id, "second"], environment(rig), answers=answers)
    assert code == 0, said
    assert str(handle.wait(30)) == "COMPLETED"
    assert run(rig, "waiting").stdout == ""
