"""What there is to see without signing in."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.visitor import Visitor
from tests.live.server import Server


@pytest.mark.parametrize(("typed", "path"), [("/", "/api/docs/"), ("/admin", "/admin/login/")])
def test_short_address_leads_to_a_page(stranger: Visitor, typed: str, path: str) -> None:
    stranger.open(typed)
    assert stranger.path == path


def test_unknown_address_is_a_page(stranger: Visitor) -> None:
    with stranger.answered(404):
        stranger.open("/nothing")
    assert stranger.page.locator("h1").inner_text() == "Not Found"


def test_api_pages_send_requests(stranger: Visitor, site: Server) -> None:
    """Signs in with the form of an operation, gives the token to the page, and asks who that is."""
    page = stranger.page
    stranger.open("/api/docs/")
    page.wait_for_selector(".opblock")
    stranger.picture("operations")

    def execute(operation: str, body: str = "") -> str:
        block = page.locator(f"[id$={operation}]").first
        block.locator(".opblock-summary-control").click()
        block.locator("text=Try it out").click()
        if body:
            block.locator("textarea").fill(body)
        block.locator("button.execute").click()
        expect(block.locator(".live-responses-table .response-col_status").last).to_have_text(re.compile("^200"))
        stranger.picture(operation)
        return block.locator(".live-responses-table .highlight-code code").first.inner_text()

    member = site.demo["users"]["member"]
    answer = execute("token_create", f'{{"username": "{member["username"]}", "password": "{member["password"]}"}}')
    (token,) = re.findall(r'"access":\s*"([^"]+)"', answer)
    page.click("button.authorize")
    page.fill(".modal-ux input", token)
    stranger.picture("authorize")
    page.click(".modal-ux button.authorize")
    page.click(".modal-ux .btn-done")
    assert '"username": "member"' in execute("-me")
