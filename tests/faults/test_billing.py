"""The shop's nightly billing: its worker is killed in the night, and the next one bills each order once."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sagas import SqlStore
from sagas.stores import schedules as stored
from sagas.stores import schema
from tasks import faults, tables
from tasks.billing import nightly_billing
from tests.servers import Postgres, Redis, wait_for
from tests.shop import shop


def test_each_order_is_billed_once(redis_server: Redis, postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database()
    store = SqlStore(url)
    store.upgrade()
    tables.create_all(store.engine)
    with shop(redis_server, url, tmp_path):
        wait_for(lambda: stored.states(store), 60, "the worker has stored the schedule")
    # Two nights without a worker: three days are to be billed, the last of which has no orders.
    [state] = stored.states(store)
    ticks = [state.next_at - timedelta(days=number) for number in (3, 2, 1)]
    ticks = [nightly_billing.next_after(tick - timedelta(hours=2)) for tick in ticks]
    days = [nightly_billing.local(tick).date() - timedelta(days=1) for tick in ticks]
    with Session(store.engine) as session, session.begin():
        for number, tick in enumerate(ticks[:2]):
            for order in range(3):
                session.add(captured(f"o-{number}-{order}", tick - timedelta(hours=6)))
        faults.plan(session, str(days[0]), faults.Fault(at="billing.draw_up", kind="kill"))
        faults.plan(session, str(days[1]), faults.Fault(at="billing.send", kind="kill"))
        session.connection().execute(update(schema.schedules).values(next_at=ticks[0]))
    died = 0
    while died < 2:
        with shop(redis_server, url, tmp_path) as worker:
            worker.wait(90)  # kill -9, twice
            died += 1
    with shop(redis_server, url, tmp_path):
        wait_for(lambda: len(sent(store)) == 6, 90, "all invoices were sent")
        wait_for(lambda: len(stored.ticks(store, "nightly_billing")) == 3, 60, "every night was billed")
    assert {invoice.reference: (invoice.day, invoice.amount) for invoice in sent(store)} == {
        f"o-{number}-{order}": (days[number], 1250) for number in range(2) for order in range(3)
    }
    rows = stored.ticks(store, "nightly_billing")
    assert [(tick.at, tick.outcome) for tick in reversed(rows)] == [(tick, "STARTED") for tick in ticks]
    assert len({tick.saga_id for tick in rows}) == 3
    store.engine.dispose()


def captured(order: str, at: datetime) -> tables.Entry:
    return tables.Entry(
        at=at.astimezone(UTC), participant="payments", entry="captured", reference=order, key=order,
        account="payments/till", amount=1250,
    )  # fmt: skip


def sent(store: SqlStore) -> list[tables.Invoice]:
    with Session(store.engine) as session:
        return list(session.scalars(select(tables.Invoice).where(tables.Invoice.sent)))


def test_a_day_is_that_of_the_shop() -> None:
    """25 October 2026 has 25 hours in Vienna: it is billed once, at 02:00 of the next day."""
    [tick] = nightly_billing.next_times(datetime(2026, 10, 25, 12, tzinfo=UTC), 1)
    assert tick.isoformat() == "2026-10-26T02:00:00+01:00"
    assert nightly_billing.input_of(tick).day == date(2026, 10, 25)
