"""API keys: `sr_<8 characters>.<secret>`. The prefix before the dot identifies the key. Only the SHA-256 of the secret is stored.

A key grants the rights of its owner in one tenant, limited by its scopes, and never those of a superuser. `access.live_keys`
defines which keys are valid.
"""

import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import Q, QuerySet
from django.utils.crypto import get_random_string

from tenants import access, audit
from tenants.errors import Conflict, Invalid, NotFound, Refused
from tenants.models import ApiKey, Membership, Role, Scope, Tenant, User
from tenants.work.deadlocks import retry_on_deadlock


KEY_PREFIX: Final = "sr_"
KEY_PATTERN: Final = re.compile(r"(sr_[A-Za-z0-9]{8})\.([A-Za-z0-9_-]{43})", re.ASCII)
DEFAULT_LIFETIME: Final = timedelta(days=365)
MAX_NAME_LENGTH: Final = 100
MAX_LIVE_KEYS: Final = 50  # of one owner in one tenant
LAST_USED_PRECISION: Final = timedelta(minutes=1)


class TooManyKeys(Conflict):
    default_detail = f"The owner already has {MAX_LIVE_KEYS} API keys in this tenant. Revoke one that is no longer needed."
    default_code = "too_many_keys"


# --- Access ---


def visible_keys(user: User, tenant: Tenant) -> QuerySet[ApiKey]:
    """Returns the user's own keys in the tenant; all keys of the tenant for its admins and auditors, and for superusers.

    The caller loaded the tenant through `access`.
    """
    keys = tenant.api_keys.select_related("owner", "created_by", "tenant")
    principal = access.principal_of(user)
    sees_all = principal.is_superuser or tenant.pk in principal.tenants_with_role(Role.ADMIN, Role.AUDITOR)
    return keys if sees_all else keys.filter(owner=user)


def get_key(user: User, tenant: Tenant, prefix: str) -> ApiKey:
    """Returns a key that the user can see.

    Raises: NotFound.
    """
    key = visible_keys(user, tenant).filter(prefix=prefix).first()
    if key is None:
        raise NotFound
    return key


def get_owner(user: User, tenant: Tenant, username: str) -> User:
    """Returns the owner of a new key. Only admins can name another user, since the result shows who is a member (INV-01).

    Raises: Invalid, NotFound, Refused.
    """
    if username == user.username:
        return user
    access.check_can_administer(user, tenant)
    owner = User.objects.filter(username=username, memberships__tenant=tenant).first()
    if owner is None:
        raise Invalid("owner", "The tenant has no service account with this username.", code="unknown_user")
    return owner


def check_can_create(user: User, tenant: Tenant, owner: User) -> None:
    """Allows members to create keys for themselves, and admins to create keys for service accounts of the tenant.

    Nobody may create a key for another person, because it would act in that person's name.

    Raises: Refused.
    """
    roles = access.principal_of(user).roles.get(tenant.pk, frozenset())
    is_own = owner == user and bool(roles)
    is_service_account = owner.service_of_id == tenant.pk and Role.ADMIN in roles
    if not (is_own or is_service_account):
        raise Refused("You can create keys for yourself only, or as an admin for service accounts of the tenant.")


# --- Operations ---


