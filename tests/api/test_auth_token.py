"""POST auth/token/: a password for tokens, and the limits that keep it from being guessed (A-3)."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from tenants import limits, services
from tenants.auth import hashing
from tenants.errors import TooManyRequests
from tenants.limits import Limit
from tenants.models import AuditEvent, RateLimit, User
from tests.factories import PASSWORD
from tests.races import race


TOKEN = "/api/v1/auth/token/"
LIMIT = 5
Api = Callable[[User | None], APIClient]


def sign_in(username: str, password: str = PASSWORD, **environ: Any) -> Any:
    return APIClient().post(TOKEN, {"username": username, "password": password}, **environ)


def fail(username: str, times: int, **environ: Any) -> list[int]:
    return [sign_in(username, "wrong", **environ).status_code for _ in range(times)]


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
        "detail": "No active account has this username and password.",
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


# --- Limits on failures: see tenants/auth/sign_in_limits.py ---


def test_token_after_too_many_failures_is_429_for_the_right_password_too(alice: User, bob: User) -> None:
    assert fail("alice", LIMIT) == [401] * LIMIT
    for password in ("wrong", PASSWORD, "wrong"):
        response = sign_in("alice", password)
        assert response.status_code == 429
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == "too_many_attempts"
        assert 170 <= int(response["Retry-After"]) <= 180
    assert sign_in("bob").status_code == 200


def test_token_after_too_many_failures_works_when_retry_after_has_passed(alice: User) -> None:
    """15 minutes for 5 failures: one more every 3 minutes."""
    start = timezone.now()
    with time_machine.travel(start, tick=False):
        fail("alice", LIMIT)
    with time_machine.travel(start + timedelta(minutes=2), tick=False):
        response = sign_in("alice")
        assert (response.status_code, response["Retry-After"]) == (429, "60")
    with time_machine.travel(start + timedelta(minutes=3, seconds=1), tick=False):
        assert sign_in("alice", "wrong").status_code == 401
        assert sign_in("alice").status_code == 429
    with time_machine.travel(start + timedelta(minutes=6, seconds=1), tick=False):
        assert sign_in("alice").status_code == 200


def test_token_for_the_right_password_resets_the_count(alice: User) -> None:
    fail("alice", LIMIT - 1)
    assert sign_in("alice").status_code == 200
    assert fail("alice", LIMIT) == [401] * LIMIT


def test_token_limit_does_not_reveal_which_accounts_exist(alice: User) -> None:
    client = {"HTTP_X_FORWARDED_FOR": ""}
    assert fail("alice", LIMIT + 1, **client) == [*[401] * LIMIT, 429]
    assert fail("no-such-name", LIMIT, **client) == [401] * LIMIT
    assert fail("no-such-name", 1, **client) == [429]


def test_token_limit_stops_one_password_for_many_accounts(alice: User, bob: User) -> None:
    """Password spraying: 15 names from one address."""
    answers = [sign_in(f"name-{number}", "Summer2026!").status_code for number in range(15)]
    assert answers == [401] * 10 + [429] * 5
    assert sign_in("alice", REMOTE_ADDR="192.0.2.7").status_code == 200


def test_token_limit_of_an_account_does_not_block_networks_where_the_person_signed_in(alice: User) -> None:
    assert sign_in("alice", REMOTE_ADDR="192.0.2.1").status_code == 200
    for number in range(2, 2 + LIMIT):
        sign_in("alice", "wrong", REMOTE_ADDR=f"192.0.2.{number}")
    assert sign_in("alice", REMOTE_ADDR="192.0.2.9").status_code == 429
    assert sign_in("alice", REMOTE_ADDR="192.0.2.1").status_code == 200
    assert sign_in("alice", REMOTE_ADDR="192.0.2.9").status_code == 429  # a success elsewhere gives an attacker no new attempts


def test_token_limit_behind_a_shared_address_does_not_lock_out_a_neighbour(alice: User, bob: User) -> None:
    """Five failures for a named person no longer lock them out where they work, nor anybody else there."""
    nat = "192.0.2.1"
    assert sign_in("alice", REMOTE_ADDR=nat).status_code == 200
    assert sign_in("bob", REMOTE_ADDR=nat).status_code == 200
    assert fail("alice", 2 * LIMIT, REMOTE_ADDR=nat) == [401] * 2 * LIMIT
    assert sign_in("alice", REMOTE_ADDR=nat).status_code == 200
    assert fail("alice", 4 * LIMIT + 1, REMOTE_ADDR=nat)[-1] == 429  # that network has a limit of its own
    assert sign_in("bob", REMOTE_ADDR=nat).status_code == 200


def test_token_limit_forgets_networks_after_30_days(alice: User) -> None:
    assert sign_in("alice", REMOTE_ADDR="192.0.2.1").status_code == 200
    with time_machine.travel(timezone.now() + timedelta(days=31), tick=False):
        for number in range(2, 2 + LIMIT):
            sign_in("alice", "wrong", REMOTE_ADDR=f"192.0.2.{number}")
        assert sign_in("alice", REMOTE_ADDR="192.0.2.1").status_code == 429


def test_token_limit_counts_an_ipv6_network_once(alice: User) -> None:
    for number in range(10):
        sign_in(f"name-{number}", "wrong", REMOTE_ADDR=f"2001:db8:0:1::{number:x}")
    assert sign_in("alice", REMOTE_ADDR="2001:db8:0:1:ffff::1").status_code == 429
    assert sign_in("alice", REMOTE_ADDR="2001:db8:0:2::1").status_code == 200


def test_token_limit_is_not_escaped_by_a_forged_address_or_browser(alice: User) -> None:
    fail("alice", LIMIT)
    forged = {"x_forwarded_for": "192.0.2.7", "x_real_ip": "192.0.2.7", "user_agent": "another", "forwarded": "for=192.0.2.7"}
    assert sign_in("alice", **{f"HTTP_{name.upper()}": value for name, value in forged.items()}).status_code == 429


def test_token_limit_behind_proxies_counts_by_the_address_that_the_outermost_appended(alice: User, settings: Settings) -> None:
    settings.BEHIND_PROXY = 1
    for number in range(10):
        sign_in(f"name-{number}", "wrong", HTTP_X_FORWARDED_FOR=f"10.0.0.{secrets.randbelow(256)}, 192.0.2.1")

    assert sign_in("alice", HTTP_X_FORWARDED_FOR="10.9.9.9, 192.0.2.1").status_code == 429
    assert sign_in("alice", HTTP_X_FORWARDED_FOR="192.0.2.2").status_code == 200


def test_token_limit_applies_to_the_admin_site_too(root: User) -> None:
    fail("root", LIMIT)
    response = Client().post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert response.status_code == 429


def test_token_limit_stores_no_name_that_was_typed(alice: User) -> None:
    """People type passwords there."""
    fail("correct horse battery staple", 1)
    assert "correct" not in str(list(RateLimit.objects.values()))


def test_token_that_is_refused_because_hashing_is_busy_is_no_failure(
    alice: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashers = settings.PASSWORD_HASHERS
    settings.PASSWORD_HASHERS = ["tenants.auth.hashing.Argon2PasswordHasher", *hashers]
    alice.set_password(PASSWORD)
    alice.save()
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "_queue", hashing.FairQueue(0, timeout=0.01))
        for _ in range(LIMIT + 1):
            response = sign_in("alice")
            assert (response.status_code, response.json()["code"], response["Retry-After"]) == (503, "sign_in_busy", "5")
    assert sign_in("alice").status_code == 200


def test_unlock_gives_an_account_its_attempts_back(alice: User) -> None:
    fail("alice", LIMIT)
    call_command("unlock", "alice")
    assert sign_in("alice").status_code == 200
    assert AuditEvent.objects.filter(action="user.unlock").count() == 1


def test_anonymous_requests_are_limited_by_network(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS", Limit("few", 3, timedelta(minutes=1)))
    assert [APIClient().post(TOKEN, {}).status_code for _ in range(4)] == [400, 400, 400, 429]
    assert APIClient().post(TOKEN, {}).json()["code"] == "too_many_requests"
    assert sign_in("alice", REMOTE_ADDR="192.0.2.7").status_code == 200


def test_bad_tokens_are_limited_by_network(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BAD_TOKENS", Limit("few", 3, timedelta(minutes=1)))
    client = APIClient(HTTP_AUTHORIZATION="Bearer guessed")
    assert [client.get("/api/v1/me/").status_code for _ in range(4)] == [401, 401, 401, 429]


@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)
def test_parallel_attempts_do_not_exceed_the_limit(now: datetime) -> None:
    limit, taken = Limit("race", 5, timedelta(minutes=15)), []

    def attempt() -> None:
        with suppress(TooManyRequests):
            limit.take("subject", now=now)
            taken.append(1)

    race([attempt] * 12)
    assert len(taken) == 5
