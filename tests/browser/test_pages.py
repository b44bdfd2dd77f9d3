"""Opens every page and form in a browser. The list of models and actions comes from the admin site itself.

One module, so that all tests share a server and a browser.
"""

import re
from collections.abc import Callable
from typing import Final

import pytest
from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from playwright.sync_api import expect

from egress.models import EgressRequest
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.browser.visitor import TIMEOUT, Visitor
from tests.factories import PASSWORD
from tests.live.server import Server


pytestmark = pytest.mark.timeout(600)  # the first test waits for the server and the browser
expect.set_options(timeout=TIMEOUT)

MODELS: Final = list(admin.site._registry)
EACH = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
MAX_ROWS_OPENED: Final = 12  # rows of a list whose pages are opened
REASON: Final = "It is what the protocol allows."
NEW_PASSWORD: Final = "another long password"
# The query for rows that permit the action, if the first row does not.
ROWS: Final[dict[tuple[type[Model], str], str]] = {
    (Membership, "delete_selected"): "?q=carol",
    (Membership, "delete"): "?q=gary",
    (EgressRequest, "build_again"): "?status__exact=failed",
    (EgressRequest, "revoke"): "?status__exact=released",
}


def superusers_request() -> HttpRequest:
    request = HttpRequest()
    request.user = User(is_active=True, is_superuser=True)
    return request


OFFERED: Final = superusers_request()
ADDABLE: Final = [model for model in MODELS if admin.site.get_model_admin(model).has_add_permission(OFFERED)]
DELETABLE: Final = [model for model in MODELS if admin.site.get_model_admin(model).has_delete_permission(OFFERED)]
ACTIONS: Final = [(model, action) for model in MODELS for action in admin.site.get_model_admin(model).get_actions(OFFERED)]


def address(model: type[Model], page: str = "") -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/{page}"


def choose(visitor: Visitor, field: str, words: str) -> None:
    """Selects a choice in an autocomplete field. Waits for each response, because new input cancels a pending request."""
    with visitor.page.expect_response("**/admin/autocomplete/**"):
        visitor.page.click(f".field-{field} .select2-selection")
    with visitor.page.expect_response(f"**/admin/autocomplete/*term={words}*"):
        visitor.page.fill(".select2-search__field", words)
    visitor.page.click(f".select2-results__option:has-text('{words}')")


def fill_person(visitor: Visitor, name: str) -> None:
    visitor.page.fill("#id_username", name)
    visitor.page.fill("#id_email", f"{name}@example.org")
    visitor.page.fill("#id_password1", "a long enough for this")
    visitor.page.fill("#id_password2", "a long enough for this")


def fill_tenant(visitor: Visitor, name: str) -> None:
    visitor.page.fill("#id_slug", name)
    visitor.page.fill("#id_name", name)


def fill_membership(visitor: Visitor, _: str) -> None:
    choose(visitor, "user", "mallory")
    choose(visitor, "tenant", "acme")
    visitor.page.fill("#id_roles", '["auditor"]')


FORMS: Final[dict[type[Model], Callable[[Visitor, str], None]]] = {
    User: fill_person,
    Tenant: fill_tenant,
    Membership: fill_membership,
}


# --- Without a session ---


def test_root_redirects_to_the_api_pages(visitor: Visitor) -> None:
    visitor.open("/")
    assert visitor.path == "/api/docs/"


def test_api_pages_send_requests(visitor: Visitor, site: Server) -> None:
    """Signs in with the form of an operation, authorises the page with the token, and requests `me/`."""
    page = visitor.page
    visitor.open("/api/docs/")
    page.wait_for_selector(".opblock")
    visitor.screenshot("operations")

    def execute(operation: str, body: str = "") -> str:
        block = page.locator(f"[id$={operation}]").first
        block.locator(".opblock-summary-control").click()
        block.locator("text=Try it out").click()
        if body:
            block.locator("textarea").fill(body)
        block.locator("button.execute").click()
        expect(block.locator(".live-responses-table .response-col_status").last).to_have_text(re.compile("^200"))
        visitor.screenshot(operation)
        return block.locator(".live-responses-table .highlight-code code").first.inner_text()

    member = site.demo["users"]["member"]
    answer = execute("token_create", f'{{"username": "{member["username"]}", "password": "{member["password"]}"}}')
    (token,) = re.findall(r'"access":\s*"([^"]+)"', answer)
    page.click("button.authorize")
    page.fill(".modal-ux input", token)
    visitor.screenshot("authorize")
    page.click(".modal-ux button.authorize")
    page.click(".modal-ux .btn-done")
    assert '"username": "member"' in execute("-me")


