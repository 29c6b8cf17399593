"""The "Sagas" tab inside Flower: `celery -A yourapp sagas flower`, or `enable()` in a flowerconfig.py."""

from sagas.contrib.flower.app import SagasFlower, enable

__all__ = ["SagasFlower", "enable"]
