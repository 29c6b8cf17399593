"""Callers in an event loop, on real databases and workers: they block nothing and take no thread each."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from sagas import (
    COMPENSATE,
    Child,
    ConfigurationError,
    NotAllowed,
    Saga,
    SagaNotFound,
    Sagas,
    SagaStatus,
    SqlStore,
    StartStatus,
    Step,
    Wait,
)
from sagas.causes import Cause, within
from sagas.contrib.flask import FlaskSagas, current_sagas
from tests.conftest import Rig
from tests.rig import Faults
from tests.servers import free_port

DONE = SagaStatus.COMPLETED


def test_five_hundred_wait_in_one_loop(rig: Rig) -> None:
    rig.worker(concurrency=2)
    line = rig.saga("line")

    async def main() -> tuple[list[Any], int, float]:
        results = await line.astart_many((Faults(), f"o-{n}") for n in range(500))
        before, most, longest = threading.active_count(), 0, 0.0
        handles = [result.handle for result in results if result.handle is not None]
        waiting = asyncio.gather(*(handle.await_end(timeout=300) for handle in handles))
        last = time.monotonic()
        while not waiting.done():
            await asyncio.sleep(0.02)
            most, longest = max(most, threading.active_count()), max(longest, time.monotonic() - last)
            last = time.monotonic()
        return await waiting, most - before, longest

    ends, threads, longest = asyncio.run(main())
    assert ends == [DONE] * 500
    assert threads <= 4
    assert longest < 20  # a call that blocks for each of them would take minutes


def test_each_call_has_its_twin(rig: Rig) -> None:
    rig.worker()
    line = rig.saga("line")

    async def main() -> None:
        with within(Cause("e-1", "c-1")):
            handle = await line.astart(Faults(), key="a")
        assert (await handle.arecord()).correlation_id == "c-1"
        assert await line.astart(Faults(), key="a") == handle
        assert await handle.await_end(timeout=30) is DONE
        assert await handle.astatus() is DONE
        assert await handle.aresult() == handle.result
        with pytest.raises(NotAllowed):
            await handle.acancel()
        assert await rig.sagas.afind("line", "a") == handle
        assert await rig.sagas.ahandle(handle.id) == handle
        with pytest.raises(SagaNotFound):
            await rig.sagas.ahandle("nope")

    asyncio.run(main())


def small() -> Saga:
    return Saga("small", Step("a", lambda: 1, compensation=None))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_asynchronous_session(postgres: Any, driver: str) -> None:
    """The broker is away: to send to it takes seconds, and none of them is the loop's."""
    url = postgres.database()
    store = SqlStore(url)
    store.upgrade()
    app = Celery("t", broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": 1}
    saga = small()
    Sagas(app, store, [saga])
    engine = create_async_engine(url.replace("+psycopg", f"+{driver}"))

    async def main() -> None:
        async with AsyncSession(engine) as session:
            await saga.astart(key="gone", session=session)
            await saga.astart_many([(None, "gone too")], session=session)
            await session.rollback()
            handle = await saga.astart(key="kept", session=session)
            results = await saga.astart_many([(None, "kept"), (None, "many 'x'")], session=session)
            assert [result.status for result in results] == [StartStatus.EXISTING, StartStatus.STARTED]
            with pytest.raises(SagaNotFound):
                await handle.await_end(timeout=5)
            before = time.monotonic()
            await session.commit()
            assert time.monotonic() - before < 1
        async with engine.begin() as connection:
            await saga.astart(key="by connection", session=connection)
        with pytest.raises(ConfigurationError, match="is not an AsyncSession"):
            await saga.astart(session=session.sync_session)  # type: ignore[arg-type]
        assert await handle.astatus() is SagaStatus.PENDING
        await engine.dispose()

    asyncio.run(main())
    assert {each.key for each in store.queries.select()} == {"kept", "many 'x'", "by connection"}
    store.engine.dispose()


@pytest.fixture
def sagas(tmp_path: Path) -> Iterator[Sagas[SqlStore]]:
    store = SqlStore(f"sqlite:///{tmp_path / 'x.db'}")
    store.upgrade()
    app = Celery("t", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    yield Sagas(app, store, [small()])
    store.engine.dispose()


def test_a_forked_child_has_threads_of_its_own(sagas: Sagas[SqlStore]) -> None:
    saga = sagas.orchestrator.sagas["small", 1]

    async def main(key: str) -> SagaStatus:
        handle = await saga.astart(key=key)
        return await handle.await_end(timeout=20)

    assert asyncio.run(main("parent")) is DONE
    child = os.fork()
    if not child:
        done = False
        try:
            done = asyncio.run(asyncio.wait_for(main("child"), 30)) is DONE
        finally:
            os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(main("parent again")) is DONE


def test_many_at_once_in_a_loop(sagas: Sagas[SqlStore]) -> None:
    saga = sagas.orchestrator.sagas["small", 1]

    async def main() -> None:
        handles = await asyncio.gather(*(saga.astart(key=f"k-{n % 10}") for n in range(40)))
        assert len(set(handles)) == 10
        assert {await handle.await_end(timeout=5) for handle in handles} == {DONE}

    asyncio.run(main())


class Base(DeclarativeBase): ...


def test_an_async_view_of_flask(tmp_path: Path) -> None:
    db, saga = SQLAlchemy(model_class=Base), small()
    app = Flask("shop")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'app.db'}",
        CELERY={"broker_url": "memory://", "task_always_eager": True},
    )
    db.init_app(app)
    FlaskSagas(db, [saga], app=app)
    with app.app_context():
        current_sagas().store.upgrade()

    async def place() -> dict[str, str]:
        handle = await saga.astart(key="kept")
        await saga.astart_many([(None, "many")])
        db.session.commit()
        again = await saga.astart(key="rolled back")
        db.session.rollback()
        return {"end": await handle.await_end(timeout=5), "gone": again.id}

    with app.test_request_context():
        answer = app.ensure_sync(place)()
        assert answer["end"] == "COMPLETED"
        assert {each.key for each in current_sagas().store.queries.select()} == {"kept", "many"}


def test_what_a_signal_leads_to_in_the_parent_is_not_done_in_the_loop(postgres: Any) -> None:
    url = postgres.database()
    app = Celery("small", broker="memory://", set_as_current=False)
    store = SqlStore(url)
    store.upgrade()
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    parent = Saga("parent", Child("ask", asks))
    sagas = Sagas(app, store, [parent])
    handle = parent.start()
    sagas.orchestrator.perform(handle.id, "ask", 1)
    threads: list[int] = []
    examine = sagas.orchestrator.examine

    def examined(saga_id: str) -> Any:
        threads.append(threading.get_ident())
        return examine(saga_id)

    sagas.orchestrator.examine = examined  # type: ignore[method-assign]

    async def main() -> None:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            await sagas.asignal("asks", f"{handle.id}:ask", "answer", payload=True, session=session)
            await session.commit()
        assert await handle.await_end(timeout=30) is DONE
        await engine.dispose()

    asyncio.run(main())
    assert threads
    assert threading.get_ident() not in threads
    store.engine.dispose()
