"""The shop's trips: hotel, flights and car are sagas of their own, and workers are killed in each of them."""

from __future__ import annotations

import functools
import subprocess
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from sagas import SagaHandle, Sagas, SagaStatus, SqlStore
from sagas.starts import start
from tasks import faults, ledger, tables
from tasks.trips import BookTrip, book_trip
from tests.servers import Postgres, Redis, wait_for
from tests.shop import shop


@pytest.mark.parametrize("refused", [False, True], ids=["booked", "refused"])
def test_a_trip_is_booked_as_a_whole_or_not_at_all(
    redis_server: Redis, postgres: Postgres, tmp_path: Path, refused: bool
) -> None:
    url = postgres.database()
    store = SqlStore(url)
    store.upgrade()
    tables.create_all(store.engine)
    app = Celery("shop", broker=redis_server.url, set_as_current=False)
    app.conf.task_default_queue = "shop"
    sagas = Sagas(app, store, lease=1, redispatch_after=1)
    sagas.orchestrator.register(book_trip)
    deaths = [
        "hotel.reserve",
        "flights.inbound",
        "car.reserve",
        *(["flights.cancel", "hotel.cancel"] if refused else []),
    ]
    trip = f"t-{refused}"
    with Session(store.engine) as session, session.begin():
        for at in deaths:
            faults.plan(session, trip, faults.Fault(at=at, kind="kill"))
        if refused:
            faults.plan(session, trip, faults.Fault(at="trip.charge", kind="decline"))
    given = BookTrip(
        trip_id=trip,
        customer="ann",
        city="Lisbon",
        start=date(2027, 5, 1),
        nights=3,
        amount=Decimal("740.00"),
        with_car=True,
    )
    handle = started(sagas, given)
    while not is_over(handle):
        with shop(redis_server, url, tmp_path, queues="shop", concurrency=2) as worker:
            wait_for(functools.partial(is_over, handle, worker), 90, "the worker has died, or the trip is over")
    assert handle.status is (SagaStatus.COMPENSATED if refused else SagaStatus.COMPLETED)
    family = store.family(handle.id)
    assert sorted(each.name for each in family) == ["book_car", "book_flights", "book_hotel", "book_trip"]
    assert {each.status for each in family} == {handle.status}
    with Session(store.engine) as session:
        left = ledger.net(session, [trip]).get(trip, {})
    if refused:
        assert not left
    else:
        assert {account.partition("/")[0]: net.quantity for account, net in left.items() if net.quantity} == {
            "hotels": 3, "flights": 1, "cars": 4,
        }  # fmt: skip
        assert len(handle.result["send_itinerary"].split(", ")) == 4
    store.engine.dispose()


def is_over(handle: SagaHandle, worker: subprocess.Popen[bytes] | None = None) -> bool:
    """Tell whether the trip is over, or its worker has died."""
    return handle.status in (SagaStatus.COMPLETED, SagaStatus.COMPENSATED) or (
        worker is not None and worker.poll() is not None
    )


def started(sagas: Sagas[SqlStore], given: BookTrip) -> SagaHandle:
    """Start the trip where no message is sent: recovery takes it up."""
    next_ = start(sagas.orchestrator, book_trip, given, key=given.trip_id, correlation_id=None, session=None)
    return SagaHandle(next_.record.id, sagas)
