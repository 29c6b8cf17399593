"""What sagas ask people, in a real Flower: who sees the form, what it takes, and a person in Chromium who fills it in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from sagas import SagaHandle, SqlStore
from tests.browser import browser
from tests.conftest import Rig
from tests.flower import Client, FlowerProcess, environment
from tests.servers import Postgres, Redis, wait_for

LOGINS = "--basic_auth=ann:secret,bob:secret,eve:secret"
APPROVERS = "finance:ann,board:*,finance,:eve"


@pytest.fixture(scope="module")
def rig(redis_server: Redis, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(redis_server.url, postgres.database(), tmp_path_factory.mktemp("approvals"))
    rig.configure(more=["asks_people"], task_default_queue="approvals")
    rig.worker("-Q", "approvals")
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def flower(rig: Rig) -> Iterator[FlowerProcess]:
    options = (LOGINS, "--sagas-approvers=finance:ann,treasury:bob")
    with FlowerProcess(rig.folder, *options, environment=environment(rig)) as process:
        yield process


@pytest.fixture
def handle(rig: Rig) -> SagaHandle:
    handle = rig.start("asks_people")
    wait_for(lambda: handle.record.step("approval").status == "WAITING", 30, "it asks")
    return handle


def as_(flower: FlowerProcess, name: str) -> Client:
    return Client(flower.url, login=f"{name}:secret")


def form(client: Client, path: str, **answers: str) -> dict[str, str]:
    number = re.findall('name="form-id" value="([^"]+)"', client.get(path).text)[0]
    return {"_xsrf": client.token(path), "form-id": number, **answers}


def test_only_approvers_answer(flower: FlowerProcess, handle: SagaHandle) -> None:
    path = f"/sagas/saga/{handle.id}/answer/approval"
    ann, bob = as_(flower, "ann"), as_(flower, "bob")
    for client, may in ((ann, True), (bob, False)):
        page = client.get(f"/sagas/saga/{handle.id}").text
        assert "board or finance may answer" in page
        assert (path in page) is may
        listed = client.get("/sagas/approvals").text
        assert handle.id in listed
        assert (path in listed) is may
        assert client.get(path).status == (200 if may else 403)
    filled = form(ann, path, approved="true", amount="1.50")
    own = bob.token(f"/sagas/saga/{handle.id}/cancel")
    denied = bob.post(path, {**filled, "_xsrf": own})
    assert (denied.status, "does not belong to" in denied.text) == (403, True), denied.text
    assert Client(flower.url).get(path).status == 401
    assert ann.post(path, {**filled, "_xsrf": "wrong"}).status == 403
    assert ann.post(path, filled, Origin="https://evil.example").status == 403
    assert handle.record.step("approval").status == "WAITING"
    assert ann.get(f"/sagas/saga/{handle.id}/answer/other").status == 404
    assert ann.get(f"/sagas/saga/{handle.id}/answer/last").status == 404
    assert ann.get("/sagas/saga/none/answer/approval").status == 404


def test_an_answer_is_checked_kept_and_audited(rig: Rig, flower: FlowerProcess, handle: SagaHandle) -> None:
    path = f"/sagas/saga/{handle.id}/answer/approval"
    ann = as_(flower, "ann")
    for answers, name, says in (
        ({"approved": "", "amount": "1"}, "approved", "an answer is required"),
        ({"approved": "true", "amount": "<b>1</b>"}, "amount", "this is not a number"),
    ):
        refused = ann.post(path, form(ann, path, **answers, comment="<i>dear</i>"))
        assert refused.status == 400
        assert re.search(rf'id="sg-wrong-{name}">{says}<', refused.text)
        assert "&lt;i&gt;dear&lt;/i&gt;" in refused.text, "what was typed stays"
        assert "<b>1" not in refused.text
    filled = form(ann, path, approved="true", amount="1.50", comment="ok")
    assert [ann.post(path, filled).status for _ in range(2)] == [302, 302], "the same form twice counts once"
    late = ann.post(path, {**filled, "form-id": "other", "approved": "false"})
    assert (late.status, "of ann, which came at" in late.text) == (409, True)
    assert ann.get(path).status == 409
    record = handle.record
    assert record.step("approval").result == '{"approved":true,"amount":"1.50","comment":"ok"}'
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    [entry] = [each for each in store.queries.audit() if each.saga_id == handle.id]
    assert (entry.entry.what, entry.entry.step, entry.entry.actor) == ("signal", "approval", "ann")
    assert filled["form-id"] in entry.entry.detail
    assert "ann" in ann.get(f"/sagas/saga/{handle.id}").text


def test_who_has_not_logged_in_is_in_no_group(rig: Rig, handle: SagaHandle) -> None:
    env = environment(rig, FLOWER_SAGAS_APPROVERS=APPROVERS)
    path = f"/sagas/saga/{handle.id}/answer/approval"
    with FlowerProcess(rig.folder, environment=env) as process:
        client = Client(process.url)
        assert client.get(path).status == 403
        assert path not in client.get("/sagas/approvals").text
    with FlowerProcess(rig.folder, LOGINS, environment=env) as process:
        assert as_(process, "eve").get(path).status == 200, "the board is everybody who has logged in"


def test_a_person_fills_in_the_form(flower: FlowerProcess, handle: SagaHandle, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as driver:
        url = flower.url.replace("http://", "http://ann:secret@")
        driver.get(f"{url}/sagas/saga/{handle.id}")
        wait_for(lambda: driver.find_elements(By.ID, "sg-answer-approval"), 20, "the page asks")[0].click()
        wait_for(lambda: driver.find_elements(By.ID, "sg-confirm"), 20, "the form is there")
        driver.find_element(By.ID, "sg-confirm").click()
        assert driver.find_elements(By.ID, "sg-confirm"), "the browser insists on the answers"
        Select(driver.find_element(By.NAME, "approved")).select_by_visible_text("Yes")
        driver.find_element(By.NAME, "amount").send_keys("a lot")
        driver.find_element(By.NAME, "comment").send_keys("fine")
        driver.find_element(By.ID, "sg-confirm").click()
        wait_for(lambda: driver.find_elements(By.ID, "sg-wrong-amount"), 20, "the amount is refused")
        assert driver.find_element(By.NAME, "comment").get_attribute("value") == "fine"
        amount = driver.find_element(By.NAME, "amount")
        amount.clear()
        amount.send_keys("12.00")
        driver.find_element(By.ID, "sg-confirm").click()
        wait_for(lambda: "waits for second" in " ".join(driver.find_element(By.TAG_NAME, "main").text.split())
                 if driver.find_elements(By.TAG_NAME, "main")
                 else "second" in driver.page_source, 20, "the next question is asked")  # fmt: skip
        assert not driver.find_elements(By.ID, "sg-answer-second"), "ann is not on the board"
    assert '"amount":"12.00"' in (handle.record.step("approval").result or "")
