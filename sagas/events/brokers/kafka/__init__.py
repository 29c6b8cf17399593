"""The broker on Kafka."""

from __future__ import annotations

from sagas.events.brokers.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
