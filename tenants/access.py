"""The only ways to a tenant, and what somebody is in it. Membership of a suspended tenant is no membership."""

from uuid import UUID

from django.db.models import Exists, Q, QuerySet

from tenants.context import tenant_id
from tenants.errors import Invalid, NotFound
from tenants.models import Membership, Tenant, User


def memberships_of(user: User) -> QuerySet[Membership]:
    """With their tenants. Activity is asked of the database: the instance at hand may be as old as a running download."""
    return Membership.objects.filter(user=user, user__is_active=True, tenant__is_active=True).select_related("tenant")


def roles_of(user: User) -> dict[UUID, frozenset[str]]:
    """Roles by tenant id: one query, kept nowhere."""
    return {tenant: frozenset(roles) for tenant, roles in memberships_of(user).values_list("tenant_id", "roles")}


def get_tenant(user: User, slug: str) -> Tenant:
    is_member = Q(pk__in=memberships_of(user).values("tenant"))
    is_superuser = Exists(User.objects.filter(pk=user.pk, is_active=True, is_superuser=True))
    tenant = Tenant.objects.filter(is_member | is_superuser, is_active=True, slug=slug).first()
    if tenant is None:
        raise NotFound
    tenant_id.set(str(tenant.pk))
    return tenant


def sole_tenant(user: User) -> Tenant:
    """The tenant of somebody who did not name one."""
    memberships = memberships_of(user)[:2]
    if len(memberships) != 1:
        problem = "You belong to several tenants: name one." if memberships else "You belong to no tenant."
        raise Invalid("tenant", problem, code="required")
    return memberships[0].tenant
