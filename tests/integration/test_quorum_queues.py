"""The settings for quorum queues of docs/operations.md, on RabbitMQ, with a worker for each queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import amqp
import pytest
from amqp.exceptions import PreconditionFailed

from tests.conftest import MakeRig
from tests.pages import fences
from tests.rig import ROOT
from tests.servers import RabbitMQ

DELAYS = [f"celery_delayed_{level}" for level in range(28)]
QUEUES = ["quorum-shop", "nobody"]


@pytest.fixture
def channel(rabbitmq: RabbitMQ) -> Iterator[amqp.Channel]:
    """Leaves the server as it was: other tests have queues of these names, of the other kind."""
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}", connect_timeout=5, read_timeout=20) as connection:
        connection.connect()
        channel = connection.channel()

        def forget() -> None:
            for name in (*QUEUES, *DELAYS):
                channel.queue_delete(name)
                channel.exchange_delete(name)

        forget()
        yield channel
        forget()


def of_the_page() -> dict[str, Any]:
    [source] = [f.source for f in fences(ROOT / "docs" / "operations.md", "python") if "queue_type" in f.source]
    names: dict[str, Any] = {}
    exec(source, names)
    return {name: value for name, value in names["app"].conf.items() if f"    {name}=" in source}


def test_steps_of_two_queues(make_rig: MakeRig, channel: amqp.Channel) -> None:
    rig = make_rig("rabbitmq", "postgres")
    rig.configure(**of_the_page() | {"task_default_queue": QUEUES[0]})
    workers = [rig.worker("-Q", queue, concurrency=1) for queue in QUEUES]
    rig.assert_done(rig.saga("later").start({}, key="k"))
    for queue in QUEUES:
        # Declared as another kind it is refused: both are quorum queues, also the one that only a step and -Q speak of.
        with pytest.raises(PreconditionFailed, match="quorum"):
            channel.connection.channel().queue_declare(queue, durable=True, auto_delete=False)
    assert all(" direct exchange" not in worker.output() for worker in workers)
