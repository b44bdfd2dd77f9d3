"""Access rules of tenants and their members. Views load tenants, members and invitations through this module.

A suspended tenant is visible to superusers only, and its memberships grant no roles.
"""

from dataclasses import dataclass
from uuid import UUID

from django.db.models import F, QuerySet
from django.utils import timezone

from tenants.errors import Invalid, NotFound, Refused
from tenants.models import ApiKey, Invitation, Membership, Role, Tenant, User
from tenants.request_context import tenant_id


@dataclass(frozen=True)
class Principal:
    """The rights of a user, as read from the database. Never cache one: rights can change before the next request (INV-16)."""

    is_active: bool
    is_superuser: bool
    roles: dict[UUID, frozenset[str]]  # by id of the tenant
    key_tenant_id: UUID | None  # of the API key that the request presented, which grants rights in this tenant only

    def tenants_with_role(self, *roles: str) -> list[UUID]:
        """Returns the ids of the tenants in which the user has one of these roles."""
        return [tenant for tenant, held in self.roles.items() if held & set(roles)]


def principal_of(user: User) -> Principal:
    """Reads the rights of the user in one query. A deactivated user has none, nor has a user whose API key is no longer valid."""
    active_users = User.objects.filter(pk=user.pk, is_active=True)
    key_tenant_id = user.key.tenant_id if user.key else None
    if user.key:
        active_users = active_users.filter(api_keys__in=live_keys().filter(pk=user.key.pk))
    rows = active_users.values_list(
        "is_superuser", "memberships__tenant_id", "memberships__tenant__is_active", "memberships__roles"
    )
    roles, is_active, is_superuser = {}, False, False
    for is_superuser, tenant, tenant_is_active, tenant_roles in rows:  # noqa: B007  the same in every row, used after the loop
        is_active = True
        if tenant_is_active and key_tenant_id in {None, tenant}:
            roles[tenant] = frozenset(tenant_roles)
    return Principal(
        is_active=is_active, is_superuser=is_superuser and user.key is None, roles=roles, key_tenant_id=key_tenant_id
    )


def live_keys() -> QuerySet[ApiKey]:
    """Returns the valid keys: not revoked, not expired, and with an active owner who is a member of the key's active tenant."""
    return ApiKey.objects.filter(
        revoked_at=None,
        expires_at__gt=timezone.now(),
        tenant__is_active=True,
        owner__is_active=True,
        owner__memberships__tenant=F("tenant"),
    )


def memberships_of(user: User) -> QuerySet[Membership]:
    """Returns the user's memberships in active tenants, with the tenants.

    The query checks `is_active`, since the instance can be as old as a running download.
    """
    memberships = Membership.objects.filter(user=user, user__is_active=True, tenant__is_active=True).select_related("tenant")
    return memberships.filter(tenant=user.key.tenant_id) if user.key else memberships


def visible_tenants(user: User) -> QuerySet[Tenant]:
    """Returns the active tenants that the user belongs to. A superuser gets all tenants, including suspended ones."""
    principal = principal_of(user)
    if principal.is_superuser:
        return Tenant.objects.all()
    return Tenant.objects.filter(pk__in=principal.roles)


def get_tenant(user: User, slug: str, *, suspended: bool = False) -> Tenant:
    """Returns a tenant that the user can see. With `suspended=True`, a superuser also gets a suspended tenant.

    Raises: NotFound.
    """
    tenants = visible_tenants(user).filter(slug=slug)
    tenant = (tenants if suspended else tenants.filter(is_active=True)).first()
    if tenant is None:
        raise NotFound
    tenant_id.set(str(tenant.pk))
    return tenant


def parse_uuid(text: str) -> UUID:
    """Parses an id from a URL. A malformed id gets the same answer as an unknown one.

    Raises: NotFound.
    """
    try:
        return UUID(text)
    except ValueError:
        raise NotFound from None


def sole_tenant(user: User) -> Tenant:
    """Returns the tenant of a request that names none. The user must be a member of exactly one.

    Raises: Invalid.
    """
    memberships = memberships_of(user)[:2]
    if len(memberships) != 1:
        problem = "You belong to several tenants. Name one of them." if memberships else "You do not belong to any tenant."
        raise Invalid("tenant", problem, code="required")
    return memberships[0].tenant


def get_audited_tenant(user: User, slug: str) -> Tenant:
    """Returns a tenant whose members and statistics the user may read: as an admin or auditor of it, or as a superuser.

    Raises: NotFound, Refused.
    """
    tenant = get_tenant(user, slug)
    check_can_audit(user, tenant)
    return tenant


def visible_members(user: User, slug: str) -> QuerySet[Membership]:
    """Returns the memberships of a tenant, with user and tenant, for its admins and auditors and for superusers.

    Raises: NotFound, Refused.
    """
    return Membership.objects.filter(tenant=get_audited_tenant(user, slug)).select_related("user", "tenant")


def get_member(user: User, slug: str, username: str) -> Membership:
    """Returns one of the memberships that `visible_members` returns.

    Raises: NotFound, Refused.
    """
    membership = visible_members(user, slug).filter(user__username=username).first()
    if membership is None:
        raise NotFound
    return membership


def visible_invitations(user: User, slug: str) -> QuerySet[Invitation]:
    """Returns the invitations of a tenant, including expired ones, for its admins and auditors and for superusers.

    Raises: NotFound, Refused.
    """
    return Invitation.objects.filter(tenant=get_audited_tenant(user, slug)).select_related("tenant", "invited_by")


def get_invitation(user: User, slug: str, pk: str) -> Invitation:
    """Returns one of the invitations that `visible_invitations` returns.

    Raises: NotFound, Refused.
    """
    invitation = visible_invitations(user, slug).filter(pk=parse_uuid(pk)).first()
    if invitation is None:
        raise NotFound
    return invitation


def can_administer(principal: Principal, tenant: Tenant) -> bool:
    return principal.is_superuser or Role.ADMIN in principal.roles.get(tenant.pk, ())


def can_audit(principal: Principal, tenant: Tenant) -> bool:
    return can_administer(principal, tenant) or Role.AUDITOR in principal.roles.get(tenant.pk, ())


def check_can_administer(user: User, tenant: Tenant) -> None:
    """Allows admins of the tenant and superusers. Call it after locking the tenant's row.

    Members of the tenant get Refused, other users NotFound.

    Raises: NotFound, Refused.
    """
    principal = principal_of(user)
    if can_administer(principal, tenant):
        return
    if tenant.pk in principal.roles:
        raise Refused
    raise NotFound


def check_can_audit(user: User, tenant: Tenant) -> None:
    """Allows admins and auditors of the tenant and superusers.

    Other members of the tenant get Refused, other users NotFound.

    Raises: NotFound, Refused.
    """
    principal = principal_of(user)
    if can_audit(principal, tenant):
        return
    if tenant.pk in principal.roles:
        raise Refused
    raise NotFound


def check_can_operate(user: User) -> None:
    """Allows superusers only, to manage the platform and the limits of tenants.

    Raises: Refused.
    """
    if not principal_of(user).is_superuser:
        raise Refused


def check_can_audit_platform(user: User) -> None:
    """Allows superusers only, to read the audit trail of the platform.

    Raises: Refused.
    """
    if not principal_of(user).is_superuser:
        raise Refused
