"""The page on FastAPI runs as it stands there: an app in this process, a worker, and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from celery.contrib.testing.worker import start_worker
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sagas import ConfigurationError
from sagas.errors import TransactionLost
from sagas.stores import EVERYTHING
from tests.pages import fences
from tests.servers import Postgres, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "fastapi.md"
ME = {"X-User": "ann"}


@pytest.fixture
def web(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for fence in fences(PAGE, "python"):
        if fence.title is not None:
            (tmp_path / fence.title).write_text(fence.source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DATABASE_URL", postgres.database())
    monkeypatch.setenv("BROKER_URL", "memory://")
    for name in ("orders", "web"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    web = importlib.import_module("web")
    web.sagas.app.conf.update(
        broker_transport_options={"polling_interval": 0.01}, task_default_queue=f"fastapi-{tmp_path.name}"
    )
    web.store.upgrade()
    with web.store.engine.begin() as connection:
        connection.execute(text("create table orders (id varchar(50) primary key, sku varchar(50))"))
    yield web
    web.store.engine.dispose()
    for name in ("orders", "web"):
        sys.modules.pop(name, None)


def orders(web: ModuleType) -> list[str]:
    with web.store.engine.connect() as connection:
        return list(connection.execute(text("select id from orders order by id")).scalars())


async def polled(client: httpx.AsyncClient, saga_id: str) -> dict[str, object]:
    """Poll as a page would."""
    async with asyncio.timeout(30):
        while True:
            answer = await client.get(f"/sagas/{saga_id}", headers=ME)
            assert answer.status_code == 200, answer.text
            if "Retry-After" not in answer.headers:
                told: dict[str, object] = answer.json()
                return told
            await asyncio.sleep(0.05)


def test_an_order_and_its_saga(web: ModuleType) -> None:
    async def requests() -> None:
        transport = httpx.ASGITransport(app=web.api)
        async with (
            web.api.router.lifespan_context(web.api),
            httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
        ):
            placed = await client.post("/orders/ann-1", json={"sku": "tea", "cents": 450})
            assert placed.status_code == 202
            told = await polled(client, placed.json()["saga"])
            assert told["status"] == "COMPLETED"
            steps = [{"name": "reserve", "status": "DONE"}, {"name": "charge", "status": "DONE"}]
            assert told["steps"] == steps
            declined = await client.post("/orders/ann-2", json={"sku": "gold", "cents": 500_000})
            assert (await polled(client, declined.json()["saga"]))["status"] == "COMPENSATED"
            for user, saga_id in (("bob", placed.json()["saga"]), ("ann", "none")):
                assert (await client.get(f"/sagas/{saga_id}", headers={"X-User": user})).status_code == 404

    with start_worker(web.sagas.app, pool="threads", concurrency=2, perform_ping_check=False):
        asyncio.run(requests())
    assert orders(web) == ["ann-1", "ann-2"]


def test_a_request_that_comes_twice_at_the_same_moment(web: ModuleType) -> None:
    async def requests() -> None:
        transport = httpx.ASGITransport(app=web.api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:

            async def post(cents: int) -> httpx.Response:
                return await client.post("/orders/ann-1", json={"sku": "tea", "cents": cents})

            answers = await asyncio.gather(*(post(450) for _ in range(4)))
            assert {answer.status_code for answer in answers} == {202}
            assert len({answer.text for answer in answers}) == 1
            assert (await post(999)).status_code == 409
        await web.engine.dispose()

    asyncio.run(requests())
    assert orders(web) == ["ann-1"]
    assert web.store.queries.count(EVERYTHING) == 1


def test_it_is_rolled_back_with_its_caller(web: ModuleType) -> None:
    sent: list[str] = []
    web.sagas.canvas.dispatch_or_leave = lambda plan: sent.append(plan.saga_id)

    async def requests() -> None:
        order = web.Order(sku="tea", cents=1)
        async with web.new_session() as session:
            handle = await session.run_sync(lambda sync: web.place_order.start(order, key="a", session=sync))
            assert sent == []
            await session.rollback()
        async with web.new_session() as session:
            with pytest.raises(ConfigurationError, match="Of an AsyncSession give the sync_session"):
                web.place_order.start(order, key="b", session=session)
            await session.execute(text("insert into orders values ('kept', 'x')"))
            async with session.begin_nested() as savepoint:
                await session.run_sync(lambda sync: web.place_order.start(order, key="c", session=sync))
                await savepoint.rollback()
            handle = await session.run_sync(lambda sync: web.place_order.start(order, key="d", session=sync))
            assert sent == []
            await session.commit()
        assert sent == [handle.id]
        await web.engine.dispose()

    asyncio.run(requests())
    assert web.store.queries.count(EVERYTHING) == 1
    assert orders(web) == ["kept"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_every_driver_tells_of_a_transaction_that_an_error_has_undone(web: ModuleType, driver: str) -> None:
    engine = create_async_engine(web.DATABASE.replace("+psycopg", f"+{driver}"))

    async def requests() -> str:
        order = web.Order(sku="tea", cents=1)
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: web.place_order.start(order, key="lost", session=sync))
            with pytest.raises(DBAPIError):
                await session.execute(text("insert into no_such_table values (1)"))
            with pytest.raises(TransactionLost, match="a statement failed"):
                await session.commit()
        async with AsyncSession(engine) as session:
            handle = await session.run_sync(lambda sync: web.place_order.start(order, key="kept", session=sync))
            await session.commit()
        await engine.dispose()
        return str(handle.id)

    saga_id = asyncio.run(requests())
    assert wait_for(lambda: web.sagas.load(saga_id).id, 5) == saga_id
    assert web.store.queries.count(EVERYTHING) == 1
