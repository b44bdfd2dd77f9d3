"""Accounts of programs: made by admins, and nothing but their keys opens anything for them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client
from rest_framework.exceptions import ValidationError
from rest_framework.test import APIClient

from tenants import services
from tenants.models import ApiKey, Membership, Tenant, User
from tests.api.answers import audited, facts, problem
from tests.factories import PASSWORD, make_key, make_member, make_user


Api = Callable[[User | str | None], APIClient]
ACCOUNTS = "/api/v1/tenants/acme/service-accounts/"
IMPORTER = {"name": "importer", "roles": ["member"]}
ONE = f"{ACCOUNTS}importer@acme/"

pytestmark = pytest.mark.django_db


@pytest.fixture
def importer(alice: User, api: Api) -> User:
    assert api(alice).post(ACCOUNTS, IMPORTER).status_code == 201
    return User.objects.get(username="importer@acme")


def test_create(api: Api, alice: User) -> None:
    made = api(alice).post(ACCOUNTS, {"name": "importer", "roles": ["member", "admin", "member"]})

    assert made.status_code == 201
    assert made.json() == {
        "username": "importer@acme",
        "email": "importer@acme.service.invalid",
        "roles": ["admin", "member"],
        "is_active": True,
        "created_at": made.json()["created_at"],
    }
    assert api(alice).get(made["Location"]).json() == made.json()
    assert api(alice).get(ACCOUNTS).json()["results"] == [made.json()]
    assert audited("service_account.create") == [("service_account.create", "alice")]
    assert facts("service_account.create") == {"name": "importer@acme", "roles": ["admin", "member"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "Importer"}, "name"),
        ({"name": "a@b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": None}, "name"),
        ({"roles": []}, "roles"),
        ({"roles": "member"}, "roles"),
        ({"roles": ["information_governance"]}, "roles.0"),
        ({"roles": ["superuser"]}, "roles.0"),
        ({"roles": None}, "roles"),
    ],
)
def test_create_of_what_is_none_names_the_field(api: Api, alice: User, change: dict[str, Any], field: str) -> None:
    """A stage's role decides, and decisions are made by people."""
    answer = api(alice).post(ACCOUNTS, IMPORTER | change)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])
    assert User.objects.count() == 1


def test_name_is_taken_in_its_own_tenant_only(api: Api, globex: Tenant, alice: User, importer: User) -> None:
    """INV-01: what exists elsewhere, an account or a person, shows in no answer."""
    make_user("exporter")
    User.objects.create_user("squatter", "second@acme.service.invalid")
    olga = make_member(globex, "olga", "admin")

    problem(api(alice).post(ACCOUNTS, IMPORTER), 409, "name_taken")
    problem(api(alice).post(ACCOUNTS, IMPORTER | {"name": "second"}), 409, "name_taken")
    assert api(alice).post(ACCOUNTS, IMPORTER | {"name": "exporter"}).status_code == 201
    assert api(olga).post("/api/v1/tenants/globex/service-accounts/", IMPORTER).status_code == 201


@pytest.mark.parametrize(
    ("actor", "read", "write"),
    [("alice", 200, 204), ("bob", 403, 403), ("erin", 200, 403), ("mallory", 404, 404), ("root", 200, 204)],
)
def test_accounts_are_seen_by_auditors_and_changed_by_admins(
    request: pytest.FixtureRequest, api: Api, acme: Tenant, importer: User, actor: str, read: int, write: int
) -> None:
    who = make_member(acme, "erin", "auditor") if actor == "erin" else request.getfixturevalue(actor)
    client = api(who)

    assert (client.get(ACCOUNTS).status_code, client.get(ONE).status_code) == (read, read)
    assert client.post(ACCOUNTS, IMPORTER | {"name": "second"}).status_code == (201 if write == 204 else write)
    assert client.delete(ONE).status_code == write
    importer.refresh_from_db()
    assert importer.is_active == (write != 204)


def test_account_is_not_a_person_of_the_tenant(api: Api, alice: User, bob: User) -> None:
    problem(api(alice).get(f"{ACCOUNTS}bob/"), 404, "not_found")
    problem(api(alice).delete(f"{ACCOUNTS}bob/"), 404, "not_found")


