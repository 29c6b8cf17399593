"""Serves a worker's metrics: an HTTP server in its main process, for all of its child processes."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import Any

import click
from celery import bootsteps
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from sagas.app import Sagas
from sagas.contrib.prometheus.counters import Metrics
from sagas.contrib.prometheus.snapshot import Snapshot
from sagas.errors import ConfigurationError

__all__ = ["MetricsStep", "export"]

logger = logging.getLogger(__name__)

#: Where the child processes of a prefork pool store their counts. This is prometheus_client's own variable.
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_OPTION = "--metrics-address"


def export(sagas: Sagas) -> None:
    """Count what happens, and give workers the option `--metrics-address HOST:PORT` to serve the metrics.

    Call it once, where the app is created. A worker with the prefork pool needs its own folder, in the variable
    PROMETHEUS_MULTIPROC_DIR, through which its child processes report their counts.
    """
    if folder := os.environ.get(_FOLDER):
        Path(folder).mkdir(parents=True, exist_ok=True)
    sagas.observers.add(Metrics())
    sagas.app.user_options["worker"].add(
        click.Option(
            [_OPTION],
            metavar="[HOST:]PORT",
            envvar="SAGAS_METRICS_ADDRESS",
            help="Serve Prometheus metrics at this address. Without a host, only to this machine.",
        )
    )
    sagas.app.steps["worker"].add(MetricsStep)


class MetricsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Serves metrics from a worker's main process, if it has an address."""

    def __init__(self, parent: Any, metrics_address: str | None = None, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.enabled = metrics_address is not None
        if metrics_address is None:
            return
        self._host, self._port = _address(metrics_address)
        self._registry = REGISTRY
        if folder := os.environ.get(_FOLDER):
            self._lock = _take(Path(folder))  # for as long as this process lives
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, folder)
        elif parent.pool_cls.__module__.endswith("prefork"):
            raise ConfigurationError(
                f"{_OPTION}: the counts of the prefork pool's child processes would be lost. Before the worker starts, "
                f"set {_FOLDER} to its own folder, such as /run/shop/payments-1; or use --pool threads"
            )
        self._registry.register(Snapshot(parent.app.sagas))

    def start(self, parent: Any) -> None:  # noqa: ARG002
        try:
            self._server, _ = start_http_server(self._port, self._host, self._registry)
        except OSError as error:
            raise ConfigurationError(
                f"{_OPTION} {self._host}:{self._port}: {error.strerror}. Give each worker of a machine its own port"
            ) from error
        # A child process that outlives a killed worker must not keep its port.
        os.register_at_fork(after_in_child=self._server.socket.close)
        logger.info("metrics: http://%s:%d/metrics", self._host, self._server.server_port)

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._server.shutdown()
        self._server.server_close()

    terminate = stop


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{_OPTION} {text}: use a port or an address, such as 9101 or 0.0.0.0:9101")
    return host.strip("[]") or "127.0.0.1", int(port)


def _take(folder: Path) -> Any:
    """Lock the folder for this worker, and remove the files of an earlier one. Returns the lock."""
    lock = (folder / "lock").open("a+")
    try:
        # Child processes, which may outlive the worker, do not inherit this kind of lock.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(
            f"{_FOLDER}={folder} is in use by another worker. Give each worker its own folder, otherwise each would "
            "show the counts of both"
        ) from error
    mine = f"_{os.getpid()}.db"  # already open if a metric has no labels
    for file in folder.glob("*.db"):
        if not file.name.endswith(mine):
            file.unlink(missing_ok=True)
    return lock
