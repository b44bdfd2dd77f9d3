"""A user with a browser page, who records every error and warning of the browser."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response


POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
}
TIMEOUT = 100_000  # milliseconds: long enough for a busy machine
SCREENSHOTS = os.environ.get("BROWSER_SCREENSHOTS")  # the folder for a screenshot of every page
FETCH = """paths => Promise.all(paths.map(async path => {
    const response = await fetch(path, {headers: {Accept: 'text/html'}})
    await response.text()
    return response.url
}))"""
_numbers = itertools.count(1)


class Visitor:
    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self._expected: set[int] = set()
        self._met: set[int] = set()
        page.set_default_timeout(TIMEOUT)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _said(self, message: ConsoleMessage) -> None:
        is_failed_response = message.text.startswith("Failed to load resource: the server responded")
        if message.type in {"error", "warning"} and not is_failed_response:  # `_answered` handles those
            self.problems.append(f"console: {message.text}")

    def _failed(self, request: Request) -> None:
        self.problems.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._met.add(response.status)
            if response.status not in self._expected:
                self.problems.append(f"{response.status}: {response.request.method} {response.url}")
        if response.request.resource_type == "document":
            policy = set(response.headers.get("content-security-policy", "").split("; "))
            if policy != POLICY or response.headers.get("referrer-policy") != "same-origin":
                self.problems.append(f"headers: {response.url}: {response.headers}")

    @contextmanager
    def answered(self, status: int) -> Iterator[None]:
        """Expects responses with this error status inside the block."""
        self._expected, self._met = {status}, set()
        yield
        assert self._met == {status}
        self._expected = set()

    def check(self) -> None:
        self.page.evaluate("0")  # pending events of the page arrive before the result
        problems, self.problems = self.problems, []
        assert not problems, "\n".join([f"at {self.page.url}:", *problems])

    # --- Actions ---

    def open(self, path: str) -> None:
        """Opens a path of the site, or the target of a link on the current page."""
        self.page.goto(urljoin(self.page.url, path) if self.page.url.startswith(self.url) else self.url + path)
        self.check_page()

    def click(self, target: str | Locator) -> None:
        """Clicks an element that opens another page."""
        found = self.page.locator(target) if isinstance(target, str) else target
        with self.page.expect_navigation():
            found.click()
        self.check_page()

    def fetch(self, paths: Iterable[str]) -> None:
        """Requests pages without displaying them."""
        arrived = self.page.evaluate(FETCH, sorted(set(paths)))
        assert [url for url in arrived if url.endswith("?e=1")] == []  # the redirect of the site for an invalid filter
        self.check()

    def check_page(self) -> None:
        self.check()
        assert self.page.evaluate("document.styleSheets.length"), f"{self.page.url} has no style"
        self.screenshot(urlsplit(self.page.url).path.strip("/") or "root")

    def screenshot(self, name: str) -> None:
        if SCREENSHOTS:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].split()[0]
            name = re.sub("[^A-Za-z0-9_]+", "-", f"{next(_numbers):03} {test} {name}")[:150]
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)

    def with_page(self, page: Page) -> "Visitor":
        """Returns the same user with another page."""
        return Visitor(page, self.url)

    def sign_in(self, username: str, password: str) -> None:
        self.open("/admin/login/?next=/admin/")
        self.page.fill("#id_username", username)
        self.page.fill("#id_password", password)
        self.click("input[type=submit]")

    @property
    def path(self) -> str:
        return urlsplit(self.page.url).path

    def rows(self) -> Locator:
        return self.page.locator("#result_list tbody tr")

    def links(self, selector: str) -> list[str]:
        """Returns the targets of the links."""
        found: list[str] = self.page.locator(selector).evaluate_all("all => all.map(one => one.getAttribute('href'))")
        return found

    def messages(self, kind: str = "li") -> list[str]:
        return self.page.locator(f".messagelist {kind}").all_inner_texts()
