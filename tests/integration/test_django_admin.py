"""The admin in a real browser: a stuck saga is found, looked at and retried."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests import forks
from tests.browser import browser
from tests.integration.test_django import database, manage, project
from tests.rig import ROOT
from tests.servers import free_port, wait_for

PREPARE = """
import django
django.setup()
from django.contrib.auth.models import User
from sagas.contrib.django import sagas
from sagas.testing import Inline
from tests.django_project.orders.sagas import place_order
User.objects.create_superuser("ann", password="ann")
for number, fault in (("1001", ""), ("1002", "broken_charge"), ("1003", "declined"), ("1004", "raise")):
    Inline(sagas.store).start(place_order, {"number": number, "card": "4111-2222-3333-4444", "fault": fault}, key=f"order-{number}")
"""

#: Returns what is wider than the place that it has.
_CUT = """
return [document.documentElement, ...document.querySelectorAll(".results, .saga-table, .saga-facts, #content")]
    .filter(each => each.scrollWidth > each.clientWidth + 1)
    .map(each => `${each.tagName}.${each.className}: ${each.scrollWidth} > ${each.clientWidth}`)
"""

#: Where screenshots go, for whoever wants to look at them.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    environment = project(tmp_path, DATABASES={"default": database(request, "sqlite", tmp_path)})
    assert manage(environment, "migrate", "--run-syncdb").returncode == 0
    forks.run([sys.executable, "-c", PREPARE], cwd=ROOT, env=environment, check=True, timeout=60)
    address, log = f"127.0.0.1:{free_port()}", tmp_path / "site.log"
    with log.open("wb") as output:
        server = forks.Popen(
            [sys.executable, "-m", "django", "runserver", "--noreload", address],
            cwd=ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: b"Quit the server" in log.read_bytes(), 60, "the site answers")
        yield f"http://{address}"
    finally:
        server.kill()
        server.wait(10)


@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (420, False)], ids=["light", "dark", "narrow"]
)
def test_a_stuck_saga_is_found_and_retried(site: str, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path / "profile", width=width, dark=dark) as driver:
        wait = WebDriverWait(driver, 30)

        def click(actor: str, what: str) -> None:
            wait.until(lambda d: d.find_element(actor, what)).click()

        def look(name: str) -> None:
            if SCREENSHOTS:
                driver.save_screenshot(f"{SCREENSHOTS}/admin-{name}-{width}-{'dark' if dark else 'light'}.png")
            if width > 1000:
                cut = driver.execute_script(_CUT)
                assert not cut, f"{name}: {cut}"

        driver.get(f"{site}/admin/sagas/saga/?status=attention")
        wait.until(lambda d: d.find_element(By.NAME, "username")).send_keys("ann")
        driver.find_element(By.NAME, "password").send_keys("ann")
        click(By.CSS_SELECTOR, "input[type=submit]")
        wait.until(lambda d: d.find_element(By.CSS_SELECTOR, ".saga-stuck"))
        assert len(driver.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")) == 1
        driver.get(f"{site}/admin/sagas/saga/")
        wait.until(lambda d: len(d.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")) == 4)
        look("list")
        click(By.LINK_TEXT, "order-1002")
        wait.until(lambda d: "the bank is away" in d.page_source)
        look("detail")
        click(By.LINK_TEXT, "Retry charge…")
        reason = wait.until(lambda d: d.find_element(By.NAME, "reason"))
        look("reason")
        reason.send_keys("the bank is back")
        click(By.CSS_SELECTOR, ".submit-row input[type=submit]")
        wait.until(lambda d: "Retry charge: the saga is now RUNNING." in d.page_source)
        assert "the bank is back" in driver.page_source
        look("after")
        click(By.CSS_SELECTOR, ".historylink")
        wait.until(lambda d: "/history/" in d.current_url)
        look("history")
