"""Metrics for Prometheus: counters of workers, and gauges of the database. `pip install celery-sagas[prometheus]`.

::

    sagas = Sagas(app, store, [place_order])
    export(sagas)  # workers then have the option --metrics-address

docs/monitoring.md lists the metrics and alerts.
"""

from sagas.contrib.prometheus.counters import Metrics
from sagas.contrib.prometheus.serving import export
from sagas.contrib.prometheus.snapshot import Snapshot

__all__ = ["Metrics", "Snapshot", "export"]
