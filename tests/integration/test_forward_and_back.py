"""A saga goes forward, or is undone, on every broker, pool and database."""

import pytest

from sagas import SagaStatus
from tests.conftest import MakeRig, Rig
from tests.rig import Receipt

BROKERS_AND_POOLS = [
    ("redis", "prefork", "postgres"),
    ("redis", "threads", "mariadb"),
    ("rabbitmq", "prefork", "mariadb"),
    ("rabbitmq", "threads", "postgres"),
    ("filesystem", "prefork", "sqlite"),
    ("filesystem", "solo", "sqlite"),
]


@pytest.mark.parametrize(("broker", "pool", "database"), BROKERS_AND_POOLS)
def test_completes_and_compensates(make_rig: MakeRig, broker: str, pool: str, database: str) -> None:
    rig = make_rig(broker, database)
    rig.worker(pool=pool)
    good = rig.start("full")
    bad = rig.start("full", four="terminal")
    branch = rig.start("full", left="terminal")
    rig.assert_done(good)
    story = rig.ledger.story(good.id)
    assert story[0] == "one"
    assert sorted(story[1:4]) == ["free", "left", "right"]
    assert story[4:] == ["four", "pivot", "last"]
    assert good.result["left"] == Receipt("left", 1)

    rig.assert_undone(bad)
    story = rig.ledger.story(bad.id)
    # The failed step is undone too, then the parallel stage, then the first: the reverse order of start.
    assert story[4] == "-four"
    assert sorted(story[5:7]) == ["-left", "-right"]
    assert story[7:] == ["-one"]
    assert {e.step: e.known for e in rig.ledger.of(bad.id, "undo")} == {
        "four": None, "left": "left", "right": "right", "one": "one",
    }  # fmt: skip
    rig.assert_undone(branch)
    assert "left" in (branch.error or "")


def test_a_parallel_stage_is_joined_exactly_once(rig: Rig) -> None:
    worker = rig.worker(concurrency=4)
    handles = [rig.start("full") for _ in range(10)]
    for handle in handles:
        rig.assert_done(handle)
        assert sorted(rig.ledger.story(handle.id)) == sorted(["one", "left", "right", "free", "four", "pivot", "last"])
    # One join for each saga, and it went on once.
    assert worker.output().count("Task sagas.join[") == 2 * len(handles)  # received, succeeded


def test_a_failing_step_is_tried_again(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", two="error:2")
    rig.assert_done(handle)
    assert [e.attempt for e in rig.ledger.of(handle.id, "begin") if e.step == "two"] == [1, 2, 3]
    assert handle.result["two"] == Receipt("two", 3)


def test_attempts_run_out_and_the_step_is_in_doubt(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", two="error_after")
    rig.assert_undone(handle)
    assert "in doubt" in (handle.error or "")
    # It had its effect three times under one key; one compensation, without a result, undoes what the key names.
    keys = {e.key for e in rig.ledger.of(handle.id) if e.step == "two"}
    assert len(keys) == 1
    assert rig.ledger.story(handle.id)[-2:] == ["-two", "-one"]


def test_after_the_pivot_there_is_no_way_back(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("full", last="error")
    assert handle.wait(30) is SagaStatus.STUCK
    [letter] = rig.sagas.store.queries.dead_letters()
    assert (letter.saga_id, letter.step, letter.direction) == (handle.id, "last", "FORWARD")
    rig.sagas.mark_done(handle.id, "last", reason="done by phone", actor="ann", result=Receipt("by hand", 0))
    rig.assert_done(handle)
    assert handle.result["last"] == Receipt("by hand", 0)
    assert not [line for line in rig.ledger.story(handle.id) if line.startswith("-")]
