"""API keys: `sr_<8 characters>.<secret>`. The prefix before the dot names a key; of the secret only the SHA-256 is kept.

A key opens what its owner may do in one tenant, as far as its scopes go and never as a superuser. `access.live_keys` says which
ones still do.
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


MARK: Final = "sr_"
SHAPE: Final = re.compile(r"(sr_[A-Za-z0-9]{8})\.([A-Za-z0-9_-]{43})", re.ASCII)
DEFAULT_LIFETIME: Final = timedelta(days=365)
MAX_NAME_LENGTH: Final = 100
MAX_LIVE_KEYS: Final = 50  # of one owner in one tenant
USE_NOTED_EVERY: Final = timedelta(minutes=1)


class TooManyKeys(Conflict):
    default_detail = f"One owner has at most {MAX_LIVE_KEYS} keys in a tenant: revoke one that is not needed."
    default_code = "too_many_keys"


# --- Who sees which ---


def visible_keys(user: User, tenant: Tenant) -> QuerySet[ApiKey]:
    """One's own; to admins and auditors of the tenant, all of them. The tenant came from `access`."""
    keys = tenant.api_keys.select_related("owner", "created_by", "tenant")
    principal = access.principal_of(user)
    sees_all = principal.is_superuser or tenant.pk in principal.holding(Role.ADMIN, Role.AUDITOR)
    return keys if sees_all else keys.filter(owner=user)


def get_key(user: User, tenant: Tenant, prefix: str) -> ApiKey:
    key = visible_keys(user, tenant).filter(prefix=prefix).first()
    if key is None:
        raise NotFound
    return key


def get_owner(user: User, tenant: Tenant, username: str) -> User:
    """Whom the user means a new key for. That somebody is a member is told to admins only (INV-01)."""
    if username == user.username:
        return user
    access.check_can_administer(user, tenant)
    owner = User.objects.filter(username=username, memberships__tenant=tenant).first()
    if owner is None:
        raise Invalid("owner", "The tenant has no service account of this name.", code="unknown_user")
    return owner


def check_can_create(user: User, tenant: Tenant, owner: User) -> None:
    """Members for themselves, admins for service accounts: a key of another person would act in that person's name."""
    roles = access.principal_of(user).roles.get(tenant.pk, frozenset())
    is_own = owner == user and bool(roles)
    is_service_account = owner.service_of_id == tenant.pk and Role.ADMIN in roles
    if not (is_own or is_service_account):
        raise Refused("Keys are made for oneself, and by admins for the tenant's service accounts.")


# --- Verbs ---


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
    """The key, and the text that opens it, which nobody can tell again. It ends after a year, or when `expires_at` says."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise Invalid("name", f"Say what it is for, in one line of at most {MAX_NAME_LENGTH} characters.")
    latest = now + timedelta(days=settings.API_KEY_MAX_DAYS)
    ends = min(now + DEFAULT_LIFETIME, latest) if expires_at is None else expires_at
    if not now < ends <= latest:
        raise Invalid("expires_at", f"A key ends in the future, and within {settings.API_KEY_MAX_DAYS} days.")
    secret = secrets.token_urlsafe(32)
    with transaction.atomic():
        # The other contenders make another key for the same owner, who may have room for one more only, or deactivate the owner.
        owner = User.objects.select_for_update(no_key=True).get(pk=owner.pk)
        if by is not None:
            check_can_create(by, tenant, owner)
        # The other contender removes the membership, and with it the keys that it finds.
        membership = Membership.objects.select_for_update(no_key=True).filter(user=owner, tenant=tenant).first()
        if membership is None or not owner.is_active:
            raise Conflict(f"{owner.username} is no active member of {tenant.slug}.")
        if tenant.api_keys.filter(owner=owner, revoked_at=None, expires_at__gt=now).count() >= MAX_LIVE_KEYS:
            raise TooManyKeys
        key = ApiKey.objects.create(
            tenant=tenant,
            owner=owner,
            name=name,
            prefix=MARK + get_random_string(8),
            secret_hash=_hash(secret),
            scopes=[scope for scope in Scope.values if scope in scopes],
            created_at=now,
            created_by=by,
            expires_at=ends,
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
            expires_at=ends.isoformat(),
        )
    return key, f"{key.prefix}.{secret}"


@retry_on_deadlock
def revoke(key: ApiKey, *, by: User | None, now: datetime) -> None:
    """It opens nothing from here on, and what it started ends within seconds. By its owner or an admin of the tenant."""
    with transaction.atomic():
        key = ApiKey.objects.select_for_update(of=("self",), no_key=True).select_related("tenant", "owner").get(pk=key.pk)
        if by is not None and by != key.owner:
            access.check_can_administer(by, key.tenant)
        if key.revoked_at is not None:
            raise Conflict("The key is revoked already.")
        ApiKey.objects.filter(pk=key.pk).update(revoked_at=now)
        facts = {"prefix": key.prefix, "name": key.name, "owner": key.owner.username}
        audit.record("api_key.revoke", by=by, tenant=key.tenant, target=key, now=now, **facts)


def revoke_all(owner: User, *, now: datetime, tenant: Tenant | None = None) -> None:
    """In the caller's transaction and under its audit event. Whoever comes back later finds no old key that works again."""
    keys = owner.api_keys.filter(revoked_at=None)
    (keys.filter(tenant=tenant) if tenant else keys).update(revoked_at=now)


def authenticate(text: str, *, now: datetime) -> ApiKey | None:
    """The live key that this text opens, with the owner who now acts by it. None is all that is told of what is wrong with it."""
    match = SHAPE.fullmatch(text)
    key = match and access.live_keys().select_related("owner").filter(prefix=match[1]).first()
    if not (match and key and hmac.compare_digest(key.secret_hash, _hash(match[2]))):
        return None
    _note_use(key, now)
    key.owner.key = key
    return key


def _note_use(key: ApiKey, now: datetime) -> None:
    """To the minute, so that a busy key is not a write for each request. A database that takes no writes can still be read."""
    due = now - USE_NOTED_EVERY
    if key.last_used_at is not None and key.last_used_at > due:
        return
    try:
        with transaction.atomic():
            # The other contenders are requests with the same key in the same moment: one of them is enough.
            unnoted = ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=due), pk=key.pk)
            unnoted.update(last_used_at=now)
    except (DatabaseError, InterfaceError):
        return


def _hash(secret: str) -> str:
    """A fast one is right: the secret has 256 random bits, and nobody guesses those."""
    return sha256(secret.encode()).hexdigest()
