"""Operations on users, tenants, memberships and sessions, without access checks: `tenants.people` adds those.

Each operation writes its audit event in the transaction of the change. `by=None` means the system or an operator.
"""

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


INVITATION_RETENTION: Final = timedelta(days=30)  # after expiry, so that admins see which invitations were not accepted
RESERVED_USERNAMES: Final = {"system", "me"}  # "system" is the actor of the system in the audit trail
NO_LONGER_MEMBER: Final = "This user is no longer a member of the tenant."

# --- Tenants and people ---


def create_tenant(*, slug: str, name: str, by: User | None, now: datetime) -> Tenant:
    """Creates a tenant without members.

    Raises: ValidationError.
    """
    tenant = Tenant(slug=slug, name=name, created_at=now)
    create(tenant, by=by, now=now)
    return tenant


def create_user(
    *, username: str, email: str, password: str | None, by: User | None, now: datetime, is_superuser: bool = False
) -> User:
    """Creates a user. Without a password, the user cannot sign in, but can use a token from `createusertoken`.

    Raises: HashingFull, Invalid, ValidationError.
    """
    user = prepare_user(username=username, email=email, password=password)
    user.is_superuser = user.is_staff = is_superuser
    create(user, by=by, now=now)
    return user


def prepare_user(*, username: str, email: str, password: str | None) -> User:
    """Returns a new user who is not stored yet. Hashing waits for its turn, so it comes before the transaction that stores them.

    Raises: HashingFull, Invalid, ValidationError.
    """
    if username.casefold() in RESERVED_USERNAMES:
        raise Invalid("username", "This username is reserved. Choose another one.", code="reserved_name")
    user = User(username=username, email=email)
    if password is None:
        user.set_unusable_password()
    else:
        prepare_password(user=user, password=password, field="password")
    return user


def create(instance: Tenant | User, *, by: User | None, now: datetime) -> None:
    """Validates and inserts a new tenant or user.

    Raises: ValidationError.
    """
    validate(instance)
    with transaction.atomic():
        try:
            with transaction.atomic():
                instance.save(force_insert=True)
        except IntegrityError:
            validate(instance)  # another transaction has inserted the same slug, username or address: this error names the field
            raise
        name = instance.slug if isinstance(instance, Tenant) else instance.username
        audit.record(f"{_kind(instance)}.create", by=by, tenant=_tenant(instance), target=instance, now=now, name=name)


def update(instance: Tenant | User, *, changed: Collection[str], by: User | None, now: datetime) -> None:
    """Saves those of the `changed` fields whose values differ from the stored row.

    Deactivating a user also revokes all of their tokens and API keys permanently.

    Raises: ValidationError.
    """
    validate(instance)
    with transaction.atomic():
        stored = type(instance)._default_manager.select_for_update().get(pk=str(instance.pk))
        values = {name: getattr(instance, name) for name in sorted(changed) if getattr(instance, name) != getattr(stored, name)}
        if not values:
            return
        instance.save(update_fields=values)
        if isinstance(instance, User) and values.get("is_active") is False:
            tokens.revoke_all(instance)
            api_keys.revoke_all(instance, now=now)
        audit.record(f"{_kind(instance)}.update", by=by, tenant=_tenant(instance), target=instance, now=now, **values)


@retry_on_deadlock
def set_password(*, user: User, password: str, by: User | None, now: datetime, field: str = "password") -> None:
    """Sets the password, which revokes all tokens of the user. `field` names the password in the error for a weak one.

    Raises: HashingFull, ValidationError.
    """
    prepare_password(user=user, password=password, field=field)
    save_password(user=user, by=by, now=now)


def prepare_password(*, user: User, password: str, field: str) -> None:
    """Sets the hash on the instance, and stores nothing. Hashing waits for its turn, so it comes before a transaction.

    Raises: HashingFull, ValidationError.
    """
    try:
        validate_password(password, user)
    except ModelValidationError as error:
        raise ValidationError({field: error.messages}) from error
    user.set_password(password)


def save_password(*, user: User, by: User | None, now: datetime) -> None:
    """Stores a prepared password, which revokes all tokens of the user."""
    with transaction.atomic():
        user.save(update_fields=["password"])
        audit.record("user.password", by=by, tenant=None, target=user, now=now)


