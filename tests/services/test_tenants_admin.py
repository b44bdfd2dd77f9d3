"""The admin: shows people, tenants and the audit trail; each change is one service call with one audit event."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from tenants import people
from tenants.auth import tokens
from tenants.models import AuditEvent, Invitation, Mail, Membership, Tenant, User
from tests.factories import PASSWORD


NEW_PASSWORD = "another long password"


@pytest.fixture
def site(root: User) -> Client:
    """root, signed in."""
    client = Client()
    client.force_login(root)
    return client


def url(page: str, *arguments: object) -> str:
    return reverse(f"admin:{page}", args=arguments)


def audited() -> tuple[str, str, dict[str, Any]]:
    """(action, actor, facts) of the only event."""
    event = AuditEvent.objects.get()
    return event.action, event.actor, json.loads(event.body)["facts"]


def person(user: User, **changes: str) -> dict[str, str]:
    """What the browser sends of a person's page; an empty value is an unticked box."""
    form = {"username": user.username, "email": user.email, "is_active": "on", "first_name": "", "last_name": "", **changes}
    return {name: value for name, value in form.items() if value or not name.startswith("is_")}


def tenant(**changes: str) -> dict[str, str]:
    form = {
        "slug": "acme",
        "name": "Acme",
        "is_active": "on",
        "allowed_ciphers": '["AES-GCM"]',
        "new_collections": "editor",
        "vault_alias": "vault",
        **changes,
    }
    return {name: value for name, value in form.items() if value}


PAGES = [
    url_name
    for model in ("user", "tenant", "membership", "invitation", "mail", "auditevent")
    for url_name in (f"tenants_{model}_changelist", f"tenants_{model}_add")
]


@pytest.mark.parametrize("page", ["index", *PAGES, "password_change"])
@pytest.mark.parametrize("actor", [None, "alice"])
def test_admin_is_closed_to_everybody_but_superusers(
    request: pytest.FixtureRequest, db: None, page: str, actor: str | None
) -> None:
    client = Client()
    if actor:
        client.force_login(request.getfixturevalue(actor))
    response = client.get(url(page))
    assert response.status_code == 302
    assert response["Location"].startswith(url("login"))


READ_ONLY = {"tenants_invitation_add", "tenants_mail_add", "tenants_auditevent_add"}


@pytest.mark.parametrize("page", ["index", *(page for page in PAGES if page not in READ_ONLY), "password_change"])
def test_admin_pages_open_for_a_superuser(site: Client, alice: User, page: str) -> None:
    assert site.get(url(page)).status_code == 200


def test_admin_offers_no_groups_and_no_tokens(site: Client) -> None:
    names = {model._meta.label for model in admin.site._registry}
    assert not names & {"auth.Group", "token_blacklist.OutstandingToken", "token_blacklist.BlacklistedToken"}
    assert {"tenants.User", "tenants.Tenant", "tenants.Membership", "tenants.AuditEvent"} <= names


# --- Tenants ---


def test_admin_adds_a_tenant(site: Client) -> None:
    response = site.post(url("tenants_tenant_add"), tenant(slug="acme-2"))
    assert response.status_code == 302
    created = Tenant.objects.get(slug="acme-2")
    assert created.created_at is not None
    assert audited() == ("tenant.create", "root", {"name": "acme-2"})


def test_admin_suspends_a_tenant(site: Client, acme: Tenant) -> None:
    site.post(url("tenants_tenant_change", acme.pk), tenant(is_active="", quota_files="5"))
    acme.refresh_from_db()
    assert (acme.is_active, acme.quota_files) == (False, 5)
    assert audited() == ("tenant.update", "root", {"is_active": False, "quota_files": 5})


def test_admin_sets_how_a_tenant_shares(site: Client, acme: Tenant) -> None:
    form = tenant(new_collections="viewer", allow_external_sharing="on", default_retention_days="30")
    assert site.post(url("tenants_tenant_change", acme.pk), form).status_code == 302
    facts = {"new_collections": "viewer", "allow_external_sharing": True, "default_retention_days": 30}
    assert audited() == ("tenant.update", "root", facts)


