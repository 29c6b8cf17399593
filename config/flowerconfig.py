"""The configuration of the shop's Flower: `celery -A config flower --conf=config/flowerconfig.py`.

Flower gets a tab for sagas, and serves gauges of the database at /metrics, next to its own metrics.
"""

from prometheus_client import REGISTRY

from config.celery import sagas
from sagas.contrib.flower import enable
from sagas.contrib.prometheus import Snapshot

enable()
REGISTRY.register(Snapshot(sagas))
