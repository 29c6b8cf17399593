"""Check the broker that carries Celery's messages."""

from __future__ import annotations

import math
from collections.abc import Iterator

from celery import Celery
from kombu.connection import Connection

from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.doctor.setup import longest_step

__all__ = ["UNREACHABLE", "examine"]

UNREACHABLE = "broker-unreachable"

#: Celery's default, in seconds.
_VISIBILITY = 3600.0


def examine(app: Celery, timeout: float) -> Iterator[Finding]:
    """Check the broker. `timeout`: seconds that it has to answer."""
    with app.connection_for_write(connect_timeout=timeout) as connection:
        yield _reach(connection, timeout)
        if connection.transport.driver_type == "redis":
            yield from _redis(app, dict(connection.transport_options))


def _reach(connection: Connection, timeout: float) -> Finding:
    where = connection.as_uri()  # without the password
    try:
        # A channel too: with some transports, a connection alone contacts nothing.
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
        connection.channel().close()
    except Exception as error:  # noqa: BLE001 - whatever a transport raises
        return problem(
            UNREACHABLE,
            f"the broker {where} does not answer: {error}. Sagas can be started, but they wait",
            "start the broker or fix broker_url; recovery dispatches the waiting sagas within redispatch_after",
        )
    return ok("broker", f"the broker {where} answers")


def _redis(app: Celery, options: dict[str, float]) -> Iterator[Finding]:
    if not options.get("socket_timeout"):
        yield warning(
            "socket-timeout",
            "broker_transport_options has no socket_timeout: publishing on a Redis connection that hangs waits "
            "forever, also in workers and their recovery",
            'set broker_transport_options = {"socket_timeout": 30}',
        )
    visibility, longest = float(options.get("visibility_timeout") or _VISIBILITY), longest_step(app.sagas)
    if visibility <= longest:
        yield warning(
            "visibility-timeout",
            f"visibility_timeout is {visibility:g} s, but a step may take {longest:g} s: Redis then redelivers its "
            "message while the step runs. The duplicate is dropped, but costs a database query",
            f"set visibility_timeout in broker_transport_options above {math.ceil(longest)}",
        )
