"""What several brokers need: reset after a fork, send heartbeats, and read headers from any sender."""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Container, Iterable
from typing import Any, Protocol

from sagas.errors import ConfigurationError
from sagas.text import clean, is_clean

__all__ = ["CONTENT_TYPE", "Heartbeat", "exchange_of", "in_forks", "is_bound", "of_any_version", "text_of", "texts"]

logger = logging.getLogger(__name__)


#: The header with the media type of the body, whatever the broker calls it.
CONTENT_TYPE = "content-type"


class _Inherited(Protocol):
    def after_fork(self) -> None:
        """In a child process: drop the connections, threads and locks, which belong to its parent."""


_ALL: weakref.WeakSet[_Inherited] = weakref.WeakSet()


def in_forks(thing: _Inherited) -> None:
    """Call the object's `after_fork` in every fork of this process."""
    _ALL.add(thing)


def _after_fork() -> None:
    for thing in list(_ALL):
        thing.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Beating(Protocol):
    def beat(self) -> None:
        """Send a heartbeat for this reader."""


class Heartbeat:
    """A thread that sends heartbeats for readers while their own threads handle what they received.

    The thread ends when no reader is left. A reader that is dropped without being closed counts as gone, and in a fork
    all of them do.
    """

    def __init__(self, lease: float) -> None:
        self._pause = lease / 3
        self.after_fork()
        in_forks(self)

    def after_fork(self) -> None:
        """Forget all readers."""
        self._readers: weakref.WeakSet[_Beating] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, reader: _Beating) -> None:
        with self._lock:
            self._readers.add(reader)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sagas-readers", daemon=True)
                self._thread.start()

    def discard(self, reader: _Beating) -> None:
        with self._lock:
            self._readers.discard(reader)

    def _run(self) -> None:
        while True:
            time.sleep(self._pause)
            with self._lock:
                readers = list(self._readers)
                if not readers:
                    self._thread = None
                    return
            for reader in readers:
                try:
                    reader.beat()
                except Exception as error:  # noqa: BLE001 - the broker is unavailable: the reader itself reports it
                    logger.debug("%r: could not send a heartbeat to the broker: %r", reader, error)
            del readers, reader  # else this thread would keep them alive


def of_any_version(topic: str) -> str:
    """Return the topic that stands for all versions of a type: `orders.order.placed.*`."""
    return f"{topic.rpartition('.')[0]}.*"


def is_bound(topic: str, topics: Container[str]) -> bool:
    """Return whether a queue that is bound to `topics` receives messages of `topic`."""
    return topic in topics or of_any_version(topic) in topics


def exchange_of(declared: str | None) -> str:
    """Return the exchange that a broker has declared. Raises `ConfigurationError` if it has declared none."""
    if declared is None:
        raise ConfigurationError(
            "this broker does not know which exchange to publish to. Call declare(topology) once in each process "
            "before the first publish, even if the process only publishes"
        )
    return declared


def texts(headers: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    r"""Return headers as text, whatever their sender set them to.

    Nothing is lost: bytes that are not text become base64, and a repeated name becomes a JSON array.

    >>> texts([("trace", b"1-2"), ("id", b"\xff"), ("retries", 3), ("tag", "a"), ("tag", "b")])
    {'trace': '1-2', 'id': 'base64:/w==', 'retries': '3', 'tag': '["a", "b"]'}
    """
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(text_of(name), []).append(text_of(value))
    return {name: values[0] if len(values) == 1 else json.dumps(values) for name, values in found.items()}


def text_of(value: Any) -> str:
    """Return any value as text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            text = bytes(value).decode()
        except UnicodeDecodeError:
            text = "\0"
        return text if is_clean(text) else f"base64:{base64.b64encode(value).decode()}"
    try:
        return clean(json.dumps(value, default=_inner))
    except (TypeError, ValueError, RecursionError):
        return clean(repr(value))


def _inner(value: Any) -> str:
    return text_of(value) if isinstance(value, bytes | bytearray | memoryview) else str(value)
