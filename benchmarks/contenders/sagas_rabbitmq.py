"""This library on PostgreSQL and RabbitMQ."""

from __future__ import annotations

from benchmarks.contenders.celery_based import Sagas
from tests.servers import RabbitMQ


class Contender(Sagas):
    note = "as above; messages persistent, publishes unconfirmed as by Celery's default"
    broker_type = RabbitMQ
