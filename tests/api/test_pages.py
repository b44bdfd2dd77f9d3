"""Pages for browsers: their headers, and what a browser is answered where a program gets a problem document."""

from typing import Final

import pytest
from django.contrib import admin
from django.test import Client
from pytest_django import Settings

from tenants.models import User
from tests.factories import PASSWORD


POLICY: Final = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
}
HTML: Final = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}  # as browsers send it
LOGIN: Final = "/admin/login/"


@pytest.fixture
def browser(db: None) -> Client:
    return Client(headers=HTML)


@pytest.mark.parametrize("path", ["/", "/admin/", LOGIN, "/admin/tenants/user/", "/api/docs/", "/api/docs/?script=", "/no"])
def test_page_has_a_strict_policy(browser: Client, root: User, path: str) -> None:
    browser.force_login(root)
    answer = browser.get(path)
    assert set(answer["Content-Security-Policy"].split("; ")) == POLICY
    assert answer["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("path", [LOGIN, "/api/docs/"])
def test_page_has_no_script_and_no_style_in_it(browser: Client, path: str) -> None:
    page = browser.get(path).content.decode()
    assert "<style" not in page
    assert " style=" not in page
    assert page.count("<script") == page.count("<script src=")


@pytest.mark.parametrize("path", ["/", LOGIN, "/admin/", "/api/docs/", "/no"])
def test_page_lets_its_forms_say_where_they_come_from(browser: Client, path: str) -> None:
    """With no-referrer a browser sends `Origin: null` with a form (Fetch, 4.1), and nobody can sign in."""
    assert browser.get(path)["Referrer-Policy"] == "same-origin"
    client = Client(enforce_csrf_checks=True)
    form = {"username": "root", "password": PASSWORD, "csrfmiddlewaretoken": client.get(LOGIN).context["csrf_token"]}
    assert client.post(LOGIN, form, headers={"Origin": "null"}).status_code == 403
    assert client.post(LOGIN, form, headers={"Origin": "http://testserver"}).status_code == 200


def test_root_leads_to_the_api_pages_and_names_the_others(client: Client) -> None:
    for answer in (client.get("/"), client.head("/")):
        assert (answer.status_code, answer["Location"]) == (303, "/api/docs/")
    assert client.get("/").json() == {"docs": "/api/docs/", "schema": "/api/schema/", "admin": "/admin/"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_root_answers_no_write_with_a_redirect(client: Client, method: str) -> None:
    answer = client.generic(method, "/")
    assert (answer.status_code, answer["Content-Type"]) == (405, "application/problem+json")


# --- Problems ---


def test_unknown_address_of_the_admin_is_a_page_to_browsers_alone(browser: Client, root: User) -> None:
    browser.force_login(root)
    page = browser.get("/admin/no/")
    assert (page.status_code, page["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "<h1>Not Found</h1>" in page.content.decode()
    assert "Accept" in page["Vary"]
    for accept in ("*/*", "application/json, text/plain, */*"):
        answer = browser.get("/admin/no/", headers={"Accept": accept})
        assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")


def test_refusal_of_the_admin_is_a_page(browser: Client, root: User) -> None:
    User.objects.filter(pk=root.pk).update(is_superuser=False)
    browser.force_login(root)
    page = browser.get("/admin/tenants/user/")
    assert page.status_code == 403
    assert "You are not allowed to do this." in page.content.decode()


def test_form_without_its_token_is_a_page(db: None) -> None:
    page = Client(enforce_csrf_checks=True, headers=HTML).post(LOGIN, {"username": "root", "password": PASSWORD})
    assert page.status_code == 403
    assert "Reload the page and send the form again." in page.content.decode()


def test_bug_is_a_page_that_tells_nothing(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("SELECT secret")

    monkeypatch.setattr(admin.site, "login_form", broken)
    browser.raise_request_exception = False
    page = browser.get(LOGIN)
    assert (page.status_code, page["Content-Type"]) == (500, "text/html; charset=utf-8")
    assert "X-Request-ID" in page.content.decode()
    assert "SELECT" not in page.content.decode()


def test_admin_sign_in_after_too_many_failures_is_429_with_a_page(browser: Client, settings: Settings) -> None:
    for _ in range(settings.LOGIN_FAILURE_LIMIT):
        assert browser.post(LOGIN, {"username": "root", "password": "wrong"}).status_code == 200
    page = browser.post(LOGIN, {"username": "root", "password": PASSWORD})
    assert (page.status_code, page["Retry-After"]) == (429, "180")
    assert "Too many failed sign-ins" in page.content.decode()
