"""Grants: they give a user or all members of a tenant a level on a collection or on one file. Changes apply immediately."""

from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import Q

from files import errors
from files.access import check_can_share
from files.locks import lock_collection, lock_file
from files.models import Collection, Grant, Level, StoredFile
from tenants import audit
from tenants.errors import Invalid, NotFound
from tenants.models import Membership, Role, Tenant, User
from tenants.work.deadlocks import retry_on_deadlock


EVERYONE: Final = "everyone"


def grant_first(collection: Collection, *, by: User, now: datetime) -> None:
    """Makes the creator of a collection its manager, and shares it with all members if the tenant's settings say so.

    Runs in the transaction that creates the collection.
    """
    grants = [
        Grant(user=by, membership=Membership.objects.get(user=by, tenant=collection.tenant), level=Level.MANAGER),
    ]
    if collection.tenant.new_collections != Tenant.NewCollections.PRIVATE:
        grants.append(Grant(level=Level[collection.tenant.new_collections.upper()]))
    for grant in grants:
        grant.collection, grant.tenant, grant.created_at, grant.created_by = collection, collection.tenant, now, by
    Grant.objects.bulk_create(grants)


@retry_on_deadlock
def grant_access(
    collection: Collection, *, file: StoredFile | None = None, username: str | None, level: Level, by: User | None, now: datetime
) -> tuple[Grant, bool]:
    """Gives `username`, or all members if None, this level. Changes an existing grant. Returns the grant and whether it is new.

    `by` is None for an operator who runs a management command. Access is not checked then.

    Raises: Invalid, NotFound, NotOpen, Refused.
    """
    with transaction.atomic():
        locked, file = _lock(collection, file, by=by)
        user, membership = _subject(locked.tenant, username) if username is not None else (None, None)
        grant = Grant.objects.filter(collection=locked, file=file, user=user).first()
        before = None if grant is None else Level(grant.level).label
        is_new = grant is None
        if grant is None:
            grant = Grant(tenant=locked.tenant, collection=locked, file=file, user=user, created_at=now, created_by=by)
        elif grant.level == level and grant.membership == membership:
            return grant, False
        grant.level, grant.membership = level, membership
        grant.save()
        audit.record(
            "grant.create" if is_new else "grant.update",
            by=by,
            tenant=locked.tenant,
            target=file or locked,
            now=now,
            grant=str(grant.id),
            subject=username or EVERYONE,
            level=level.label,
            before=before,
            is_external=grant.is_external,
        )
    return grant, is_new


@retry_on_deadlock
def revoke_grant(grant: Grant, *, by: User | None, now: datetime, as_operator: bool = False) -> None:
    """Deletes one grant. Levels from roles and from other grants remain. `as_operator` skips the access check.

    Raises: NotFound, NotOpen, Refused.
    """
    with transaction.atomic():
        locked, file = _lock(grant.collection, grant.file, by=None if as_operator else by)
        stored = Grant.objects.filter(pk=grant.pk).select_related("user").first()
        if stored is None:
            raise NotFound  # another request revoked it first
        stored.delete()
        audit.record(
            "grant.revoke",
            by=by,
            tenant=locked.tenant,
            target=file or locked,
            now=now,
            grant=str(grant.pk),
            subject=stored.user.username if stored.user else EVERYONE,
            level=Level(stored.level).label,
        )


def _lock(collection: Collection, file: StoredFile | None, *, by: User | None) -> tuple[Collection, StoredFile | None]:
    """Locks the collection, so that concurrent grants to one user are serialized, and checks access unless `by` is None."""
    if file is None:
        locked = lock_collection(collection)
    else:
        locked, file = lock_file(file)
    if by is not None:
        check_can_share(by, locked, file)
    if locked.status != Collection.Status.OPEN:
        raise errors.NotOpen
    return locked, file


def _subject(tenant: Tenant, username: str) -> tuple[User, Membership | None]:
    """The user with this name, and their membership, which is None for a user of another tenant.

    Unknown users and users of other tenants cause the same error, unless the tenant allows external sharing (INV-01).
    """
    # The other contender removes the member. The lock makes it delete this grant too, or makes this query find no membership.
    of_member = Q(tenant=tenant, user__username=username, user__is_active=True)
    membership = Membership.objects.select_for_update(of=("self",)).select_related("user").filter(of_member).first()
    if membership is not None:
        if not set(membership.roles) & {Role.ADMIN, Role.MEMBER}:
            problem = "The role of this user in the tenant does not allow access to collections."
            raise Invalid("user", problem, code="role_without_access")
        return membership.user, membership
    if tenant.allow_external_sharing:
        external = User.objects.filter(username=username, is_active=True, service_of=None).first()
        if external is not None:
            return external, None
    raise Invalid("user", "The tenant has no member with this username.", code="unknown_user")
