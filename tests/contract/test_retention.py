"""What is kept and for how long: purges, archives, encryption and its keys, on every database."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest
from celery import Celery
from sqlalchemy import Engine, func, select

from sagas import Saga, Sagas, SagaStatus, SqlStore, Step, StepStatus
from sagas.checkpoints import DeadLetter, Direction, HistoryEntry, SagaRecord, StepRecord
from sagas.errors import ConfigurationError, KeyConflict, NotAllowed, PayloadUnreadable
from sagas.stores import Codec, Filter, reencryption, retention, schema
from sagas.stores.archive import Archive, load_archive
from sagas.stores.audit import audit
from sagas.stores.codecs import AS_STORED, PLAIN, STEP_PAYLOADS
from sagas.stores.encryption import AesGcm
from sagas.stores.reencryption import Progress, reencrypt
from sagas.stores.retention import Expired, count_expired, purge
from tests import forks
from tests.servers import wait_for

DAY = timedelta(days=1)
OLD, NEW = {"old": bytes(32)}, {"new": bytes(range(32))}
WHICH = Expired(older_than=30 * DAY)


@pytest.fixture
def engine(migrated: Engine) -> Engine:
    with migrated.begin() as connection:
        for table in (schema.sagas, schema.audit):
            connection.execute(table.delete())
    return migrated


@pytest.fixture
def store(engine: Engine) -> SqlStore:
    return SqlStore(engine)


def add(store: SqlStore, number: int, *, days: float, status: SagaStatus = SagaStatus.COMPLETED, **more: Any) -> str:
    """Store a saga with a step, its history and a resolved dead letter, that ended so many days ago."""
    at = store.now() - days * DAY
    stored = store.insert(
        SagaRecord(
            id=id_of(at, number), name=more.pop("name", "order"), version=1, key=f"key-{number}", outline='[{"step": "a"}]',
            correlation_id="c", input=f'{{"card":"4111-{number}"}}', created_at=at, updated_at=at, stage_ready_at=at,
        )
    )  # fmt: skip
    payloads: dict[str, Any] = dict.fromkeys(STEP_PAYLOADS, f'"receipt-{number}"')
    step = StepRecord(node="a", seq=1, status=StepStatus.DONE, started_seq=1, **payloads)
    entry = HistoryEntry(at=at, what="x", epoch=1, detail="ü💶")
    letter = DeadLetter(saga_id=stored.id, step="a", direction=Direction.FORWARD, error="e", created_at=at)
    after = replace(stored, status=status, **more).with_step(step)
    saved = store.save(stored, after, [entry], [letter, replace(letter, resolved_at=at, resolution="skip", reason="r")])
    assert saved is not None
    return stored.id


def id_of(at: datetime, number: int) -> str:
    digits = f"{int(at.timestamp() * 1000):012x}7{number:03x}8{0:015x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def left(store: SqlStore) -> list[str]:
    return [record.id for record in store.queries.select(after="", limit=1000)]


def rows(store: SqlStore) -> list[int]:
    tables = (schema.sagas, schema.steps, schema.history, schema.dead_letters)
    with store.engine.connect() as connection:
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


def test_only_what_has_ended_long_ago_goes(store: SqlStore) -> None:
    gone = [add(store, 1, days=31), add(store, 2, days=40, status=SagaStatus.COMPENSATED)]
    kept = [
        add(store, 3, days=29),
        *(add(store, 10 + i, days=90, status=status) for i, status in enumerate(UNFINISHED)),
        add(store, 4, days=90, updated_at=store.now()),  # began long ago and ended now
    ]
    waits = add(store, 5, days=90, status=SagaStatus.COMPENSATED)
    record = store.load(waits)
    letter = DeadLetter(saga_id=waits, step="a", direction=Direction.FORWARD, error="late", created_at=store.now())
    assert store.save(record, replace(record, epoch=2), dead_letters=[letter])
    assert count_expired(store, WHICH) == 2
    assert sum(purge(store, WHICH, reason="policy", actor="ann")) == 2
    assert left(store) == sorted([*kept, waits])
    assert rows(store) == [7, 7, 7, 8]
    assert not set(gone) & set(left(store))
    [entry] = audit(store)
    assert (entry.what, entry.actor, entry.reason, entry.count) == ("purge", "ann", "policy", 2)
    assert list(purge(store, WHICH, reason="policy")) == []
    assert len(audit(store)) == 1


class Named(TypedDict):
    name: str


UNFINISHED = [status for status in SagaStatus if status not in WHICH.statuses]


def test_which_can_be_chosen(store: SqlStore) -> None:
    add(store, 1, days=60)
    undone = add(store, 2, days=61, status=SagaStatus.COMPENSATED)
    other = add(store, 3, days=62, name="refund")
    assert sum(purge(store, replace(WHICH, name="order", statuses=frozenset({SagaStatus.COMPLETED})), reason="x")) == 1
    assert left(store) == sorted([undone, other])
    for status in UNFINISHED:
        with pytest.raises(NotAllowed, match=f"not {status}"):
            replace(WHICH, statuses=frozenset({status, SagaStatus.COMPLETED}))
    with pytest.raises(NotAllowed, match="more than nothing"):
        Expired(older_than=timedelta())
    with pytest.raises(NotAllowed, match="say why"):
        next(purge(store, WHICH, reason=" "))


def test_batches(store: SqlStore) -> None:
    for number in range(25):
        add(store, number, days=60 + number)
    assert list(purge(store, WHICH, reason="x", batch=10)) == [10, 10, 5]
    assert rows(store) == [0, 0, 0, 0]
    assert [entry.count for entry in audit(store)] == [25]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_archived_reads_back(store: SqlStore, tmp_path: Path, name: str) -> None:
    expected = []
    for number in range(5):
        saga = add(store, number, days=60 + number)
        expected.append(
            (
                store.load(saga),
                tuple(store.queries.history(saga)),
                tuple(store.queries.dead_letters(saga, unresolved=False)),
            )
        )
    with Archive(tmp_path / name) as archive:
        assert sum(purge(store, WHICH, reason="x", archive=archive, batch=2)) == 5
    found = [(each.record, each.history, each.dead_letters) for each in load_archive(tmp_path / name)]
    assert found == expected[::-1]
    with pytest.raises(ConfigurationError, match="is there already"):
        Archive(tmp_path / name)


def test_an_archive_that_was_cut_off(store: SqlStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        add(store, number, days=60)
    for name in ("a.jsonl", "a.jsonl.gz"):
        with Archive(tmp_path / name) as archive:
            for _ in range(2):
                archive.write(list(_archived(store)))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-30])
        caplog.clear()
        assert 4 <= len(list(load_archive(tmp_path / name))) < 8
        assert "was cut off" in caplog.text
    (tmp_path / "other.jsonl").write_text('{"some": "json"}\n')
    with pytest.raises(ConfigurationError, match="line 1, is not a saga"):
        next(load_archive(tmp_path / "other.jsonl"))


def _archived(store: SqlStore) -> Iterator[Any]:
    with store.engine.connect() as connection:
        yield from retention._read(connection, left(store))


def test_what_a_worker_holds_is_left_to_the_next_run(store: SqlStore) -> None:
    if store.dialect == "sqlite":
        pytest.skip("has one writer")
    held, free = add(store, 1, days=60), add(store, 2, days=50)
    with store.engine.begin() as connection:
        connection.execute(select(schema.sagas.c.id).where(schema.sagas.c.id == held).with_for_update())
        assert list(purge(store, WHICH, reason="x")) == [1]
    assert left(store) == [held]
    assert free not in left(store)
    assert list(purge(store, WHICH, reason="x")) == [1]


def test_one_that_reopens_meanwhile_stays(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An action landed late between the search and the deletion."""
    late, other = add(store, 1, days=60, status=SagaStatus.COMPENSATED), add(store, 2, days=50)
    search = retention._page

    def then_reopen(*args: Any) -> Any:
        found = search(*args)
        record = store.load(late)
        store.save(record, record.move(SagaStatus.COMPENSATING, updated_at=store.now()))
        return found

    monkeypatch.setattr(retention, "_page", then_reopen)
    assert list(purge(store, WHICH, reason="x")) == [1]
    assert left(store) == [late]
    assert other not in left(store)


