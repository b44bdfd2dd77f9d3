"""What admins do about their tenant and its people, and superusers about all of them: each verb asks who does it.

They take turns on the tenant's row, so that whoever loses the right in the meantime does not do it any more (INV-16).
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


# What a tenant does not decide for itself.
OF_THE_PLATFORM: Final = {"is_active", "quota_bytes", "quota_files", "allowed_ciphers"}
INVITATION: Final = "invitation"  # the kind of mail, and the salt of its tokens
INVITATION_LIFETIME: Final = timedelta(days=7)
PAUSE: Final = timedelta(minutes=5)  # between two mails of one invitation


# --- Tenants ---


@retry_on_deadlock
def create_tenant(*, settings: Mapping[str, Any], by: User, now: datetime) -> Tenant:
    access.check_can_operate(by)
    tenant = Tenant(**settings, created_at=now)
    services.create(tenant, by=by, now=now)
    return tenant


@retry_on_deadlock
def update_tenant(tenant: Tenant, *, settings: Mapping[str, Any], by: User, now: datetime) -> None:
    with transaction.atomic():
        locked = _administer(tenant, by)
        if (beyond := sorted(settings.keys() & OF_THE_PLATFORM)) and not access.principal_of(by).is_superuser:
            raise Refused(f"Only a superuser sets {', '.join(beyond)}.")
        for name, value in settings.items():
            setattr(locked, name, value)
        services.update(locked, changed=settings.keys(), by=by, now=now)


# --- Members ---


@retry_on_deadlock
def add_member(*, tenant: Tenant, username: str, roles: Sequence[str], by: User, now: datetime) -> Membership:
    with transaction.atomic():
        user = _known_to(by, _administer(tenant, by)).filter(username=username).first()
        if user is None:
            raise Invalid("username", "You know nobody of this name: invite them by e-mail.", code="unknown_user")
        if Membership.objects.filter(tenant=tenant, user=user).exists():
            raise AlreadyMember
        return services.add_member(tenant=tenant, user=user, roles=roles, by=by, now=now)


@retry_on_deadlock
def set_roles(membership: Membership, *, roles: Sequence[str], by: User, now: datetime) -> None:
    with transaction.atomic():
        _administer(membership.tenant, by)
        services.set_roles(membership=membership, roles=roles, by=by, now=now)


@retry_on_deadlock
def remove_member(membership: Membership, *, by: User, now: datetime) -> None:
    with transaction.atomic():
        _administer(membership.tenant, by)
        services.remove_member(membership=membership, by=by, now=now)


# --- Invitations ---


@retry_on_deadlock
def invite(*, tenant: Tenant, email: str, roles: Sequence[str], by: User, now: datetime) -> Invitation:
    """Offers membership to whoever reads the mailbox. Tells nobody whether it is a person's already. Again: renews the offer."""
    email = email.lower()
    with transaction.atomic():
        _administer(tenant, by)
        limits.INVITATIONS.take(str(tenant.pk), now=now)
        # Locked before the members are looked at: the other contender is an acceptance, which turns the one into the other.
        invitation = Invitation.objects.select_for_update().filter(tenant=tenant, email=email).first()
        if Membership.objects.filter(tenant=tenant, user__email=email).exists():
            raise AlreadyMember
        invitation = invitation or Invitation(tenant=tenant, email=email, created_at=now)
        invitation.roles, invitation.invited_by, invitation.expires_at = sorted(set(roles)), by, now + INVITATION_LIFETIME
        services.check(invitation)
        invitation.save()
        outbox.queue(INVITATION, to=email, now=now, once_in=PAUSE, invitation=str(invitation.pk))
        audit.record("member.invite", by=by, tenant=tenant, target=invitation, now=now, email=email, roles=invitation.roles)
    return invitation


@retry_on_deadlock
def withdraw(invitation: Invitation, *, by: User, now: datetime) -> None:
    with transaction.atomic():
        _administer(invitation.tenant, by)
        deleted, _ = Invitation.objects.filter(pk=invitation.pk).delete()
        if not deleted:
            raise NotFound
        audit.record("invitation.withdraw", by=by, tenant=invitation.tenant, target=invitation, now=now, email=invitation.email)


@retry_on_deadlock
def accept(*, token: str, username: str | None, password: str | None, now: datetime) -> Membership:
    """Makes a member of whoever has the invited e-mail address, and first a person if nobody has."""
    limits.MAILED_TOKENS.take(request_context.network(), now=now)
    try:
        pk = UUID(signing.loads(token, salt=INVITATION))
    except (signing.BadSignature, ValueError):
        raise BadToken from None
    with transaction.atomic():
        # The other contenders are a second acceptance and a withdrawal: who deletes the row decides.
        invitation = _live(Invitation.objects.select_for_update(of=("self",)), pk, now)
        if invitation is None:
            raise BadToken
        invitation.delete()
        user = User.objects.filter(email=invitation.email).first()
        if user is None:
            user = _newcomer(invitation.email, username, password, now)
        elif not user.is_active or user.service_of_id is not None:
            raise BadToken
        return services.add_member(tenant=invitation.tenant, user=user, roles=invitation.roles, by=user, now=now)


def token_of(invitation: Invitation) -> str:
    return signing.dumps(str(invitation.pk), salt=INVITATION)


@outbox.letter(INVITATION)
def _letter(mail: Mail, now: datetime) -> outbox.Letter | None:
    invitation = _live(Invitation.objects.all(), UUID(mail.facts["invitation"]), now)
    if invitation is None or invitation.invited_by is None:
        return None
    return {
        "tenant": invitation.tenant.name,
        "inviter": f"{invitation.invited_by.username} ({invitation.invited_by.email})",
        "roles": ", ".join(invitation.roles).replace("_", " "),
        "until": f"{invitation.expires_at:%-d %B %Y, %H:%M} UTC",
        **outbox.opening("invitation", token_of(invitation)),
    }


def _live(invitations: QuerySet[Invitation], pk: UUID, now: datetime) -> Invitation | None:
    """An invitation stands while who made it could make it again: a removed admin leaves no way back in behind them."""
    found = invitations.select_related("tenant", "invited_by").filter(pk=pk, expires_at__gt=now, tenant__is_active=True).first()
    if found is None or found.invited_by is None:
        return None
    return found if access.can_administer(access.principal_of(found.invited_by), found.tenant) else None


def _newcomer(email: str, username: str | None, password: str | None, now: datetime) -> User:
    if not username or not password:
        missing = [name for name, value in (("username", username), ("password", password)) if not value]
        raise ValidationError({name: ["A new account needs it."] for name in missing}, code="required")
    return services.create_user(username=username, email=email, password=password, by=None, now=now)


def _known_to(by: User, tenant: Tenant) -> QuerySet[User]:
    """Whom they may name: people of the tenants that they administer, or everybody if they are a superuser (INV-01).

    A service account is of its own tenant alone.
    """
    people = User.objects.filter(Q(service_of=None) | Q(service_of=tenant))
    principal = access.principal_of(by)
    if principal.is_superuser:
        return people
    return people.filter(pk__in=Membership.objects.filter(tenant__in=principal.holding(Role.ADMIN)).values("user"))


def _administer(tenant: Tenant, by: User) -> Tenant:
    """The tenant, locked until the transaction ends, if they may administer it at this moment."""
    locked = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk)
    access.check_can_administer(by, locked)
    return locked
