"""A saga goes on with the definition that it started with, or not at all."""

import pytest
from celery import Celery

from sagas import DefinitionMissing, Saga, SagaHandle, Sagas, SagaStatus, Step
from tests.conftest import Rig
from tests.rig import Faults
from tests.servers import wait_for


def nothing() -> None: ...


def started_by_other_code(rig: Rig, saga: Saga) -> SagaHandle:
    """Start it from an app of another version of the code, with the same broker and database."""
    app = Celery("old", broker=rig.settings["broker"], set_as_current=False)
    app.conf.task_default_queue = rig.settings["options"]["task_default_queue"]
    handle = Sagas(app, rig.sagas.store, [saga], redispatch_after=1).start(saga, Faults())
    app.close()
    return rig.sagas.handle(handle.id)


@pytest.mark.parametrize(
    ("saga", "says"),
    [
        (Saga("line", Step("one", nothing, compensation=None), input=Faults, version=7), "only version 1"),
        (Saga("gone", Step("one", nothing, compensation=None), input=Faults), "no saga of this name"),
        (
            Saga("line", Step("one", nothing, compensation=None), input=Faults),
            r"steps were \[one \(no compensation\)\] and are \[one > two",
        ),
    ],
)
def test_a_saga_that_the_code_does_not_fit_is_left_alone(rig: Rig, saga: Saga, says: str) -> None:
    worker = rig.worker()
    handle = started_by_other_code(rig, saga)
    wait_for(lambda: handle.error, 20, "the error is shown on the saga")
    assert handle.status is SagaStatus.PENDING
    error = handle.error or ""
    with pytest.raises(DefinitionMissing, match=says):
        rig.sagas.cancel(handle.id)
    assert f"saga {saga.name!r} version {saga.version}" in error
    assert "version" in worker.output()
    assert rig.ledger.story(handle.id) == []


def test_two_versions_run_side_by_side(rig: Rig) -> None:
    newer = Saga("line", Step("one", nothing, compensation=None), input=Faults, version=2)
    rig.worker()
    old = rig.start("line")
    rig.sagas.register(newer)
    new = rig.sagas.start_by_name("line", {})
    assert (old.record.version, new.record.version) == (1, 2)
    rig.assert_done(old)
