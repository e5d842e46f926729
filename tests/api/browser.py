"""A real browser, and what it was asked for and complained of."""

import contextlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium():
    """Where it is. Skips the test on a machine without."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    given = os.environ.get("SLICESERVE_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no chromium: `apt-get install chromium`, or name one in SLICESERVE_CHROMIUM")
    return found


@contextlib.asynccontextmanager
async def start_browser():
    from playwright.async_api import async_playwright

    executable = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield Browser(browser)
        await browser.close()


class Browser:
    """``pictures`` go to the folder SLICESERVE_PICTURES, if there is one."""

    def __init__(self, browser):
        self._browser = browser
        self.complaints = []
        self.urls = []

    async def open(self, url, width=1360, height=900, **context):
        """A new page, in a profile of its own."""
        viewport = {"width": width, "height": height}
        context = await self._browser.new_context(viewport=viewport, **context)
        page = await context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))
        await page.goto(f"{url}/dashboard")
        return page

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def expect_quiet(self, url):
        """No complaint, and nothing asked of anybody but ``url``."""
        assert self.complaints == []
        assert {urlsplit(asked).netloc for asked in self.urls} == {urlsplit(url).netloc}


async def picture(page, name):
    if folder := os.environ.get("SLICESERVE_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=Path(folder) / f"dashboard-{name}.png", full_page=True)


async def has_sideways_scroll(page):
    return await page.evaluate("document.documentElement.scrollWidth > innerWidth")


async def until(page, expression, timeout_s=30):
    """Wait until ``expression`` is true. Playwright's own way is what the page's policy forbids."""
    for _ in range(10 * timeout_s):
        if await page.evaluate(expression):
            return
        await page.wait_for_timeout(100)
    raise AssertionError(f"it never came true: {expression}")
