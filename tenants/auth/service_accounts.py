"""Accounts for programs. A service account belongs to one tenant, uses API keys only, and has no password.

Its username is `<name>@<tenant>`. Usernames are unique across tenants, so a plain name that is taken would show an admin which
users exist in another tenant (INV-01). Its e-mail address is generated for the same reason.
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
    """Returns the service accounts of the tenant, for its admins and auditors and for superusers.

    Each has `created_at`, and its membership in the list `tenant_memberships`. The caller loaded the tenant through `access`.

    Raises: NotFound, Refused.
    """
    access.check_can_audit(user, tenant)
    memberships = Prefetch("memberships", Membership.objects.filter(tenant=tenant), to_attr="tenant_memberships")
    return tenant.service_accounts.annotate(created_at=F("date_joined")).prefetch_related(memberships)


def get_account(user: User, tenant: Tenant, username: str) -> User:
    """Returns a service account that the user can see.

    Raises: NotFound, Refused.
    """
    account = visible_accounts(user, tenant).filter(username=username).first()
    if account is None:
        raise NotFound
    return account


@retry_on_deadlock
def create(*, tenant: Tenant, name: str, roles: Sequence[str], by: User, now: datetime) -> User:
    """Creates a service account with a membership. `by` must be an admin of the tenant or a superuser.

    Raises: Conflict, NotFound, Refused.
    """
    with transaction.atomic():
        # The other contender creates an account with the same name in the same tenant.
        tenant = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
        access.check_can_administer(by, tenant)
        username = f"{name}@{tenant.slug}"
        email = f"{username}.service.invalid"  # .invalid is never delivered to (RFC 2606)
        if User.objects.filter(Q(username=username) | Q(email=email)).exists():
            raise Conflict("The tenant has or had a service account with this name. Choose another one.", code="name_taken")
        account = User(username=username, email=email, service_of=tenant, date_joined=now)
        account.set_unusable_password()
        account.save(force_insert=True)
        ordered_roles = [role for role in SERVICE_ROLES if role in roles]
        Membership.objects.create(user=account, tenant=tenant, roles=ordered_roles, created_at=now)
        audit.record("service_account.create", by=by, tenant=tenant, target=account, now=now, name=username, roles=ordered_roles)
    return account


@retry_on_deadlock
def deactivate(account: User, *, by: User, now: datetime) -> None:
    """Deactivates the account and revokes its keys. The row is kept, so that the name in the audit trail stays unambiguous.

    Raises: Conflict, NotFound, Refused.
    """
    with transaction.atomic():
        account = User.objects.select_for_update(of=("self",), no_key=True).select_related("service_of").get(pk=account.pk)
        tenant = account.service_of
        assert tenant is not None  # noqa: S101  true of each service account
        access.check_can_administer(by, tenant)
        if not account.is_active:
            raise Conflict("The service account is already deactivated.")
        User.objects.filter(pk=account.pk).update(is_active=False)
        api_keys.revoke_all(account, now=now)
        audit.record("service_account.deactivate", by=by, tenant=tenant, target=account, now=now, name=account.username)


class NoPasswordValidator:
    """Refuses passwords for service accounts. All ways to set a password use AUTH_PASSWORD_VALIDATORS."""

    def validate(self, password: str, user: Any = None) -> None:
        if user is not None and getattr(user, "service_of_id", None):
            raise ValidationError("A service account cannot have a password. Create an API key instead.", code="service_account")

    def get_help_text(self) -> str:
        return "A service account cannot have a password."