# --- The login of the admin site ---


def test_sign_in_and_out(visitor: Visitor, site: Server) -> None:
    superuser = site.demo["users"]["superuser"]
    visitor.open("/admin/")
    assert visitor.path == "/admin/login/"
    visitor.sign_in("superuser", "wrong")
    assert "correct username and password" in visitor.page.locator(".errornote").inner_text()
    visitor.sign_in(**superuser)
    assert visitor.path == "/admin/"
    visitor.click("#logout-form button")
    assert "Logged out" in visitor.page.locator("#content").inner_text()
    visitor.click("#content a")
    assert visitor.path == "/admin/login/"


def test_staff_without_permissions_can_only_change_their_password(visitor: Visitor) -> None:
    visitor.sign_in("clerk", PASSWORD)
    assert "permission to view or edit anything" in visitor.page.locator("#content").inner_text()
    with visitor.answered(403):
        visitor.open("/admin/tenants/user/")
    assert visitor.page.locator("h1").inner_text() == "Forbidden"
    visitor.open("/admin/")
    visitor.click("#user-tools a[href$='/password_change/']")
    for old in ("wrong", PASSWORD):
        visitor.page.fill("#id_old_password", old)
        visitor.page.fill("#id_new_password1", NEW_PASSWORD)
        visitor.page.fill("#id_new_password2", NEW_PASSWORD)
        visitor.click("#content input[type=submit]")
        assert visitor.page.locator(".errornote").is_visible() == (old == "wrong")
    assert visitor.path == "/admin/password_change/done/"
    visitor.click("#logout-form button")
    visitor.sign_in("clerk", NEW_PASSWORD)
    assert visitor.path == "/admin/"


def test_tenant_members_cannot_sign_in(visitor: Visitor, site: Server) -> None:
    visitor.sign_in(**site.demo["users"]["admin"])
    assert "correct username and password for a staff account" in visitor.page.locator(".errornote").inner_text()


def test_too_many_wrong_passwords_show_a_page(visitor: Visitor) -> None:
    visitor.sign_in("nobody", "wrong")
    for _ in range(4):
        visitor.page.fill("#id_password", "wrong")
        visitor.click("input[type=submit]")
    visitor.page.fill("#id_password", "wrong")
    with visitor.answered(429):
        visitor.click("input[type=submit]")
    assert "Too many failed sign-ins. Try again in 1" in visitor.page.locator("#content").inner_text()


def test_form_without_csrf_cookie_shows_a_page(visitor: Visitor) -> None:
    visitor.open("/admin/login/")
    visitor.page.fill("#id_username", "clerk")
    visitor.page.fill("#id_password", PASSWORD)
    visitor.page.context.clear_cookies()
    with visitor.answered(403):
        visitor.click("input[type=submit]")
    assert "Reload the page" in visitor.page.locator("#content").inner_text()


# --- The admin site for a superuser ---


def test_front_page_links_to_every_list(operator: Visitor) -> None:
    operator.open("/admin/")
    leads_to = operator.links("#content .model-link a, #content th a")
    assert sorted(leads_to) == sorted(map(address, MODELS))
    assert operator.page.locator("#content .addlink").count() == len(ADDABLE)
    operator.fetch(operator.links("#content caption a"))
    operator.open(address(User))
    operator.page.fill("#nav-filter", "grant")
    assert operator.page.locator("#nav-sidebar tr.model-grant th").is_visible()
    assert not operator.page.locator("#nav-sidebar tr.model-tenant th").is_visible()
    operator.page.fill("#nav-filter", "")
    for _ in ("light", "dark", "auto"):
        operator.page.click("#header .theme-toggle")


@EACH
def test_list_and_rows_of_a_model(operator: Visitor, model: type[Model]) -> None:
    operator.open(address(model))
    assert operator.rows().count() > 0, "tests/browser/world.py creates no row of this model"
    rows = operator.links("#result_list tbody th a")
    operator.fetch(operator.links("#changelist a[href^='?'], #result_list thead a"))  # sorted, filtered, paged
    operator.fetch(rows[:MAX_ROWS_OPENED])
    if (search := operator.page.locator("#searchbar")).count():
        search.fill("nothing is like this")
        operator.click("#changelist-search input[type=submit]")
        assert operator.rows().count() == 0
    operator.open(rows[0])
    operator.fetch(operator.links(".historylink"))
    if (save := operator.page.locator("[name=_save]")).count():
        operator.click(save)
        assert operator.messages("li.success")


