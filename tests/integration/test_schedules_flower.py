"""The page of schedules in a real Flower: what it shows, and what its buttons do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sagas import SqlStore
from sagas.stores import audit
from sagas.stores import schedules as stored
from tests.conftest import Rig
from tests.flower import Client, FlowerProcess, environment
from tests.servers import Postgres, Redis, wait_for

NIGHTLY = {"nightly": {"saga": "line", "cron": "0 2 * * *", "timezone": "Europe/Vienna"}}


@pytest.fixture(scope="module")
def rig(redis_server: Redis, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(redis_server.url, postgres.database(), tmp_path_factory.mktemp("schedules"))
    rig.configure(schedules=NIGHTLY, task_default_queue="schedules")
    rig.worker("-Q", "schedules")
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def store(rig: Rig) -> SqlStore:
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    wait_for(lambda: stored.states(store), 20, "a worker has stored the schedule")
    return store


@pytest.fixture(scope="module")
def client(rig: Rig, store: SqlStore) -> Iterator[Client]:
    with FlowerProcess(rig.folder, "--basic_auth=ann:secret", environment=environment(rig)) as process:
        yield Client(process.url, login="ann:secret")


def act(client: Client, action: str, reason: str) -> tuple[int, str]:
    path = f"/sagas/schedules/nightly/{action}"
    answer = client.post(path, {"reason": reason, "_xsrf": client.token(path)})
    return answer.status, answer.text


def test_the_page_and_its_buttons(client: Client, store: SqlStore) -> None:
    page = client.get("/sagas/schedules").text
    assert page.count(" 02:00 CE") == 5  # CET or CEST
    assert "<code>0 2 * * *</code> in Europe/Vienna" in page
    assert "No worker runs this schedule" not in page
    assert "It has had no tick." in page
    assert act(client, "pause", "the bank is closed")[0] == 302
    assert "the bank is closed" in client.get("/sagas/schedules").text
    refused = client.get("/sagas/schedules/nightly/pause")  # somebody was quicker
    assert (refused.status, 'id="sg-problem"' in refused.text) == (409, True)
    assert act(client, "resume", "it is open")[0] == 302
    status, text = act(client, "run", " ")
    assert (status, "say why" in text) == (409, True)
    assert act(client, "run", "month end")[0] == 302
    [tick] = stored.ticks(store, "nightly")
    assert (tick.outcome, tick.actor, tick.why) == ("STARTED", "ann", "by hand: month end")
    page = client.get("/sagas/schedules").text
    assert f"/sagas/saga/{tick.saga_id}" in page
    done = [(entry.what, entry.actor, entry.reason) for entry in audit.audit(store)]
    assert done == [
        ("run schedule", "ann", "month end"),
        ("resume schedule", "ann", "it is open"),
        ("pause schedule", "ann", "the bank is closed"),
    ]
    assert tick.saga_id is not None
    wait_for(lambda: store.load(tick.saga_id or "").status == "COMPLETED", 30, "the saga is done")


def test_what_is_refused(client: Client) -> None:
    assert client.get("/sagas/schedules/nope/run").status == 404
    assert client.get("/sagas/schedules/nightly/explode").status == 404
    assert client.post("/sagas/schedules/nightly/run", {"reason": "x"}).status == 403  # without a token
    assert client.post("/sagas/schedules/nightly/run", {"reason": "x"}, Origin="https://evil.example").status == 403


def test_a_read_only_flower_has_no_buttons(rig: Rig, store: SqlStore) -> None:
    with FlowerProcess(rig.folder, "--read_only", environment=environment(rig)) as process:
        client = Client(process.url)
        page = client.get("/sagas/schedules").text
        assert "nightly" in page
        assert 'id="sg-run-nightly"' not in page
        assert client.get("/sagas/schedules/nightly/run").status == 403