def add_member(*, tenant: Tenant, user: User, roles: Sequence[str], by: User | None, now: datetime) -> Membership:
    """Adds the user to the tenant with these roles. An existing member gets the roles in addition to their own.

    Raises: ValidationError.
    """
    with transaction.atomic():
        # The other contender adds the same user. No membership exists yet that could be locked, so lock the user.
        User.objects.select_for_update().get(pk=user.pk)
        membership = Membership.objects.select_for_update().filter(tenant=tenant, user=user).first()
        if membership is not None:
            _set_roles(membership, [*membership.roles, *roles], by=by, now=now)
            return membership
        membership = Membership(tenant=tenant, user=user, roles=sorted(set(roles)), created_at=now)
        validate(membership)
        membership.save(force_insert=True)
        audit.record("member.add", by=by, tenant=tenant, target=user, now=now, name=user.username, roles=membership.roles)
    return membership


def ensure_member(*, slug: str, username: str, email: str, roles: Sequence[str], by: User | None, now: datetime) -> Membership:
    """Adds a member by username, and creates the user if needed. An existing user must have the given `email`, if any.

    Raises: Invalid, NotFound, ValidationError.
    """
    with transaction.atomic():
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            raise NotFound(f"No tenant has the slug {slug}.")
        user = User.objects.filter(username=username).first()
        if user is None:
            user = create_user(username=username, email=email, password=None, by=by, now=now)
        elif email and user.email != email.lower():
            raise Invalid("email", f"The user {username} has a different e-mail address.")
        return add_member(tenant=tenant, user=user, roles=roles, by=by, now=now)


def set_roles(*, membership: Membership, roles: Sequence[str], by: User | None, now: datetime) -> None:
    """Replaces the roles of a member.

    Raises: Conflict, LastAdmin, ValidationError.
    """
    with transaction.atomic():
        _check_admin_remains(membership, roles)
        locked = Membership.objects.select_for_update().filter(pk=membership.pk).first()
        if locked is None:
            raise Conflict(NO_LONGER_MEMBER)
        _set_roles(locked, roles, by=by, now=now)


def remove_member(*, membership: Membership, by: User | None, now: datetime) -> None:
    """Deletes the membership with its grants, and revokes the API keys of the member in this tenant.

    Raises: Conflict, LastAdmin.
    """
    with transaction.atomic():
        _check_admin_remains(membership, [])
        # The other contender grants access to the member, and locks the membership first. Grants are deleted with it, so each
        # must be either committed or refused before the deletion.
        locked = Membership.objects.select_for_update().filter(pk=membership.pk).first()
        if locked is None:
            raise Conflict(NO_LONGER_MEMBER)
        locked.delete()
        user, tenant = membership.user, membership.tenant
        api_keys.revoke_all(user, tenant=tenant, now=now)
        audit.record("member.remove", by=by, tenant=tenant, target=user, now=now, name=user.username, roles=membership.roles)


def bootstrap_tenant(
    *, slug: str, name: str, username: str, email: str, password: str | None, now: datetime
) -> tuple[Tenant, User]:
    """Creates the first tenant and its superuser, who becomes its admin. Does not change a tenant or a superuser that exists.

    Raises: Conflict, HashingFull, Invalid, ValidationError.
    """
    with transaction.atomic():
        tenant = Tenant.objects.filter(slug=slug).first() or create_tenant(slug=slug, name=name, by=None, now=now)
        user = User.objects.filter(username=username).first()
        if user is None:
            if password is None:
                raise Invalid("password", "A new superuser needs a password.", code="required")
            user = create_user(username=username, email=email, password=password, by=None, now=now, is_superuser=True)
        elif not user.is_superuser:
            raise Conflict(f"The user {username} exists and is not a superuser.")
        add_member(tenant=tenant, user=user, roles=[Role.ADMIN], by=None, now=now)
    return tenant, user


# --- Sessions ---


def sign_in(*, request: HttpRequest, username: str, password: str, now: datetime) -> tokens.Pair:
    """Opens a session with username and password.

    Raises: AuthenticationFailed, HashingFull, TooManyAttempts.
    """
    user = verify_credentials(request=request, username=username, password=password)
    if user is None:
        raise AuthenticationFailed("No active account has this username and password.", code="invalid_credentials")
    return open_session(user, now)


