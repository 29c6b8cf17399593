"""The thread that keeps the readers of a process alive."""

from __future__ import annotations

import gc
import os
import threading

from sagas.events.brokers.shared import Heartbeat
from tests.servers import wait_for


class Reader:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1
        if self.beats % 2:
            raise ConnectionError("the broker is away")


def _threads() -> int:
    return sum(thread.name == "sagas-readers" for thread in threading.enumerate())


def test_readers_are_kept_alive_until_they_are_closed_or_forgotten() -> None:
    before = _threads()
    heartbeat = Heartbeat(0.03)
    closed, forgotten = Reader(), [Reader()]
    heartbeat.add(closed)
    heartbeat.add(forgotten[0])
    wait_for(lambda: closed.beats > 3 and forgotten[0].beats > 3, 10)
    assert _threads() == before + 1
    heartbeat.discard(closed)
    forgotten.clear()

    def nobody_is_left() -> bool:
        gc.collect()
        return _threads() == before

    wait_for(nobody_is_left, 10, "the thread ends")
    beats = closed.beats
    heartbeat.add(closed)
    wait_for(lambda: closed.beats > beats, 10, "it begins again")
    heartbeat.discard(closed)


def test_a_fork_has_a_thread_of_its_own() -> None:
    heartbeat = Heartbeat(0.03)
    reader = Reader()
    heartbeat.add(reader)
    child = os.fork()
    if child == 0:
        try:
            own = Reader()
            heartbeat.add(own)
            wait_for(lambda: own.beats > 2, 10)
            os._exit(reader.beats > 1000)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    heartbeat.discard(reader)
