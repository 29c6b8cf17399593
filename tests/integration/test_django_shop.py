"""The example shop in a real browser: orders that end, that are undone, and one whose worker is killed."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests import forks
from tests.browser import browser
from tests.rig import ROOT
from tests.servers import at_once, free_port, wait_for

SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(params=["embedded"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    address, log = f"127.0.0.1:{free_port()}", tmp_path / "shop.log"
    environment = {**os.environ, "SHOP_DATA": str(tmp_path), "SHOP_STEP_SECONDS": "0.3", "PYTHONUNBUFFERED": "1"}
    if request.param == "servers":
        url = request.getfixturevalue("postgres").database()
        environment["SHOP_DATABASE"] = url.replace("+psycopg", "")
        environment["SHOP_BROKER"] = request.getfixturevalue("redis_server").url
    with log.open("wb") as output:
        command = forks.Popen(
            [sys.executable, "manage.py", "shop", address], cwd=ROOT / "examples" / "django_shop", env=environment,
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: b"Quit the server" in log.read_bytes(), 90, "the site answers")
        wait_for((tmp_path / "worker.pid").exists, 30)
        yield f"http://{address}/"
    finally:
        children = psutil.Process(command.pid).children(recursive=True)
        command.terminate()
        command.wait(30)
        left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()
    assert not left, "the command leaves processes behind"


@pytest.mark.parametrize("shop", ["embedded", "servers"], indirect=True)
def test_a_form_that_comes_twice_is_one_order(shop: str) -> None:
    with httpx.Client(base_url=shop, timeout=30) as client:
        page = client.get("/").text
        form = {
            name: re.findall(f'name="{name}" value="([^"]+)"', page)[0]
            for name in ("csrfmiddlewaretoken", "number", "product")
        } | {"quantity": "2", "card": "good"}
        answers = at_once(4, lambda: client.post("/orders/", data=form))
        assert {answer.status_code for answer in answers} == {302}
        [order] = {answer.headers["Location"] for answer in answers}
        assert client.post("/orders/", data=form | {"quantity": "3"}).status_code == 409
        assert client.post("/orders/", data=form | {"number": "7"}).status_code == 400
        wait_for(lambda: "data-at-rest" in client.get(f"{order}progress/").text, 60)
        assert "COMPLETED" in client.get(f"{order}progress/").text
        assert "98 left" in client.get("/").text
        assert client.get("/").text.count('<li><a href="/orders/') == 1


def test_orders_before_ones_eyes(shop: str, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as driver:
        wait = WebDriverWait(driver, 60)

        def place(product: str, card: str) -> None:
            driver.get(shop)
            [form] = [form for form in driver.find_elements(By.CSS_SELECTOR, "form.card") if product in form.text]
            Select(form.find_element(By.NAME, "card")).select_by_visible_text(card)
            form.find_element(By.TAG_NAME, "button").click()
            wait.until(lambda d: d.find_element(By.ID, "status"))

        def ends(status: str, *steps: str) -> None:
            wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "[data-at-rest]"))
            assert driver.find_element(By.ID, "status").text == status
            assert [each.text for each in driver.find_elements(By.CSS_SELECTOR, "li .status")] == [*steps]

        def look(name: str) -> None:
            if SCREENSHOTS:
                driver.save_screenshot(f"{SCREENSHOTS}/shop-{name}.png")

        place("Green tea", "a good one")
        ends("COMPLETED", *["DONE"] * 5)
        place("Green tea", "one that is declined")
        ends("COMPENSATED", *["COMPENSATED"] * 3, *["PENDING"] * 2)
        assert "the bank said no" in driver.find_element(By.CSS_SELECTOR, ".error").text
        look("declined")
        place("Golden spoon", "a good one")
        ends("COMPENSATED", *["COMPENSATED"] * 2, *["PENDING"] * 3)
        place("Teapot", "its bank does not answer")
        ends("STUCK", *["DONE"] * 3, "STUCK", "PENDING")
        look("stuck")
        driver.get(shop)
        assert "99 left" in driver.page_source, "the stock of the declined order was given back"
        look("products")
        place("Green tea", "a good one")
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "li .status.running"))
        os.kill(int((tmp_path / "worker.pid").read_text()), signal.SIGKILL)
        ends("COMPLETED", *["DONE"] * 5)
        driver.get(shop)
        assert "98 left" in driver.page_source, "reserved once, however often the step ran"
        driver.set_window_size(420, 800)
        look("narrow")


@pytest.mark.parametrize("shop", ["embedded", "servers"], indirect=True)
def test_a_refund_is_approved_in_the_admin_and_paid_by_the_bank(shop: str, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as driver:
        wait = WebDriverWait(driver, 60)

        def submit(css: str) -> None:
            """Send a form. Until its answer is there, that could take the place of the next page, or be lost to it."""
            button = driver.find_element(By.CSS_SELECTOR, css)
            button.click()
            wait.until(staleness_of(button))

        driver.get(shop)
        driver.find_element(By.CSS_SELECTOR, "form.card button").click()
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "[data-at-rest]"))
        order = driver.current_url
        driver.find_element(By.NAME, "why").send_keys("<b>too bitter</b>")
        submit("form.refund button")
        driver.get(f"{shop}admin/sagas/saga/?status=approval")
        wait.until(lambda d: d.find_element(By.NAME, "username")).send_keys("admin")
        driver.find_element(By.NAME, "password").send_keys("admin")
        submit("input[type=submit]")

        def asks(_: object) -> bool:
            driver.get(f"{shop}admin/sagas/saga/?status=approval")
            return bool(driver.find_elements(By.CSS_SELECTOR, "#result_list .field-shown_key a, #result_list th a"))

        wait.until(asks)
        driver.find_element(By.CSS_SELECTOR, "#result_list tbody th a").click()
        wait.until(lambda d: d.find_element(By.PARTIAL_LINK_TEXT, "Answer approval")).click()
        wait.until(lambda d: d.find_element(By.NAME, "approved"))
        assert "<b>too bitter</b>" in driver.find_element(By.TAG_NAME, "pre").text
        if SCREENSHOTS:
            driver.save_screenshot(f"{SCREENSHOTS}/shop-approval.png")
        driver.find_element(By.CSS_SELECTOR, ".submit-row input[type=submit]").click()
        assert driver.find_elements(By.NAME, "approved"), "the browser insists on an answer"
        Select(driver.find_element(By.NAME, "approved")).select_by_visible_text("Yes")
        driver.find_element(By.NAME, "comment").send_keys("of course")
        driver.find_element(By.CSS_SELECTOR, ".submit-row input[type=submit]").click()
        wait.until(lambda d: "pproval is answered." in d.page_source)

        def asked(_: object) -> bool:
            driver.get(f"{shop}bank/")
            return bool(driver.find_elements(By.CSS_SELECTOR, "button[value=pay]"))

        wait.until(asked)
        driver.find_element(By.CSS_SELECTOR, "button[value=pay]").click()
        wait.until(lambda d: "The shop answered 200." in d.page_source)

        def refunded(_: object) -> bool:
            driver.get(order)
            return "refunded" in driver.find_element(By.ID, "progress").text

        wait.until(refunded)
        driver.get(f"{shop}bank/")
        driver.find_element(By.CSS_SELECTOR, "button[value=pay]").click()
        wait.until(lambda d: "The shop answered 409." in d.page_source)
