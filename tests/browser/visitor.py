"""A person at a browser, who notices whatever it complains about."""

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
PATIENCE = 100_000  # milliseconds: a busy machine is no failure
SCREENSHOTS = os.environ.get("BROWSER_SCREENSHOTS")  # a folder: every page is kept there
FETCH = """paths => Promise.all(paths.map(async path => {
    const response = await fetch(path, {headers: {Accept: 'text/html'}})
    await response.text()
    return response.url
}))"""
_numbers = itertools.count(1)


class Visitor:
    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self._expected: set[int] = set()
        self._met: set[int] = set()
        page.set_default_timeout(PATIENCE)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _said(self, message: ConsoleMessage) -> None:
        is_told_below = message.text.startswith("Failed to load resource: the server responded")
        if message.type in {"error", "warning"} and not is_told_below:
            self.complaints.append(f"console: {message.text}")

    def _failed(self, request: Request) -> None:
        self.complaints.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._met.add(response.status)
            if response.status not in self._expected:
                self.complaints.append(f"{response.status}: {response.request.method} {response.url}")
        if response.request.resource_type == "document":
            policy = set(response.headers.get("content-security-policy", "").split("; "))
            if policy != POLICY or response.headers.get("referrer-policy") != "same-origin":
                self.complaints.append(f"headers: {response.url}: {response.headers}")

    @contextmanager
    def answered(self, status: int) -> Iterator[None]:
        """What is asked for in its block is refused with this status."""
        self._expected, self._met = {status}, set()
        yield
        assert self._met == {status}
        self._expected = set()

    def check(self) -> None:
        self.page.evaluate("0")  # whatever the page has said by now arrives before the answer
        complaints, self.complaints = self.complaints, []
        assert not complaints, "\n".join([f"at {self.page.url}:", *complaints])

    # --- What a person does ---

    def open(self, path: str) -> None:
        """An address, or where a link of this page leads."""
        self.page.goto(urljoin(self.page.url, path) if self.page.url.startswith(self.url) else self.url + path)
        self.arrived()

    def click(self, target: str | Locator) -> None:
        """Something that leads to another page."""
        found = self.page.locator(target) if isinstance(target, str) else target
        with self.page.expect_navigation():
            found.click()
        self.arrived()

    def fetch(self, paths: Iterable[str]) -> None:
        """Pages that are opened without being looked at."""
        arrived = self.page.evaluate(FETCH, sorted(set(paths)))
        assert [url for url in arrived if url.endswith("?e=1")] == []  # where the site sends whoever filters by what there is not
        self.check()

    def arrived(self) -> None:
        self.check()
        assert self.page.evaluate("document.styleSheets.length"), f"{self.page.url} has no style"
        self.picture(urlsplit(self.page.url).path.strip("/") or "root")

    def picture(self, name: str) -> None:
        if SCREENSHOTS:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].split()[0]
            name = re.sub("[^A-Za-z0-9_]+", "-", f"{next(_numbers):03} {test} {name}")[:150]
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)

    def beside(self, page: Page) -> "Visitor":
        """The same person at another window."""
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
        """Where these lead."""
        found: list[str] = self.page.locator(selector).evaluate_all("all => all.map(one => one.getAttribute('href'))")
        return found

    def messages(self, kind: str = "li") -> list[str]:
        return self.page.locator(f".messagelist {kind}").all_inner_texts()