DIES = """
import os, signal, sys
from datetime import timedelta
from sagas import SqlStore
from sagas.stores.archive import Archive
from sagas.stores.retention import Expired, purge

class Dies(Archive):
    written = 0

    def write(self, sagas):
        self.written += 1
        if self.written == 3 and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(sagas)
        if self.written == 3:
            os.kill(os.getpid(), signal.SIGKILL)

for _ in purge(SqlStore(sys.argv[1]), Expired(older_than=timedelta(days=30)), reason="x", archive=Dies(sys.argv[2]), batch=3):
    pass
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_that_is_killed_loses_nothing(migrated: Engine, store: SqlStore, tmp_path: Path, moment: str) -> None:
    """Whatever is not in the tables is in an archive, on whichever side of the writing the run was cut off."""
    ids = [add(store, number, days=60 - number / 100) for number in range(12)]
    url, file = migrated.url.render_as_string(hide_password=False), tmp_path / "1.jsonl.gz"
    died = forks.run([sys.executable, "-c", DIES, url, str(file), moment], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    archived = [each.record.id for each in load_archive(file)]
    assert archived == ids[: 6 if moment == "before" else 9]
    assert left(store) == ids[6:]
    with Archive(tmp_path / "2.jsonl.gz") as archive:

        def done() -> bool:  # the database may take a moment to notice that the other is gone
            return bool(sum(purge(store, WHICH, reason="x", archive=archive))) and not left(store)

        wait_for(done, 20, "the rows are free and gone")
    assert [each.record.id for each in load_archive(tmp_path / "2.jsonl.gz")] == ids[6:]
    assert sum(entry.count for entry in audit(store)) == 12


def test_an_archive_that_cannot_be_written_keeps_the_sagas(store: SqlStore, tmp_path: Path) -> None:
    class Full(Archive):
        def write(self, sagas: Any) -> None:
            raise OSError("no space left on device")

    saga = add(store, 1, days=60)
    with pytest.raises(OSError, match="no space"), Full(tmp_path / "a.jsonl") as archive:
        list(purge(store, WHICH, reason="x", archive=archive))
    assert left(store) == [saga]
    assert audit(store) == []
    assert not (tmp_path / "a.jsonl").exists()


# -- encryption -----------------------------------------------------------------------------------------------------


def stored(store: SqlStore) -> list[str]:
    with store.engine.connect() as connection:
        inputs = connection.execute(select(schema.sagas.c.input)).scalars().all()
        steps = connection.execute(select(*(schema.steps.c[column] for column in STEP_PAYLOADS)))
        return [*inputs, *(payload for step in steps for payload in step)]


def with_codec(store: SqlStore, codec: Codec) -> SqlStore:
    return SqlStore(store.engine, codec=codec)


def test_payloads_are_stored_encrypted(store: SqlStore) -> None:
    sealed = with_codec(store, AesGcm(NEW, current="new"))
    saga = add(sealed, 1, days=1)
    assert all(text.startswith("~aesgcm:new:") for text in stored(store))
    assert not any("4111" in text or "receipt" in text for text in stored(store))
    assert sealed.load(saga).input == '{"card":"4111-1"}'
    assert sealed.load(saga).step("a").result == '"receipt-1"'
    assert sealed.queries.resolve("key-1").id == sealed.queries.resolve(saga).id == saga
    assert [each.id for each in sealed.queries.select(Filter(name="order", key="key-1"))] == [saga]
    with pytest.raises(PayloadUnreadable, match=r":input is encrypted, and this store has no codec"):
        store.load(saga)


def test_a_moved_or_changed_value_is_refused(store: SqlStore) -> None:
    sealed = with_codec(store, AesGcm(NEW, current="new"))
    one, two = add(sealed, 1, days=1), add(sealed, 2, days=1)
    table = schema.sagas
    with store.engine.begin() as connection:
        theirs = connection.execute(select(table.c.input).where(table.c.id == two)).scalar_one()
        connection.execute(table.update().where(table.c.id == one).values(input=theirs))
    with pytest.raises(PayloadUnreadable, match=f"{one}:input is not what was encrypted"):
        sealed.load(one)
    for text_, says in (
        (theirs[:-8] + "AAAAAAA=", "is not what was encrypted"),
        ("~aesgcm:new:%%", "is not what was encrypted"),
        (theirs.replace(":new:", ":gone:"), "with the key 'gone', and there is only 'new'"),
        ("~other:x", "with the key '~other'"),
        ('{"card":"1"}', "is not encrypted, and this store reads nothing else"),
    ):
        with store.engine.begin() as connection:
            connection.execute(table.update().where(table.c.id == one).values(input=text_))
        with pytest.raises(PayloadUnreadable, match=says):
            sealed.load(one)
    assert sealed.load(two).input == '{"card":"4111-2"}'


def test_a_key_is_rotated(store: SqlStore) -> None:
    plain = add(store, 1, days=1)
    old = add(with_codec(store, AesGcm(OLD, current="old")), 2, days=1)
    both = with_codec(store, AesGcm(OLD | NEW, current="new", reads_plain=True))
    new = add(both, 3, days=1)
    before = {saga: both.load(saga) for saga in (plain, old, new)}
    assert list(reencrypt(both, reason="rotation", actor="ann", batch=2)) == [Progress(2, 2), Progress(3, 2)]
    assert all(text.startswith("~aesgcm:new:") for text in stored(store))
    only_new = with_codec(store, AesGcm(NEW, current="new"))
    for saga, record in before.items():
        assert only_new.load(saga) == replace(record, revision=record.revision + (saga != new))
    assert list(reencrypt(both, reason="again")) == [Progress(3, 0)]
    assert [(entry.what, entry.count) for entry in audit(store)] == [("reencrypt", 2)]
    with pytest.raises(NotAllowed, match="say why"):
        next(reencrypt(both, reason=""))


def test_rotation_beside_workers_loses_no_save(store: SqlStore) -> None:
    """Savers go on by compare-and-set, as workers do; what they count must all be there at the end."""
    old = with_codec(store, AesGcm(OLD, current="old"))
    ids = [add(old, number, days=1) for number in range(10)]
    both = with_codec(store, AesGcm(OLD | NEW, current="new"))
    stop, counts = threading.Event(), dict.fromkeys(ids, 0)

    def work(saga: str) -> None:
        while not stop.is_set():
            record = both.load(saga)
            step = replace(record.step("a"), lost=record.step("a").lost + 1, result=f'"{record.step("a").lost + 1}"')
            if both.save(record, record.with_step(step)):
                counts[saga] += 1
            time.sleep(0.02)  # as a step would take

    threads = [threading.Thread(target=work, args=(saga,)) for saga in ids[:3]]
    for thread in threads:
        thread.start()
    try:
        assert list(reencrypt(both, reason="x", batch=4))[-1].seen == 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert list(reencrypt(both, reason="x"))[-1] == Progress(10, 0)
    for saga, count in counts.items():
        step = with_codec(store, AesGcm(NEW, current="new")).load(saga).step("a")
        assert (step.lost, step.result) == (count, f'"{count}"' if count else step.result)


def test_rotation_never_overwrites_what_is_younger(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker saves between what rotation has read and what it writes."""
    saga = add(with_codec(store, AesGcm(OLD, current="old")), 1, days=1)
    both = with_codec(store, AesGcm(OLD | NEW, current="new"))
    look = reencryption._stale
    saved: list[Any] = []

    def then_save(*args: Any) -> Any:
        found = look(*args)
        if not saved:
            record = both.load(saga)
            saved.append(both.save(record, record.with_step(replace(record.step("a"), result='"younger"'))))
        return found

    monkeypatch.setattr(reencryption, "_stale", then_save)
    assert list(reencrypt(both, reason="x")) == [Progress(1, 1)]
    record = with_codec(store, AesGcm(NEW, current="new")).load(saga)
    assert record.step("a").result == '"younger"'
    assert record.revision == saved[0].revision + 1


