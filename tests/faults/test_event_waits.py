"""Sagas that wait for events, with real brokers: events that come early, twice, and while every worker is dead."""

from __future__ import annotations

import importlib
import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sagas import SagaHandle
from sagas.stores import schema
from tests.rig import Worker
from tests.servers import wait_for


@pytest.fixture(params=[("rabbitmq", "postgres"), ("redis_server", "mariadb")], ids=["rabbitmq", "redis"])
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    broker, database = request.param
    settings = {
        "broker": request.getfixturevalue(broker).url,
        "database": request.getfixturevalue(database).database(),
        "queue": f"waits-{uuid.uuid4().hex[:8]}",
        "folder": str(tmp_path_factory.mktemp("waits")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIG", json.dumps(settings))
        sys.modules.pop("tests.event_waits_worker", None)
        flow: Any = importlib.import_module("tests.event_waits_worker")
        flow.store.upgrade()
        flow.events.apply_topology()
        flow.workers = []
        flow.worker = lambda: _started(flow.workers, settings)
        yield flow
    for worker in flow.workers:
        worker.kill()
    flow.store.engine.dispose()
    flow.app.close()
    sys.modules.pop("tests.event_waits_worker", None)


def _started(workers: list[Worker], settings: Any) -> Worker:
    workers.append(Worker(settings, module="tests.event_waits_worker"))
    return workers[-1].start()


def confirm(flow: Any, key: str, cents: int) -> None:
    with Session(flow.store.engine) as session, session.begin():
        flow.events.publish(flow.PaymentConfirmed(order_id=key, cents=cents), session, key=key)


def done(flow: Any, handle: SagaHandle) -> bool:
    return str(flow.store.load(handle.id).status) == "COMPLETED"


def waits(handle: SagaHandle) -> bool:
    return handle.record.step("payment").status == "WAITING"


def handled(flow: Any) -> int:
    with flow.store.engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.inbox)).scalar_one())


def test_events_come_at_every_moment(flow: Any) -> None:
    early, usual, dead = (flow.place_order.start(key=key) for key in ("early", "usual", "dead"))
    confirm(flow, "early", 1)  # before any worker has begun the saga
    confirm(flow, "unknown", 1)
    worker = flow.worker()
    wait_for(lambda: all(waits(each) for each in (usual, dead)), 30, "both wait")
    confirm(flow, "usual", 2)
    confirm(flow, "usual", 3)  # another event: the first one counts
    wait_for(lambda: done(flow, early) and done(flow, usual), 30, "both ended")
    wait_for(lambda: handled(flow) == 4, 30, "the unknown and the second one are acknowledged")
    worker.kill()
    confirm(flow, "dead", 4)
    flow.worker()
    wait_for(lambda: done(flow, dead), 60, "an event that came while all workers were dead")
    assert early.result["ship"] == 1
    assert usual.result["ship"] in (2, 3)
    assert dead.result["ship"] == 4
    assert not flow.events.dead_letters()