@pytest.mark.parametrize(
    "changes", [{"default_retention_days": "99999"}, {"allowed_ciphers": '["ROT13"]'}, {"allowed_ciphers": "7"}]
)
def test_admin_refuses_bad_settings_of_a_tenant_in_the_form(site: Client, acme: Tenant, changes: dict[str, str]) -> None:
    assert site.post(url("tenants_tenant_change", acme.pk), tenant(**changes)).status_code == 200
    assert not AuditEvent.objects.exists()


def test_admin_saving_a_tenant_as_it_is_changes_nothing(site: Client, acme: Tenant) -> None:
    assert site.post(url("tenants_tenant_change", acme.pk), tenant()).status_code == 302
    assert not AuditEvent.objects.exists()


def test_admin_refuses_a_bad_slug_in_the_form(site: Client) -> None:
    response = site.post(url("tenants_tenant_add"), tenant(slug="No Slug"))
    assert response.status_code == 200
    assert b"lower-case letters and digits" in response.content
    assert not Tenant.objects.exists()


# --- People ---


def test_admin_adds_a_person(site: Client) -> None:
    form = {"username": "dora", "email": "Dora@Example.org", "usable_password": "true"}
    response = site.post(url("tenants_user_add"), {**form, "password1": NEW_PASSWORD, "password2": NEW_PASSWORD})
    user = User.objects.get(username="dora")
    assert response["Location"] == url("tenants_user_change", user.pk)
    assert (user.email, user.check_password(NEW_PASSWORD)) == ("dora@example.org", True)
    assert audited() == ("user.create", "root", {"name": "dora"})


@pytest.mark.parametrize("email", ["", "ALICE@example.org"])
def test_admin_refuses_a_person_without_an_address_of_their_own(site: Client, alice: User, email: str) -> None:
    form = {"username": "dora", "email": email, "usable_password": "true", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD}
    assert site.post(url("tenants_user_add"), form).status_code == 200
    assert not User.objects.filter(username="dora").exists()


def test_admin_deactivates_a_person(site: Client, alice: User) -> None:
    pair = tokens.mint(alice)
    site.post(url("tenants_user_change", alice.pk), person(alice, is_active=""))
    alice.refresh_from_db()
    assert (alice.is_active, alice.token_version) == (False, 1)
    assert audited() == ("user.update", "root", {"is_active": False})
    assert pair


def test_admin_makes_a_superuser(site: Client, alice: User) -> None:
    site.post(url("tenants_user_change", alice.pk), person(alice, is_superuser="on", is_staff="on"))
    alice.refresh_from_db()
    assert alice.is_superuser
    assert audited() == ("user.update", "root", {"is_staff": True, "is_superuser": True})


@pytest.mark.parametrize(
    ("form", "is_usable"),
    [
        ({"usable_password": "true", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD, "set-password": "1"}, True),
        ({"usable_password": "false", "unset-password": "1"}, False),
    ],
)
def test_admin_changes_a_password(site: Client, alice: User, form: dict[str, str], is_usable: bool) -> None:  # noqa: FBT001
    response = site.post(url("auth_user_password_change", alice.pk), form)
    assert response.status_code == 302
    alice.refresh_from_db()
    assert alice.has_usable_password() is is_usable
    assert alice.token_version == 1
    assert audited() == ("user.password", "root", {})


def test_admin_refusing_a_weak_password_changes_nothing(site: Client, alice: User) -> None:
    form = {"usable_password": "true", "password1": "short", "password2": "short", "set-password": "1"}
    assert site.post(url("auth_user_password_change", alice.pk), form).status_code == 200
    assert User.objects.get(pk=alice.pk).check_password(PASSWORD)
    assert not AuditEvent.objects.exists()


