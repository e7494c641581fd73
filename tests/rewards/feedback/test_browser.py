"""Two people in two real browsers, a server that is killed, and nothing lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from ...browsers import browser
from .conftest import pairs

if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("needs Debian's chromium and chromium-driver", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ITEMS = 20
ROOT = Path(__file__).parents[3]


class Server:
    def __init__(self, folder, log):
        self.folder, self.log, self.port, self.process = folder, log, 0, None

    def start(self):
        command = [sys.executable, "-m", "agents.cli", "feedback", "serve", str(self.folder), "--port", str(self.port)]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        known = len(re.findall(r"http://", self.log.read_text()))
        deadline = time.monotonic() + 60
        while len(found := re.findall(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())) <= known:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.port = int(found[-1])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def drivers():
    drivers = [browser(1280, 900), browser(400, 860)]
    yield drivers
    for driver in drivers:
        driver.quit()


@pytest.fixture
def world(make_store, tmp_path, drivers):
    store = make_store(pairs(ITEMS), overlap=2, guideline="Prefer the response that helps.", criteria=("fluent",), name="Films")
    server = Server(store.folder, tmp_path / "server.log")
    (tmp_path / "server.log").touch()
    server.start()
    for driver in drivers:
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})  # a cookie knows no ports, so that of the last server would be sent
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        driver.get_log("browser")
    yield store, server, drivers
    server.kill()


def patiently(act):
    """Do it; again while the server is away or the page is being changed."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return act()
        except WebDriverException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def prompt(driver):
    found = driver.find_elements(By.CSS_SELECTOR, "section[aria-labelledby=prompt-title] .text")
    return found[0].text if found else None


def enter(driver, server, name):
    driver.get(f"http://127.0.0.1:{server.port}/")
    field = driver.find_element(By.ID, "name")
    field.send_keys(name, Keys.ENTER)
    patiently(lambda: driver.find_element(By.CSS_SELECTOR, "button[data-key=a]"))


def label(driver, server, act, kill_at=None):
    """Answer until nothing is left; `act` does one answer, given its number and the page's prompt."""
    url = f"http://127.0.0.1:{server.port}/question"
    number, last, waited = 0, None, time.monotonic()
    while True:
        now = patiently(lambda: prompt(driver))
        if now is None:
            if not driver.find_elements(By.CSS_SELECTOR, "header strong"):  # the browser's own error page
                patiently(lambda: driver.get(url))
                continue
            return
        if now == last and time.monotonic() - waited < 3:
            time.sleep(0.02)
            continue
        if now == last:  # the answer did not arrive: the server was dead
            patiently(lambda: driver.get(url))
            if patiently(lambda: prompt(driver)) is None:
                continue
        number, last, waited = number + 1, patiently(lambda: prompt(driver)), time.monotonic()
        if number == kill_at:
            server.kill()
            server.start()
        try:
            act(number, driver)
        except WebDriverException:
            last = None


def choice(driver, number):
    return driver.find_element(By.CSS_SELECTOR, f".choices button:nth-of-type({number + 1})")


def by_keyboard(number, driver):
    driver.find_element(By.TAG_NAME, "body").send_keys("abtx"[number % 4] if number % 5 else "1")
    if number == 7:
        time.sleep(0.3)
        driver.refresh()


def by_mouse(number, driver):
    button = choice(driver, number % 4)
    if number % 3 == 0:
        webdriver.ActionChains(driver).double_click(button).perform()
    else:
        driver.find_element(By.CSS_SELECTOR, f".scale label:nth-of-type({number % 5 + 1}) input").click()
        button.click()


@pytest.mark.slow
def test_two_people_a_killed_server_and_no_vote_lost(world):
    store, server, drivers = world
    for driver, name in zip(drivers, ("ann", "bob"), strict=True):
        enter(driver, server, name)
    folder = os.environ.get("TEXTRL_SCREENSHOTS")  # to look at them
    if folder:
        for driver, width in zip(drivers, ("desktop", "phone"), strict=True):
            driver.save_screenshot(f"{folder}/{width}.png")
    errors = []

    def work(driver, act, kill_at):
        try:
            label(driver, server, act, kill_at)
        except Exception as error:
            errors.append(error)

    jobs = [(drivers[0], by_keyboard, None), (drivers[1], by_mouse, 10)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    answers = store.answers()
    assert len(answers) == 2 * ITEMS and Counter(a.annotator for a in answers) == {store.keys.name(n): ITEMS for n in ("ann", "bob")}
    assert len({(a.item_id, a.annotator) for a in answers}) == 2 * ITEMS
    assert {a.value["choice"] for a in answers} == {"a", "b", "tie", "bad"}
    for driver in drivers:  # nothing is wider than the window
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        # what a killed server leaves
        dead = ("ERR_CONNECTION", "ERR_SOCKET_NOT_CONNECTED", "ERR_EMPTY_RESPONSE", "ERR_CONTENT_LENGTH", "Failed to fetch")
        assert not [m for m in severe if not any(reason in m for reason in dead)], severe


def test_every_control_can_be_reached_and_has_a_name(world):
    _, server, (driver, _) = world
    enter(driver, server, "ann")
    nameless = driver.execute_script("""
        return [...document.querySelectorAll("button, input:not([type=hidden]), textarea, select, a, [tabindex]")]
            .filter(e => !(e.innerText.trim() || e.labels?.length || e.ariaLabel || e.closest("label"))).map(e => e.outerHTML)""")
    assert nameless == []
    seen = set()
    for _ in range(40):
        webdriver.ActionChains(driver).send_keys(Keys.TAB).perform()
        seen.add(driver.execute_script("return document.activeElement.outerHTML.slice(0, 60)"))
    assert sum("<button" in html for html in seen) == 6  # five answers and leave; there is nothing to undo


def test_it_works_without_javascript(world):
    store, server, (driver, _) = world
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    driver.get(f"http://127.0.0.1:{server.port}/")
    driver.find_element(By.ID, "name").send_keys("cem", Keys.ENTER)
    for number in range(4):
        patiently(lambda number=number: choice(driver, number).click())
        deadline = time.monotonic() + 30
        while len(store.answers()) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(store.answers()) == 4 and not driver.find_elements(By.CSS_SELECTOR, ".keys:not([hidden])")
