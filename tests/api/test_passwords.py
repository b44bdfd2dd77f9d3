"""auth/password/: changed by who knows it, reset by who reads the mailbox."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from tenants import tasks
from tenants.auth import passwords, tokens
from tenants.models import AuditEvent, Mail, Tenant, User
from tests.api.answers import problem
from tests.factories import PASSWORD, make_member
from tests.races import race


CHANGE, RESET, CONFIRM = (f"/api/v1/auth/password/{name}/" for name in ("change", "reset", "reset/confirm"))
NEW = "another long password"
LIMIT = 5
Api = Callable[[User | None], APIClient]


def change(client: APIClient, current: str = PASSWORD, new: str = NEW) -> Any:
    return client.post(CHANGE, {"current_password": current, "new_password": new})


def sign_in(username: str, password: str) -> int:
    return int(APIClient().post("/api/v1/auth/token/", {"username": username, "password": password}).status_code)


def ask(email: str = "alice@example.org") -> Any:
    return APIClient().post(RESET, {"email": email})


def token_for(user: User) -> str:
    """The one in the mail that they get."""
    assert ask(user.email).status_code == 202
    tasks.send_mail()
    (token,) = re.findall(r'"token": "(.+?)"', str(mail.outbox[-1].body))
    assert mail.outbox[-1].to == [user.email]
    return str(token)


def confirm(token: str, new: str = NEW) -> Any:
    return APIClient().post(CONFIRM, {"token": token, "new_password": new})


def audited() -> list[tuple[str, str, str]]:
    return list(AuditEvent.objects.order_by("seq").values_list("action", "actor", "chain"))


# --- Change ---


def test_change_ends_every_session_but_the_one_it_answers_with(alice: User, api: Api) -> None:
    client, other = api(alice), tokens.mint(alice)

    response = change(client)

    assert response.status_code == 200
    assert response["Cache-Control"] == "no-store"
    assert client.get("/api/v1/me/").status_code == 401
    assert APIClient().post("/api/v1/auth/token/refresh/", {"refresh": other["refresh"]}).status_code == 401
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {response.json()['access']}")
    assert client.get("/api/v1/me/").json()["username"] == "alice"
    assert APIClient().post("/api/v1/auth/token/refresh/", {"refresh": response.json()["refresh"]}).status_code == 200
    assert [sign_in("alice", PASSWORD), sign_in("alice", NEW)] == [401, 200]


def test_change_is_audited_without_the_password(alice: User, api: Api) -> None:
    change(api(alice))
    assert audited() == [("user.password", "alice", "platform"), ("session.open", "alice", "platform")]
    assert not [body for body in AuditEvent.objects.values_list("body", flat=True) if NEW in body or PASSWORD in body]


def test_change_with_a_wrong_password_names_the_field_and_changes_nothing(alice: User, api: Api) -> None:
    client = api(alice)
    body = problem(change(client, current="wrong"), 400, "invalid_credentials")
    assert list(body["errors"]) == ["current_password"]
    assert client.get("/api/v1/me/").status_code == 200
    assert sign_in("alice", PASSWORD) == 200


def test_change_with_wrong_passwords_is_locked_out_as_sign_in_is(alice: User, api: Api) -> None:
    """Whoever found an open session must not guess the password with it."""
    client = api(alice)
    assert [change(client, current="wrong").status_code for _ in range(LIMIT)] == [400] * LIMIT
    response = change(client)
    problem(response, 429, "too_many_attempts")
    assert 170 <= int(response["Retry-After"]) <= 180
    assert sign_in("alice", PASSWORD) == 429


def test_change_to_a_weak_password_names_the_field_and_changes_nothing(alice: User, api: Api) -> None:
    client = api(alice)
    for weak in ("short", "alice@example.org", "1" * 14, "password1234"):
        assert list(problem(change(client, new=weak), 400, "invalid")["errors"]) == ["new_password"]
    assert client.get("/api/v1/me/").status_code == 200
    assert sign_in("alice", PASSWORD) == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"new_password": NEW}, "current_password"),
        ({"current_password": PASSWORD}, "new_password"),
        ({"current_password": None, "new_password": NEW}, "current_password"),
        ({"current_password": PASSWORD, "new_password": "p" * 1001}, "new_password"),
        ({"current_password": [PASSWORD], "new_password": NEW}, "current_password"),
    ],
)
def test_change_of_a_wrong_shape_names_the_field(alice: User, api: Api, body: dict[str, Any], field: str) -> None:
    response = api(alice).post(CHANGE, body)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == [field]


# --- Asking for a reset ---


def test_reset_is_mailed_to_the_person_whatever_the_case_of_the_address(alice: User) -> None:
    assert ask("Alice@Example.ORG").status_code == 202
    assert mail.outbox == []
    tasks.send_mail()
    assert [message.to for message in mail.outbox] == [["alice@example.org"]]
    assert "alice" in str(mail.outbox[0].body)


def test_reset_tells_nobody_who_exists(
    alice: User, bob: User, acme: Tenant, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    """One answer and the same work for a person, a stranger, somebody deactivated and a service account."""
    User.objects.filter(pk=bob.pk).update(is_active=False)
    robot = make_member(acme, "robot", "member")
    User.objects.filter(pk=robot.pk).update(service_of=acme, password="!")
    answers = []
    for name in ("alice", "nobody", "bob", "robot"):
        with django_assert_num_queries(6):  # two limits, begin, count, insert, commit
            response = ask(f"{name}@example.org")
        answers.append((response.status_code, response.content, response.headers.keys()))
    assert answers == [(202, b"", answers[0][2])] * 4
    tasks.send_mail()
    assert [message.to for message in mail.outbox] == [["alice@example.org"]]
    assert Mail.objects.get().recipient == "alice@example.org"  # of the others nothing is kept


def test_reset_is_mailed_once_in_a_few_minutes(alice: User, bob: User) -> None:
    start = timezone.now().replace(minute=1, second=0)
    for seconds in (0, 1, 200):
        with time_machine.travel(start + timedelta(seconds=seconds), tick=False):
            assert ask().status_code == 202
            tasks.send_mail()
    assert len(mail.outbox) == 1
    with time_machine.travel(start + timedelta(minutes=5), tick=False):
        ask()
        ask("bob@example.org")
        tasks.send_mail()
    assert len(mail.outbox) == 3


def test_reset_asked_for_by_a_flood_keeps_a_bounded_number_of_rows(alice: User, now: datetime) -> None:
    """Other mail must not wait behind it."""
    waiting = [
        Mail(kind="password_reset", recipient=f"d{number}@example.org", created_at=now, due_at=now)
        for number in range(passwords.MAX_PENDING_MAILS)
    ]
    Mail.objects.bulk_create(waiting)
    assert ask().status_code == 202
    assert Mail.objects.count() == passwords.MAX_PENDING_MAILS


@pytest.mark.parametrize("email", ["", "alice", None, 7.5, ["alice@example.org"], "a@" + "b" * 260 + ".org", "a\nb@example.org"])
def test_reset_of_what_is_no_address_names_the_field(db: None, email: Any) -> None:
    response = APIClient().post(RESET, {"email": email})
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["email"]


def test_reset_works_in_a_suspended_tenant(alice: User) -> None:
    """The account is the person's, and may be good elsewhere."""
    Tenant.objects.update(is_active=False)
    assert confirm(token_for(alice)).status_code == 204