def test_admin_changes_its_own_password_and_stays_signed_in(site: Client, root: User) -> None:
    form = {"old_password": PASSWORD, "new_password1": NEW_PASSWORD, "new_password2": NEW_PASSWORD}
    assert site.post(url("password_change"), form).status_code == 302
    root.refresh_from_db()
    assert root.check_password(NEW_PASSWORD)
    assert root.token_version == 1
    assert audited() == ("user.password", "root", {})
    assert site.get(url("index")).status_code == 200


def test_admin_ends_sessions(site: Client, alice: User, api: Callable[[User | None], Any]) -> None:
    client = api(alice)
    site.post(url("tenants_user_changelist"), {"action": "end_sessions", "_selected_action": [alice.pk]})
    assert client.get("/api/v1/me/").status_code == 401
    assert audited() == ("session.end_all", "root", {})


# --- Members ---


def test_admin_adds_a_member(site: Client, acme: Tenant, mallory: User) -> None:
    site.post(url("tenants_membership_add"), {"user": mallory.pk, "tenant": acme.pk, "roles": '["member", "auditor"]'})
    assert Membership.objects.get(user=mallory, tenant=acme).roles == ["auditor", "member"]
    assert audited() == ("member.add", "root", {"name": "mallory", "roles": ["auditor", "member"]})


def test_admin_form_for_a_member_suggests_a_role(site: Client, acme: Tenant) -> None:
    page = site.get(url("tenants_membership_add"))
    assert page.context["adminform"].form.initial["roles"] == ["member"]
    assert "null</textarea>" not in page.content.decode()


BAD_ROLES = ["", "[]", '"admin"', '["Admin"]', '["admin", "admin"]', "{}", "[7]", "[null]", "[[]]", '[{"a": 1}]']


@pytest.mark.parametrize("roles", BAD_ROLES)
def test_admin_refuses_bad_roles_in_the_form(site: Client, acme: Tenant, mallory: User, roles: str) -> None:
    response = site.post(url("tenants_membership_add"), {"user": mallory.pk, "tenant": acme.pk, "roles": roles})
    assert response.status_code == 200
    assert not Membership.objects.filter(tenant=acme).exists()


def test_admin_changes_roles_but_not_whose_they_are(site: Client, acme: Tenant, bob: User, mallory: User) -> None:
    membership = Membership.objects.get(user=bob)
    form = {"user": mallory.pk, "tenant": acme.pk, "roles": '["auditor"]'}
    assert site.post(url("tenants_membership_change", membership.pk), form).status_code == 302
    membership.refresh_from_db()
    assert (membership.user, membership.roles) == (bob, ["auditor"])
    assert audited() == ("member.update", "root", {"name": "bob", "roles": ["auditor"], "before": ["member"]})


def test_admin_removes_a_member(site: Client, bob: User) -> None:
    membership = Membership.objects.get(user=bob)
    site.post(url("tenants_membership_delete", membership.pk), {"post": "yes"})
    assert not Membership.objects.filter(user=bob).exists()
    assert audited() == ("member.remove", "root", {"name": "bob", "roles": ["member"]})


def test_admin_removes_members_in_bulk_with_an_event_each(site: Client, bob: User, carol: User) -> None:
    chosen = list(Membership.objects.values_list("pk", flat=True))
    form = {"action": "delete_selected", "_selected_action": chosen, "post": "yes"}
    site.post(url("tenants_membership_changelist"), form)
    assert not Membership.objects.exists()
    assert list(AuditEvent.objects.values_list("action", "actor")) == [("member.remove", "root")] * 2


def test_admin_is_told_that_the_last_admin_stays(site: Client, acme: Tenant, alice: User) -> None:
    pk = Membership.objects.get().pk
    posts = [
        ("tenants_membership_delete", [pk], {"post": "yes"}),
        ("tenants_membership_change", [pk], {"roles": '["member"]'}),
        ("tenants_membership_changelist", [], {"action": "delete_selected", "_selected_action": [pk], "post": "yes"}),
    ]
    for page, arguments, form in posts:
        response = site.post(url(page, *arguments), form, follow=True)
        assert response.status_code == 200
        assert b"last active admin" in response.content
    assert Membership.objects.get().roles == ["admin"]
    assert not AuditEvent.objects.exists()


