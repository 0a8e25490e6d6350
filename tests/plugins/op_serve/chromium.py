"""A real browser for tests, without a screen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from live_server import Live, until
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextmanager
def chromium(
    *flags: str, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[WebDriver]:
    """Chromium with an empty profile; skips the test where it cannot be installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    profile = mkdtemp()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    if dark:
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    try:
        yield opened
    finally:
        opened.quit()
        shutil.rmtree(Path(profile), ignore_errors=True)


class Page:
    """The studio as a person sees it."""

    def __init__(self, browser: WebDriver, live: Live) -> None:
        self.browser, self.live = browser, live

    def open(self) -> Page:
        """By the address that `op serve` prints."""
        self.browser.get(f"{self.live.url}/?token={self.live.token}")
        return self.ready()

    def ready(self) -> Page:
        until(lambda: self.script("return document.body.dataset.ready") == "yes", seconds=20)
        return self

    def go(self, view: str) -> None:
        self.find(f"nav a[href='#{view}']").click()
        until(lambda: self.find(f"#{view}").is_displayed())

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)  # type: ignore[no-untyped-call]

    def write(self, selector: str, text: str) -> WebElement:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)
        return field

    def press(self, words: str, *, within: str = "main") -> None:
        """The visible button or link with these words."""
        found = self.script(
            "return [...document.querySelectorAll(arguments[0])].find((it) =>"
            " it.checkVisibility() && it.innerText.trim() === arguments[1])",
            f"{within} button, {within} a.button",
            words,
        )
        assert found is not None, f"no button {words!r}"
        self.script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def unfold(self, selector: str) -> None:
        """Open a part that is folded away, or fold it again."""
        summary = self.find(f"{selector} summary")
        self.script("arguments[0].scrollIntoView({block: 'center'})", summary)
        summary.click()

    def wait(self, there: Callable[[], object], seconds: float = 60) -> None:
        until(there, seconds=seconds)

    def complaints(self) -> list[str]:
        """What the browser's console says, refusals of the server aside."""
        return [
            entry["message"]
            for entry in self.browser.get_log("browser")  # type: ignore[no-untyped-call]
            if entry["level"] == "SEVERE" and "Failed to load resource" not in entry["message"]
        ]