def test_an_archive_holds_what_was_stored(store: SqlStore, tmp_path: Path) -> None:
    sealed = with_codec(store, AesGcm(NEW, current="new"))
    saga = add(sealed, 1, days=60)
    record = sealed.load(saga)
    file = tmp_path / "a.jsonl"
    with Archive(file) as archive:
        assert sum(purge(store, WHICH, reason="x", archive=archive)) == 1  # needs no key
    assert "4111" not in file.read_text()
    assert json.loads(file.read_text())["record"]["input"].startswith("~aesgcm:new:")
    assert next(load_archive(file, sealed.codec)).record == record
    assert next(load_archive(file, AS_STORED)).record.id == saga
    with pytest.raises(PayloadUnreadable):
        next(load_archive(file, PLAIN))


def test_a_key_with_another_input_is_refused_also_where_inputs_are_encrypted(store: SqlStore) -> None:
    app = Celery("keep", broker="memory://", set_as_current=False)
    saga = Saga("greet", Step("hello", lambda: "hi", compensation=None), input=Named)
    sagas = Sagas(app, with_codec(store, AesGcm(NEW, current="new")), [saga])
    first = saga.start({"name": "ann"}, key="k")
    assert saga.start({"name": "ann"}, key="k").id == first.id
    with pytest.raises(KeyConflict):
        saga.start({"name": "bob"}, key="k")
    assert sagas.find("greet", "k").id == first.id
    app.close()


