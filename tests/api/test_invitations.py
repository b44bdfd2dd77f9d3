"""Invitations: membership offered to a mailbox, whoever reads it (INV-01), accepted once."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.core import mail, signing
from django.utils import timezone
from rest_framework.test import APIClient

from tenants import tasks
from tenants.models import AuditEvent, Invitation, Mail, Membership, Tenant, User
from tests.api.answers import audited, problem
from tests.factories import PASSWORD, make_member
from tests.races import race


ACME, GLOBEX = "/api/v1/tenants/acme/", "/api/v1/tenants/globex/"
INVITATIONS = f"{ACME}invitations/"
ACCEPT = "/api/v1/auth/invitations/accept/"
Api = Callable[[User | None], APIClient]


def invite(client: APIClient, email: str = "dora@example.org", *roles: str, tenant: str = ACME) -> Any:
    return client.post(f"{tenant}members/", {"email": email, "roles": list(roles) or ["member"]})


def mailed(email: str = "dora@example.org") -> str:
    """The token of the last mail."""
    tasks.send_mail()
    assert mail.outbox[-1].to == [email]
    (token,) = re.findall(r'"token": "(.+?)"', str(mail.outbox[-1].body))
    return str(token)


def accept(token: str, **account: Any) -> Any:
    return APIClient().post(ACCEPT, {"token": token, **account})


def newcomer(token: str, username: str = "dora", **changes: Any) -> Any:
    return accept(token, **{"username": username, "password": PASSWORD, **changes})


# --- Inviting ---


def test_invitation_is_the_same_answer_whether_anybody_has_the_address(alice: User, mallory: User, api: Api) -> None:
    """INV-01."""
    for email in ("dora@example.org", "mallory@example.org"):
        response = invite(api(alice), email)
        assert (response.status_code, response.json()) == (202, {"invited": email})
    assert not Membership.objects.filter(tenant__slug="acme", user=mallory).exists()
    assert audited() == [("member.invite", "alice")] * 2


def test_invitations_are_listed(alice: User, erin: User, api: Api, now: datetime) -> None:
    invite(api(alice), "Dora@Example.org", "research_it", "member")
    (shown,) = api(erin).get(INVITATIONS).json()["results"]
    invitation = Invitation.objects.get()
    assert shown.pop("id") == str(invitation.pk)
    lifetime = datetime.fromisoformat(shown.pop("expires_at")) - datetime.fromisoformat(shown.pop("created_at"))
    assert lifetime == timedelta(days=7)
    assert shown == {"email": "dora@example.org", "roles": ["member", "research_it"], "invited_by": "alice"}
    problem(api(alice).get(f"{INVITATIONS}?page_size=x"), 400, "invalid")


def test_invitation_again_renews_it_and_its_roles(alice: User, acme: Tenant, api: Api) -> None:
    make_member(acme, "frank", "admin")
    start = timezone.now()
    with time_machine.travel(start):
        invite(api(alice))
        token = mailed()
    with time_machine.travel(start + timedelta(days=6)):
        invite(api(User.objects.get(username="frank")), "DORA@example.org", "auditor")
        mailed()
    (shown,) = api(alice).get(INVITATIONS).json()["results"]
    assert (shown["roles"], shown["invited_by"]) == (["auditor"], "frank")
    assert len(mail.outbox) == 2
    with time_machine.travel(start + timedelta(days=12)):
        assert newcomer(token).status_code == 201
    assert Membership.objects.get(user__username="dora").roles == ["auditor"]


def test_invitation_again_at_once_sends_no_second_mail(alice: User, api: Api) -> None:
    start = timezone.now().replace(minute=1, second=0)
    for seconds in (0, 1, 60):
        with time_machine.travel(start + timedelta(seconds=seconds), tick=False):
            assert invite(api(alice)).status_code == 202
            tasks.send_mail()
    assert len(mail.outbox) == 1


@pytest.mark.django_db(transaction=True)
def test_invitations_of_one_mailbox_at_once_are_one(alice: User, acme: Tenant, api: Api) -> None:
    answers = race([partial(invite, api(alice), "dora@example.org", role) for role in ("admin", "auditor", "member")])
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len(Invitation.objects.get().roles) == 1
    assert AuditEvent.objects.filter(action="member.invite").count() == 3


def test_invitations_are_not_for_members(bob: User, alice: User, api: Api) -> None:
    invite(api(alice))
    address = f"{INVITATIONS}{Invitation.objects.get().pk}/"
    problem(invite(api(bob)), 403, "refused")
    problem(api(bob).get(INVITATIONS), 403, "refused")
    problem(api(bob).delete(address), 403, "refused")


# --- Accepting ---


def test_newcomer_accepts_and_signs_in(alice: User, acme: Tenant, api: Api) -> None:
    invite(api(alice), "dora@example.org", "member", "auditor")
    response = newcomer(mailed())
    assert (response.status_code, response.json()) == (201, {"username": "dora", "tenant": "acme"})
    dora = User.objects.get(username="dora")
    assert (dora.email, dora.check_password(PASSWORD), dora.is_staff) == ("dora@example.org", True, False)
    assert api(dora).get(f"{ACME}members/").status_code == 200
    assert audited() == [("member.invite", "alice"), ("member.add", "dora")]
    assert not [body for body in AuditEvent.objects.values_list("body", flat=True) if PASSWORD in body]


def test_person_with_the_address_becomes_a_member_as_they_are(alice: User, mallory: User, api: Api) -> None:
    invite(api(alice), "Mallory@example.org")
    response = newcomer(mailed("mallory@example.org"), "somebody", password="another long password")
    assert (response.status_code, response.json()) == (201, {"username": "mallory", "tenant": "acme"})
    assert User.objects.get(username="mallory").check_password(PASSWORD)
    assert not User.objects.filter(username="somebody").exists()
    assert api(mallory).get(ACME).status_code == 200


def test_acceptance_works_once(alice: User, api: Api) -> None:
    invite(api(alice))
    token = mailed()
    assert newcomer(token).status_code == 201
    assert list(problem(newcomer(token, "again"), 400, "bad_token")["errors"]) == ["token"]
    assert api(alice).get(INVITATIONS).json()["results"] == []


@pytest.mark.django_db(transaction=True)
def test_acceptance_by_several_at_once_is_one_201(alice: User, api: Api) -> None:
    invite(api(alice))
    token = mailed()
    answers = race([partial(newcomer, token, f"dora{number}") for number in range(4)])
    assert sorted(answer.status_code for answer in answers) == [201, 400, 400, 400]
    assert User.objects.filter(username__startswith="dora").count() == 1
    assert AuditEvent.objects.filter(action="member.add").count() == 1


@pytest.mark.django_db(transaction=True)
def test_acceptance_and_withdrawal_at_once_have_one_winner(alice: User, api: Api) -> None:
    invite(api(alice))
    token, address = mailed(), f"{INVITATIONS}{Invitation.objects.get().pk}/"
    accepted, withdrawn = race([partial(newcomer, token), partial(api(alice).delete, address)])
    assert (accepted.status_code, withdrawn.status_code) in {(201, 404), (400, 204)}
    assert Membership.objects.filter(user__username="dora").exists() == (accepted.status_code == 201)


@pytest.mark.django_db(transaction=True)
def test_acceptance_and_renewal_at_once_leave_no_invitation_to_a_member(alice: User, api: Api) -> None:
    for number in range(5):
        email = f"dora{number}@example.org"
        invite(api(alice), email)
        token = mailed(email)
        accepted, renewed = race([partial(newcomer, token, f"dora{number}"), partial(invite, api(alice), email, "auditor")])
        assert accepted.status_code == 201
        assert renewed.status_code in {202, 409}
        assert not Invitation.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_acceptances_of_two_tenants_by_one_newcomer_at_once_make_one_account(
    alice: User, globex: Tenant, root: User, api: Api
) -> None:
    invite(api(alice))
    first = mailed()
    invite(api(root), tenant=GLOBEX)
    second = mailed()
    answers = race([partial(newcomer, token) for token in (first, second)])
    assert {answer.status_code for answer in answers} <= {201, 400}
    assert User.objects.filter(email="dora@example.org").count() == 1
    for answer, token in zip(answers, (first, second), strict=True):
        assert answer.status_code == 201 or newcomer(token).status_code == 201
    assert Membership.objects.filter(user__username="dora").count() == 2


@pytest.mark.parametrize(
    ("account", "fields"),
    [
        ({}, ["username", "password"]),
        ({"username": "dora"}, ["password"]),
        ({"password": PASSWORD}, ["username"]),
        ({"username": "bob", "password": PASSWORD}, ["username"]),
        ({"username": "a b", "password": PASSWORD}, ["username"]),
        ({"username": "dora", "password": "short"}, ["password"]),
        ({"username": "dora", "password": None}, ["password"]),
        ({"username": ["dora"], "password": PASSWORD}, ["username"]),
        ({"username": "d" * 151, "password": PASSWORD}, ["username"]),
    ],
)
def test_newcomer_without_a_usable_account_is_told_the_field_and_may_try_again(
    alice: User, bob: User, api: Api, account: dict[str, Any], fields: list[str]
) -> None:
    invite(api(alice))
    token = mailed()
    response = accept(token, **account)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == fields
    assert newcomer(token).status_code == 201


def globex_id() -> UUID:
    return Tenant.objects.get(slug="globex").pk


@pytest.mark.parametrize(
    "end",
    [
        lambda api, alice: api(alice).delete(f"{INVITATIONS}{Invitation.objects.get().pk}/"),
        lambda api, alice: Invitation.objects.update(expires_at=timezone.now()),
        lambda api, alice: Tenant.objects.update(is_active=False),
        lambda api, alice: Membership.objects.filter(user=alice).update(roles=["member"]),
        lambda api, alice: User.objects.filter(pk=alice.pk).update(is_active=False),
        lambda api, alice: alice.delete(),
        lambda api, alice: User.objects.filter(username="mallory").update(is_active=False),
        lambda api, alice: User.objects.filter(username="mallory").update(password="!", service_of=globex_id()),
    ],
    ids=[
        "withdrawn", "expired", "tenant suspended", "inviter demoted", "inviter deactivated", "inviter gone",
        "invited deactivated", "of a service account",
    ],
)  # fmt: skip
def test_invitation_that_is_dead_opens_nothing(alice: User, mallory: User, api: Api, end: Callable[[Api, User], object]) -> None:
    """INV-16: an admin who was removed has left no way back in behind them."""
    invite(api(alice), "mallory@example.org")
    token = mailed("mallory@example.org")
    unknown = problem(newcomer(signing.dumps("0" * 32, salt="invitation")), 400, "bad_token")
    end(api, alice)
    assert problem(newcomer(token), 400, "bad_token") == unknown
    assert not Membership.objects.filter(user=mallory, tenant__slug="acme").exists()


def test_invitation_lives_for_seven_days(alice: User, api: Api) -> None:
    start = timezone.now()
    with time_machine.travel(start, tick=False):
        invite(api(alice))
        token = mailed()
    with time_machine.travel(start + timedelta(days=7), tick=False):
        problem(newcomer(token), 400, "bad_token")
    with time_machine.travel(start + timedelta(days=7, seconds=-1), tick=False):
        assert newcomer(token).status_code == 201


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: "",
        lambda token: "x",
        lambda token: ":" * 9,
        lambda token: signing.dumps(str(Invitation.objects.get().pk)),
        lambda token: signing.dumps("no uuid", salt="invitation"),
        lambda token: "t" * 501,
        lambda token: None,
        lambda token: ["x"],
    ],
)
def test_forged_token_is_refused(alice: User, api: Api, forge: Callable[[str], Any]) -> None:
    invite(api(alice))
    response = newcomer(forge(mailed()))
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["token"]
    assert not User.objects.filter(username="dora").exists()


# --- Withdrawing ---


def test_withdrawal_is_on_record_once(alice: User, api: Api) -> None:
    invite(api(alice))
    address = f"{INVITATIONS}{Invitation.objects.get().pk}/"
    assert api(alice).delete(address).status_code == 204
    problem(api(alice).delete(address), 404, "not_found")
    assert audited() == [("member.invite", "alice"), ("invitation.withdraw", "alice")]


def test_invitation_after_a_withdrawal_is_a_new_one_with_a_mail_of_its_own(alice: User, api: Api) -> None:
    invite(api(alice))
    old = mailed()
    api(alice).delete(f"{INVITATIONS}{Invitation.objects.get().pk}/")
    invite(api(alice))
    new = mailed()
    problem(newcomer(old), 400, "bad_token")
    assert newcomer(new).status_code == 201


def test_invitation_of_another_tenant_is_not_found(alice: User, mallory: User, globex: Tenant, api: Api) -> None:
    """INV-01."""
    Membership.objects.filter(user=mallory).update(roles=["admin"])
    invite(api(alice))
    pk = Invitation.objects.get().pk
    problem(api(mallory).delete(f"{GLOBEX}invitations/{pk}/"), 404, "not_found")
    problem(api(mallory).delete(f"{INVITATIONS}{pk}/"), 404, "not_found")
    assert api(mallory).get(f"{GLOBEX}invitations/").json()["results"] == []


def test_expired_invitations_are_forgotten_after_a_month(alice: User, api: Api, now: datetime) -> None:
    for email, days in (("old@example.org", 31), ("young@example.org", 29)):
        invite(api(alice), email)
        Invitation.objects.filter(email=email).update(expires_at=now - timedelta(days=days))
    tasks.tick()
    assert Invitation.objects.get().email == "young@example.org"
    assert Mail.objects.count() == 2