def verify_credentials(*, request: HttpRequest, username: str, password: str) -> User | None:
    """Returns the active user with this username and password, or None. Counts failures (`tenants.auth.sign_in_limits`).

    Raises: HashingFull, TooManyAttempts.
    """
    user = authenticate(request, username=username, password=password)
    if not isinstance(user, User):
        return None
    user_logged_in.send(sender=User, request=request, user=user)  # Django's receiver updates `last_login`
    return user


@retry_on_deadlock
def open_session(user: User, now: datetime) -> tokens.Pair:
    """Issues a new pair of tokens. The caller has verified the user's credentials."""
    with transaction.atomic():
        pair = tokens.mint(user)
        audit.record("session.open", by=user, tenant=None, target=user, now=now)
    return pair


def create_token(*, user: User, lifetime: timedelta, by: User | None, now: datetime) -> tokens.Pair:
    """Issues a pair of tokens without a password, for an operator's scripts. No token outlives `lifetime`.

    Raises: Refused.
    """
    if not user.is_active:
        raise Refused(f"The user {user.username} is deactivated.")
    if user.service_of_id:
        raise Refused(f"{user.username} is a service account, which cannot have tokens. Create an API key instead.")
    with transaction.atomic():
        pair = tokens.mint(user, lifetime)
        audit.record("token.create", by=by, tenant=None, target=user, now=now, seconds=int(lifetime.total_seconds()))
    return pair


def end_sessions(*, user: User, by: User | None, now: datetime) -> None:
    """Revokes all tokens of the user."""
    with transaction.atomic():
        tokens.revoke_all(user)
        audit.record("session.end_all", by=by, tenant=None, target=user, now=now)


def unlock(*, user: User, by: User | None, now: datetime) -> None:
    """Resets the limits on failed sign-ins, so that the user can sign in again immediately."""
    with transaction.atomic():
        sign_in_limits.unlock(user)
        audit.record("user.unlock", by=by, tenant=None, target=user, now=now)


def delete_expired(*, now: datetime) -> dict[str, int]:
    """Deletes expired rows of all kinds in this app. Returns the number of deleted rows of each kind."""
    sessions, _ = Session.objects.filter(expire_date__lt=now).delete()
    invitations, _ = Invitation.objects.filter(expires_at__lt=now - INVITATION_RETENTION).delete()
    return {
        "tokens": tokens.delete_expired(now=now),
        "sessions": sessions,
        "rate limits": limits.delete_expired(now=now),
        "known networks": sign_in_limits.delete_expired(now=now),
        "invitations": invitations,
        "mails": outbox.delete_settled(now=now),
    }


def validate(instance: Tenant | User | Membership | Invitation) -> None:
    """Runs the model's validation. The error names the fields.

    Raises: ValidationError.
    """
    try:
        instance.full_clean()
    except ModelValidationError as error:
        raise ValidationError(get_error_detail(error)) from error


def _check_admin_remains(membership: Membership, roles: Sequence[str]) -> None:
    """Raises LastAdmin if the tenant would have no active admin with these new roles. Runs in the caller's transaction."""
    # The other contender removes the role from another admin. Without this lock on the tenant, both could succeed.
    Tenant.objects.select_for_update(no_key=True).get(pk=membership.tenant_id)
    admins = Membership.objects.filter(tenant=membership.tenant_id).with_role(Role.ADMIN).of_active_people()
    if Role.ADMIN not in roles and admins.filter(pk=membership.pk).exists() and not admins.exclude(pk=membership.pk).exists():
        raise LastAdmin


def _set_roles(membership: Membership, roles: Sequence[str], *, by: User | None, now: datetime) -> None:
    """Saves the roles and writes the audit event. The caller has locked the membership in its transaction."""
    before, membership.roles = membership.roles, sorted(set(roles))
    if membership.roles == before:
        return
    validate(membership)
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


def _kind(instance: Tenant | User) -> str:
    return "tenant" if isinstance(instance, Tenant) else "user"


def _tenant(instance: Tenant | User) -> Tenant | None:
    return instance if isinstance(instance, Tenant) else None
