"""Rows for tests, valid and no more. Everybody's password is PASSWORD."""

from datetime import UTC, datetime

from tenants.models import Membership, Tenant, User


PASSWORD = "correct horse battery staple"


def make_tenant(slug: str, *, new_collections: str = Tenant.NewCollections.EDITOR) -> Tenant:
    """A team that shares what it has, unless the test says otherwise."""
    return Tenant.objects.create(slug=slug, name=slug.capitalize(), created_at=datetime.now(UTC), new_collections=new_collections)


def make_user(username: str, *, is_superuser: bool = False) -> User:
    return User.objects.create_user(
        username, f"{username}@example.org", PASSWORD, is_superuser=is_superuser, is_staff=is_superuser
    )


def make_member(tenant: Tenant, username: str, *roles: str) -> User:
    user = make_user(username)
    Membership.objects.create(user=user, tenant=tenant, roles=list(roles), created_at=datetime.now(UTC))
    return user
