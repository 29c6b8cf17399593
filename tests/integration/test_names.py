"""Names as long as they may be, through a broker and a database that take no longer ones."""

from __future__ import annotations

from celery import Celery

from sagas import Saga, Sagas, SqlStore, Step
from tests.conftest import MakeRig
from tests.rig import LONG_QUEUE, long_names
from tests.servers import MariaDB

#: MySQL without it cuts what is too long, in silence.
NOT_STRICT = "&init_command=SET sql_mode=''"


def test_as_long_as_they_may_be(make_rig: MakeRig) -> None:
    rig = make_rig("rabbitmq", "mariadb")
    rig.settings["database"] += NOT_STRICT
    rig.configure(more=["long_names"], redispatch_after=60)  # no message may be lost
    rig.worker("-Q", f"{rig.settings['options']['task_default_queue']},{LONG_QUEUE}")
    saga = long_names()
    good, bad = rig.start(saga.name), rig.start(saga.name, pivot="terminal")
    rig.assert_done(good)
    rig.assert_undone(bad)
    assert {e.step for e in rig.ledger.of(bad.id, "undo")} == {*saga.steps} - {"pivot"}


def test_more_steps_than_text_holds(mariadb: MariaDB) -> None:
    def long(count: int) -> Saga:
        return Saga("long", *(Step(f"{'ä' * 40}_{n:04}", lambda: 1, compensation=lambda: None) for n in range(count)))

    store = SqlStore(mariadb.database() + NOT_STRICT)
    store.upgrade()
    saga = long(800)
    assert len(saga.outline.encode()) > 65_535  # where TEXT ends
    sagas = Sagas(Celery("names", broker="memory://", set_as_current=False), store, [saga])
    handle = saga.start()
    assert handle.record.outline == saga.outline
    assert sagas.orchestrator.definition(handle.record) is saga
    store.engine.dispose()
