"""Pages in headless Chromium, as a user sees them: what they look like, load, and complain about."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE, DESKTOP = 390, 1440
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@dataclass
class Visit:
    """A page in a browser.

    Attributes:
        page: Playwright's page: `goto`, `fill`, `click`, `screenshot`.
        requests: all addresses that it asked for, its own among them.
        complaints: errors and warnings of its console, errors of its scripts, and requests that failed.
    """

    page: "Page"
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def is_wider_than_the_screen(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@contextlib.contextmanager
def visit(width: int = DESKTOP, *, is_dark: bool = False, height: int = 900) -> Iterator[Visit]:
    """Opens an empty page. It is closed at the end, or Playwright's event loop would stay in this thread."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    options: dict[str, Any] = {"executable_path": CHROMIUM, "args": QUIET, "env": {**os.environ, "HOME": "/tmp"}}
    with sync_playwright() as playwright, contextlib.closing(playwright.chromium.launch(**options)) as browser:
        page = browser.new_page(
            viewport={"width": width, "height": height},
            device_scale_factor=2 if width <= PHONE else 1,
            color_scheme="dark" if is_dark else "light",
        )
        found = Visit(page)
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("requestfailed", lambda request: found.complaints.append(f"{request.url}: {request.failure}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: found.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        yield found
