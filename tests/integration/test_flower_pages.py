"""The tab for sagas in Flower, in a real Chromium: what a person sees and clicks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sagas import SagaHandle, SagaStatus
from tests.browser import browser
from tests.conftest import Rig
from tests.flower import FlowerProcess, environment, running_rig, stuck
from tests.rig import Faults
from tests.servers import Postgres, Redis, wait_for

SCRIPT = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@pytest.fixture(scope="module")
def rig(redis_server: Redis, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(redis_server, postgres, tmp_path_factory.mktemp("pages"), "pages") as rig:
        yield rig


@pytest.fixture(scope="module")
def flower(rig: Rig) -> Iterator[FlowerProcess]:
    with FlowerProcess(rig.folder, environment=environment(rig)) as process:
        yield process


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def untouched(rig: Rig) -> SagaHandle:
    """A stuck saga that nothing is ever done to."""
    return stuck(rig)


class Page:
    """The page of one saga, opened once: `reloaded` tells whether it was loaded again."""

    def __init__(self, chrome: Chrome, flower: FlowerProcess, handle: SagaHandle) -> None:
        self.chrome, self.handle, self.url = chrome, handle, f"{flower.url}/sagas/saga/{handle.id}"
        self.open()

    def open(self) -> None:
        self.chrome.get(self.url)
        self.chrome.execute_script("window.opened = true")

    @property
    def reloaded(self) -> bool:
        return not self.chrome.execute_script("return window.opened === true")

    def has(self, selector: str) -> bool:
        return bool(self.chrome.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return str(self.chrome.execute_script("return document.querySelector(arguments[0])?.textContent", selector))

    def shows(self, status: str, timeout: float = 20) -> None:
        wait_for(lambda: self.text("#sg-status") == status, timeout, f"the page shows {status}")

    def says(self, problem: str) -> None:
        wait_for(lambda: problem in self.text("#sg-problem"), 20, f"the form says {problem!r}")

    def press(self, button: str, reason: str = "the bank is back", result: str | None = None) -> None:
        click(self.chrome, f"#sg-{button}")
        fill(self.chrome, "#sg-reason", reason)
        if result is not None:
            fill(self.chrome, "#sg-result", result)
        click(self.chrome, "#sg-confirm")


def click(chrome: Chrome, selector: str) -> None:
    element = wait_for(lambda: chrome.find_elements(By.CSS_SELECTOR, selector), 20, f"{selector} is there")[0]
    before = chrome.current_url
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()
    wait_for(lambda: chrome.current_url != before, 20, f"{selector} leads on")


def fill(chrome: Chrome, selector: str, text: str) -> None:
    wait_for(lambda: chrome.find_elements(By.CSS_SELECTOR, selector), 20, f"{selector} is there")[0].send_keys(text)


def operators(rig: Rig, handle: SagaHandle) -> list[tuple[str, str]]:
    return [(entry.what, entry.detail) for entry in rig.sagas.store.history(handle.id) if entry.actor]


def test_a_saga_is_watched_from_start_to_finish(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    handle = rig.start("full", four="slow")
    rig.begun(handle, "four")
    page = Page(chrome, flower, handle)
    page.shows("RUNNING")
    assert not page.has("#sg-retry-four")
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".saga-drawing .saga-action.running, .saga-pivot.running")) == 1
    rig.go(handle)
    page.shows("COMPLETED")
    assert not page.reloaded
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".saga-drawing .done")) == 7
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".sg-lane")) == 7
    wait_for(lambda: page.has(f".sg-task[href$='{handle.id}%3Aone%3A1']"), 20, "Flower has seen its tasks")
    assert not page.reloaded
    click(chrome, f".sg-task[href$='{handle.id}%3Aone%3A1']")
    assert "full.one" in chrome.page_source


@pytest.mark.parametrize(
    ("button", "result", "ends"),
    [
        ("retry-pivot", None, "COMPLETED"),
        ("skip-pivot", None, "COMPLETED"),
        ("done-pivot", '{"step": "pivot", "attempt": 7}', "COMPLETED"),
        ("compensate", None, "COMPENSATED"),
    ],
)
def test_a_stuck_saga_is_repaired_by_clicking(
    rig: Rig, flower: FlowerProcess, chrome: Chrome, button: str, result: str | None, ends: str
) -> None:
    handle = stuck(rig)
    chrome.get(f"{flower.url}/sagas")
    click(chrome, f"a[href='/sagas/saga/{handle.id}']")
    page = Page(chrome, flower, handle)
    assert "the bank is away" in page.text("#sg-error")
    rig.go(handle)
    page.press(button, result=result)
    page.shows(ends)
    assert handle.wait(1) is SagaStatus(ends)
    [(what, detail)] = [each for each in operators(rig, handle) if each[0].startswith("operator")]
    assert (what, "the bank is back" in detail) == (
        "operator: failed" if button == "compensate" else f"operator: {button.split('-', maxsplit=1)[0]}", True
    )  # fmt: skip
    assert page.text("#sg-history ~ div").count("flower (not logged in)") == len(operators(rig, handle))
    if result:
        assert handle.result["pivot"].attempt == 7


@pytest.mark.parametrize(("button", "shown"), [("resume", "PENDING"), ("cancel", "COMPENSATED")])
def test_one_that_is_not_stuck(rig: Rig, flower: FlowerProcess, chrome: Chrome, button: str, shown: str) -> None:
    handle = rig.start("later")
    page = Page(chrome, flower, handle)
    page.press(button)
    page.shows(shown)
    assert [what for what, _ in operators(rig, handle)] in (["operator: resume"], ["compensation started"])


def test_what_was_decided_elsewhere_meanwhile(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    handle = stuck(rig)
    page = Page(chrome, flower, handle)
    click(chrome, "#sg-skip-pivot")
    rig.sagas.skip(handle.id, "pivot", reason="quicker")
    fill(chrome, "#sg-reason", "too late")
    chrome.find_element(By.ID, "sg-confirm").click()
    page.says("none of its steps is stuck")
    assert len(operators(rig, handle)) == 0  # `actor` was not given there


def test_a_result_that_is_no_json_or_of_another_type(
    flower: FlowerProcess, chrome: Chrome, untouched: SagaHandle
) -> None:
    page = Page(chrome, flower, untouched)
    click(chrome, "#sg-done-pivot")
    for result, problem in (("{", "the result is not JSON"), ('{"x": 1}', "pivot")):
        chrome.find_element(By.ID, "sg-result").clear()
        fill(chrome, "#sg-result", result)
        if not chrome.find_element(By.ID, "sg-reason").get_attribute("value"):
            fill(chrome, "#sg-reason", "by hand")
        chrome.find_element(By.ID, "sg-confirm").click()
        page.says(problem)
        assert chrome.find_element(By.ID, "sg-reason").get_attribute("value") == "by hand"  # not to be typed again
        assert chrome.find_element(By.ID, "sg-result").get_attribute("value") == result
    assert untouched.status is SagaStatus.STUCK


def test_scripts_in_what_people_write_are_text(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    handle = rig.saga("later").start(Faults({"one": SCRIPT}, note=SCRIPT), key=f"key {SCRIPT}")
    rig.sagas.cancel(handle.id, SCRIPT, actor=SCRIPT)
    page = Page(chrome, flower, handle)
    assert SCRIPT in page.text("#sg-error")
    assert SCRIPT in page.text("#sg-input ~ pre").replace("\\", "")
    for url in (
        page.url,
        f"{flower.url}/sagas?saga=later&status=COMPENSATED",
        f"{flower.url}/sagas?q=%3Cscript%3Ewindow.hacked=3%3C/script%3E",
    ):
        chrome.get(url)
        assert "<script>window.hacked" in chrome.execute_script("return document.body.innerText") or "q=" in url
        assert chrome.execute_script("return window.hacked") is None


def test_without_scripts(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    handle = stuck(rig)
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chrome.get(f"{flower.url}/sagas/saga/{handle.id}")
        click(chrome, "#sg-skip-pivot")
        chrome.find_element(By.ID, "sg-reason").send_keys("written off")
        click(chrome, "#sg-confirm")
        assert handle.wait(20) is SagaStatus.COMPLETED
        chrome.refresh()
        assert chrome.find_element(By.ID, "sg-status").text == "COMPLETED"
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_by_keyboard(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    """The focus survives what comes in, and Enter does what a click does."""
    handle = stuck(rig)
    page = Page(chrome, flower, handle)
    for _ in range(30):
        _press(chrome, Keys.TAB)
        if _focus(chrome) == "sg-skip-pivot":
            break
    _touch(rig, handle)
    wait_for(lambda: page.text("#sg-error") == "something new", 20, "the page is up to date")
    assert _focus(chrome) == "sg-skip-pivot"
    _press(chrome, Keys.ENTER)
    wait_for(lambda: chrome.current_url.endswith("skip?step=pivot"), 20, "the form is open")
    wait_for(lambda: _focus(chrome) == "sg-reason", 20, "it asks why")


def _press(chrome: Chrome, key: str) -> None:
    # To whatever has the focus: a handle on an element would go stale when the page draws itself anew.
    ActionChains(chrome).send_keys(key).perform()


def _focus(chrome: Chrome) -> Any:
    return chrome.execute_script("return document.activeElement.id")


def _touch(rig: Rig, handle: SagaHandle) -> None:
    store: Any = rig.sagas.store
    with store.transaction() as session:
        session.connection().exec_driver_sql(
            "update sagas_saga set error = 'something new' where id = %s", (handle.id,)
        )


def test_a_flower_that_is_away_is_told(rig: Rig, flower: FlowerProcess, chrome: Chrome) -> None:
    page = Page(chrome, flower, rig.start("later"))
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        wait_for(lambda: "Not up to date since" in page.text("#sagas-stale"), 20, "it says so")
    finally:
        chrome.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    wait_for(lambda: page.text("#sagas-stale") == "", 20, "it says so no more")
    assert not page.reloaded


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_looks(rig: Rig, flower: FlowerProcess, chrome: Chrome, untouched: SagaHandle, scheme: str, width: int) -> None:
    """Nothing is wider than the window, and dark is dark. The screenshots are in the folder of the tests."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for number, path in enumerate(
            ("", f"/saga/{untouched.id}", f"/saga/{untouched.id}/mark-done?step=pivot", "/definitions", "/dead-letters")
        ):
            chrome.get(f"{flower.url}/sagas{path}")
            script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert chrome.execute_script(script) == 0, path
            light = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
            background = chrome.execute_script(light)
            themed = chrome.execute_script("return document.documentElement.hasAttribute('data-bs-theme')")
            assert (sum(background) < 200) is (scheme == "dark" and themed), path
            chrome.save_screenshot(str(rig.folder / f"{scheme}-{width}-{number}.png"))
    finally:
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
