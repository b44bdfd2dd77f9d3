"""Which tokens open the API (F-48), and how soon a change of the person counts (F-49, INV-16)."""

import base64
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.http import HttpResponse
from django.utils import timezone
from rest_framework.test import APIClient

from tenants import services
from tenants.auth import tokens
from tenants.models import Membership, Tenant, User
from tests.factories import make_member


ME = "/api/v1/me/"
Mint = Callable[[User], str]


def get_me(authorization: str | None) -> HttpResponse:
    client = APIClient(raise_request_exception=False)
    if authorization is not None:
        client.credentials(HTTP_AUTHORIZATION=authorization)
    return client.get(ME)


def assert_unauthorised(response: HttpResponse) -> None:
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="strongroom"'
    assert response["Content-Type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["status"] == 401
    assert problem["code"] in {"not_authenticated", "invalid_token"}


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def signed(user: User, *, key: str = "", header: dict[str, Any] | None = None, digest: str = "sha256", **changes: Any) -> str:
    """A token as ours, with these fields of the header and these claims changed; `None` leaves one out.

    By hand, because the library refuses to make most of what it must refuse to read.
    """
    now = int(timezone.now().timestamp())
    claims = {
        "token_type": "access",
        "aud": "strongroom-api",
        "iss": "strongroom",
        "iat": now,
        "exp": now + 300,
        "jti": "0" * 32,
        "user_id": str(user.pk),
        "token_version": user.token_version,
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    header = {"alg": "HS256", "typ": "JWT", **(header or {})}
    text = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
    signature = hmac.digest((key or settings.JWT_SIGNING_KEY).encode(), text.encode(), digest)
    return f"{text}.{encode(signature)}"


def unsigned(header: bytes, payload: bytes = b"{}") -> str:
    return f"{encode(header)}.{encode(payload)}.{encode(b'signature')}"


def test_a_signed_token_with_our_claims_opens_the_api(alice: User) -> None:
    """What every refusal below differs from in one thing."""
    assert get_me(f"Bearer {signed(alice)}").status_code == 200


def test_a_minted_token_opens_the_api(alice: User) -> None:
    assert get_me(f"Bearer {tokens.mint(alice)['access']}").status_code == 200


NOW = int(timezone.now().timestamp())
OTHER_KEY = "another-key-" + "k" * 60
TOKENS: dict[str, Mint] = {
    "expired": lambda user: signed(user, exp=NOW - 1),
    "not yet valid": lambda user: signed(user, nbf=NOW + 3600),
    "issued tomorrow": lambda user: signed(user, iat=NOW + 86400),
    "without expiry": lambda user: signed(user, exp=None),
    "expiry a word": lambda user: signed(user, exp="never"),
    "expiry a list": lambda user: signed(user, exp=[NOW + 300]),
    "expiry beyond calendars": lambda user: signed(user, exp=10**30),
    "expiry negative": lambda user: signed(user, exp=-(10**30)),
    "other key": lambda user: signed(user, key=OTHER_KEY),
    "key of the sessions": lambda user: signed(user, key=settings.SECRET_KEY),
    "no signature": lambda user: signed(user).rpartition(".")[0] + ".",
    "algorithm none": lambda user: signed(user, header={"alg": "none"}),
    "algorithm none, no signature": lambda user: signed(user, header={"alg": "none"}).rpartition(".")[0] + ".",
    "algorithm HS512": lambda user: signed(user, header={"alg": "HS512"}, digest="sha512"),
    "algorithm unknown": lambda user: unsigned(b'{"alg": "XX999"}'),
    "algorithm a number": lambda user: unsigned(b'{"alg": 7}'),
    "kid traversal": lambda user: signed(user, key=OTHER_KEY, header={"kid": "../../../../dev/null"}),
    "kid a number": lambda user: signed(user, header={"kid": 7}),
    "crit": lambda user: signed(user, header={"crit": ["x"]}),
    "other audience": lambda user: signed(user, aud="another-api"),
    "no audience": lambda user: signed(user, aud=None),
    "audience a number": lambda user: signed(user, aud=7),
    "other issuer": lambda user: signed(user, iss="somebody"),
    "no issuer": lambda user: signed(user, iss=None),
    "issuer a list": lambda user: signed(user, iss=["strongroom"]),
    "no id": lambda user: signed(user, jti=None),
    "refresh as access": lambda user: tokens.mint(user)["refresh"],
    "no type": lambda user: signed(user, token_type=None),
    "type a list": lambda user: signed(user, token_type=["access"]),
    "no person": lambda user: signed(user, user_id=None),
    "person unknown": lambda user: signed(user, user_id="999999999"),
    "person a number": lambda user: signed(user, user_id=user.pk),
    "person a word": lambda user: signed(user, user_id="alice"),
    "person a list": lambda user: signed(user, user_id=[str(user.pk)]),
    "person a query": lambda user: signed(user, user_id={"pk__gt": 0}),
    "person beyond integers": lambda user: signed(user, user_id="9" * 40),
    "person in other digits": lambda user: signed(user, user_id="\u0661"),
    "person with NUL": lambda user: signed(user, user_id=f"{user.pk}\x00"),
    "no version": lambda user: signed(user, token_version=None),
    "version before": lambda user: signed(user, token_version=-1),
    "version after": lambda user: signed(user, token_version=1),
    "version a word": lambda user: signed(user, token_version="0"),
    "version false": lambda user: signed(user, token_version=False),
    "10 KB": lambda user: signed(user, padding="x" * 10_000),
    "garbage": lambda user: "garbage",
    "garbage in three parts": lambda user: "a.b.c",
    "bad base64": lambda user: "!!!.???.###",
    "latin letters": lambda user: "é.é.é",
    "header no JSON": lambda user: unsigned(b"\xff\xfe"),
    "header nested deep": lambda user: unsigned(b"[" * 1200),
    "header a list": lambda user: unsigned(b"[]"),
    "payload nested deep": lambda user: unsigned(b'{"alg": "HS256"}', b"[" * 1200),
    "empty": lambda user: "",
    "two tokens": lambda user: f"{signed(user)} {signed(user)}",
    "two headers, joined by the server": lambda user: f"{signed(user)},Bearer {signed(user)}",
}


@pytest.mark.parametrize("mint", TOKENS.values(), ids=[name.replace(" ", "-") for name in TOKENS])
def test_a_token_that_is_not_ours_or_not_for_this_is_401(alice: User, mint: Mint) -> None:
    assert_unauthorised(get_me(f"Bearer {mint(alice)}"))


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "Token ", "JWT ", "", "Bearer\t", "Bearer", " "])
def test_a_token_under_another_scheme_is_401(alice: User, scheme: str) -> None:
    assert_unauthorised(get_me(f"{scheme}{signed(alice)}"))


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic YWxpY2U6cGFzc3dvcmQ="])
def test_no_token_is_401(alice: User, authorization: str | None) -> None:
    assert_unauthorised(get_me(authorization))