def test_keys_that_cannot_be() -> None:
    for keys, current, says in (
        (NEW, "old", "current='old' is none of the keys: 'new'"),
        ({"a:b": bytes(32)}, "a:b", "key id 'a:b'"),
        ({"a": bytes(31)}, "a", "key 'a' must be 16, 24 or 32"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            AesGcm(keys, current=current)
    assert "\\x" not in repr(AesGcm(NEW, current="new"))


def test_a_child_is_kept_as_long_as_the_top_of_its_tree_is_unfinished(store: SqlStore) -> None:
    """The root may still compensate, and with it a child of a child, though the one between the two is COMPLETED."""
    now = store.now()
    root = add(store, 1, days=90, status=SagaStatus.RUNNING)
    child = store.insert(replace(store.load(root), id=id_of(now - 80 * DAY, 2), key="c", parent_id=root, root_id=root))
    inner = store.insert(replace(child, id=id_of(now - 80 * DAY, 3), key="i", parent_id=child.id, root_id=root))
    for each in (child, inner):
        assert store.save(each, replace(each, status=SagaStatus.COMPLETED, updated_at=now - 80 * DAY)) is not None
    assert count_expired(store, WHICH) == 0
    assert list(purge(store, WHICH, reason="r")) == []
    before = store.load(root)
    store.save(before, replace(before, status=SagaStatus.COMPLETED, updated_at=now - 40 * DAY))
    assert sum(purge(store, WHICH, reason="r")) == 3
    assert left(store) == []
