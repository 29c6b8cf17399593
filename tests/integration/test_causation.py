"""One story through messages, sagas and Celery tasks, in real workers; and a storm that passes through sagas."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sagas import SagaStatus
from sagas.cli.sagas import sagas as command_line
from sagas.events import Envelope
from sagas.events.trace import Entry, trace
from sagas.stores import schema
from tests.rig import Worker
from tests.servers import Postgres, RabbitMQ, wait_for


@pytest.fixture(scope="module")
def flow(rabbitmq: RabbitMQ, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    settings = {
        "broker": rabbitmq.url,
        "database": postgres.database(),
        "queue": f"causation-{uuid.uuid4().hex[:8]}",
        "folder": str(tmp_path_factory.mktemp("causation")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIG", json.dumps(settings))
        flow = importlib.import_module("tests.causation_worker")
        flow.store.upgrade()
        worker = Worker(settings, module="tests.causation_worker")
        with worker.start():
            yield flow
    flow.store.engine.dispose()


def publish(flow: Any, message: Any, **options: Any) -> Envelope:
    with Session(flow.store.engine) as session, session.begin():
        envelope: Envelope = flow.events.publish(message, session, **options)
    return envelope


def sent(flow: Any, type_: str) -> list[Envelope]:
    query = select(schema.outbox.c.body).where(schema.outbox.c.type == type_).order_by(schema.outbox.c.id)
    with flow.store.engine.connect() as connection:
        return [Envelope.decode(body) for body in connection.execute(query).scalars()]


def completed(flow: Any, name: str, key: str) -> bool:
    with flow.store.engine.connect() as connection:
        query = select(schema.sagas.c.status).where(schema.sagas.c.name == name, schema.sagas.c.key == key)
        status: str | None = connection.execute(query).scalar()
    return status == SagaStatus.COMPLETED


def lines(entries: Sequence[Entry], depth: int = 0) -> list[str]:
    return [
        line
        for entry in entries
        for line in (f"{'  ' * depth}{entry.kind} {entry.what}", *lines(entry.children, depth + 1))
    ]


def test_one_story_through_messages_sagas_and_tasks(flow: Any) -> None:
    placed = publish(flow, flow.OrderPlaced(order_id="o-1"), key="o-1")
    wait_for(lambda: completed(flow, "archive", "archive-o-1"), 40, "the saga that the task started has ended")
    wait_for(lambda: completed(flow, "audit", "audit-o-1"), 20, "the saga that the step started has ended")
    paid = sent(flow, "billing.order.paid")[-1]
    receipt = sent(flow, "mailing.send_receipt")[-1]
    payment, audit, archive = (
        flow.store.find(name, key)
        for name, key in (("pay_order", "o-1"), ("audit", "audit-o-1"), ("archive", "archive-o-1"))
    )
    stories = {one.correlation_id for one in (placed, paid, receipt, payment, audit, archive)}
    assert stories == {placed.event_id}
    assert payment.caused_by.id == placed.event_id
    assert (paid.causation_id, audit.caused_by.id) == (f"{payment.id}:charge",) * 2
    assert (receipt.causation_id, archive.caused_by.id) == (paid.event_id, receipt.event_id)
    assert (paid.hops, paid.path) == (1, ["orders.order.placed"])
    assert (receipt.hops, receipt.path) == (2, ["orders.order.placed", "billing.order.paid"])
    assert (audit.caused_by.hops, archive.caused_by.hops) == (1, 3)
    assert archive.caused_by.path == ("orders.order.placed", "billing.order.paid", "mailing.send_receipt")


EXPECTED = """\
message orders.order.placed
  handled orders.order.placed
    saga COMPLETED
      step DONE
        saga COMPLETED
          step DONE
        message billing.order.paid
          handled billing.order.paid
            message mailing.send_receipt
              handled mailing.send_receipt
                saga COMPLETED
                  step DONE"""


def test_the_story_is_found_by_a_key_and_by_the_id_of_what_is_in_it(flow: Any) -> None:
    placed = publish(flow, flow.OrderPlaced(order_id="o-2"), key="o-2")
    wait_for(lambda: completed(flow, "archive", "archive-o-2"), 40, "the saga that the task started has ended")
    wait_for(lambda: completed(flow, "audit", "audit-o-2"), 20, "the saga that the step started has ended")
    # The handler that sent the task may still be about to commit.
    wait_for(lambda: "handled mailing.send_receipt" in "\n".join(lines(trace(flow.store.engine, "o-2"))), 20)
    payment = flow.store.find("pay_order", "o-2")
    for name in (placed.correlation_id, "o-2", "audit-o-2", payment.id, sent(flow, "billing.order.paid")[-1].event_id):
        found = lines(trace(flow.store.engine, name))
        # Which of the saga and the message came first, two clocks say: that of the database and that of the worker.
        assert sorted(found) == sorted(EXPECTED.splitlines()), name
    shown = CliRunner().invoke(command_line, ["events", "trace", "o-2"], obj=_Context(flow.app))
    assert shown.exit_code == 0, shown.output
    assert "saga pay_order COMPLETED" in shown.output


class _Context:
    """What `celery -A` hands to its commands."""

    def __init__(self, app: Any) -> None:
        self.app = app


def test_a_storm_that_passes_through_sagas_is_stopped_without_any_setting(flow: Any) -> None:
    first = publish(flow, flow.AlarmRaised(number=1))
    wait_for(flow.events.dead_letters, 60, "the storm is stopped")
    [letter] = flow.events.dead_letters()
    assert "max_repeats=8" in letter.error
    assert letter.correlation_id == first.event_id
    with flow.store.engine.connect() as connection:
        count = connection.execute(
            select(func.count()).select_from(schema.sagas).where(schema.sagas.c.name == "echo")
        ).scalar_one()
    assert count == 9
    assert [envelope.hops for envelope in sent(flow, "billing.alarm.raised")] == list(range(10))