def test_a_session_of_the_admin_is_no_way_into_the_api(root: User) -> None:
    client = APIClient()
    client.force_login(root)
    assert_unauthorised(client.get(ME))


def test_an_access_token_lives_five_minutes(alice: User) -> None:
    bearer = f"Bearer {tokens.mint(alice)['access']}"
    with time_machine.travel(timezone.now() + timedelta(seconds=299), tick=False):
        assert get_me(bearer).status_code == 200
    with time_machine.travel(timezone.now() + timedelta(seconds=301), tick=False):
        assert_unauthorised(get_me(bearer))


def test_the_schema_says_where_a_token_is_needed(db: None) -> None:
    schema = APIClient().get("/api/schema/").json()
    assert schema["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT or API key"}
    }
    assert schema["paths"][ME]["get"]["security"] == [{"bearer": []}]
    for path in ("token", "token/refresh", "token/revoke"):
        assert schema["paths"][f"/api/v1/auth/{path}/"]["post"].get("security", [{}]) == [{}]


# --- What happens to the person counts on the next request ---


def deactivate(user: User) -> None:
    user.is_active = False
    services.update(user, changed=["is_active"], by=None, now=timezone.now())


def change_password(user: User) -> None:
    services.set_password(user=user, password="another long password", by=None, now=timezone.now())


def change_password_past_the_service(user: User) -> None:
    user.set_password("another long password")
    user.save()


def forbid_passwords(user: User) -> None:
    user.set_unusable_password()
    user.save(update_fields=["password"])


@pytest.mark.parametrize(
    "change",
    [
        deactivate,
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: user.delete(),
        change_password,
        change_password_past_the_service,
        forbid_passwords,
        lambda user: services.end_sessions(user=user, by=None, now=timezone.now()),
    ],
    ids=[
        "deactivated",
        "deactivated-past-the-service",
        "deleted",
        "password",
        "password-past-the-service",
        "no-password",
        "sessions-ended",
    ],
)
def test_a_token_of_somebody_who_changed_is_401_on_the_next_request(
    alice: User, bob: User, api: Callable[[User | None], APIClient], change: Callable[[User], object]
) -> None:
    alices, bobs = api(alice), api(bob)
    assert alices.get(ME).status_code == 200
    change(User.objects.get(pk=alice.pk))
    assert_unauthorised(alices.get(ME))
    assert bobs.get(ME).status_code == 200


def test_a_token_from_before_the_deactivation_stays_dead_after_reactivation(
    alice: User, api: Callable[[User | None], APIClient]
) -> None:
    client = api(alice)
    deactivate(alice)
    alice.is_active = True
    services.update(alice, changed=["is_active"], by=None, now=timezone.now())
    assert_unauthorised(client.get(ME))
    assert api(alice).get(ME).status_code == 200


def test_a_stale_instance_saved_does_not_revive_revoked_tokens(alice: User, api: Callable[[User | None], APIClient]) -> None:
    client, stale = api(alice), User.objects.get(pk=alice.pk)
    services.end_sessions(user=alice, by=None, now=timezone.now())
    stale.first_name = "Alice"
    stale.save()
    assert_unauthorised(client.get(ME))


def test_roles_and_tenants_of_me_follow_the_database(alice: User, acme: Tenant, api: Callable[[User | None], APIClient]) -> None:
    make_member(acme, "dora", "admin")  # a tenant keeps one
    client, now = api(alice), timezone.now()
    assert client.get(ME).json()["tenants"] == [{"slug": "acme", "name": "Acme", "roles": ["admin"]}]
    membership = Membership.objects.get(user=alice)
    services.set_roles(membership=membership, roles=["auditor", "member"], by=None, now=now)
    assert client.get(ME).json()["tenants"][0]["roles"] == ["auditor", "member"]
    acme.is_active = False
    services.update(acme, changed=["is_active"], by=None, now=now)
    assert client.get(ME).json()["tenants"] == []
    acme.is_active = True
    services.update(acme, changed=["is_active"], by=None, now=now)
    services.remove_member(membership=membership, by=None, now=now)
    assert client.get(ME).json()["tenants"] == []