def test_deactivation_ends_its_keys_and_keeps_its_name(api: Api, alice: User, importer: User) -> None:
    """INV-16."""
    text = make_key(importer)
    assert api(text).get("/api/v1/me/").status_code == 200

    assert api(alice).delete(ONE).status_code == 204

    assert api(text).get("/api/v1/me/").status_code == 401
    assert ApiKey.objects.get().revoked_at is not None
    assert api(alice).get(ONE).json()["is_active"] is False
    problem(api(alice).delete(ONE), 409, "conflict")
    problem(api(alice).post(ACCOUNTS, IMPORTER), 409, "name_taken")
    problem(
        api(alice).post("/api/v1/tenants/acme/api-keys/", {"name": "x", "scopes": ["read"], "owner": "importer@acme"}),
        409,
        "conflict",
    )
    assert audited("service_account.deactivate") == [("service_account.deactivate", "alice")]


def test_accounts_are_paged(api: Api, alice: User) -> None:
    for number in range(3):
        api(alice).post(ACCOUNTS, {"name": f"number-{number}", "roles": ["member"]})
    page = api(alice).get(f"{ACCOUNTS}?page_size=2").json()
    rest = api(alice).get(page["next"]).json()
    assert [len(page["results"]), len(rest["results"])] == [2, 1]
    for query in ("page_size=0", "cursor=x"):
        answer = api(alice).get(f"{ACCOUNTS}?{query}")
        assert (answer.status_code, list(answer.json()["errors"])) == (400, [query.partition("=")[0]])


# --- No other way in ---


def test_account_cannot_sign_in(api: Api, importer: User) -> None:
    for password in ("", "!", importer.password, PASSWORD):
        answer = api(None).post("/api/v1/auth/token/", {"username": "importer@acme", "password": password})
        assert answer.status_code in {400, 401}
    with pytest.raises(CommandError, match="service account"):
        call_command("createusertoken", "importer@acme")


def test_account_is_given_no_password_whoever_tries(
    api: Api, importer: User, root: User, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, and the form of the admin site, which writes past the services."""
    monkeypatch.setattr("getpass.getpass", lambda prompt="": PASSWORD)
    with pytest.raises(CommandError, match="cannot have a password"):
        call_command("changepassword", "importer@acme")
    site = Client()
    site.force_login(root)
    form = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    page = site.post(f"/admin/tenants/user/{importer.pk}/password/", form)

    assert (page.status_code, b"cannot have a password" in page.content) == (200, True)
    importer.refresh_from_db()
    assert not importer.has_usable_password()


@pytest.mark.parametrize("power", ["is_staff", "is_superuser"])
def test_account_is_made_no_operator(importer: User, root: User, power: str) -> None:
    site = Client()
    site.force_login(root)
    form = {"username": "importer@acme", "email": importer.email, "is_active": "on", power: "on"}
    page = site.post(f"/admin/tenants/user/{importer.pk}/change/", form)

    assert (page.status_code, b"cannot be staff or superuser" in page.content) == (200, True)
    importer.refresh_from_db()
    assert not getattr(importer, power)


@pytest.mark.parametrize("change", [{"password": "x"}, {"is_staff": True}, {"is_superuser": True}])
def test_the_database_keeps_no_account_that_could_sign_in(importer: User, change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.filter(pk=importer.pk).update(**change)


def test_account_is_a_member_of_its_tenant_alone_and_decides_nothing(
    globex: Tenant, alice: User, importer: User, now: datetime
) -> None:
    with pytest.raises(ValidationError, match="its own tenant only"):
        services.add_member(tenant=globex, user=importer, roles=["member"], by=alice, now=now)
    membership = Membership.objects.get(user=importer)
    with pytest.raises(ValidationError, match="admin, member, auditor"):
        services.set_roles(membership=membership, roles=["research_it"], by=alice, now=now)
    services.set_roles(membership=membership, roles=["auditor"], by=alice, now=now)
    assert Membership.objects.get(user=importer).roles == ["auditor"]
