"""POST auth/token/refresh/ and auth/token/revoke/: a refresh token works once, and shows when it is in two hands (A-2, F-49)."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from rest_framework.test import APIClient
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken

from tenants import services
from tenants.auth import tokens
from tenants.models import AuditEvent, User
from tests.races import race


REFRESH = "/api/v1/auth/token/refresh/"
REVOKE = "/api/v1/auth/token/revoke/"


def refresh(token: str) -> Any:
    return APIClient(raise_request_exception=False).post(REFRESH, {"refresh": token})


def revoke(token: str) -> Any:
    return APIClient(raise_request_exception=False).post(REVOKE, {"refresh": token})


def opens_the_api(access: str) -> bool:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {access}")
    return client.get("/api/v1/me/").status_code == 200


def assert_refused(response: Any) -> None:
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="strongroom"'
    assert response.json()["code"] == "invalid_token"
    assert response.json()["detail"] == "The token is not valid. Sign in again, or use another API key."


def test_refresh_gives_a_new_pair_that_works(alice: User) -> None:
    first = tokens.mint(alice)
    response = refresh(first["refresh"])
    assert response.status_code == 200
    assert response["Cache-Control"] == "no-store"
    second = response.json()
    assert set(second) == {"access", "refresh"}
    assert second["refresh"] != first["refresh"]
    assert opens_the_api(second["access"])
    assert refresh(second["refresh"]).status_code == 200


def test_refresh_used_again_ends_every_session_of_the_person(alice: User, bob: User) -> None:
    stolen, other, bobs = tokens.mint(alice), tokens.mint(alice), tokens.mint(bob)
    thief = refresh(stolen["refresh"]).json()
    assert_refused(refresh(stolen["refresh"]))
    for pair in (thief, other, stolen):
        assert_refused(refresh(pair["refresh"]))
        assert not opens_the_api(pair["access"])
    assert opens_the_api(bobs["access"])
    assert refresh(bobs["refresh"]).status_code == 200
    event = AuditEvent.objects.get()
    assert (event.action, event.target_id) == ("session.reuse", str(alice.pk))


def test_refresh_used_again_and_again_ends_only_what_came_before(alice: User) -> None:
    """Whoever keeps an old token cannot sign the person out for ever."""
    old = tokens.mint(alice)
    refresh(old["refresh"])
    assert_refused(refresh(old["refresh"]))
    alice.refresh_from_db()
    fresh = tokens.mint(alice)
    assert_refused(refresh(old["refresh"]))
    assert opens_the_api(fresh["access"])


@pytest.mark.django_db(transaction=True)
def test_refresh_of_one_token_at_once_has_one_winner_and_counts_as_reuse(alice: User) -> None:
    pair = tokens.mint(alice)
    responses = race([partial(refresh, pair["refresh"])] * 8)
    assert sorted(response.status_code for response in responses) == [200] + [401] * 7
    winner = next(response for response in responses if response.status_code == 200).json()
    assert not opens_the_api(winner["access"])
    alice.refresh_from_db()
    assert alice.token_version == 1
    assert AuditEvent.objects.filter(action="session.reuse").count() == 1


@pytest.mark.parametrize(
    "token",
    [
        lambda user: tokens.mint(user)["access"],
        lambda user: "garbage",
        lambda user: "a.b.c",
        lambda user: tokens.mint(user)["refresh"] + "x",
        lambda user: "x" * 2048,
    ],
    ids=["access", "garbage", "three-parts", "bad-signature", "long"],
)
def test_refresh_with_another_token_is_401(alice: User, token: Callable[[User], str]) -> None:
    assert_refused(refresh(token(alice)))


def test_refresh_with_an_expired_token_is_401(alice: User) -> None:
    pair = tokens.mint(alice)
    with time_machine.travel(timezone.now() + timedelta(days=1, seconds=1), tick=False):
        assert_refused(refresh(pair["refresh"]))


def test_refresh_with_a_token_that_we_never_noted_is_401(alice: User) -> None:
    """A signature alone does not make a refresh token: the signing key in other hands is not enough to keep a session."""
    pair = tokens.mint(alice)
    OutstandingToken.objects.all().delete()
    assert_refused(refresh(pair["refresh"]))


def deactivate(user: User) -> None:
    user.is_active = False
    services.update(user, changed=["is_active"], by=None, now=timezone.now())


@pytest.mark.parametrize(
    "change",
    [
        deactivate,
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: user.delete(),
        lambda user: services.set_password(user=user, password="another long password", by=None, now=timezone.now()),
        lambda user: services.end_sessions(user=user, by=None, now=timezone.now()),
    ],
    ids=["deactivated", "deactivated-past-the-service", "deleted", "password", "sessions-ended"],
)
def test_refresh_for_somebody_who_changed_is_401(alice: User, change: Callable[[User], object]) -> None:
    pair = tokens.mint(alice)
    change(User.objects.get(pk=alice.pk))
    assert_refused(refresh(pair["refresh"]))


@pytest.mark.parametrize(
    "body", [{}, {"refresh": None}, {"refresh": ""}, {"refresh": ["x"]}, {"refresh": {}}, {"refresh": "x" * 2049}]
)
@pytest.mark.parametrize("url", [REFRESH, REVOKE])
def test_refresh_and_revoke_of_a_wrong_shape_name_the_field(db: None, url: str, body: dict[str, object]) -> None:
    response = APIClient().post(url, body)
    assert response.status_code == 400
    assert "refresh" in response.json()["errors"]


def test_refresh_does_not_prolong_a_session_with_an_end(alice: User) -> None:
    start = timezone.now()
    with time_machine.travel(start, tick=False):
        pair = tokens.mint(alice, timedelta(hours=8))
    with time_machine.travel(start + timedelta(hours=7, minutes=58), tick=False):
        assert opens_the_api(pair["access"])
        second = refresh(pair["refresh"]).json()
        assert opens_the_api(second["access"])
        third = refresh(second["refresh"]).json()
    with time_machine.travel(start + timedelta(hours=8, seconds=1), tick=False):
        for dead in (pair, second, third):
            assert not opens_the_api(dead["access"])
            assert_refused(refresh(dead["refresh"]))


def test_revoke_ends_this_session_and_no_other(alice: User) -> None:
    pair, other = tokens.mint(alice), tokens.mint(alice)
    response = revoke(pair["refresh"])
    assert (response.status_code, response.content) == (204, b"")
    assert AuditEvent.objects.get().action == "session.close"
    assert refresh(other["refresh"]).status_code == 200
    assert_refused(refresh(pair["refresh"]))


@pytest.mark.parametrize("token", ["garbage", "x" * 2048])
def test_revoke_of_what_opens_nothing_is_204(db: None, token: str) -> None:
    assert revoke(token).status_code == 204
    assert not AuditEvent.objects.exists()


def test_revoke_twice_is_204_and_audited_once(alice: User) -> None:
    pair = tokens.mint(alice)
    assert [revoke(pair["refresh"]).status_code for _ in range(2)] == [204, 204]
    assert AuditEvent.objects.count() == 1


def test_a_refresh_token_is_not_kept_in_the_database(alice: User) -> None:
    pair = tokens.mint(alice)
    tokens.refresh(pair["refresh"], now=timezone.now())
    assert set(OutstandingToken.objects.values_list("token", flat=True)) == {""}
