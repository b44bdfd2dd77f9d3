"""Operations of admins on their tenant, and of superusers on every tenant. Each operation checks the rights of `by`.

The check runs after locking the tenant's row, so an admin who loses the role in a concurrent transaction is refused (INV-16).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.core import signing
from django.db import transaction
from django.db.models import Q, QuerySet
from rest_framework.exceptions import ValidationError

from tenants import access, audit, limits, request_context, services
from tenants.errors import AlreadyMember, BadToken, Invalid, NotFound, Refused
from tenants.models import Invitation, Mail, Membership, Role, Tenant, User
from tenants.work import outbox
from tenants.work.deadlocks import retry_on_deadlock


PLATFORM_SETTINGS: Final = {"is_active", "quota_bytes", "quota_files", "allowed_ciphers"}  # only superusers change these
INVITATION: Final = "invitation"  # the kind of mail, and the salt of its tokens
INVITATION_LIFETIME: Final = timedelta(days=7)
MAIL_INTERVAL: Final = timedelta(minutes=5)  # an invitation is mailed at most once in this time


# --- Tenants ---


@retry_on_deadlock
def create_tenant(*, settings: Mapping[str, Any], by: User, now: datetime) -> Tenant:
    """Creates a tenant without members. `settings` are values of its fields.

    Raises: Refused, ValidationError.
    """
    access.check_can_operate(by)
    tenant = Tenant(**settings, created_at=now)
    services.create(tenant, by=by, now=now)
    return tenant


@retry_on_deadlock
def update_tenant(tenant: Tenant, *, settings: Mapping[str, Any], by: User, now: datetime) -> None:
    """Changes fields of a tenant. Only superusers may change `PLATFORM_SETTINGS`.

    Raises: NotFound, Refused, ValidationError.
    """
    with transaction.atomic():
        locked = _lock_and_check_can_administer(tenant, by)
        if (refused := sorted(settings.keys() & PLATFORM_SETTINGS)) and not access.principal_of(by).is_superuser:
            raise Refused(f"Only a superuser can change {', '.join(refused)}.")
        for name, value in settings.items():
            setattr(locked, name, value)
        services.update(locked, changed=settings.keys(), by=by, now=now)


# --- Members ---


@retry_on_deadlock
def add_member(*, tenant: Tenant, username: str, roles: Sequence[str], by: User, now: datetime) -> Membership:
    """Adds a user to the tenant. An admin can add users of tenants that they administer, a superuser any user.

    Raises: AlreadyMember, Invalid, NotFound, Refused, ValidationError.
    """
    with transaction.atomic():
        user = _addable_users(by, _lock_and_check_can_administer(tenant, by)).filter(username=username).first()
        if user is None:
            message = "None of your tenants has a user with this name. Invite the person by e-mail."
            raise Invalid("username", message, code="unknown_user")
        if Membership.objects.filter(tenant=tenant, user=user).exists():
            raise AlreadyMember
        return services.add_member(tenant=tenant, user=user, roles=roles, by=by, now=now)


@retry_on_deadlock
def set_roles(membership: Membership, *, roles: Sequence[str], by: User, now: datetime) -> None:
    """Replaces the roles of a member.

    Raises: Conflict, LastAdmin, NotFound, Refused, ValidationError.
    """
    with transaction.atomic():
        _lock_and_check_can_administer(membership.tenant, by)
        services.set_roles(membership=membership, roles=roles, by=by, now=now)


@retry_on_deadlock
def remove_member(membership: Membership, *, by: User, now: datetime) -> None:
    """Deletes the membership with its grants, and revokes the API keys of the member in this tenant.

    Raises: Conflict, LastAdmin, NotFound, Refused.
    """
    with transaction.atomic():
        _lock_and_check_can_administer(membership.tenant, by)
        services.remove_member(membership=membership, by=by, now=now)


# --- Invitations ---


@retry_on_deadlock
def invite(*, tenant: Tenant, email: str, roles: Sequence[str], by: User, now: datetime) -> Invitation:
    """Invites the reader of a mailbox to the tenant. Inviting the same address again renews the invitation and its roles.

    The result is the same whether or not a user outside the tenant has the address (INV-01).

    Raises: AlreadyMember, NotFound, Refused, TooManyRequests, ValidationError.
    """
    email = email.lower()
    with transaction.atomic():
        _lock_and_check_can_administer(tenant, by)
        limits.INVITATIONS.take(str(tenant.pk), now=now)
        # Lock before reading the members: the other contender accepts the invitation, which turns it into a membership.
        invitation = Invitation.objects.select_for_update().filter(tenant=tenant, email=email).first()
        if Membership.objects.filter(tenant=tenant, user__email=email).exists():
            raise AlreadyMember
        invitation = invitation or Invitation(tenant=tenant, email=email, created_at=now)
        invitation.roles, invitation.invited_by, invitation.expires_at = sorted(set(roles)), by, now + INVITATION_LIFETIME
        services.validate(invitation)
        invitation.save()
        outbox.queue(INVITATION, to=email, now=now, once_per=MAIL_INTERVAL, invitation=str(invitation.pk))
        audit.record("member.invite", by=by, tenant=tenant, target=invitation, now=now, email=email, roles=invitation.roles)
    return invitation


@retry_on_deadlock
def withdraw(invitation: Invitation, *, by: User, now: datetime) -> None:
    """Deletes the invitation, which makes its token invalid.

    Raises: NotFound, Refused.
    """
    with transaction.atomic():
        _lock_and_check_can_administer(invitation.tenant, by)
        deleted, _ = Invitation.objects.filter(pk=invitation.pk).delete()
        if not deleted:
            raise NotFound
        audit.record("invitation.withdraw", by=by, tenant=invitation.tenant, target=invitation, now=now, email=invitation.email)


@retry_on_deadlock
def accept(*, token: str, username: str | None, password: str | None, now: datetime) -> Membership:
    """Adds the user with the invited e-mail address to the tenant. Creates the user first if none has the address.

    Raises: BadToken, HashingFull, Invalid, TooManyRequests, ValidationError.
    """
    limits.MAILED_TOKENS.take(request_context.network(), now=now)
    try:
        pk = UUID(signing.loads(token, salt=INVITATION))
    except (signing.BadSignature, ValueError):
        raise BadToken from None
    invitation = _find_valid(Invitation.objects.all(), pk, now)
    if invitation is None:
        raise BadToken
    newcomer = None
    if not User.objects.filter(email=invitation.email).exists():
        newcomer = _prepare_invited_user(invitation.email, username, password)
    with transaction.atomic():
        # The other contenders are a second acceptance and a withdrawal. The transaction that deletes the row wins.
        invitation = _find_valid(Invitation.objects.select_for_update(of=("self",)), pk, now)
        if invitation is None:
            raise BadToken
        invitation.delete()
        user = User.objects.filter(email=invitation.email).first() or newcomer
        if user is None or not user.is_active or user.service_of_id is not None:
            raise BadToken
        if user is newcomer:
            services.create(user, by=None, now=now)
        return services.add_member(tenant=invitation.tenant, user=user, roles=invitation.roles, by=user, now=now)


def token_of(invitation: Invitation) -> str:
    """Returns the signed token that accepts the invitation. Tokens are not stored."""
    return signing.dumps(str(invitation.pk), salt=INVITATION)


@outbox.context_builder(INVITATION)
def _build_mail_context(mail: Mail, now: datetime) -> outbox.Context | None:
    invitation = _find_valid(Invitation.objects.all(), UUID(mail.facts["invitation"]), now)
    if invitation is None or invitation.invited_by is None:
        return None
    return {
        "tenant": invitation.tenant.name,
        "inviter": f"{invitation.invited_by.username} ({invitation.invited_by.email})",
        "roles": ", ".join(invitation.roles).replace("_", " "),
        "until": f"{invitation.expires_at:%-d %B %Y, %H:%M} UTC",
        **outbox.token_context("invitation", token_of(invitation)),
    }


def _find_valid(invitations: QuerySet[Invitation], pk: UUID, now: datetime) -> Invitation | None:
    """Returns the invitation if its inviter may still administer the tenant, so that a removed admin cannot return by it."""
    found = invitations.select_related("tenant", "invited_by").filter(pk=pk, expires_at__gt=now, tenant__is_active=True).first()
    if found is None or found.invited_by is None:
        return None
    return found if access.can_administer(access.principal_of(found.invited_by), found.tenant) else None


def _prepare_invited_user(email: str, username: str | None, password: str | None) -> User:
    if not username or not password:
        missing = [name for name, value in (("username", username), ("password", password)) if not value]
        raise ValidationError({name: ["This field is required for a new account."] for name in missing}, code="required")
    return services.prepare_user(username=username, email=email, password=password)


def _addable_users(by: User, tenant: Tenant) -> QuerySet[User]:
    """Returns the users that `by` may add to the tenant: members of tenants that they administer, or all for a superuser.

    Other usernames are treated as unknown (INV-01). A service account can belong to its own tenant only.
    """
    users = User.objects.filter(Q(service_of=None) | Q(service_of=tenant))
    principal = access.principal_of(by)
    if principal.is_superuser:
        return users
    return users.filter(pk__in=Membership.objects.filter(tenant__in=principal.tenants_with_role(Role.ADMIN)).values("user"))


def _lock_and_check_can_administer(tenant: Tenant, by: User) -> Tenant:
    """Locks the tenant until the transaction ends, and checks that `by` may administer it."""
    locked = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
    access.check_can_administer(by, locked)
    return locked
