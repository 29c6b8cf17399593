"""The shop's Celery app, and the sagas in it: `celery -A config worker`."""

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
from tasks.orders import place_order
from tasks.transfers import transfer_money

__all__ = ["app", "sagas", "store"]

TRANSPORT_ALIASES["filesystem"] = "config.folder_broker:Transport"

settings = Settings.from_env()

app = Celery("shop", broker=settings.broker_url)
app.conf.update(
    broker_transport_options=settings.broker_transport_options,
    broker_connection_retry_on_startup=True,
    # For whatever no step's `queue` says otherwise about.
    task_default_queue="shop",
    # A message fetched ahead is out of the other workers' reach, and with a killed worker it is lost until recovery
    # notices. Steps take far longer than fetching one, so nothing is gained by it.
    worker_prefetch_multiplier=1,
    # What Flower shows. It cannot look into a folder of messages.
    worker_send_task_events=settings.broker_folder is None,
    task_send_sent_event=settings.broker_folder is None,
)

store = SqlStore(settings.database_url)
if store.dialect == "sqlite":

    @event.listens_for(store.engine, "connect")
    def _(connection: Any, _record: object) -> None:
        # SQLite is for demos. Its commits have to survive workers that are killed, and no power cut: without waiting
        # for the disk they are ten times as fast.
        connection.execute("PRAGMA synchronous = NORMAL")


# The shop keeps its own tables beside those of the sagas: so a step's effect and its checkpoint are one transaction.
tables.ShopSession.configure(bind=store.engine)

sagas = Sagas(
    app,
    store,
    [place_order, transfer_money, book_stay, bill_all],
    lease=settings.lease,
    redispatch_after=settings.redispatch_after,
    recovery_interval=settings.recovery_interval,
    schedules=[nightly_billing],
)
# `--metrics-address` of workers, and which step a line of a log is about.
export(sagas)
logs.install(sagas)