def test_reset_gives_a_first_password_to_who_never_had_one(alice: User) -> None:
    alice.set_unusable_password()
    alice.save()
    assert confirm(token_for(alice)).status_code == 204
    assert sign_in("alice", NEW) == 200


# --- Setting the new one ---


def test_confirm_sets_the_password_and_ends_every_session(alice: User, api: Api) -> None:
    client = api(alice)
    assert confirm(token_for(alice)).status_code == 204
    assert client.get("/api/v1/me/").status_code == 401
    assert audited() == [("user.password", "alice", "platform")]
    assert [sign_in("alice", PASSWORD), sign_in("alice", NEW)] == [401, 200]


def test_confirm_works_once(alice: User) -> None:
    token = token_for(alice)
    assert confirm(token).status_code == 204
    body = problem(confirm(token, "a third long password"), 400, "bad_token")
    assert list(body["errors"]) == ["token"]
    assert sign_in("alice", NEW) == 200


@pytest.mark.django_db(transaction=True)
def test_confirm_by_several_at_once_is_one_204(alice: User) -> None:
    token = token_for(alice)
    candidates = [f"another long password {number}" for number in range(5)]
    answers = [response.status_code for response in race([partial(confirm, token, new) for new in candidates])]
    assert sorted(answers) == [204, 400, 400, 400, 400]
    assert [sign_in("alice", new) == 200 for new in candidates] == [status == 204 for status in answers]
    assert AuditEvent.objects.filter(action="user.password").count() == 1


def test_confirm_with_a_weak_password_names_the_field_and_leaves_the_token_good(alice: User) -> None:
    token = token_for(alice)
    assert list(problem(confirm(token, "short"), 400, "invalid")["errors"]) == ["new_password"]
    assert confirm(token).status_code == 204


def test_confirm_after_an_hour_is_too_late(alice: User) -> None:
    token, start = token_for(alice), timezone.now()
    with time_machine.travel(start + timedelta(minutes=61)):
        problem(confirm(token), 400, "bad_token")
    with time_machine.travel(start + timedelta(minutes=59)):
        assert confirm(token).status_code == 204


@pytest.mark.parametrize(
    "end",
    [
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: User.objects.filter(pk=user.pk).update(email="elsewhere@example.org"),
        lambda user: sign_in("alice", PASSWORD),
        lambda user: user.delete(),
    ],
    ids=["deactivated", "another address", "signed in since", "deleted"],
)
def test_confirm_with_a_token_that_is_dead_is_the_same_400(alice: User, end: Callable[[User], object]) -> None:
    token, forged = token_for(alice), problem(confirm("7-abc-def"), 400, "bad_token")
    end(alice)
    assert problem(confirm(token), 400, "bad_token") == forged


@pytest.mark.parametrize(
    "forge",
    [
        lambda token, bob: token[:-1],
        lambda token, bob: token + "0",
        lambda token, bob: f"{bob.pk}-{token.partition('-')[2]}",
        lambda token, bob: token.partition("-")[2],
        lambda token, bob: "9" * 19 + "-" + token.partition("-")[2],
        lambda token, bob: "-",
        lambda token, bob: "¹-" + token,
        lambda token, bob: "0-zzzzzzzzzzzzzz-0",
    ],
)
def test_confirm_with_a_forged_token_is_refused(alice: User, bob: User, forge: Callable[[str, User], str]) -> None:
    problem(confirm(forge(token_for(alice), bob)), 400, "bad_token")
    assert [sign_in(name, PASSWORD) for name in ("alice", "bob")] == [200, 200]