def test_links_of_a_list_and_a_history_work(operator: Visitor) -> None:
    operator.open(address(AuditEvent))
    operator.click(operator.page.locator("#result_list thead .text a").first)
    operator.click(operator.page.locator(".paginator a").first)
    operator.open(address(EgressRequest))
    operator.click(operator.page.locator("#changelist-filter li:not(.selected) a").first)
    operator.click(operator.page.locator("#result_list tbody th a").first)
    operator.click(".historylink")


def test_forms_covers_every_model_that_can_be_added() -> None:
    assert FORMS.keys() == set(ADDABLE)


@pytest.mark.parametrize("model", ADDABLE, ids=lambda model: model.__name__)
def test_form_for_a_new_row_refuses_empty_and_accepts_valid_input(operator: Visitor, model: type[Model]) -> None:
    operator.open(address(model, "add/"))
    operator.click("[name=_save]")
    assert operator.page.locator(".errornote").is_visible()
    FORMS[model](operator, "initech")
    operator.click("[name=_save]")
    assert operator.messages("li.success")


@pytest.mark.parametrize("model", DELETABLE, ids=lambda model: model.__name__)
def test_row_is_deleted(operator: Visitor, model: type[Model]) -> None:
    operator.open(address(model) + ROWS.get((model, "delete"), ""))
    operator.click(operator.page.locator("#result_list tbody th a").first)
    operator.click(".deletelink")
    confirm(operator)
    assert operator.messages("li.success")


@pytest.mark.parametrize(("status", "button"), [("failed", "build_again"), ("released", "revoke")])
def test_egress_request_has_its_actions_as_buttons(operator: Visitor, status: str, button: str) -> None:
    operator.open(f"{address(EgressRequest)}?status__exact={status}")
    operator.click(operator.page.locator("#result_list tbody th a").first)
    operator.click(f"button[value={button}]")
    assert operator.page.locator("#content textarea").is_visible()  # test_action_is_carried_out fills it in


@pytest.mark.parametrize(("model", "action"), ACTIONS, ids=[f"{model.__name__}-{action}" for model, action in ACTIONS])
def test_action_is_carried_out(operator: Visitor, model: type[Model], action: str) -> None:
    operator.open(address(model) + ROWS.get((model, action), ""))
    operator.rows().locator(".action-select").first.check()
    operator.page.select_option("select[name=action]", action)
    operator.click("[name=index]")
    if not operator.messages():
        confirm(operator)
    assert operator.messages("li.error") == []
    assert operator.messages()


def confirm(visitor: Visitor) -> None:
    if (reason := visitor.page.locator("#content textarea")).count():
        reason.fill(REASON)
    visitor.click("#content input[type=submit]")


@pytest.mark.parametrize("field", ["user", "tenant"])
def test_popup_for_a_related_row_opens_and_closes(operator: Visitor, field: str) -> None:
    operator.open(address(Membership, "add/"))
    with operator.page.expect_popup() as opened:
        operator.page.click(f"#add_id_{field}")
    popup = operator.with_page(opened.value)
    popup.page.wait_for_load_state()
    popup.check_page()
    FORMS[{"user": User, "tenant": Tenant}[field]](popup, "beside")
    with popup.page.expect_event("close"):
        popup.page.click("[name=_save]")
    expect(operator.page.locator(f".field-{field} .select2-selection__rendered")).to_contain_text("beside")


def test_password_of_a_user_is_set_and_disabled(operator: Visitor) -> None:
    for button, says in (("set-password", "changed"), ("unset-password", "disabled")):
        operator.open(f"{address(User)}?q=rick")
        operator.click(operator.page.locator("#result_list tbody th a", has_text="rick"))
        operator.click(".field-password a.button")
        if button == "unset-password":
            operator.page.check("#id_usable_password_1")
            assert not operator.page.locator("#id_password1").is_visible()
        else:
            operator.page.fill("#id_password1", "a long password of his")
            operator.page.fill("#id_password2", "a long password of his")
        operator.click(f"[name={button}]")
        assert says in " ".join(operator.messages("li.success"))


def test_unknown_path_of_the_admin_shows_a_page(operator: Visitor) -> None:
    with operator.answered(404):
        operator.open("/admin/nothing/")
    assert operator.page.locator("h1").inner_text() == "Not Found"


def test_missing_row_shows_a_warning(operator: Visitor) -> None:
    operator.open(address(Tenant, "00000000-0000-0000-0000-000000000000/change/"))
    assert "Perhaps it was deleted?" in " ".join(operator.messages("li.warning"))
