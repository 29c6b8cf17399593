"""How a worker serves its metrics: an HTTP server in its main process, for all of its children."""

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

#: Where the children of a prefork pool put what they count. It is prometheus_client's own variable.
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_OPTION = "--metrics-address"


def export(sagas: Sagas) -> None:
    """Count what happens, and give workers the option `--metrics-address HOST:PORT` to serve it.

    Call it once, where the app is made. A worker with the prefork pool needs a folder of its own, in the variable
    PROMETHEUS_MULTIPROC_DIR, through which its children hand over what they count.
    """
    if folder := os.environ.get(_FOLDER):
        Path(folder).mkdir(parents=True, exist_ok=True)
    sagas.observers.add(Metrics())
    sagas.app.user_options["worker"].add(
        click.Option(
            [_OPTION],
            metavar="[HOST:]PORT",
            envvar="SAGAS_METRICS_ADDRESS",
            help="Serve metrics for Prometheus there. Without a host, to this machine only.",
        )
    )
    sagas.app.steps["worker"].add(MetricsStep)


class MetricsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Serves metrics from the main process of a worker, if it was told where."""

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
                f"{_OPTION}: what the children of the prefork pool count would be lost. Set {_FOLDER} to a folder of "
                "this worker's own, before it starts, such as /run/shop/payments-1; or use --pool threads"
            )
        self._registry.register(Snapshot(parent.app.sagas))

    def start(self, parent: Any) -> None:  # noqa: ARG002
        try:
            self._server, _ = start_http_server(self._port, self._host, self._registry)
        except OSError as error:
            raise ConfigurationError(
                f"{_OPTION} {self._host}:{self._port}: {error.strerror}. Give each worker of a machine its own port"
            ) from error
        # A child that outlives a killed worker must not keep its port.
        os.register_at_fork(after_in_child=self._server.socket.close)
        logger.info("metrics: http://%s:%d/metrics", self._host, self._server.server_port)

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._server.shutdown()
        self._server.server_close()

    terminate = stop


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{_OPTION} {text}: it looks like 9101, or 0.0.0.0:9101")
    return host.strip("[]") or "127.0.0.1", int(port)


def _take(folder: Path) -> Any:
    """Make the folder this worker's, and clean it of what an earlier one left. Returns what holds it."""
    lock = (folder / "lock").open("a+")
    try:
        # A lock of this kind is not passed on to children, which may outlive the worker.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(
            f"{_FOLDER}={folder} is in use by another worker. Give each a folder of its own, else each would show "
            "what both count"
        ) from error
    mine = f"_{os.getpid()}.db"  # open already, where a metric has no labels
    for file in folder.glob("*.db"):
        if not file.name.endswith(mine):
            file.unlink(missing_ok=True)
    return lock
