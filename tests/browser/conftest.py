"""A server with rows for every page, one Chromium, and a person in front of it."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.visitor import Visitor
from tests.live.server import Server
from tests.needs import mark_dependents


FLAGS = (
    "--no-sandbox",  # it does not start as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # it looks for hosts of its own otherwise
    "--disable-component-update",
    "--disable-sync",
)


# Not of the session: Playwright has an event loop running in this thread, in which Django refuses its database.
@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.needs("chromium"), pytest.mark.server)
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Without a broker nothing ticks: every row stays as it was made.
    server = Server(tmp_path_factory.mktemp("browser"), BROKER_URL="redis://127.0.0.1:1/0")
    server.manage("-m", "config.install")
    server.manage("-m", "tests.browser.world")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def superuser(browser: Browser, site: Server) -> Iterator[Visitor]:
    """Signed in once, at one window: both take longer than most tests."""
    with browser.new_context() as context:
        visitor = Visitor(context.new_page(), site.url)
        visitor.sign_in(**site.demo["users"]["superuser"])
        yield visitor


@pytest.fixture
def operator(superuser: Visitor) -> Iterator[Visitor]:
    yield superuser
    superuser.check()


@pytest.fixture
def stranger(browser: Browser, site: Server) -> Iterator[Visitor]:
    """With no session."""
    with browser.new_context() as context:
        visitor = Visitor(context.new_page(), site.url)
        yield visitor
        visitor.check()
