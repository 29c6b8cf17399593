"""The tab for sagas in Flower, asked as programs and forms ask: who may do what, and the API."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flower
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from tornado.web import create_signed_value

from sagas import SagaHandle, SagaRecord, SagaStatus, SqlStore, StepRecord, StepStatus
from sagas.checkpoints import HistoryEntry
from sagas.stores import schema
from tests import forks
from tests.conftest import Rig
from tests.flower import Client, FlowerProcess, environment, running_rig, stuck
from tests.rig import ROOT
from tests.servers import Postgres, Redis, wait_for

#: Flower 2.0 knows no --read-only.
OLD = flower.__version__.startswith("2.0.")


@pytest.fixture(scope="module")
def rig(redis_server: Redis, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(redis_server, postgres, tmp_path_factory.mktemp("flower"), "flower") as rig:
        yield rig


@pytest.fixture(scope="module")
def open_flower(rig: Rig) -> Iterator[FlowerProcess]:
    with FlowerProcess(rig.folder, environment=environment(rig, FLOWER_UNAUTHENTICATED_API="true")) as process:
        yield process


@pytest.fixture(scope="module")
def closed_flower(rig: Rig) -> Iterator[FlowerProcess]:
    with FlowerProcess(
        rig.folder, "--basic-auth=ann:tea,bob:milk", "--url-prefix=ops/flower", environment=environment(rig)
    ) as process:
        yield process


@pytest.fixture(scope="module")
def only_read(rig: Rig) -> Iterator[FlowerProcess]:
    """Flower as somebody runs it already, with a configuration file that shows sagas too."""
    config = rig.folder / "flowerconfig.py"
    config.write_text("from sagas.contrib.flower import enable\nenable()\n")
    options = [f"--conf={config}"] + ([] if OLD else ["--read-only"])
    settings = environment(
        rig, FLOWER_UNAUTHENTICATED_API="true", FLOWER_SAGAS_ALLOWED_HOSTS="ops.example.com,.example.net"
    )
    with FlowerProcess(rig.folder, *options, words=("flower",), environment=settings) as process:
        yield process


@pytest.fixture(scope="module")
def untouched(rig: Rig) -> SagaHandle:
    """A stuck saga that nothing is ever done to."""
    return stuck(rig)


def done_by(rig: Rig, saga_id: str) -> list[tuple[str | None, str]]:
    return [(entry.actor, entry.what) for entry in rig.sagas.store.queries.history(saga_id) if entry.actor]


# -- the API ----------------------------------------------------------------------------------------------------------


def test_the_api(rig: Rig, open_flower: FlowerProcess) -> None:
    client, handle = Client(open_flower.url), stuck(rig)
    listed = client.get("/api/sagas").json()
    assert handle.id in [row["id"] for row in listed["sagas"]]
    assert listed["sagas"][0]["stands_at"] == "pivot"
    one = client.get(f"/api/sagas/{handle.id}").json()
    assert (one["saga"], one["status"], one["input"]["faults"]) == ("full", "STUCK", {"pivot": "away"})
    assert {"action": "retry", "step": "pivot"} in one["allowed_actions"]
    assert [letter["step"] for letter in one["dead_letters"]] == ["pivot"]
    assert [step["name"] for step in one["steps"]] == ["one", "left", "right", "free", "four", "pivot", "last"]
    rig.go(handle)
    answer = client.post_json(f"/api/sagas/{handle.id}/retry", {"reason": "the bank is back"})
    assert (answer.status, answer.json()["status"]) == (200, "RUNNING")
    rig.assert_done(handle)
    assert done_by(rig, handle.id) == [("flower (not logged in)", "operator: retry")]
    counts = wait_for(lambda: (c := client.get("/api/sagas/counts").json())["statuses"]["COMPLETED"] and c, 20)
    assert counts["ended_per_minute"] >= 1


def test_parent_and_children_are_shown_with_a_link_both_ways(rig: Rig, open_flower: FlowerProcess) -> None:
    at, store, client = rig.sagas.store.now(), rig.sagas.store, Client(open_flower.url)
    parent = store.insert(
        SagaRecord(
            id="00000000-parent", name="trip", version=1, key="t-1", outline='[{"child": "stay", "saga": "hotel 1"}]',
            correlation_id="c", input="null", created_at=at, updated_at=at, stage_ready_at=at,
        )
    )  # fmt: skip
    child = replace(
        parent, id="00000000-child", name="hotel", key="h-1", outline='[{"step": "room"}]', parent_id=parent.id,
        parent_step="stay", root_id=parent.id, status=SagaStatus.STUCK, error="the desk is closed",
    )  # fmt: skip
    why = f"its child saga 'hotel' ({child.id}) is STUCK: the desk is closed"
    step = StepRecord(
        node="stay",
        seq=1,
        kind="child",
        status=StepStatus.WAITING,
        started_seq=1,
        started_at=at,
        child_id=child.id,
        error=why,
    )
    assert store.save(parent, replace(parent, status=SagaStatus.RUNNING).with_step(step), children=[child]) is not None
    one = client.get(f"/api/sagas/{parent.id}").json()
    assert [(each["id"], each["status"], each["error"]) for each in one["children"]] == [
        (child.id, "STUCK", "the desk is closed")
    ]
    assert one["steps"][0]["error"] == why
    assert client.get(f"/api/sagas/{child.id}").json()["parent_id"] == parent.id
    page = client.get(f"/sagas/saga/{parent.id}").text
    assert f'href="/sagas/saga/{child.id}"' in page
    assert "the desk is closed" in page
    assert (
        f'href="/sagas/saga/{parent.id}">trip t-1</a>, RUNNING, step <code>stay</code>'
        in client.get(f"/sagas/saga/{child.id}").text
    )


def test_progress_is_shown(rig: Rig, open_flower: FlowerProcess) -> None:
    handle, client, store = stuck(rig), Client(open_flower.url), rig.sagas.store
    record = store.load(handle.id)
    step = replace(record.step("pivot"), heartbeat_at=store.now(), progress_done=300, progress_total=1200)
    assert store.save(record, record.with_step(step)) is not None
    steps = {each["name"]: each for each in client.get(f"/api/sagas/{handle.id}").json()["steps"]}
    assert steps["pivot"]["progress"] == {"done": 300, "total": 1200}
    assert steps["pivot"]["heartbeat_at"] is not None
    assert steps["one"]["progress"] is None
    assert "300 of 1,200 (25 %)" in client.get(f"/sagas/saga/{handle.id}").text


def test_the_list_is_paged_and_filtered(rig: Rig, open_flower: FlowerProcess, untouched: SagaHandle) -> None:
    client = Client(open_flower.url)
    for query in (
        "step=pivot",
        "error=BANK+is",
        "status=STUCK",
        f"correlation={untouched.id}",
        "saga=full",
        "view=all",
    ):
        assert untouched.id in [row["id"] for row in client.get(f"/api/sagas?{query}").json()["sagas"]], query
    for query in ("step=one", "error=bank_is", "status=RUNNING", "correlation=x", "saga=line", "status=STUCK&age=1d"):
        assert untouched.id not in [row["id"] for row in client.get(f"/api/sagas?{query}").json()["sagas"]], query
    ids = [rig.start("later", key=f"page-{number}").id for number in range(53)]
    first = client.get("/api/sagas?saga=later&status=PENDING").json()
    assert [row["id"] for row in first["sagas"]] == ids[:2:-1]
    rest = client.get(f"/api/sagas?saga=later&status=PENDING&before={first['next']}").json()
    assert ([row["id"] for row in rest["sagas"]], rest["next"]) == (ids[2::-1], None)
    assert client.get("/api/sagas?saga=later&age=1h").json()["sagas"] == []
    assert client.get("/api/sagas?saga=nope&view=all").json()["sagas"] == []
    page = client.get("/sagas?saga=later&status=PENDING").text
    assert f"before={ids[3]}" in page
    assert client.get("/sagas?q=page-7").headers["Location"] == f"/sagas/saga/{ids[7]}"
    assert client.get(f"/sagas?q={ids[7]}").headers["Location"] == f"/sagas/saga/{ids[7]}"
    assert "there is no saga whose id begins with" in client.get("/sagas?q=%3Cb%3Enobody").text
    assert "<b>nobody" not in client.get("/sagas?q=%3Cb%3Enobody").text


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "text"),
    [
        ("skip", {"reason": " "}, {}, 409, "say why"),
        ("skip", {"reason": "x", "step": "four"}, {}, 409, "its stuck step is 'pivot', not 'four'"),
        ("mark-done", {"reason": "x", "step": "pivot", "result": {"no": 1}}, {}, 409, "pivot"),
        ("cancel", {"reason": "x"}, {}, 409, "its pivot 'pivot' is STUCK"),
        ("mark-done", b'{"reason": "x", "step": "pivot", "result": {"a": NaN}}', {}, 400, "not JSON"),
        ("mark-done", b'{"reason": "x", "step": "pivot", "result": -Infinity}', {}, 400, "not JSON"),
        ("mark-done", b'{"reason": "x", "step": "pivot", "result": 1e999}', {}, 400, "out of range"),
        ("mark-done", b'{"reason": "x", "result": "\\ud800"}', {}, 400, "not JSON"),
        ("mark-done", b'{"reason": "x", "result": "\xff"}', {}, 400, "not UTF-8"),
        ("mark-done", b'{"reason": "x", "result": ' + b"[" * 500 + b"]" * 500 + b"}", {}, 400, "levels deep"),
        ("mark-done", b"[" * 100_000, {}, 400, "levels deep"),
        ("mark-done", {"reason": "x", "step": "pivot", "result": "x" * 2_000_000}, {}, 413, "bytes; the limit is"),
        ("mark-done", {"reason": "x", "step": "pivot\0"}, {}, 409, "pivot"),
        ("skip", {"reason": "x", "step": "\0"}, {}, 409, "pivot"),
        ("skip", {"reason": "x", "step": ""}, {}, 409, "pivot"),
        ("skip", {"reason": "x" * 2_001}, {}, 409, "give at most 2,000"),
        ("retry", {"reason": None}, {}, 400, "send {"),
        ("skip", b"{", {}, 400, "not JSON"),
        ("skip", ["x"], {}, 400, "send {"),
        ("skip", {"reason": "x"}, {"Content_Type": "text/plain"}, 415, "Content-Type"),
        ("skip", {"reason": "x"}, {"Origin": "http://evil.example"}, 403, "a page of evil.example"),
        ("skip", {"reason": "x"}, {"Origin": "null"}, 403, "another site"),
        ("skip", {"reason": "x"}, {"Sec_Fetch_Site": "cross-site"}, 403, "another site"),
        ("purge", {"reason": "x"}, {}, 404, ""),
    ],
)
def test_what_the_api_refuses(
    rig: Rig,
    open_flower: FlowerProcess,
    untouched: SagaHandle,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    text: str,
) -> None:
    client, handle = Client(open_flower.url), untouched
    answer = client.post_json(f"/api/sagas/{handle.id}/{path}", body, **headers)
    assert answer.status == status
    if text:
        assert text in answer.json()["error"]
    assert handle.status is SagaStatus.STUCK
    assert done_by(rig, handle.id) == []


def test_no_other_site_may_read(open_flower: FlowerProcess) -> None:
    for path in ("/api/sagas", "/sagas"):
        headers = Client(open_flower.url).get(path, Origin="http://evil.example").headers
        assert headers["Access-Control-Allow-Origin"] is None
        assert "script-src 'self'" in headers["Content-Security-Policy"]


def test_what_is_not_there(open_flower: FlowerProcess) -> None:
    client = Client(open_flower.url)
    for path in ("/sagas/saga/nope", "/sagas/saga/nope/retry", "/api/sagas/nope", "/sagas/choreography", "/sagas/x"):
        assert client.get(path).status == 404, path
    assert "there is no saga with the id" in client.get("/api/sagas/nope").json()["error"]


def test_text_that_cannot_be_stored(rig: Rig, open_flower: FlowerProcess, untouched: SagaHandle) -> None:
    """NUL, bytes that are no text, and what is longer than any column: never 500."""
    client = Client(open_flower.url)
    for text in ("%00", "a%00b", "%ED%A0%80", "%FF", "x" * 10_000, "%27%22%5C", "%F0%9F%92%A9"):
        for path in (
            *(f"/sagas?{name}={text}" for name in ("q", "view", "status", "saga", "step", "error", "age", "before")),
            *(f"/api/sagas?{name}={text}" for name in ("saga", "step", "error", "correlation", "before")),
            f"/sagas?correlation={text}",
            f"/sagas/saga/{text}",
            f"/api/sagas/{text}",
            f"/sagas/saga/{untouched.id}/retry?step={text}",
        ):
            assert client.get(path).status < 500, path
        assert client.post_json(f"/api/sagas/{text}/retry", {"reason": "x"}).status in (400, 404), text
    path = f"/sagas/saga/{untouched.id}/mark-done?step=pivot"
    token = client.token(path)
    for form, problem in (
        ({"reason": "x", "result": '{"step": "pivot", "attempt": NaN}'}, "the result is not JSON"),
        ({"reason": "x", "result": "[" * 500 + "]" * 500}, "100 levels deep"),
        ({"reason": "x" * 2_001, "result": "null"}, "give at most 2,000"),
    ):
        answer = client.post(path, {**form, "_xsrf": token})
        assert (answer.status, problem in answer.text) in ((400, True), (409, True)), form
    assert client.post(path, {"reason": "x", "result": "y" * 2_000_000, "_xsrf": token}).status == 413
    assert done_by(rig, untouched.id) == []
    actor = Client(open_flower.url, login="ann:\xe9")
    assert actor.get("/sagas").status == 200  # nobody has to log in here


def test_what_cannot_be_drawn_is_cut_and_said(rig: Rig, open_flower: FlowerProcess) -> None:
    """Whatever lies in the tables: written by another version, or by hand."""
    handle = rig.start("later")
    client, store = Client(open_flower.url), rig.sagas.store
    assert isinstance(store, SqlStore)

    def shown(given: str) -> tuple[str, Any]:
        with store.engine.begin() as connection:
            connection.execute(update(schema.sagas).where(schema.sagas.c.id == handle.id).values(input=given))
        pages = client.get(f"/sagas/saga/{handle.id}"), client.get(f"/api/sagas/{handle.id}")
        assert [page.status for page in pages] == [200, 200]
        return pages[0].text, pages[1].json()["input"]

    for deep in (500, 100_000):
        page, value = shown('{"a": 1, "deep": ' + "[" * deep + "]" * deep + ', "z": "last"}')
        assert "cut: nested more than 100 levels deep" in page
        assert (value["a"], value["z"]) == (1, "last")
    page, value = shown(json.dumps({"text": "x" * 500_000}))
    assert "… cut: " in page
    assert len(page) < 100_000
    assert len(value["text"]) == 500_000
    page, value = shown(json.dumps(list(range(100_000))))
    assert "characters more" in page
    page, value = shown('{"half')
    assert "cannot be shown: it is not JSON" in page
    many = [HistoryEntry(at=store.now(), what="failed", epoch=1, step="one", detail=f"no. {n}") for n in range(1_200)]
    shown("null")
    record = store.load(handle.id)
    store.save(record, replace(record, error="x" * 10_000), many)
    page, _ = shown("null")
    assert "700 older entries are omitted" in page
    assert "no. 1199" in page


# -- names and forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5555", "127.0.0.1.evil.example", "localhost.evil", "x@y", ""]
)
def test_a_name_that_leads_here_from_another_site(
    rig: Rig, open_flower: FlowerProcess, untouched: SagaHandle, host: str
) -> None:
    """DNS rebinding: to the browser the page and this Flower are one site, so that only the name tells."""
    client = Client(open_flower.url)
    page = f"/sagas/saga/{untouched.id}"
    for path in (
        "/sagas",
        page,
        f"{page}/skip",
        "/sagas/dead-letters",
        "/sagas/definitions",
        "/api/sagas",
        f"/api{page}",
    ):
        answer = client.get(path, Host=host)
        assert answer.status in (400, 403, 404), path
        assert untouched.id not in answer.text
    mine = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
    answer = client.post_json(f"/api/sagas/{untouched.id}/skip", {"reason": "x"}, **mine)
    assert answer.status in (400, 403)
    token = client.token(f"{page}/skip?step=pivot")
    answer = client.post(f"{page}/skip?step=pivot", {"reason": "x", "_xsrf": token}, **mine)
    assert answer.status in (400, 403)
    assert done_by(rig, untouched.id) == []


def test_names_that_are_good(
    rig: Rig, open_flower: FlowerProcess, closed_flower: FlowerProcess, only_read: FlowerProcess
) -> None:
    for host in ("localhost", "LOCALHOST:5555", "127.0.0.1:1", "[::1]:5555", "192.168.1.7", "flower.localhost"):
        assert Client(open_flower.url).get("/api/sagas", Host=host).status == 200, host
    assert "--sagas-allowed-hosts=ops.example.com" in Client(open_flower.url).get("/sagas", Host="ops.example.com").text
    # By name, in a Flower that has a setting, and by any where one has to log in: no browser sends a login elsewhere.
    for host, status in (
        ("ops.example.com", 200), ("OPS.example.com.:80", 200), ("x.example.net", 200), ("example.net", 200),
        ("127.0.0.1", 200), ("example.com", 403), ("xops.example.com", 403), ("evilexample.net", 403),
    ):  # fmt: skip
        assert Client(only_read.url).get("/api/sagas", Host=host).status == status, host
    ann = Client(closed_flower.url, login="ann:tea")
    assert ann.get("/ops/flower/sagas", Host="flower.example.com").status == 200
    assert Client(closed_flower.url, login="ann:\xe9").get("/ops/flower/sagas").status == 401


def test_behind_a_proxy_that_asks_by_another_name(rig: Rig) -> None:
    """As nginx does unless it is told to pass the name on."""
    handle = stuck(rig)
    with FlowerProcess(rig.folder, "--sagas-allowed-hosts=ops.example.com", environment=environment(rig)) as flower:
        client, path = Client(flower.url), f"/sagas/saga/{handle.id}/skip?step=pivot"
        form = {"reason": "written off", "_xsrf": client.token(path)}
        assert client.post(path, form, Origin="https://ops.example.com.evil.example").status == 403
        assert client.post(path, form, Origin="https://ops.example.com", Sec_Fetch_Site="cross-site").status == 403
        assert client.post(path, form, Origin="https://ops.example.com", Sec_Fetch_Site="same-origin").status == 302


# -- forms ------------------------------------------------------------------------------------------------------------


def test_a_form_needs_its_token_and_its_site(rig: Rig, open_flower: FlowerProcess) -> None:
    client, handle = Client(open_flower.url), stuck(rig)
    path = f"/sagas/saga/{handle.id}/skip?step=pivot"
    form = {"reason": "written off"}
    assert client.post(path, form).status == 403
    token = client.token(path)
    assert Client(open_flower.url).post(path, {**form, "_xsrf": token}).status == 403  # without the cookie
    assert client.post(path, {**form, "_xsrf": token}, Origin="http://evil.example").status == 403
    assert client.post(path, {**form, "_xsrf": token}, Sec_Fetch_Site="same-site").status == 403
    assert done_by(rig, handle.id) == []
    assert client.post(path, {"_xsrf": token, "reason": ""}).status == 409
    done = client.post(path, {**form, "_xsrf": token}, Origin=open_flower.url)
    assert (done.status, done.headers["Location"]) == (302, f"/sagas/saga/{handle.id}")
    again = client.post(path, {**form, "_xsrf": token})
    assert (again.status, "none of its steps is stuck" in again.text) == (409, True)


# -- logins, read-only, prefix ----------------------------------------------------------------------------------------


def test_basic_auth_and_a_prefix(rig: Rig, closed_flower: FlowerProcess) -> None:
    handle, base = stuck(rig), "/ops/flower"
    stranger, wrong, ann = (Client(closed_flower.url, login=login) for login in (None, "ann:milk", "ann:tea"))
    path = f"{base}/sagas/saga/{handle.id}"
    for client in (stranger, wrong):
        for each in (
            f"{base}/sagas",
            path,
            f"{path}/skip?step=pivot",
            f"{base}/api/sagas",
            f"{base}/sagas/definitions",
        ):
            assert client.get(each).status == 401, each
        assert client.post_json(f"{base}/api/sagas/{handle.id}/skip", {"reason": "x"}).status == 401
        form = {"reason": "x", "_xsrf": "ab" * 16}
        assert client.post(f"{path}/skip?step=pivot", form, Cookie=f"_xsrf={'ab' * 16}").status == 401
    assert done_by(rig, handle.id) == []
    assert ann.get("/sagas").status == 404
    page = ann.get(path).text
    assert f'href="{base}/sagas"' in page
    assert f"{path}/retry?step=pivot" in page
    static = page.partition(f'href="{base}/sagas/static/')[2].partition('"')[0]
    assert ann.get(f"{base}/sagas/static/{static}").status == 200
    token = ann.token(f"{path}/skip?step=pivot")
    done = ann.post(f"{path}/skip?step=pivot", {"reason": "written off", "_xsrf": token})
    assert done.headers["Location"] == path
    assert done_by(rig, handle.id) == [("ann", "operator: skip")]
    other = stuck(rig)
    bob = Client(closed_flower.url, login="bob:milk")
    assert bob.post_json(f"{base}/api/sagas/{other.id}/skip", {"reason": "x"}).status == 200
    assert done_by(rig, other.id) == [("bob", "operator: skip")]


def test_a_login_elsewhere(rig: Rig, untouched: SagaHandle) -> None:
    """With OAuth, who is logged in is in a cookie that Flower has signed."""
    options = [
        "--auth=.*@example.com", "--auth_provider=flower.views.auth.GoogleAuth2LoginHandler", "--cookie_secret=tea",
        "--oauth2_key=x", "--oauth2_secret=x", "--oauth2_redirect_uri=http://127.0.0.1/login",
    ]  # fmt: skip
    path, token = f"/sagas/saga/{untouched.id}/skip?step=pivot", "ab" * 16
    with FlowerProcess(rig.folder, *options, environment=environment(rig)) as process:
        client = Client(process.url)
        assert client.get("/sagas").headers["Location"].startswith("/login")
        assert client.post(path, {"reason": "x", "_xsrf": token}, Cookie=f"_xsrf={token}").status == 403
        assert client.post_json(f"/api/sagas/{untouched.id}/skip", {"reason": "x"}).status in (401, 403)
        assert done_by(rig, untouched.id) == []
        handle, user = stuck(rig), create_signed_value("tea", "user", "ann@example.com").decode()
        cookie = f'_xsrf={token}; user="{user}"'
        path = f"/sagas/saga/{handle.id}/skip?step=pivot"
        assert "ann@example.com" in client.get(path, Cookie=cookie).text
        assert client.post(path, {"reason": "x", "_xsrf": token}, Cookie=cookie).status == 302
        assert done_by(rig, handle.id) == [("ann@example.com", "operator: skip")]


def test_an_existing_flower(only_read: FlowerProcess) -> None:
    client = Client(only_read.url)
    assert ">Sagas</a>" in client.get("/workers").text
    assert client.get("/sagas").status == 200


@pytest.mark.skipif(OLD, reason="Flower 2.0 has no --read-only")
def test_read_only(rig: Rig, only_read: FlowerProcess, untouched: SagaHandle) -> None:
    client, handle = Client(only_read.url), untouched
    path = f"/sagas/saga/{handle.id}"
    page = client.get(path).text
    assert "STUCK" in page
    assert "/retry" not in page
    assert client.get(f"{path}/skip?step=pivot").status == 403
    token = "ab" * 16  # as good as any that a page gives out: the cookie has the same
    form = {"reason": "x", "_xsrf": token}
    posted = client.post(f"{path}/skip?step=pivot", form, Cookie=f"_xsrf={token}")
    assert (posted.status, "read-only" in posted.text) == (403, True)
    posted = client.post_json(f"/api/sagas/{handle.id}/skip", {"reason": "x"})
    assert (posted.status, "read-only" in posted.text) == (403, True)
    assert client.get(f"/api/sagas/{handle.id}").json()["status"] == "STUCK"
    assert done_by(rig, handle.id) == []


# -- other apps -------------------------------------------------------------------------------------------------------


def test_events(redis_server: Redis, tmp_path: Path) -> None:
    """The pages of an app that has events: the shop's services."""
    url = f"sqlite:///{tmp_path / 'events.db'}"
    settings = {"SAGAS_DATABASE_URL": url, "BROKER_URL": redis_server.url}
    store = SqlStore(url)
    store.upgrade()
    at = store.now()
    store.insert(
        SagaRecord(
            id="s-1", name="place_order", version=1, key="o-1", outline='[{"pivot": "pay"}]', correlation_id="c-1", input="{}",
            created_at=at, updated_at=at, stage_ready_at=at,
        )
    )  # fmt: skip
    letter = {
        "queue": "inventory.reserve_stock", "event_id": "e-1", "type": "orders.order.placed", "version": 1, "key": "o-1",
        "correlation_id": "c-1", "headers": "{}", "body": "{}", "error": "<i>no stock</i>", "attempts": 5,
        "created_at": at,
    }  # fmt: skip
    with store.engine.begin() as connection:
        connection.execute(schema.event_dead_letters.insert().values(letter))
    store.engine.dispose()
    with FlowerProcess(tmp_path, app="config.choreography", environment=settings) as process:
        client = Client(process.url)
        letters = client.get("/sagas/dead-letters").text
        assert "inventory.reserve_stock" in letters
        assert "&lt;i&gt;no stock&lt;/i&gt;" in letters
        assert "/sagas/choreography.svg" in client.get("/sagas/choreography").text
        image = client.get("/sagas/choreography.svg")
        assert image.headers["Content-Type"] == "image/svg+xml"
        assert "inventory: reserve_stock" in image.text
        calm = client.get("/sagas").text
        assert "Nothing needs you" in calm
        assert "/sagas/saga/s-1" in calm  # among those that were started last
        page = client.get("/sagas/saga/s-1").text
        assert "Events of its correlation id" in page
        assert "dead letter <b>&lt;i&gt;no stock&lt;/i&gt;</b> inventory.reserve_stock" in page
        assert "fulfil_order" in client.get("/sagas/definitions").text
        answer = client.get("/api/sagas")  # nobody logs in, and nobody has opened it
        assert (answer.status, "FLOWER_UNAUTHENTICATED_API" in answer.text) == (401, True)


