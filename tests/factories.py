"""Minimal valid rows for tests. The password of every user is PASSWORD."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

from django.utils.text import slugify

from purge.models import Destruction
from tenants.auth import api_keys
from tenants.models import Membership, Scope, Tenant, User
from vault import identity


PASSWORD = "correct horse battery staple"


def make_tenant(slug: str, *, new_collections: str = Tenant.NewCollections.EDITOR) -> Tenant:
    """Creates a tenant. By default, all members can edit new collections."""
    return Tenant.objects.create(slug=slug, name=slug.capitalize(), created_at=datetime.now(UTC), new_collections=new_collections)


def make_user(username: str, *, is_superuser: bool = False) -> User:
    return User.objects.create_user(
        username, f"{username}@example.org", PASSWORD, is_superuser=is_superuser, is_staff=is_superuser
    )


def make_member(tenant: Tenant, username: str, *roles: str) -> User:
    user = make_user(username)
    Membership.objects.create(user=user, tenant=tenant, roles=list(roles), created_at=datetime.now(UTC))
    return user


def make_key(owner: User, *scopes: str, tenant: Tenant | None = None) -> str:
    """Creates an API key with these scopes, or with all, and returns it in the form that follows `Bearer`."""
    tenant = tenant or Tenant.objects.get(memberships__user=owner)
    wanted: Sequence[str] = scopes or Scope.values
    _, text = api_keys.create(
        tenant=tenant, owner=owner, name="nightly", scopes=wanted, expires_at=None, by=None, now=datetime.now(UTC)
    )
    return text


def make_destruction(tenant: Tenant, display_name: str, *, started_by: str = "system", pk: UUID | None = None) -> Destruction:
    """Creates the record of a completed destruction, whose collection no longer exists."""
    now = datetime.now(UTC)
    return Destruction.objects.create(
        pk=pk or uuid4(),
        tenant=tenant,
        collection_uuid=uuid4(),
        slug=f"{slugify(display_name)}-7kq3",
        display_name=display_name,
        number=identity.next_ledger_number(),
        ledgered_at=now,
        file_count=3,
        total_length=1500,
        unencrypted_count=0,
        reason=Destruction.Reason.EXPIRED,
        due_at=now,
        started_at=now,
        started_by=started_by,
        status=Destruction.Status.DONE,
        completed_at=now,
        certificate='{"version":1}',
        signature="c2lnbmF0dXJl",
    )