# --- Invitations and mails ---


@pytest.fixture
def invitation(acme: Tenant, alice: User, now: datetime) -> Invitation:
    return people.invite(tenant=acme, email="dora@example.org", roles=["member"], by=alice, now=now)


def test_admin_withdraws_an_invitation(site: Client, invitation: Invitation) -> None:
    page = site.get(url("tenants_invitation_change", invitation.pk))
    assert b"dora@example.org" in page.content
    assert b'name="_save"' not in page.content
    site.post(url("tenants_invitation_delete", invitation.pk), {"post": "yes"})
    assert not Invitation.objects.exists()
    assert list(AuditEvent.objects.order_by("seq").values_list("action", "actor"))[1:] == [("invitation.withdraw", "root")]


def test_admin_shows_mails_and_edits_nothing_of_them(site: Client, invitation: Invitation) -> None:
    mail = Mail.objects.get()
    assert b"dora@example.org" in site.get(url("tenants_mail_changelist")).content
    page = site.get(url("tenants_mail_change", mail.pk))
    assert b"dora@example.org" in page.content
    assert b'name="_save"' not in page.content
    for name in ("change", "delete"):
        assert site.post(url(f"tenants_mail_{name}", mail.pk), {"recipient": "x@example.org", "post": "yes"}).status_code == 403
    assert Mail.objects.get().recipient == "dora@example.org"


def test_admin_shows_which_copies_were_refused_and_what_was_dropped(site: Client, now: datetime) -> None:
    both = {"kind": "egress_outcome", "recipient": "bob@example.org", "created_at": now, "due_at": now}
    copies = ["carol@example.org", "dora@example.org"]
    Mail.objects.create(**both, copies=copies, sent_at=now, refused=["dora@example.org"])
    Mail.objects.create(**both, failed_at=now, is_dropped=True)
    page = site.get(url("tenants_mail_changelist")).content.decode()
    assert "dora@example.org" in page
    assert "carol@example.org" not in page
    assert "dropped" in page


# --- What is never deleted, never edited ---


def test_admin_deletes_no_person_tenant_or_event(site: Client, alice: User, acme: Tenant) -> None:
    site.post(url("tenants_tenant_change", acme.pk), tenant(name="Acme Ltd"))
    event = AuditEvent.objects.get()
    for model, thing in (("user", alice), ("tenant", acme), ("auditevent", event)):
        assert site.post(url(f"tenants_{model}_delete", thing.pk), {"post": "yes"}).status_code == 403
        form = {"action": "delete_selected", "_selected_action": [thing.pk], "post": "yes"}
        site.post(url(f"tenants_{model}_changelist"), form)
    assert User.objects.filter(pk=alice.pk).exists()
    assert Tenant.objects.filter(pk=acme.pk).exists()
    assert AuditEvent.objects.get() == event


def test_admin_shows_and_searches_the_audit_trail_and_edits_nothing_in_it(site: Client, acme: Tenant) -> None:
    site.post(url("tenants_tenant_change", acme.pk), tenant(name="Acme Ltd"))
    event = AuditEvent.objects.get()
    changelist = url("tenants_auditevent_changelist")
    assert b"tenant.update" in site.get(changelist, {"q": str(acme.pk)}).content
    assert b"tenant.update" not in site.get(changelist, {"q": "nothing-like-it"}).content
    page = site.get(url("tenants_auditevent_change", event.pk))
    assert b"Acme Ltd" in page.content
    assert b'name="_save"' not in page.content
    assert site.post(url("tenants_auditevent_change", event.pk), {"actor": "nobody"}).status_code == 403
    assert site.get(url("tenants_auditevent_add")).status_code == 403
    assert AuditEvent.objects.get().actor == "root"