@retry_on_deadlock
def create(
    *,
    tenant: Tenant,
    owner: User,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None,
    by: User | None,
    now: datetime,
) -> tuple[ApiKey, str]:
    """Returns a new key and its text, which is not stored. Without `expires_at`, the key expires after a year.

    `API_KEY_MAX_DAYS` limits the lifetime of a key.

    Raises: Conflict, Invalid, Refused, TooManyKeys.
    """
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise Invalid("name", f"Describe the purpose of the key in one line of at most {MAX_NAME_LENGTH} characters.")
    latest = now + timedelta(days=settings.API_KEY_MAX_DAYS)
    expires_at = min(now + DEFAULT_LIFETIME, latest) if expires_at is None else expires_at
    if not now < expires_at <= latest:
        raise Invalid("expires_at", f"Choose a time in the future, at most {settings.API_KEY_MAX_DAYS} days from now.")
    secret = secrets.token_urlsafe(32)
    with transaction.atomic():
        # The other contenders create a key for the same owner, which counts towards the limit, or deactivate the owner.
        owner = User.objects.select_for_update(no_key=True).get(pk=owner.pk)
        if by is not None:
            check_can_create(by, tenant, owner)
        # The other contender removes the membership, and revokes the keys that it finds.
        membership = Membership.objects.select_for_update(no_key=True).filter(user=owner, tenant=tenant).first()
        if membership is None or not owner.is_active:
            raise Conflict(f"{owner.username} is not an active member of {tenant.slug}.")
        if tenant.api_keys.filter(owner=owner, revoked_at=None, expires_at__gt=now).count() >= MAX_LIVE_KEYS:
            raise TooManyKeys
        key = ApiKey.objects.create(
            tenant=tenant,
            owner=owner,
            name=name,
            prefix=KEY_PREFIX + get_random_string(8),
            secret_hash=_hash(secret),
            scopes=[scope for scope in Scope.values if scope in scopes],
            created_at=now,
            created_by=by,
            expires_at=expires_at,
        )
        audit.record(
            "api_key.create",
            by=by,
            tenant=tenant,
            target=key,
            now=now,
            prefix=key.prefix,
            name=name,
            owner=owner.username,
            scopes=key.scopes,
            expires_at=expires_at.isoformat(),
        )
    return key, f"{key.prefix}.{secret}"


@retry_on_deadlock
def revoke(key: ApiKey, *, by: User | None, now: datetime) -> None:
    """Revokes the key. `by` must be its owner or an admin of the tenant. Transfers that the key started end within seconds.

    Raises: Conflict, NotFound, Refused.
    """
    with transaction.atomic():
        key = ApiKey.objects.select_for_update(of=("self",), no_key=True).select_related("tenant", "owner").get(pk=key.pk)
        if by is not None and by != key.owner:
            access.check_can_administer(by, key.tenant)
        if key.revoked_at is not None:
            raise Conflict("The key is already revoked.")
        ApiKey.objects.filter(pk=key.pk).update(revoked_at=now)
        facts = {"prefix": key.prefix, "name": key.name, "owner": key.owner.username}
        audit.record("api_key.revoke", by=by, tenant=key.tenant, target=key, now=now, **facts)


def revoke_all(owner: User, *, now: datetime, tenant: Tenant | None = None) -> None:
    """Revokes the owner's keys, in the caller's transaction. The caller writes the audit event.

    Revocation is permanent, so that no old key becomes valid again if the owner returns.
    """
    keys = owner.api_keys.filter(revoked_at=None)
    (keys.filter(tenant=tenant) if tenant else keys).update(revoked_at=now)


def authenticate(text: str, *, now: datetime) -> ApiKey | None:
    """Returns the valid key with this text, and sets `owner.key`. Returns None for any text that is not a valid key."""
    match = KEY_PATTERN.fullmatch(text)
    key = match and access.live_keys().select_related("owner").filter(prefix=match[1]).first()
    if not (match and key and hmac.compare_digest(key.secret_hash, _hash(match[2]))):
        return None
    _update_last_used(key, now)
    key.owner.key = key
    return key


def _update_last_used(key: ApiKey, now: datetime) -> None:
    """Updates `last_used_at` at most once per minute, so that a busy key does not cause a write on each request.

    Ignores database errors, so that reads still work while the database accepts no writes.
    """
    threshold = now - LAST_USED_PRECISION
    if key.last_used_at is not None and key.last_used_at > threshold:
        return
    try:
        with transaction.atomic():
            # The other contenders are concurrent requests with the same key. One update is enough.
            outdated = ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=threshold), pk=key.pk)
            outdated.update(last_used_at=now)
    except (DatabaseError, InterfaceError):
        return


def _hash(secret: str) -> str:
    """A fast hash is sufficient, because the secret has 256 random bits."""
    return sha256(secret.encode()).hexdigest()
