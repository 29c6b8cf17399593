"""The example shop, as people use it: one command, and a real Chromium."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests import forks
from tests.browser import browser
from tests.rig import ROOT
from tests.servers import at_once, free_port, wait_for


class Shop:
    """The command of the README, running."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "shop.log"
        settings = {"SHOP_FOLDER": str(folder / "shop"), "SHOP_STEP_SECONDS": "0.3", "PORT": str(self.port)}
        with self.log.open("wb") as log:
            self.process = forks.Popen(
                [sys.executable, "-m", "examples.flask_shop"],
                cwd=ROOT, env={**os.environ, **settings, **environment}, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(lambda: "The shop is open" in self.output() and self.workers(), 60, "the shop is open")

    def output(self) -> str:
        return self.log.read_text()

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if child.status() != "zombie"]

    def close(self) -> None:
        workers = self.workers()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            for process in workers:
                if process.is_running():
                    process.kill()
            if self.process.poll() is None:
                self.process.kill()
        assert self.process.returncode == 0, self.output()[-3000:]


#: Seconds. The broker of the embedded shop is a folder, where a file can be read before it is written. Recovery sends such
#: a lost message again, after 30 s.
PATIENCE = 90.0

ON_BOTH = pytest.mark.parametrize("shop", ["embedded", "servers"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=["embedded"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    servers: dict[str, str] = {}
    if request.param == "servers":
        servers["SHOP_SQLALCHEMY_DATABASE_URI"] = request.getfixturevalue("postgres").database()
        servers["SHOP_BROKER_URL"] = request.getfixturevalue("redis_server").url
    shop = Shop(folder, **servers)
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def order(shop: Shop, chrome: Chrome, sku: str, *, quantity: int = 1, card: str = "good") -> None:
    chrome.get(shop.url)
    form = chrome.find_element(By.ID, f"product-{sku}")
    field = form.find_element(By.NAME, "quantity")
    field.clear()
    field.send_keys(str(quantity))
    Select(form.find_element(By.NAME, "card")).select_by_value(card)
    form.find_element(By.TAG_NAME, "button").click()
    until(chrome, "#saga")


def until(chrome: Chrome, css: str, timeout: float = PATIENCE) -> Any:
    return WebDriverWait(chrome, timeout, 0.1).until(lambda _: chrome.find_elements(By.CSS_SELECTOR, css))


def ends(chrome: Chrome, status: str, timeout: float = PATIENCE) -> dict[str, str]:
    until(chrome, f"#saga[data-status={status}]", timeout)
    steps = chrome.find_elements(By.CLASS_NAME, "step")
    return {str(step.get_attribute("id")): str(step.get_attribute("data-status")) for step in steps}


def stock(shop: Shop, chrome: Chrome, sku: str) -> int:
    chrome.get(shop.url)
    return int(chrome.find_element(By.CSS_SELECTOR, f"#product-{sku} .price .quiet").text.split()[0])


def operations(shop: Shop, chrome: Chrome) -> None:
    chrome.get(f"{shop.url}/admin/")
    if fields := chrome.find_elements(By.NAME, "password"):
        fields[0].send_keys("admin")
        chrome.find_element(By.CSS_SELECTOR, "main button").click()
    until(chrome, "#bank")


@ON_BOTH
def test_an_order_is_seen_to_its_end(shop: Shop, chrome: Chrome) -> None:
    before = stock(shop, chrome, "tea")
    order(shop, chrome, "tea", quantity=2)
    until(chrome, ".step[data-status=RUNNING]")  # live, without a reload
    steps = ends(chrome, "COMPLETED")
    assert set(steps.values()) == {"DONE"}
    assert stock(shop, chrome, "tea") == before - 2
    chrome.get(f"{shop.url}/orders")
    assert "shipped" in chrome.find_element(By.TAG_NAME, "table").text


@ON_BOTH
def test_a_form_that_comes_twice_is_one_order(shop: Shop) -> None:
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        page = client.get("/").text
        form = {name: re.findall(f'name="{name}" value="([^"]+)"', page)[0] for name in ("token", "number", "sku")}
        form |= {"quantity": "1", "card": "good"}
        answers = at_once(4, lambda: client.post("/orders", data=form))
        assert {answer.status_code for answer in answers} == {302}
        [order] = {answer.headers["Location"] for answer in answers}
        assert client.post("/orders", data=form | {"quantity": "3"}).status_code == 409
        assert client.post("/orders", data=form | {"number": "7"}).status_code == 400
        [status] = re.findall('data-url="([^"]+)"', client.get(order).text)
        wait_for(lambda: client.get(status).json()["status"] == "COMPLETED", 60)
        assert client.get("/orders").text.count('<td><a href="/orders/') == 1


def test_a_declined_card_is_undone(shop: Shop, chrome: Chrome) -> None:
    before = stock(shop, chrome, "cup")
    order(shop, chrome, "cup", card="declined")
    steps = ends(chrome, "COMPENSATED")
    assert [steps[f"step-{name}"] for name in ("accept_order", "reserve_stock", "authorize_card")] == [
        "COMPENSATED"
    ] * 3
    assert steps["step-capture_payment"] == "PENDING"
    assert "the bank said no" in chrome.find_element(By.ID, "error").text
    assert stock(shop, chrome, "cup") == before


def test_what_is_out_of_stock_is_undone(shop: Shop, chrome: Chrome) -> None:
    before = stock(shop, chrome, "pot")
    order(shop, chrome, "pot", quantity=before + 1)
    steps = ends(chrome, "COMPENSATED")
    assert steps["step-authorize_card"] == "COMPENSATED"
    assert f"only {before} of Cast-iron pot left" in chrome.find_element(By.ID, "error").text
    assert stock(shop, chrome, "pot") == before


@ON_BOTH
def test_a_killed_worker_costs_time_only(shop: Shop, chrome: Chrome) -> None:
    before = stock(shop, chrome, "tea")
    order(shop, chrome, "tea", quantity=3)
    until(chrome, ".step[data-status=RUNNING]")
    [worker] = shop.workers()
    os.kill(worker.pid, signal.SIGKILL)
    ends(chrome, "COMPLETED", 90)
    assert "the worker ended; starting another one" in shop.output()
    assert stock(shop, chrome, "tea") == before - 3


def test_a_stuck_order_is_mended_at_the_desk(shop: Shop, chrome: Chrome) -> None:
    operations(shop, chrome)
    chrome.find_element(By.CSS_SELECTOR, "#bank button").click()
    until(chrome, "#bank input[name=away][value=no]")
    try:
        order(shop, chrome, "cup")
        page = chrome.current_url
        assert ends(chrome, "STUCK")["step-capture_payment"] == "STUCK"
        operations(shop, chrome)
        text = chrome.find_element(By.TAG_NAME, "main").text
        assert "ConnectionError: the bank does not answer" in text
        assert "card •••" in text
    finally:
        operations(shop, chrome)
        chrome.find_element(By.CSS_SELECTOR, "#bank button").click()
        until(chrome, "#bank input[name=away][value=yes]")
    chrome.find_element(By.NAME, "reason").send_keys("the bank is back")
    chrome.find_element(By.CSS_SELECTOR, "button[value='retry:capture_payment']").click()
    assert "is now RUNNING" in until(chrome, ".flash")[0].text
    chrome.get(page)
    assert set(ends(chrome, "COMPLETED").values()) == {"DONE"}


def test_nobody_else_sees_an_order(shop: Shop, chrome: Chrome) -> None:
    order(shop, chrome, "tea")
    path = chrome.find_element(By.ID, "saga").get_attribute("data-url")
    page = chrome.current_url
    ends(chrome, "COMPLETED")
    chrome.delete_all_cookies()
    for url in (page, f"{shop.url}{path}"):
        chrome.get(url)
        assert "Not Found" in chrome.page_source or "there is no such saga" in chrome.page_source
    chrome.get(f"{shop.url}/admin/")
    assert chrome.current_url.endswith("/admin/login")


@ON_BOTH
@pytest.mark.parametrize("answer", ["pay", "refuse"])
def test_a_refund_is_approved_by_a_person_and_paid_by_the_bank(shop: Shop, chrome: Chrome, answer: str) -> None:
    order(shop, chrome, "tea")
    ends(chrome, "COMPLETED")
    number = chrome.current_url.rpartition("/")[2]
    chrome.get(f"{shop.url}/orders")
    form = chrome.find_element(By.CSS_SELECTOR, f"form[action$='/orders/{number}/refund']")
    form.find_element(By.NAME, "why").send_keys("<b>too bitter</b>")
    form.find_element(By.TAG_NAME, "button").click()
    assert "We will look at it." in until(chrome, ".flash")[0].text
    operations(shop, chrome)
    chrome.get(f"{shop.url}/approvals/")
    wait_for(lambda: listed(chrome, shop, number), 30, "the saga asks")
    chrome.find_element(By.LINK_TEXT, number).click()
    assert "<b>too bitter</b>" in until(chrome, "pre")[0].text
    Select(chrome.find_element(By.NAME, "approved")).select_by_visible_text("Yes")
    chrome.find_element(By.NAME, "comment").send_keys("of course")
    chrome.find_element(By.CSS_SELECTOR, ".saga-answer button").click()
    assert number not in until(chrome, "#approvals")[0].text
    wait_for(lambda: asked(chrome, shop, number), 30, "the bank was asked")
    if "the worker ended" not in shop.output():
        [worker] = shop.workers()
        os.kill(worker.pid, signal.SIGKILL)  # the callback needs none
    chrome.find_element(By.CSS_SELECTOR, f"#bank-{number} button[value={answer}]").click()
    assert "The shop answered 200." in until(chrome, ".flash")[0].text
    state = {"pay": "refunded", "refuse": "shipped"}[answer]

    def is_over() -> bool:
        chrome.get(f"{shop.url}/orders")
        [row] = [row for row in chrome.find_elements(By.TAG_NAME, "tr") if number[:10] in row.text]
        there = state in row.text
        chrome.get(f"{shop.url}/bank/")
        return there and (answer == "pay" or number not in chrome.page_source)

    wait_for(is_over, 60, f"the order is {state}")


def listed(chrome: Chrome, shop: Shop, number: str) -> bool:
    chrome.get(f"{shop.url}/approvals/")
    return bool(chrome.find_elements(By.LINK_TEXT, number))


def asked(chrome: Chrome, shop: Shop, number: str) -> bool:
    chrome.get(f"{shop.url}/bank/")
    return bool(chrome.find_elements(By.ID, f"bank-{number}"))
