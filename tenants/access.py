"""The only ways to a tenant, and what somebody is in it. A suspended tenant is not there, and so nobody is anything in it."""

from dataclasses import dataclass
from uuid import UUID

from django.db.models import F, QuerySet
from django.utils import timezone

from tenants.errors import Invalid, NotFound, Refused
from tenants.models import ApiKey, Invitation, Membership, Role, Tenant, User
from tenants.request_context import tenant_id


@dataclass(frozen=True)
class Principal:
    """What a person is at this moment, read from the database and kept nowhere: the next request may find it changed (INV-16)."""

    is_active: bool
    is_superuser: bool
    roles: dict[UUID, frozenset[str]]  # by tenant
    only: UUID | None  # the tenant of the API key that they came with: nothing of another one is theirs

    def holding(self, *roles: str) -> list[UUID]:
        """The tenants in which they have one of these roles."""
        return [tenant for tenant, held in self.roles.items() if held & set(roles)]


def principal_of(user: User) -> Principal:
    """One query. Whoever is deactivated, or came with a key that opens nothing any more, is nobody."""
    found = User.objects.filter(pk=user.pk, is_active=True)
    only = user.key.tenant_id if user.key else None
    if user.key:
        found = found.filter(api_keys__in=live_keys().filter(pk=user.key.pk))
    rows = found.values_list("is_superuser", "memberships__tenant_id", "memberships__tenant__is_active", "memberships__roles")
    roles, is_active, is_superuser = {}, False, False
    for is_superuser, tenant, tenant_is_active, held in rows:  # noqa: B007  the same in every row, and needed after them
        is_active = True
        if tenant_is_active and only in {None, tenant}:
            roles[tenant] = frozenset(held)
    return Principal(is_active=is_active, is_superuser=is_superuser and user.key is None, roles=roles, only=only)


def live_keys() -> QuerySet[ApiKey]:
    """Those that open something: as long as their owner is there, and a member of a tenant that is."""
    return ApiKey.objects.filter(
        revoked_at=None,
        expires_at__gt=timezone.now(),
        tenant__is_active=True,
        owner__is_active=True,
        owner__memberships__tenant=F("tenant"),
    )


def memberships_of(user: User) -> QuerySet[Membership]:
    """With their tenants. Activity is asked of the database: the instance at hand may be as old as a running download."""
    memberships = Membership.objects.filter(user=user, user__is_active=True, tenant__is_active=True).select_related("tenant")
    return memberships.filter(tenant=user.key.tenant_id) if user.key else memberships


def visible_tenants(user: User) -> QuerySet[Tenant]:
    """Those that the person is a member of; all of them to a superuser, who alone sees a suspended one."""
    principal = principal_of(user)
    if principal.is_superuser:
        return Tenant.objects.all()
    return Tenant.objects.filter(pk__in=principal.roles)


def get_tenant(user: User, slug: str, *, suspended: bool = False) -> Tenant:
    """With `suspended`, a superuser also gets a tenant that nobody else sees."""
    tenants = visible_tenants(user).filter(slug=slug)
    tenant = (tenants if suspended else tenants.filter(is_active=True)).first()
    if tenant is None:
        raise NotFound
    tenant_id.set(str(tenant.pk))
    return tenant


def uuid_in(address: str) -> UUID:
    """What an address names. Raises NotFound for what is none, as for one that is not there."""
    try:
        return UUID(address)
    except ValueError:
        raise NotFound from None


def sole_tenant(user: User) -> Tenant:
    """The tenant of somebody who did not name one."""
    memberships = memberships_of(user)[:2]
    if len(memberships) != 1:
        problem = "You belong to several tenants: name one." if memberships else "You belong to no tenant."
        raise Invalid("tenant", problem, code="required")
    return memberships[0].tenant


def get_audited_tenant(user: User, slug: str) -> Tenant:
    """For whoever may know all of its people and figures."""
    tenant = get_tenant(user, slug)
    check_can_audit(user, tenant)
    return tenant


def visible_members(user: User, slug: str) -> QuerySet[Membership]:
    return Membership.objects.filter(tenant=get_audited_tenant(user, slug)).select_related("user", "tenant")


def get_member(user: User, slug: str, username: str) -> Membership:
    membership = visible_members(user, slug).filter(user__username=username).first()
    if membership is None:
        raise NotFound
    return membership


def visible_invitations(user: User, slug: str) -> QuerySet[Invitation]:
    return Invitation.objects.filter(tenant=get_audited_tenant(user, slug)).select_related("tenant", "invited_by")


def get_invitation(user: User, slug: str, pk: str) -> Invitation:
    invitation = visible_invitations(user, slug).filter(pk=uuid_in(pk)).first()
    if invitation is None:
        raise NotFound
    return invitation


def can_administer(principal: Principal, tenant: Tenant) -> bool:
    return principal.is_superuser or Role.ADMIN in principal.roles.get(tenant.pk, ())


def can_audit(principal: Principal, tenant: Tenant) -> bool:
    return can_administer(principal, tenant) or Role.AUDITOR in principal.roles.get(tenant.pk, ())


def check_can_administer(user: User, tenant: Tenant) -> None:
    """Raises NotFound for strangers, Refused for who is no admin of it. To be called on the locked row."""
    principal = principal_of(user)
    if not can_administer(principal, tenant):
        raise Refused if tenant.pk in principal.roles else NotFound


def check_can_audit(user: User, tenant: Tenant) -> None:
    """As `check_can_administer`, for its admins and auditors."""
    principal = principal_of(user)
    if not can_audit(principal, tenant):
        raise Refused if tenant.pk in principal.roles else NotFound


def check_can_operate(user: User) -> None:
    """For what concerns the platform, or a tenant's bounds: superusers."""
    if not principal_of(user).is_superuser:
        raise Refused


def check_can_audit_platform(user: User) -> None:
    if not principal_of(user).is_superuser:
        raise Refused
