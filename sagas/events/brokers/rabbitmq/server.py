"""A RabbitMQ server: how to connect to it, and what its errors mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import AMQPError, NotFound, PreconditionFailed
from kombu.connection import Connection
from kombu.exceptions import KombuError

from sagas.errors import BrokerUnavailable, ConfigurationError, SagaError
from sagas.events.brokers.rabbitmq.frames import forbearing

__all__ = ["ERRORS", "Server", "close", "is_another", "said"]

#: Errors of the connection. All others are our own.
ERRORS = (AMQPError, KombuError, OSError)


@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """Where it is, and how long it may take to answer."""

    url: str
    timeout: float
    options: Mapping[str, Any] = field(default_factory=dict)  #: for `kombu.Connection`

    def __repr__(self) -> str:
        return f"<RabbitBroker {Connection(self.url).as_uri()}>"

    def connect(self, *, heartbeat: float = 0) -> Connection:
        """Open a connection. It belongs to one thread at a time."""
        connection = Connection(
            self.url,
            heartbeat=heartbeat,
            connect_timeout=self.timeout,
            transport_options={
                "read_timeout": self.timeout,
                "write_timeout": self.timeout,
                "confirm_publish": False,
                "frame_handler": forbearing,
            },
            **self.options,
        )
        connection.connect()
        return connection

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Open a connection for a while, and translate what goes wrong."""
        with self.asked():
            connection = self.connect()
            try:
                yield connection
            finally:
                close(connection)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Translate RabbitMQ's errors: most of them mean that the broker is unavailable."""
        try:
            yield
        except NotFound as error:
            raise BrokerUnavailable(f"{self!r}: {error.reply_text}. Declare it") from error
        except AMQPError as error:
            raise self._meaning(error) from error
        except ERRORS as error:
            raise BrokerUnavailable(f"{self!r}: {error!r}") from error

    def _meaning(self, error: AMQPError) -> SagaError:
        if is_another(error):
            return ConfigurationError(
                f"{self!r} has an exchange or queue of that name with other settings: {said(error)}. RabbitMQ cannot "
                "change it. If it belongs to another application, choose another name with Events(exchange=...)"
            )
        return BrokerUnavailable(f"{self!r}: {said(error)}")


def is_another(error: AMQPError) -> bool:
    """Tell whether RabbitMQ has something of that name which differs from what was declared."""
    return isinstance(error, PreconditionFailed) and "inequivalent arg" in said(error)


def said(error: AMQPError) -> str:
    """Return what RabbitMQ said, or else what the client did."""
    return str(error.reply_text or error)


def close(connection: Connection) -> None:
    """Close a connection that may be broken."""
    with contextlib.suppress(*ERRORS):
        connection.close()
