"""Accounts of programs. One belongs to its tenant for good, opens the API by keys alone, and has no password to sign in with.

They are named `<name>@<tenant>`. A username is unique among all tenants, so that a plain one that is taken would tell an admin
who exists in another (INV-01); for the same reason their e-mail address is made, and not asked for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Prefetch, Q, QuerySet

from tenants import access, audit
from tenants.auth import api_keys
from tenants.errors import Conflict, NotFound
from tenants.models import SERVICE_ROLES, Membership, Tenant, User
from tenants.work.deadlocks import retry_on_deadlock


def visible_accounts(user: User, tenant: Tenant) -> QuerySet[User]:
    """Those of a tenant that came from `access`, for its admins and auditors; with `created_at`, and the membership in `held`."""
    access.check_can_audit(user, tenant)
    memberships = Prefetch("memberships", Membership.objects.filter(tenant=tenant), to_attr="held")
    return tenant.service_accounts.annotate(created_at=F("date_joined")).prefetch_related(memberships)


def get_account(user: User, tenant: Tenant, username: str) -> User:
    account = visible_accounts(user, tenant).filter(username=username).first()
    if account is None:
        raise NotFound
    return account


@retry_on_deadlock
def create(*, tenant: Tenant, name: str, roles: Sequence[str], by: User, now: datetime) -> User:
    with transaction.atomic():
        # The other contender creates an account of the same name, in the same tenant: others have other names.
        tenant = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
        access.check_can_administer(by, tenant)
        username = f"{name}@{tenant.slug}"
        email = f"{username}.service.invalid"  # reaches nobody, for ever (RFC 2606)
        if User.objects.filter(Q(username=username) | Q(email=email)).exists():
            raise Conflict("The tenant has, or had, a service account of this name.", code="name_taken")
        account = User(username=username, email=email, service_of=tenant, date_joined=now)
        account.set_unusable_password()
        account.save(force_insert=True)
        held = [role for role in SERVICE_ROLES if role in roles]
        Membership.objects.create(user=account, tenant=tenant, roles=held, created_at=now)
        audit.record("service_account.create", by=by, tenant=tenant, target=account, now=now, name=username, roles=held)
    return account


@retry_on_deadlock
def deactivate(account: User, *, by: User, now: datetime) -> None:
    """Its keys are revoked too. The row stays, and so its name is taken: the audit trail knows it."""
    with transaction.atomic():
        account = User.objects.select_for_update(of=("self",), no_key=True).select_related("service_of").get(pk=account.pk)
        tenant = account.service_of
        assert tenant is not None  # noqa: S101  it is no service account otherwise
        access.check_can_administer(by, tenant)
        if not account.is_active:
            raise Conflict("The service account is deactivated already.")
        User.objects.filter(pk=account.pk).update(is_active=False)
        api_keys.revoke_all(account, now=now)
        audit.record("service_account.deactivate", by=by, tenant=tenant, target=account, now=now, name=account.username)


class NoPasswordValidator:
    """One of AUTH_PASSWORD_VALIDATORS, because every way to a password passes there: API, admin, reset, command."""

    def validate(self, password: str, user: Any = None) -> None:
        if user is not None and getattr(user, "service_of_id", None):
            raise ValidationError("A service account has no password: it has API keys.", code="service_account")

    def get_help_text(self) -> str:
        return "A service account has no password."
