"""The shop's Celery app and its sagas: `celery -A config worker`."""

from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from sqlalchemy import event

from config.settings import Settings
from sagas import Sagas, SqlStore, logs
from sagas.contrib.prometheus import export
from tasks import tables
from tasks.billing import bill_all, nightly_billing
from tasks.bookings import book_stay
from tasks.expenses import pay_expense
from tasks.orders import place_order
from tasks.transfers import transfer_money
from tasks.trips import book_trip
from tasks.wholesale import wholesale_order

__all__ = ["app", "sagas", "store"]

TRANSPORT_ALIASES["filesystem"] = "config.folder_broker:Transport"

settings = Settings.from_env()

app = Celery("shop", broker=settings.broker_url)
app.conf.update(
    broker_transport_options=settings.broker_transport_options,
    broker_connection_retry_on_startup=True,
    # For tasks of steps without a `queue`.
    task_default_queue="shop",
    # A prefetched message is out of other workers' reach and, if its worker is killed, lost until recovery notices.
    # Steps take far longer than fetching a message, so prefetching gains nothing.
    worker_prefetch_multiplier=1,
    # For Flower. It cannot inspect a folder of messages.
    worker_send_task_events=settings.broker_folder is None,
    task_send_sent_event=settings.broker_folder is None,
)

store = SqlStore(settings.database_url)
if store.dialect == "sqlite":

    @event.listens_for(store.engine, "connect")
    def _(connection: Any, _record: object) -> None:
        # SQLite is for demos. Its commits must survive killed workers, but not power cuts: without waiting for the
        # disk, they are ten times as fast.
        connection.execute("PRAGMA synchronous = NORMAL")


# The shop's own tables are in the sagas' database, so that a step's effect and its checkpoint share a transaction.
tables.ShopSession.configure(bind=store.engine)

sagas = Sagas(
    app,
    store,
    [place_order, transfer_money, book_stay, bill_all, book_trip, pay_expense, wholesale_order],
    lease=settings.lease,
    redispatch_after=settings.redispatch_after,
    recovery_interval=settings.recovery_interval,
    schedules=[nightly_billing],
)
# Adds the workers' option `--metrics-address`, and the saga and step to log lines.
export(sagas)
logs.install(sagas)
