"""Fixtures: a server with rows for every page, Chromium, and users who operate it."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.visitor import Visitor
from tests.live.server import Server
from tests.needs import mark_dependents


FLAGS = (
    "--no-sandbox",  # the sandbox does not start as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # no requests to other hosts
    "--disable-component-update",
    "--disable-sync",
)


# Not session-scoped: Playwright runs an event loop in this thread, and Django refuses database access in such a thread.
@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.needs("chromium"), pytest.mark.server)
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Without a broker no tick changes the rows.
    server = Server(tmp_path_factory.mktemp("browser"), BROKER_URL="redis://127.0.0.1:1/0")
    server.manage("-m", "config.install")
    server.manage("-m", "tests.browser.world")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def superuser(browser: Browser, site: Server) -> Iterator[Visitor]:
    """A superuser, signed in once and with one page, because both take longer than most tests."""
    with browser.new_context() as context:
        visitor = Visitor(context.new_page(), site.url)
        visitor.sign_in(**site.demo["users"]["superuser"])
        yield visitor


@pytest.fixture
def operator(superuser: Visitor) -> Iterator[Visitor]:
    yield superuser
    superuser.check()


@pytest.fixture
def visitor(browser: Browser, site: Server) -> Iterator[Visitor]:
    """A visitor without a session."""
    with browser.new_context() as context:
        visitor = Visitor(context.new_page(), site.url)
        yield visitor
        visitor.check()
