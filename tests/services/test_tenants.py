"""Verbs on tenants and people: each has exactly one audit event, in the transaction of its change (INV-14)."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import IntegrityError, transaction
from rest_framework.exceptions import APIException, ValidationError
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken

from tenants import audit, services, tasks
from tenants.auth import tokens
from tenants.errors import Conflict, Invalid, LastAdmin, NotFound, Refused
from tenants.models import AuditEvent, KnownNetwork, Membership, RateLimit, Tenant, User
from tests.factories import PASSWORD, make_member
from tests.races import race


def audited() -> list[tuple[str, str, str, dict[str, Any]]]:
    """(action, actor, chain, facts) of every event, in the order of writing within each chain."""
    return [
        (event.action, event.actor, event.chain, json.loads(event.body)["facts"])
        for event in AuditEvent.objects.order_by("chain", "seq")
    ]


def refused_field(error: pytest.ExceptionInfo[ValidationError]) -> list[str]:
    assert isinstance(error.value.detail, dict)
    return list(error.value.detail)


# --- Tenants ---


def test_create_tenant_opens_its_own_chain(root: User, now: datetime) -> None:
    tenant = services.create_tenant(slug="acme-2", name="Acme", by=root, now=now)
    assert Tenant.objects.get(slug="acme-2").created_at == now
    assert audited() == [("tenant.create", "root", str(tenant.pk), {"name": "acme-2"})]


@pytest.mark.parametrize(
    "slug", ["", "Acme", "ac me", "-acme", "acme-", "ac--me", "ac/me", "acmé", "acme\n", "a" * 51, "..", "a.b", "a\x00b"]
)
def test_create_tenant_with_a_bad_slug_is_refused(db: None, now: datetime, slug: str) -> None:
    with pytest.raises(ValidationError) as error:
        services.create_tenant(slug=slug, name="Acme", by=None, now=now)
    assert refused_field(error) == ["slug"]
    assert audited() == []


def test_create_tenant_with_a_taken_slug_is_refused(acme: Tenant, now: datetime) -> None:
    with pytest.raises(ValidationError) as error:
        services.create_tenant(slug="acme", name="Acme", by=None, now=now)
    assert refused_field(error) == ["slug"]


def test_update_tenant_keeps_what_changed(acme: Tenant, root: User, now: datetime) -> None:
    acme.name, acme.quota_bytes, acme.slug = "Acme Ltd", 10, "not-asked-for"
    services.update(acme, changed=["name", "quota_bytes"], by=root, now=now)
    acme.refresh_from_db()
    assert (acme.name, acme.quota_bytes, acme.slug) == ("Acme Ltd", 10, "acme")
    assert audited() == [("tenant.update", "root", str(acme.pk), {"name": "Acme Ltd", "quota_bytes": 10})]


def test_update_of_nothing_is_not_audited(acme: Tenant, now: datetime) -> None:
    services.update(acme, changed=[], by=None, now=now)
    assert audited() == []


def test_update_tenant_with_a_bad_value_changes_nothing(acme: Tenant, now: datetime) -> None:
    acme.name = ""
    with pytest.raises(ValidationError):
        services.update(acme, changed=["name"], by=None, now=now)
    assert Tenant.objects.get(pk=acme.pk).name == "Acme"
    assert audited() == []


# --- People ---


def test_create_user_stores_the_address_in_lower_case(db: None, now: datetime) -> None:
    user = services.create_user(username="dora", email="Dora.B@Example.ORG", password=PASSWORD, by=None, now=now)
    assert User.objects.get(pk=user.pk).email == "dora.b@example.org"
    assert user.check_password(PASSWORD)
    assert not user.is_staff
    assert audited() == [("user.create", "system", "platform", {"name": "dora"})]
    assert PASSWORD not in AuditEvent.objects.get().body


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"email": "ALICE@example.org"}, "email"),
        ({"email": ""}, "email"),
        ({"email": "dora"}, "email"),
        ({"username": "alice"}, "username"),
        ({"username": ""}, "username"),
        ({"username": "a b"}, "username"),
        ({"username": "System"}, "username"),  # what is done by nobody says that it is the system's
        ({"username": "me"}, "username"),
        ({"username": "d" * 151}, "username"),
        ({"password": "short"}, "password"),
        ({"password": "dora@example.org"}, "password"),
        ({"password": "1" * 14}, "password"),
    ],
)
def test_create_user_that_is_not_acceptable_names_the_field(
    alice: User, now: datetime, changes: dict[str, str], field: str
) -> None:
    wanted: dict[str, Any] = {"username": "dora", "email": "dora@example.org", "password": PASSWORD, **changes}
    with pytest.raises(ValidationError) as error:
        services.create_user(**wanted, by=None, now=now)
    assert refused_field(error) == [field]
    assert audited() == []


def test_create_user_without_a_password_cannot_sign_in(db: None, now: datetime) -> None:
    user = services.create_user(username="dora", email="dora@example.org", password=None, by=None, now=now)
    assert not user.has_usable_password()


def test_set_password_is_audited_without_it(alice: User, root: User, now: datetime) -> None:
    services.set_password(user=alice, password="another long password", by=root, now=now)
    assert User.objects.get(pk=alice.pk).check_password("another long password")
    assert audited() == [("user.password", "root", "platform", {})]
    assert "another long password" not in AuditEvent.objects.get().body


def test_set_password_that_is_too_weak_changes_nothing(alice: User, now: datetime) -> None:
    with pytest.raises(ValidationError):
        services.set_password(user=alice, password="password1234", by=None, now=now)
    assert User.objects.get(pk=alice.pk).check_password(PASSWORD)
    assert audited() == []


def test_a_rehash_at_sign_in_leaves_the_new_session_alive(alice: User, settings: Any, now: datetime) -> None:
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.PBKDF2PasswordHasher",
        "django.contrib.auth.hashers.MD5PasswordHasher",
    ]
    assert alice.check_password(PASSWORD)
    pair = tokens.mint(alice)
    assert User.objects.get(pk=alice.pk).password.startswith("pbkdf2")
    assert tokens.refresh(pair["refresh"], now=now)


# --- Members ---


def test_add_member_is_audited_in_the_tenants_chain(acme: Tenant, mallory: User, alice: User, now: datetime) -> None:
    services.add_member(tenant=acme, user=mallory, roles=["member", "auditor"], by=alice, now=now)
    assert Membership.objects.get(user=mallory, tenant=acme).roles == ["auditor", "member"]
    assert audited() == [("member.add", "alice", str(acme.pk), {"name": "mallory", "roles": ["auditor", "member"]})]


def test_add_member_again_adds_the_roles(acme: Tenant, bob: User, now: datetime) -> None:
    services.add_member(tenant=acme, user=bob, roles=["research_it"], by=None, now=now)
    services.add_member(tenant=acme, user=bob, roles=["member"], by=None, now=now)
    assert Membership.objects.get(user=bob).roles == ["member", "research_it"]
    facts = {"name": "bob", "roles": ["member", "research_it"], "before": ["member"]}
    assert audited() == [("member.update", "system", str(acme.pk), facts)]


@pytest.mark.parametrize("roles", [[], ["Admin"], ["a b"], [""], ["r" * 41], ["admin\n"], ["администратор"], ["member", "x/y"]])
def test_add_member_with_bad_roles_is_refused(acme: Tenant, mallory: User, now: datetime, roles: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        services.add_member(tenant=acme, user=mallory, roles=roles, by=None, now=now)
    assert refused_field(error) == ["roles"]
    assert audited() == []


def test_add_member_with_a_role_of_a_policys_stage(acme: Tenant, mallory: User, now: datetime) -> None:
    services.add_member(tenant=acme, user=mallory, roles=["ethics_board"], by=None, now=now)
    assert Membership.objects.get(user=mallory, tenant=acme).roles == ["ethics_board"]


@pytest.mark.django_db(transaction=True)
def test_add_member_at_once_makes_one_member_with_all_roles(acme: Tenant, mallory: User, now: datetime) -> None:
    roles = ["admin", "auditor", "member", "research_it"]
    race([partial(services.add_member, tenant=acme, user=mallory, roles=[role], by=None, now=now) for role in roles])
    assert Membership.objects.get(user=mallory, tenant=acme).roles == roles
    assert [action for action, *_ in audited()] == ["member.add", "member.update", "member.update", "member.update"]
    assert list(audit.verify()) == []


def test_set_roles_replaces_them(acme: Tenant, alice: User, now: datetime) -> None:
    make_member(acme, "dora", "admin")
    membership = Membership.objects.get(user=alice)
    services.set_roles(membership=membership, roles=["auditor"], by=None, now=now)
    services.set_roles(membership=membership, roles=["auditor"], by=None, now=now)
    assert Membership.objects.get(user=alice).roles == ["auditor"]
    facts = {"name": "alice", "roles": ["auditor"], "before": ["admin"]}
    assert audited() == [("member.update", "system", str(acme.pk), facts)]


def test_set_roles_to_none_is_refused(bob: User, now: datetime) -> None:
    with pytest.raises(ValidationError):
        services.set_roles(membership=Membership.objects.get(user=bob), roles=[], by=None, now=now)
    assert Membership.objects.get(user=bob).roles == ["member"]


def test_set_roles_of_somebody_who_is_no_member_any_more_is_a_conflict(bob: User, now: datetime) -> None:
    membership = Membership.objects.get(user=bob)
    Membership.objects.all().delete()
    with pytest.raises(Conflict):
        services.set_roles(membership=membership, roles=["auditor"], by=None, now=now)
    assert audited() == []


def test_operators_keep_the_last_admin_too(alice: User, now: datetime) -> None:
    membership = Membership.objects.get(user=alice)
    with pytest.raises(LastAdmin):
        services.set_roles(membership=membership, roles=["auditor"], by=None, now=now)
    with pytest.raises(LastAdmin):
        services.remove_member(membership=membership, by=None, now=now)
    assert audited() == []


@pytest.mark.django_db(transaction=True)
def test_operators_who_demote_the_last_admins_at_once_leave_one(acme: Tenant, now: datetime) -> None:
    admins = [Membership.objects.get(user=make_member(acme, name, "admin")) for name in ("dora", "frank", "gus")]

    def demote(membership: Membership) -> bool:
        try:
            services.set_roles(membership=membership, roles=["member"], by=None, now=now)
        except LastAdmin:
            return False
        return True

    assert sorted(race([partial(demote, membership) for membership in admins])) == [False, True, True]
    assert Membership.objects.filter(roles=["admin"]).count() == 1


def test_remove_member_twice_is_a_conflict(acme: Tenant, bob: User, alice: User, now: datetime) -> None:
    membership = Membership.objects.get(user=bob)
    services.remove_member(membership=Membership.objects.get(user=bob), by=alice, now=now)
    with pytest.raises(Conflict):
        services.remove_member(membership=membership, by=alice, now=now)
    assert not Membership.objects.filter(user=bob).exists()
    assert audited() == [("member.remove", "alice", str(acme.pk), {"name": "bob", "roles": ["member"]})]


def test_enrol_of_somebody_new_creates_them(acme: Tenant, now: datetime) -> None:
    services.ensure_member(slug="acme", username="dora", email="dora@example.org", roles=["member"], by=None, now=now)
    assert Membership.objects.get(user__username="dora").tenant == acme
    assert sorted(action for action, *_ in audited()) == ["member.add", "user.create"]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"slug": "nowhere"}, NotFound),
        ({"username": "dora", "email": ""}, ValidationError),
        ({"username": "bob", "email": "alice@example.org"}, Invalid),
        ({"username": "dora", "email": "bob@example.org"}, ValidationError),
        ({"roles": ["Admin"]}, ValidationError),
    ],
)
def test_enrol_that_is_not_acceptable_leaves_nothing(
    acme: Tenant, bob: User, mallory: User, now: datetime, wanted: dict[str, Any], error: type[APIException]
) -> None:
    people = User.objects.count()
    arguments = {"slug": "acme", "username": "mallory", "email": "", "roles": ["member"], **wanted}
    with pytest.raises(error):
        services.ensure_member(**arguments, by=None, now=now)
    assert User.objects.count() == people
    assert not Membership.objects.filter(tenant=acme).exclude(user=bob).exists()
    assert audited() == []


# --- The first tenant ---


def found(now: datetime, **changes: str) -> tuple[Tenant, User]:
    wanted = {"slug": "first", "name": "First", "username": "boss", "email": "boss@example.org", "password": PASSWORD, **changes}
    return services.bootstrap_tenant(**wanted, now=now)


def test_found_makes_a_superuser_who_is_admin(db: None, now: datetime) -> None:
    tenant, user = found(now)
    assert user.is_superuser
    assert user.is_staff
    assert Membership.objects.get(user=user, tenant=tenant).roles == ["admin"]
    assert sorted(action for action, *_ in audited()) == ["member.add", "tenant.create", "user.create"]


def test_found_again_changes_nothing(db: None, now: datetime) -> None:
    first = found(now)
    before = audited()
    assert found(now, password="another long password", name="Other", email="other@example.org") == first
    assert User.objects.get().check_password(PASSWORD)
    assert audited() == before


def test_found_does_not_promote_somebody_who_exists(bob: User, now: datetime) -> None:
    with pytest.raises(Conflict):
        found(now, username="bob")
    assert not User.objects.get(pk=bob.pk).is_superuser
    assert not Tenant.objects.filter(slug="first").exists()
    assert audited() == []


# --- Tokens ---


def test_create_token_for_somebody_deactivated_is_refused(alice: User, now: datetime) -> None:
    alice.is_active = False
    with pytest.raises(Refused):
        services.create_token(user=alice, lifetime=timedelta(hours=1), by=None, now=now)
    assert not OutstandingToken.objects.exists()


def test_tick_forgets_what_expired_and_nothing_else(alice: User, now: datetime) -> None:
    old, live = tokens.mint(alice, timedelta(seconds=-5)), tokens.mint(alice)
    tokens.refresh(live["refresh"], now=now)
    assert old
    for delta, name in ((-1, "old"), (1, "live")):
        session = SessionStore()
        session.create()
        Session.objects.filter(pk=session.session_key).update(expire_date=now + timedelta(hours=delta))
        RateLimit.objects.create(key=name, full_at=(now + timedelta(hours=delta)).timestamp() * 1_000_000)
        KnownNetwork.objects.create(user=alice, network=name, signed_in_at=now - timedelta(days=30 - delta))
    tasks.tick()
    assert OutstandingToken.objects.count() == 2
    assert BlacklistedToken.objects.count() == 1
    assert Session.objects.get().expire_date > now
    assert RateLimit.objects.get().key == KnownNetwork.objects.get().network == "live"
    tasks.tick()
    assert OutstandingToken.objects.count() == 2


# --- The database's own constraints ---


@pytest.mark.parametrize(
    ("constraint", "violate"),
    [
        ("user_email_lower_case", lambda: User.objects.filter(username="alice").update(email="Alice@example.org")),
        ("email", lambda: User.objects.filter(username="alice").update(email="bob@example.org")),
        ("username", lambda: User.objects.filter(username="alice").update(username="bob")),
        ("membership_has_a_role", lambda: Membership.objects.update(roles=[])),
        ("membership_unique", lambda: Membership.objects.update(user=User.objects.get(username="bob"))),
        ("quota_bytes", lambda: Tenant.objects.update(quota_bytes=-1)),
        ("slug", lambda: Tenant.objects.update(slug="acme")),
    ],
)
def test_constraint_of_the_database(
    alice: User, bob: User, globex: Tenant, constraint: str, violate: Callable[[], object]
) -> None:
    # SQLite names the columns of a unique constraint, PostgreSQL the constraint.
    name = "user_id" if constraint == "membership_unique" else constraint
    with pytest.raises(IntegrityError, match=f"{constraint}|{name}"), transaction.atomic():
        violate()
