"""The shop's orders as a choreography: `celery -A config.choreography worker`, or `... sagas events consume`.

All five services are in this one program. To run one of them in a process, pass
`-Q inventory.reserve_stock,inventory.release_stock`, or `--queues`.
"""

from celery import Celery

from config.settings import Settings
from sagas import Sagas, SqlStore
from sagas.events import Events
from sagas.events.brokers import Broker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.events.guards import StormGuard
from tasks import tables
from tasks.choreography import SERVICES
from tasks.fulfilment import fulfil_order

__all__ = ["app", "events", "sagas", "store"]


def _broker(url: str) -> Broker:
    return RabbitBroker(url) if url.startswith("amqp") else RedisBroker(url)


settings = Settings.from_env()

app = Celery("shop_services", broker=settings.broker_url)
app.conf.broker_connection_retry_on_startup = True

store = SqlStore(settings.database_url)
tables.ShopSession.configure(bind=store.engine)

events = Events(
    SERVICES,
    engine=store.engine,
    broker=_broker(settings.broker_url),
    exchange="shop.events",
    guards=StormGuard(max_hops=16),
)

sagas = Sagas(app, store, [fulfil_order], events=events)
