"""Processes that write to an event store and read all of it meanwhile: `python -m tests.tail URL FOLDER`.

They go on until there is a file `stop`. Writers and runners work in children that are killed at any moment within their
first second, and replaced. All are forks of one process, which has imported everything.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, insert
from sqlalchemy.orm import Session

from sagas import SqlStore, StoreUnavailable
from sagas.events import ANY, EventStore, Projection, Projections, StoredEvent, event
from tests.servers import die_with_parent, wait_for

STREAMS = 6
#: The stream of the last event.
END = "end"

WRITERS = 3
RUNNERS = 2

#: What the projection writes: a line an event.
lines = Table(
    "test_tail_lines",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("event_id", String(36), nullable=False),
)


@event("tests.thing.happened")
class Happened:
    number: int


def store_of(url: str) -> EventStore:
    return EventStore(SqlStore(url).engine, [Happened])


projection = Projection("lines")


@projection.on(Happened)
def add(stored: StoredEvent[Happened], session: Session) -> None:
    session.execute(insert(lines).values(position=stored.position, event_id=stored.event_id))


def write(url: str, folder: Path, chance: random.Random) -> None:
    """Append to a few streams in one transaction, with pauses; commit most of them, and note that outside."""
    store = store_of(url)
    pause = 0.02 if url.startswith("postgres") else 0.002  # elsewhere the others wait for it
    with (folder / f"committed-{os.getpid()}").open("a") as committed:
        begun(store, folder)
        while not (folder / "stop").exists():
            appended: list[str] = []
            try:
                with Session(store.engine) as session:
                    for _ in range(chance.randint(1, 3)):
                        time.sleep(chance.random() * pause)
                        stream = f"s{chance.randrange(STREAMS)}"
                        events = [Happened(number=number) for number in range(chance.randint(1, 3))]
                        version = store.append(session, stream, events, expected=ANY)
                        appended += [f"{stream} {version - number}" for number in range(len(events))]
                        time.sleep(chance.random() * pause)
                    if chance.random() < 0.2:
                        session.rollback()
                        continue
                    session.commit()
            except StoreUnavailable:  # two that append to the same two streams the other way round
                continue
            committed.write("".join(f"{each}\n" for each in appended))
            committed.flush()


def read(url: str, folder: Path, *, naive: bool = False) -> None:
    """Read all events as they come, and note them, until the last one."""
    store = store_of(url)
    position = 0
    with (folder / f"read-{'naive' if naive else os.getpid()}").open("w") as seen:
        page: list[StoredEvent[Happened]] = []
        while not any(each.stream == END for each in page):
            if naive:  # goes by the position alone
                with store.engine.connect() as connection:
                    rows = store.rows(connection, after=position, until=None, limit=50)
                page = [store.open(row) for row in rows]
            else:
                page = store.read_all(after=position, limit=50)
            for each in page:
                seen.write(f"{each.position} {each.event_id}\n")
            seen.flush()
            if page:
                position = page[-1].position
            else:
                time.sleep(0.03)


def run(url: str, folder: Path) -> None:
    """Run the projection."""
    store = store_of(url)
    begun(store, folder)
    Projections(store, [projection], batch=20).run(threading.Event(), poll=0.05)


def begun(store: EventStore, folder: Path) -> None:
    """Note that this process is at work: it may be killed now."""
    store.safe_position()
    (folder / f"begun-{os.getpid()}").touch()


def killed_now_and_then(work: Callable[[], None], folder: Path, chance: random.Random) -> None:
    """Do some work in children that are killed, until nobody shall write any more."""
    stop = folder / "stop"
    while not stop.exists():
        child = fork(work)
        _until(lambda: (folder / f"begun-{child}").exists() or stop.exists(), 60)  # noqa: B023 - called at once
        _until(stop.exists, 0.1 + chance.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("it failed before it was killed")


def _until(condition: Callable[[], bool], timeout: float) -> None:
    with contextlib.suppress(TimeoutError):
        wait_for(condition, timeout, pause=0.03)


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        die_with_parent()
        work()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def main(url: str, given: str) -> None:
    folder = Path(given)

    def writer(seed: int) -> None:
        chance = random.Random(seed)
        killed_now_and_then(lambda: write(url, folder, random.Random(chance.random() + os.getpid())), folder, chance)

    def runner(seed: int) -> None:
        killed_now_and_then(lambda: run(url, folder), folder, random.Random(seed))

    readers = [fork(lambda: read(url, folder)) for _ in range(2)]
    if url.startswith("postgres"):
        readers.append(fork(lambda: read(url, folder, naive=True)))
    others = [fork(lambda: writer(seed)) for seed in range(WRITERS)]  # noqa: B023 - it is a fork that looks at it
    others += [fork(lambda: runner(seed)) for seed in range(RUNNERS)]  # noqa: B023
    ends = [os.waitpid(child, 0)[1] for child in others]
    # The commit of a writer that was killed may be under way in the server. Whoever sees this event has seen that too.
    store_of(url).append(None, END, [Happened(number=0)], expected=ANY)
    ends += [os.waitpid(child, 0)[1] for child in readers]
    sys.exit(any(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