def test_a_database_that_is_away(redis_server: Redis, tmp_path: Path) -> None:
    settings = {"SAGAS_DATABASE_URL": "postgresql+psycopg://x@127.0.0.1:1/x", "BROKER_URL": redis_server.url}
    with FlowerProcess(tmp_path, app="config", environment={**settings, "FLOWER_UNAUTHENTICATED_API": "1"}) as process:
        client = Client(process.url)
        for path in ("/sagas", "/api/sagas", "/api/sagas/counts", "/sagas/saga/x", "/sagas/dead-letters"):
            answer = client.get(path)
            assert (answer.status, "the database did not answer" in answer.text) == (503, True), path
        assert client.get("/workers").status == 200


def test_an_app_without_sagas(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from celery import Celery\napp = Celery('plain', broker='memory://')\n")
    config = tmp_path / "flowerconfig.py"
    config.write_text("from sagas.contrib.flower import enable\nenable()\n")
    command = [sys.executable, "-m", "celery", "--workdir", str(tmp_path), "-A", "plain", "flower", f"--conf={config}"]
    done = forks.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "the Celery app 'plain' has no sagas to show" in done.stderr


def test_every_saga_of_the_rig_is_drawn_and_versions_that_differ_are_told(rig: Rig, open_flower: FlowerProcess) -> None:
    client, handle = Client(open_flower.url), rig.start("later")
    page = client.get("/sagas/definitions").text
    assert page.count('class="saga-drawing"') == page.count('class="sg-card"') == len(rig.sagas.orchestrator.sagas)
    assert "its steps differ" not in page
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    with Session(store.engine) as session, session.begin():
        session.connection().exec_driver_sql(
            "update sagas_saga set outline = %s, next_check_at = null where id = %s",
            ('[{"step": "gone"}, {"step": "one"}]', handle.id),
        )
    assert "its steps differ" in client.get("/sagas/definitions").text
    page = client.get(f"/sagas/saga/{handle.id}").text
    assert "its steps were [gone &gt; one]" in page
    assert ">gone</text>" in page  # drawn as it was started
    assert json.loads(client.get(f"/api/sagas/{handle.id}").text)["allowed_actions"] == []
