"""POST auth/token/: a password for tokens, and the lock-out that keeps it from being guessed (A-3)."""

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from tenants import services
from tenants.models import AuditEvent, User
from tests.factories import PASSWORD


TOKEN = "/api/v1/auth/token/"
LIMIT = 5
Api = Callable[[User | None], APIClient]


def sign_in(username: str, password: str = PASSWORD, **headers: str) -> Any:
    return APIClient().post(TOKEN, {"username": username, "password": password}, headers=headers)


def fail(username: str, times: int) -> list[int]:
    return [sign_in(username, "wrong").status_code for _ in range(times)]


def test_token_for_the_right_password_opens_the_api(alice: User) -> None:
    response = sign_in("alice")
    assert response.status_code == 200
    assert set(response.json()) == {"access", "refresh"}
    assert response["Cache-Control"] == "no-store"
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {response.json()['access']}")
    assert client.get("/api/v1/me/").json()["username"] == "alice"
    alice.refresh_from_db()
    assert alice.last_login is not None


def test_token_is_audited_once(alice: User) -> None:
    sign_in("alice")
    event = AuditEvent.objects.get()
    assert (event.action, event.actor, event.target_id, event.chain) == ("session.open", "alice", str(alice.pk), "platform")


def test_token_ignores_a_bad_authorization_header(alice: User) -> None:
    """A client with an expired token must be able to get a new one."""
    assert sign_in("alice", authorization="Bearer garbage").status_code == 200


@pytest.mark.parametrize(
    ("username", "password"),
    [("alice", "wrong"), ("alice", f" {PASSWORD}"), ("alice", PASSWORD.upper()), ("nobody", PASSWORD), ("ALICE", PASSWORD)],
)
def test_token_for_a_wrong_name_or_password_is_401_and_always_the_same(alice: User, username: str, password: str) -> None:
    response = sign_in(username, password)
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="strongroom"'
    assert response.json() == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "No active account has this name and password.",
        "code": "invalid_credentials",
    }
    assert not AuditEvent.objects.exists()


def test_token_for_somebody_deactivated_is_the_same_401(alice: User) -> None:
    wrong = sign_in("alice", "wrong").json()
    alice.is_active = False
    services.update(alice, changed=["is_active"], by=None, now=timezone.now())
    response = sign_in("alice")
    assert (response.status_code, response.json()) == (401, wrong)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "username"),
        ({"username": "alice"}, "password"),
        ({"username": None, "password": PASSWORD}, "username"),
        ({"username": "alice", "password": None}, "password"),
        ({"username": ["alice"], "password": PASSWORD}, "username"),
        ({"username": {"alice": 1}, "password": PASSWORD}, "username"),
        ({"username": "alice", "password": [PASSWORD]}, "password"),
        ({"username": True, "password": PASSWORD}, "username"),
        ({"username": "a" * 151, "password": PASSWORD}, "username"),
        ({"username": "alice", "password": "p" * 1001}, "password"),
        ({"username": "", "password": PASSWORD}, "username"),
    ],
)
def test_token_for_a_wrong_shape_names_the_field(alice: User, body: dict[str, Any], field: str) -> None:
    response = APIClient().post(TOKEN, body)
    assert response.status_code == 400
    assert field in response.json()["errors"]


def test_token_by_get_is_405(db: None) -> None:
    assert APIClient().get(TOKEN).status_code == 405


def test_token_by_form_is_415(alice: User) -> None:
    """A form is what another site can make a browser send."""
    response = APIClient().post(TOKEN, f"username=alice&password={PASSWORD}", content_type="application/x-www-form-urlencoded")
    assert response.status_code == 415


# --- Lock-out ---


def test_token_after_too_many_failures_is_429_for_the_right_password_too(alice: User, bob: User) -> None:
    assert fail("alice", LIMIT - 1) == [401] * (LIMIT - 1)
    for password in ("wrong", PASSWORD, "wrong"):
        response = sign_in("alice", password)
        assert response.status_code == 429
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == "too_many_attempts"
        assert 880 <= int(response["Retry-After"]) <= 900
    assert sign_in("bob").status_code == 200


def test_token_after_the_lock_out_works_when_retry_after_said(alice: User) -> None:
    start = timezone.now()
    with time_machine.travel(start, tick=False):
        fail("alice", LIMIT)
    with time_machine.travel(start + timedelta(minutes=14), tick=False):
        response = sign_in("alice")
        assert (response.status_code, response["Retry-After"]) == (429, "60")
    with time_machine.travel(start + timedelta(minutes=14, seconds=59), tick=False):
        assert sign_in("alice")["Retry-After"] == "1"
    with time_machine.travel(start + timedelta(minutes=15, seconds=1), tick=False):
        assert sign_in("alice").status_code == 200


def test_token_for_the_right_password_resets_the_count(alice: User) -> None:
    fail("alice", LIMIT - 1)
    assert sign_in("alice").status_code == 200
    assert fail("alice", LIMIT - 1) == [401] * (LIMIT - 1)


def test_token_lock_out_does_not_tell_who_exists(alice: User) -> None:
    assert fail("alice", LIMIT + 1) == fail("nobody", LIMIT + 1)


def test_token_lock_out_from_one_address_leaves_others_alone(alice: User) -> None:
    fail("alice", LIMIT)
    client = APIClient(REMOTE_ADDR="192.0.2.7")
    assert client.post(TOKEN, {"username": "alice", "password": PASSWORD}).status_code == 200


def test_token_lock_out_is_not_escaped_by_a_forged_address_or_browser(alice: User) -> None:
    fail("alice", LIMIT)
    forged = {"x-forwarded-for": "192.0.2.7", "x-real-ip": "192.0.2.7", "user-agent": "another", "forwarded": "for=192.0.2.7"}
    assert sign_in("alice", **forged).status_code == 429


def test_token_lock_out_behind_our_proxy_counts_by_the_address_that_the_proxy_appended(alice: User, settings: Settings) -> None:
    settings.BEHIND_PROXY = True
    for _ in range(LIMIT):
        sign_in("alice", "wrong", x_forwarded_for=f"10.0.0.{secrets.randbelow(256)}, 192.0.2.1")

    assert sign_in("alice", x_forwarded_for="10.9.9.9, 192.0.2.1").status_code == 429
    assert sign_in("alice", x_forwarded_for="192.0.2.2").status_code == 200


def test_token_lock_out_holds_at_the_door_of_the_admin_too(root: User) -> None:
    fail("root", LIMIT)
    response = Client().post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert response.status_code == 429
