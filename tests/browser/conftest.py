"""A served dashboard and a real Chromium for the tests of this folder."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

START = "from workbench.cli import app; app()"


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a dashboard served by `workbench serve` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", START, "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=60).read()
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise RuntimeError("The dashboard did not start.")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome from the PATH, otherwise Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Visit:
    """One opened page and what it asked for and complained about."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._requested)
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))

    def _requested(self, request) -> None:
        if not request.url.startswith((self.address, self.address.replace("http", "ws"), "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, query: str = "", shown: str = "mass within 3 cells") -> "Visit":
        """Load the page and wait until its figures are drawn and its numbers shown, one of which is named `shown`."""
        self.page.goto(self.address + query)
        self.page.wait_for_selector(f"text={shown}", timeout=60_000)
        self.page.wait_for_selector("canvas", timeout=60_000)
        self.page.wait_for_function("() => Bokeh.documents.length && Bokeh.documents.every(d => d.is_idle)")
        return self

    def box(self, selector: str) -> FloatRect:
        """Where the first such element lies, once it has not moved for a while: a page that loads pushes it about."""
        places: list[FloatRect | None] = []
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            places = [*places[-2:], self.page.locator(selector).first.bounding_box()]
            if len(places) == 3 and places[0] is not None and places[0] == places[1] == places[2]:
                return places[0]
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{selector} has not come to rest: {places}")

    def status(self) -> str:
        return self.page.locator("[role=status][aria-live=polite]").first.inner_text()

    def wait_for_status(self, text: str) -> None:
        self.page.wait_for_function("text => window.__statuses().some(s => s.includes(text))", arg=text, timeout=30_000)


#: Panel's panes live in shadow roots, which document.querySelector does not enter.
STATUSES = """
window.__statuses = () => {
  const found = []
  const walk = root => {
    for (const e of root.querySelectorAll('*')) {
      if (e.getAttribute('aria-live') === 'polite') found.push(e.innerText)
      if (e.shadowRoot) walk(e.shadowRoot)
    }
  }
  walk(document)
  return found
}
window.__focused = () => {
  let e = document.activeElement
  while (e && e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement
  return e ? (e.getAttribute('aria-label') || e.innerText || e.tagName) : ''
}
"""


@pytest.fixture(params=[(1280, 800)], ids=lambda s: f"{s[0]}x{s[1]}")
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh browser context; parametrise indirectly with another (width, height)."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(STATUSES)
    page = context.new_page()
    yield Visit(page, address)
    context.close()
