"""The broker on RabbitMQ."""

from __future__ import annotations

from sagas.events.brokers.rabbitmq.broker import RabbitBroker

__all__ = ["RabbitBroker"]
