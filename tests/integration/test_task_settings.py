"""Sagas on an app whose settings are made for other tasks: nothing of theirs changes what sagas do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MakeRig, Rig
from tests.servers import free_port

#: Each of them changed what became of a saga, or could.
ODD: dict[str, dict[str, Any]] = {
    "base class": {"task_cls": "tests.rig:Helpful"},
    "annotations": {
        "task_annotations": {
            "*": {"acks_late": False, "max_retries": 0, "expires": 1, "ignore_result": False, "serializer": "pickle"}
        }
    },
    "settings": {
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure_or_timeout": False,
        "task_ignore_result": False,
        "task_store_errors_even_if_ignored": True,
        "task_track_started": True,
        "task_publish_retry": False,
        "task_serializer": "yaml",
        "task_compression": "zlib",
        "task_allow_error_cb_on_chord_header": True,
        "result_backend": "a backend that is not there",
        "result_expires": 1,
    },
}


@pytest.mark.parametrize("what", ODD)
def test_sagas_do_as_they_do(rig: Rig, what: str) -> None:
    options = dict(ODD[what])
    if "result_backend" in options:
        options["result_backend"] = f"redis://127.0.0.1:{free_port()}/0"
    rig.configure(**options)
    rig.worker(concurrency=3)
    good, bad = rig.start("full"), rig.start("full", right="error", left="terminal")
    retried, killed = rig.start("line", two="error:1"), rig.start("long", two="kill_before:1")
    rig.assert_done(good)
    rig.assert_undone(bad)
    rig.assert_done(retried)
    rig.assert_done(killed)
    assert [e.attempt for e in rig.ledger.of(retried.id, "begin") if e.step == "two"] == [1, 2]
    assert rig.ledger.story(good.id)[-3:] == ["four", "pivot", "last"]
    for handle in (good, retried, killed):
        rig.assert_explained(handle)


def test_a_time_limit_of_one_step_is_that_steps_alone(rig: Rig) -> None:
    """A worker that follows on does so within one message, whose limit would end the steps after it."""
    rig.configure(task_annotations={"line.one": {"time_limit": 60}, "line.three": {"soft_time_limit": 60}})
    worker = rig.worker()
    rig.assert_done(rig.start("line"))
    assert worker.output().count("received") == 3


def test_a_worker_of_an_app_that_cannot_work_does_not_start(make_rig: MakeRig) -> None:
    rig = make_rig()
    queue = rig.settings["options"]["task_default_queue"]
    rig.configure(task_create_missing_queues=False, task_queues={queue: {}})
    with pytest.raises(RuntimeError, match="saga 'nobody', step 'two': Queue 'nobody' missing from task_queues"):
        rig.worker()
