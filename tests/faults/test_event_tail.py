"""Several processes write events and are killed meanwhile; whoever reads them all sees each committed one once."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from sqlalchemy import select

from sagas import SqlStore
from sagas.events import Projections
from sagas.stores.schema import stored_events
from tests import forks, tail
from tests.databases import database_url
from tests.rig import ROOT
from tests.servers import wait_for

#: What there must be of both before it ends.
EVENTS, KILLS = 120, 6


@pytest.mark.parametrize("database", ["postgres", "mariadb", "sqlite"])
def test_no_event_is_lost_or_out_of_order(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = database_url(request, database, tmp_path)
    kept = SqlStore(url)
    kept.upgrade()
    tail.lines.create(kept.engine)
    kept.engine.dispose()
    with (tmp_path / "log").open("wb") as log:
        family = forks.Popen(
            [sys.executable, "-m", "tests.tail", url, str(tmp_path)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(
            lambda: enough(tmp_path, naive=database == "postgres"),
            120,
            f"{EVENTS} events are committed, and {KILLS} processes killed",
        )
        (tmp_path / "stop").touch()
        assert family.wait(60) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        family.kill()
        family.wait(30)
    judge(url, tmp_path, naive=database == "postgres")


def enough(folder: Path, *, naive: bool) -> bool:
    told = sum(len(whole(file)) for file in folder.glob("committed-*"))
    killed = len(list(folder.glob("begun-*"))) - tail.WRITERS - tail.RUNNERS
    return told >= EVENTS and killed >= KILLS and (not naive or bool(missed(folder)))


def missed(folder: Path) -> set[str]:
    """Return what a reader who goes by the position alone has passed over: if there is any, it was hard enough."""
    naive = whole(folder / "read-naive")
    others = {line for file in readers(folder) for line in whole(file)}
    return {line for line in others - set(naive) if int(line.split()[0]) < int(naive[-1].split()[0])}


def readers(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("read-*")) if file.name != "read-naive"]


def judge(url: str, folder: Path, *, naive: bool) -> None:
    store = tail.store_of(url)
    try:
        with store.engine.connect() as connection:
            stored = connection.execute(select(stored_events).order_by(stored_events.c.position)).all()
        truth = [f"{row.position} {row.event_id}" for row in stored]

        # In each stream the versions have no gaps, and rise with the positions.
        streams: defaultdict[str, list[int]] = defaultdict(list)
        for row in stored:
            streams[row.stream].append(row.stream_version)
        for versions in streams.values():
            assert versions == list(range(1, len(versions) + 1))

        # What a writer was told is committed is there.
        told = {line for file in folder.glob("committed-*") for line in whole(file)}
        assert told <= {f"{row.stream} {row.stream_version}" for row in stored}

        # Every reader saw all of it, once and in order.
        for file in readers(folder):
            assert whole(file) == truth, f"{file.name} missed {sorted(set(truth) - set(whole(file)))[:9]}"

        # So did the projection, whose runners were killed too.
        Projections(store, [tail.projection]).catch_up(tail.projection)
        with store.engine.connect() as connection:
            rows = connection.execute(select(tail.lines).order_by(tail.lines.c.id))
            assert [f"{row.position} {row.event_id}" for row in rows] == truth
        print(f"{len(truth)} events", f"; a naive reader misses {len(missed(folder))}" if naive else "")
    finally:
        store.engine.dispose()


def whole(file: Path) -> list[str]:
    """Return the lines of a file that its writer, perhaps killed, has ended."""
    return file.read_text().rpartition("\n")[0].splitlines()
