"""Every page and form that a person sees, in a browser. What the admin site has is asked of the site itself.

One module, so that its tests share a server and a browser wherever they run.
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
from tests.browser.visitor import PATIENCE, Visitor
from tests.factories import PASSWORD
from tests.live.server import Server


pytestmark = pytest.mark.timeout(600)  # the first test waits for the server and the browser
expect.set_options(timeout=PATIENCE)

MODELS: Final = list(admin.site._registry)
EACH = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
ENOUGH: Final = 12  # rows of a list whose pages are opened
WHY: Final = "It is what the protocol allows."
NEW_PASSWORD: Final = "another long password"
# Which rows an action is tried on, where the first of all would be refused.
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
    """In a field that looks its choices up. Each answer is waited for: the field would cancel the request."""
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


# --- Without signing in ---


def test_root_leads_to_the_api_pages(stranger: Visitor) -> None:
    stranger.open("/")
    assert stranger.path == "/api/docs/"


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


# --- The door of the admin site ---


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


def test_people_of_a_tenant_are_not_let_in(stranger: Visitor, site: Server) -> None:
    stranger.sign_in(**site.demo["users"]["admin"])
    assert "correct username and password for a staff account" in stranger.page.locator(".errornote").inner_text()


def test_too_many_wrong_passwords_are_answered_with_a_page(stranger: Visitor) -> None:
    stranger.sign_in("nobody", "wrong")
    for _ in range(3):
        stranger.page.fill("#id_password", "wrong")
        stranger.click("input[type=submit]")
    stranger.page.fill("#id_password", "wrong")
    with stranger.answered(429):
        stranger.click("input[type=submit]")
    assert "Wait 15 minutes" in stranger.page.locator("#content").inner_text()


def test_form_whose_token_is_gone_is_answered_with_a_page(stranger: Visitor) -> None:
    stranger.open("/admin/login/")
    stranger.page.fill("#id_username", "clerk")
    stranger.page.fill("#id_password", PASSWORD)
    stranger.page.context.clear_cookies()
    with stranger.answered(403):
        stranger.click("input[type=submit]")
    assert "Reload the page" in stranger.page.locator("#content").inner_text()


# --- The admin site, as the superuser sees it ---


def test_front_page_leads_to_every_list(operator: Visitor) -> None:
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
    assert operator.rows().count() > 0, "tests/browser/world.py makes no row of it"
    rows = operator.links("#result_list tbody th a")
    operator.fetch(operator.links("#changelist a[href^='?'], #result_list thead a"))  # sorted, filtered, paged
    operator.fetch(rows[:ENOUGH])
    if (search := operator.page.locator("#searchbar")).count():
        search.fill("nothing is like this")
        operator.click("#changelist-search input[type=submit]")
        assert operator.rows().count() == 0
    operator.open(rows[0])
    operator.fetch(operator.links(".historylink"))
    if (save := operator.page.locator("[name=_save]")).count():
        operator.click(save)
        assert operator.messages("li.success")


def test_links_of_a_list_and_a_history_are_followed(operator: Visitor) -> None:
    operator.open(address(AuditEvent))
    operator.click(operator.page.locator("#result_list thead .text a").first)
    operator.click(operator.page.locator(".paginator a").first)
    operator.open(address(EgressRequest))
    operator.click(operator.page.locator("#changelist-filter li:not(.selected) a").first)
    operator.click(operator.page.locator("#result_list tbody th a").first)
    operator.click(".historylink")


def test_forms_tells_how_each_new_row_is_filled_in() -> None:
    assert FORMS.keys() == set(ADDABLE)


@pytest.mark.parametrize("model", ADDABLE, ids=lambda model: model.__name__)
def test_form_for_a_new_row_is_refused_empty_and_taken_full(operator: Visitor, model: type[Model]) -> None:
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
    assert operator.page.locator("#content textarea").is_visible()  # the test of actions fills it in


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
        reason.fill(WHY)
    visitor.click("#content input[type=submit]")


@pytest.mark.parametrize("field", ["user", "tenant"])
def test_window_of_a_related_row_opens_and_closes(operator: Visitor, field: str) -> None:
    operator.open(address(Membership, "add/"))
    with operator.page.expect_popup() as opened:
        operator.page.click(f"#add_id_{field}")
    popup = operator.beside(opened.value)
    popup.page.wait_for_load_state()
    popup.arrived()
    FORMS[{"user": User, "tenant": Tenant}[field]](popup, "beside")
    with popup.page.expect_event("close"):
        popup.page.click("[name=_save]")
    expect(operator.page.locator(f".field-{field} .select2-selection__rendered")).to_contain_text("beside")


def test_password_of_a_person_is_set_and_taken_away(operator: Visitor) -> None:
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


def test_unknown_address_of_the_admin_is_a_page(operator: Visitor) -> None:
    with operator.answered(404):
        operator.open("/admin/nothing/")
    assert operator.page.locator("h1").inner_text() == "Not Found"


def test_row_that_is_not_there_is_said_so(operator: Visitor) -> None:
    operator.open(address(Tenant, "00000000-0000-0000-0000-000000000000/change/"))
    assert "Perhaps it was deleted?" in " ".join(operator.messages("li.warning"))
