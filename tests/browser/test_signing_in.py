"""The door of the admin site."""

import pytest

from config.demo import ROLES
from tests.browser.visitor import Visitor
from tests.factories import PASSWORD
from tests.live.server import Server


NEW_PASSWORD = "another long password"


def test_signing_in_and_out(stranger: Visitor, site: Server) -> None:
    superuser = site.demo["users"]["superuser"]
    stranger.open("/admin/")
    assert stranger.path == "/admin/login/"
    stranger.sign_in("superuser", "wrong")
    assert "correct username and password" in stranger.page.locator(".errornote").inner_text()
    stranger.sign_in(**superuser)
    assert stranger.path == "/admin/"
    stranger.click("#logout-form button")
    assert "Logged out" in stranger.page.locator("#content").inner_text()
    stranger.click("#content a")
    assert stranger.path == "/admin/login/"


def test_staff_without_permissions_see_nothing_and_change_their_own_password(stranger: Visitor) -> None:
    stranger.sign_in("clerk", PASSWORD)
    assert "permission to view or edit anything" in stranger.page.locator("#content").inner_text()
    with stranger.answered(403):
        stranger.open("/admin/tenants/user/")
    assert stranger.page.locator("h1").inner_text() == "Forbidden"
    stranger.open("/admin/")
    stranger.click("#user-tools a[href$='/password_change/']")
    for old in ("wrong", PASSWORD):
        stranger.page.fill("#id_old_password", old)
        stranger.page.fill("#id_new_password1", NEW_PASSWORD)
        stranger.page.fill("#id_new_password2", NEW_PASSWORD)
        stranger.click("#content input[type=submit]")
        assert stranger.page.locator(".errornote").is_visible() == (old == "wrong")
    assert stranger.path == "/admin/password_change/done/"
    stranger.click("#logout-form button")
    stranger.sign_in("clerk", NEW_PASSWORD)
    assert stranger.path == "/admin/"


@pytest.mark.parametrize("role", ["admin", "auditor"])
def test_people_of_a_tenant_are_not_let_in(stranger: Visitor, site: Server, role: str) -> None:
    assert role in ROLES
    stranger.sign_in(**site.demo["users"][role])
    assert "correct username and password for a staff account" in stranger.page.locator(".errornote").inner_text()


def test_too_many_wrong_passwords_are_answered_with_a_page(stranger: Visitor) -> None:
    for _ in range(4):
        stranger.sign_in("nobody", "wrong")
    with stranger.answered(429):
        stranger.sign_in("nobody", "wrong")
    assert "Wait 15 minutes" in stranger.page.locator("#content").inner_text()


def test_form_whose_token_is_gone_is_answered_with_a_page(stranger: Visitor) -> None:
    stranger.open("/admin/login/")
    stranger.page.fill("#id_username", "clerk")
    stranger.page.fill("#id_password", PASSWORD)
    stranger.page.context.clear_cookies()
    with stranger.answered(403):
        stranger.click("input[type=submit]")
    assert "Reload the page" in stranger.page.locator("#content").inner_text()
