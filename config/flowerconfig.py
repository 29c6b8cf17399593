"""How the shop's Flower runs: `celery -A config flower --conf=config/flowerconfig.py`.

It shows what the database says at /metrics, beside its own metrics.
"""

from prometheus_client import REGISTRY

from config.celery import sagas
from sagas.contrib.prometheus import Snapshot

REGISTRY.register(Snapshot(sagas))
