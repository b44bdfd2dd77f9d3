"""Verbs on people and tenants. Each writes its audit event in the transaction of its change; `by=None` is the system."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from django.contrib.auth import authenticate
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from rest_framework.exceptions import AuthenticationFailed, ValidationError
from rest_framework.fields import get_error_detail

from tenants import audit, limits
from tenants.auth import api_keys, sign_in_limits, tokens
from tenants.errors import Conflict, Invalid, LastAdmin, NotFound, Refused
from tenants.models import Invitation, Membership, Role, Tenant, User
from tenants.work import outbox
from tenants.work.deadlocks import retry_on_deadlock


INVITATIONS_KEPT: Final = timedelta(days=30)  # after they expired: so long may an admin see that nobody came
RESERVED: Final = {"system", "me"}  # who acts where nobody does, and whoever asks
NO_MEMBER: Final = "They are no member any more."

# --- Tenants and people ---


def create_tenant(*, slug: str, name: str, by: User | None, now: datetime) -> Tenant:
    tenant = Tenant(slug=slug, name=name, created_at=now)
    create(tenant, by=by, now=now)
    return tenant


def create_user(
    *, username: str, email: str, password: str | None, by: User | None, now: datetime, is_superuser: bool = False
) -> User:
    """Without a password they cannot sign in until they are given one; a token from `createusertoken` works."""
    if username.casefold() in RESERVED:
        raise Invalid("username", "This name is the system's own.", code="reserved_name")
    user = User(username=username, email=email, is_superuser=is_superuser, is_staff=is_superuser)
    _set_password(user, password)
    create(user, by=by, now=now)
    return user


def create(thing: Tenant | User, *, by: User | None, now: datetime) -> None:
    """Saves a new tenant or person, whole as it is."""
    check(thing)
    with transaction.atomic():
        try:
            with transaction.atomic():
                thing.save(force_insert=True)
        except IntegrityError:
            check(thing)  # somebody has taken the name or the address since: this says which
            raise
        name = thing.slug if isinstance(thing, Tenant) else thing.username
        audit.record(f"{_kind(thing)}.create", by=by, tenant=_tenant(thing), target=thing, now=now, name=name)


def update(thing: Tenant | User, *, changed: Collection[str], by: User | None, now: datetime) -> None:
    """Saves what is different in these fields of a tenant or person. Who is deactivated loses their tokens and keys for good."""
    check(thing)
    with transaction.atomic():
        stored = type(thing)._default_manager.select_for_update().get(pk=str(thing.pk))
        values = {name: getattr(thing, name) for name in sorted(changed) if getattr(thing, name) != getattr(stored, name)}
        if not values:
            return
        thing.save(update_fields=values)
        if isinstance(thing, User) and values.get("is_active") is False:
            tokens.revoke_all(thing)
            api_keys.revoke_all(thing, now=now)
        audit.record(f"{_kind(thing)}.update", by=by, tenant=_tenant(thing), target=thing, now=now, **values)


@retry_on_deadlock
def set_password(*, user: User, password: str, by: User | None, now: datetime, field: str = "password") -> None:
    """`field` is what the request calls the password, for the refusal of a weak one."""
    _set_password(user, password, field=field)
    with transaction.atomic():
        user.save(update_fields=["password"])
        audit.record("user.password", by=by, tenant=None, target=user, now=now)


def add_member(*, tenant: Tenant, user: User, roles: Sequence[str], by: User | None, now: datetime) -> Membership:
    """Makes the person a member with these roles, besides those that they have already."""
    with transaction.atomic():
        # The other contender adds the same person: without a row of theirs yet, the lock on the person makes them take turns.
        User.objects.select_for_update().get(pk=user.pk)
        membership = Membership.objects.select_for_update().filter(tenant=tenant, user=user).first()
        if membership is not None:
            _set_roles(membership, [*membership.roles, *roles], by=by, now=now)
            return membership
        membership = Membership(tenant=tenant, user=user, roles=sorted(set(roles)), created_at=now)
        check(membership)
        membership.save(force_insert=True)
        audit.record("member.add", by=by, tenant=tenant, target=user, now=now, name=user.username, roles=membership.roles)
    return membership


def ensure_member(*, slug: str, username: str, email: str, roles: Sequence[str], by: User | None, now: datetime) -> Membership:
    """Adds a member by name, and creates the person if there is none of that name."""
    with transaction.atomic():
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            raise NotFound(f"There is no tenant {slug}.")
        user = User.objects.filter(username=username).first()
        if user is None:
            user = create_user(username=username, email=email, password=None, by=by, now=now)
        elif email and user.email != email.lower():
            raise Invalid("email", f"{username} has another e-mail address.")
        return add_member(tenant=tenant, user=user, roles=roles, by=by, now=now)


def set_roles(*, membership: Membership, roles: Sequence[str], by: User | None, now: datetime) -> None:
    with transaction.atomic():
        _check_admin_stays(membership, roles)
        locked = Membership.objects.select_for_update().filter(pk=membership.pk).first()
        if locked is None:
            raise Conflict(NO_MEMBER)
        _set_roles(locked, roles, by=by, now=now)


def remove_member(*, membership: Membership, by: User | None, now: datetime) -> None:
    with transaction.atomic():
        _check_admin_stays(membership, [])
        # The other contender gives access to the member. What was given goes with the membership, so that it has to be either
        # there or refused before this looks for it.
        locked = Membership.objects.select_for_update().filter(pk=membership.pk).first()
        if locked is None:
            raise Conflict(NO_MEMBER)
        locked.delete()
        user, tenant = membership.user, membership.tenant
        api_keys.revoke_all(user, tenant=tenant, now=now)
        audit.record("member.remove", by=by, tenant=tenant, target=user, now=now, name=user.username, roles=membership.roles)


def bootstrap_tenant(
    *, slug: str, name: str, username: str, email: str, password: str | None, now: datetime
) -> tuple[Tenant, User]:
    """The first tenant and its superuser, who is its admin too. Whatever of it exists already stays as it is."""
    with transaction.atomic():
        tenant = Tenant.objects.filter(slug=slug).first() or create_tenant(slug=slug, name=name, by=None, now=now)
        user = User.objects.filter(username=username).first()
        if user is None:
            if password is None:
                raise Invalid("password", "A new superuser needs a password.", code="required")
            user = create_user(username=username, email=email, password=password, by=None, now=now, is_superuser=True)
        elif not user.is_superuser:
            raise Conflict(f"{username} exists and is no superuser.")
        add_member(tenant=tenant, user=user, roles=[Role.ADMIN], by=None, now=now)
    return tenant, user


# --- Sessions ---


def sign_in(*, request: HttpRequest, username: str, password: str, now: datetime) -> tokens.Pair:
    user = verify_credentials(request=request, username=username, password=password)
    if user is None:
        raise AuthenticationFailed("No active account has this name and password.", code="invalid_credentials")
    return open_session(user, now)


def verify_credentials(*, request: HttpRequest, username: str, password: str) -> User | None:
    """The active person with this name and password; None if there is none. Failures count (`tenants.auth.sign_in_limits`).

    Raises: HashingFull, TooManyAttempts.
    """
    user = authenticate(request, username=username, password=password)
    if not isinstance(user, User):
        return None
    user_logged_in.send(sender=User, request=request, user=user)  # notes the last sign-in
    return user


@retry_on_deadlock
def open_session(user: User, now: datetime) -> tokens.Pair:
    with transaction.atomic():
        pair = tokens.mint(user)
        audit.record("session.open", by=user, tenant=None, target=user, now=now)
    return pair


def create_token(*, user: User, lifetime: timedelta, by: User | None, now: datetime) -> tokens.Pair:
    """A session for scripts, without a password."""
    if not user.is_active:
        raise Refused(f"{user.username} is not active.")
    if user.service_of_id:
        raise Refused(f"{user.username} is a service account: it has API keys and no sessions.")
    with transaction.atomic():
        pair = tokens.mint(user, lifetime)
        audit.record("token.create", by=by, tenant=None, target=user, now=now, seconds=int(lifetime.total_seconds()))
    return pair


def end_sessions(*, user: User, by: User | None, now: datetime) -> None:
    """Every token of the person is dead from here on."""
    with transaction.atomic():
        tokens.revoke_all(user)
        audit.record("session.end_all", by=by, tenant=None, target=user, now=now)


def unlock(*, user: User, by: User | None, now: datetime) -> None:
    """Lets the person sign in again at once after too many failed attempts."""
    with transaction.atomic():
        sign_in_limits.unlock(user)
        audit.record("user.unlock", by=by, tenant=None, target=user, now=now)


def delete_expired(*, now: datetime) -> dict[str, int]:
    """Deletes what no longer opens, closes or tells anything. Returns how many rows of each kind."""
    sessions, _ = Session.objects.filter(expire_date__lt=now).delete()
    invitations, _ = Invitation.objects.filter(expires_at__lt=now - INVITATIONS_KEPT).delete()
    return {
        "tokens": tokens.flush_expired(now=now),
        "sessions": sessions,
        "rate limits": limits.delete_expired(now=now),
        "known networks": sign_in_limits.delete_expired(now=now),
        "invitations": invitations,
        "mails": outbox.delete_settled(now=now),
    }


def check(thing: Tenant | User | Membership | Invitation) -> None:
    """Raises a refusal that names the fields."""
    try:
        thing.full_clean()
    except ModelValidationError as error:
        raise ValidationError(get_error_detail(error)) from error


def _set_password(user: User, password: str | None, *, field: str = "password") -> None:
    if password is not None:
        try:
            validate_password(password, user)
        except ModelValidationError as error:
            raise ValidationError({field: error.messages}) from error
    user.set_password(password)


def _check_admin_stays(membership: Membership, roles: Sequence[str]) -> None:
    """In the caller's transaction, before the membership gets these roles, or none."""
    # The other contender takes the role from another of the last admins: they take turns on the tenant.
    Tenant.objects.select_for_update(no_key=True).get(pk=membership.tenant_id)
    admins = Membership.objects.filter(tenant=membership.tenant_id).holding(Role.ADMIN).of_people()
    if Role.ADMIN not in roles and admins.filter(pk=membership.pk).exists() and not admins.exclude(pk=membership.pk).exists():
        raise LastAdmin


def _set_roles(membership: Membership, roles: Sequence[str], *, by: User | None, now: datetime) -> None:
    """In the caller's transaction, on the locked row."""
    before, membership.roles = membership.roles, sorted(set(roles))
    if membership.roles == before:
        return
    check(membership)
    membership.save(update_fields=["roles"])
    audit.record(
        "member.update",
        by=by,
        tenant=membership.tenant,
        target=membership.user,
        now=now,
        name=membership.user.username,
        roles=membership.roles,
        before=before,
    )


def _kind(thing: Tenant | User) -> str:
    return "tenant" if isinstance(thing, Tenant) else "user"


def _tenant(thing: Tenant | User) -> Tenant | None:
    return thing if isinstance(thing, Tenant) else None
