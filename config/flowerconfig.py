"""What the shop's Flower reads at its start: `celery -A config flower --conf=config/flowerconfig.py`.

It has a tab for sagas, and shows what the database says of them at /metrics, beside its own metrics.
"""

from prometheus_client import REGISTRY

from config.celery import sagas
from sagas.contrib.flower import enable
from sagas.contrib.prometheus import Snapshot

enable()
REGISTRY.register(Snapshot(sagas))
