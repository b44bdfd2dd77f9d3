"""Operations on collections and on the metadata of files. Each one locks, checks, writes and records in one transaction."""

import secrets
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils.text import slugify

from files import errors, grants, holds
from files.access import check_can_edit, check_can_manage, check_can_rename
from files.filenames import check_filename, unique_key
from files.http.headers import if_match as etag_matches
from files.locks import lock_collection, lock_file
from files.models import Collection, StoredFile
from files.uploads import is_media_type, queue_deletion
from tenants import access as people
from tenants import audit
from tenants.errors import Invalid, NotFound, Refused, Unavailable
from tenants.models import Role, Tenant, User
from tenants.work.deadlocks import retry_on_deadlock
from vault import keys


SUFFIX_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # without characters that look alike: 0 and o, 1, i and l
SLUG_ATTEMPTS = 5


def resolve_tenant(user: User, slug: str | None) -> Tenant:
    """The tenant with this slug, or without a slug the only tenant that the user belongs to.

    Raises: Invalid.
    """
    if slug is None:
        return people.sole_tenant(user)
    try:
        return people.get_tenant(user, slug)
    except NotFound:
        raise Invalid("tenant", "You do not belong to a tenant with this slug.", code="unknown_tenant") from None


@retry_on_deadlock
def create_collection(
    *, tenant: Tenant, display_name: str, by: User, now: datetime, cipher: str, purge_at: datetime | None
) -> Collection:
    """Creates an empty collection with its own key, and makes `by` its manager.

    If `purge_at` is None, the default retention period of the tenant applies. Slugs end in a random suffix, so that they do not
    reveal the collections of other tenants.

    Raises: CollectionNameTaken, Invalid, Refused, Unavailable.
    """
    if tenant.pk not in people.principal_of(by).tenants_with_role(Role.ADMIN, Role.MEMBER):
        raise Refused
    if cipher not in tenant.allowed_ciphers:
        allowed = ", ".join(tenant.allowed_ciphers)
        raise Invalid("cipher", f"Your tenant does not allow this cipher. Choose one of: {allowed}.", code="cipher_not_allowed")
    if purge_at is None and tenant.default_retention_days is not None:
        purge_at = now + timedelta(days=tenant.default_retention_days)
    _check_in_future("purge_at", purge_at, now)
    collection = Collection(
        tenant=tenant,
        display_name=display_name,
        cipher=cipher,
        purge_at=purge_at,
        created_at=now,
        created_by=by,
    )
    with transaction.atomic():
        collection.key = keys.create_data_key(collection, now=now)
        _insert_with_unique_slug(collection)
        grants.grant_first(collection, by=by, now=now)
        audit.record(
            "collection.create",
            by=by,
            tenant=tenant,
            target=collection,
            now=now,
            slug=collection.slug,
            display_name=display_name,
            cipher=cipher,
            purge_at=_isoformat(purge_at),
            shared=tenant.new_collections,
        )
    return collection


def _insert_with_unique_slug(collection: Collection) -> None:
    """Saves the collection under an unused slug. Collections of the same name in all tenants share the slugs."""
    stem = slugify(collection.display_name)[:60].strip("-") or "collection"
    for _ in range(SLUG_ATTEMPTS):
        collection.slug = f"{stem}-{''.join(secrets.choice(SUFFIX_ALPHABET) for _ in range(4))}"
        try:
            with transaction.atomic():
                collection.save(force_insert=True)
                return
        except IntegrityError:
            same = Collection.objects.filter(tenant=collection.tenant, display_name=collection.display_name)
            if same.filter(kind=Collection.Kind.FILES).exists():
                raise errors.CollectionNameTaken from None
    raise Unavailable


@retry_on_deadlock
def update_collection(
    collection: Collection,
    *,
    by: User,
    now: datetime,
    display_name: str | None = None,
    purge_at: datetime | None = None,
    clear_purge_at: bool = False,
) -> None:
    """Changes the values that are not None. `clear_purge_at` removes the purge date.

    Raises: CollectionNameTaken, Invalid, NotFound, NotOpen, Refused.
    """
    with transaction.atomic():
        locked = lock_collection(collection)
        check_can_manage(by, locked)
        _check_open(locked)
        changes: dict[str, str | None] = {}
        if display_name is not None and display_name != locked.display_name:
            changes["display_name"] = locked.display_name = display_name
        if clear_purge_at or (purge_at is not None and purge_at != locked.purge_at):
            _check_in_future("purge_at", purge_at, now)
            locked.purge_at = None if clear_purge_at else purge_at
            changes["purge_at"] = _isoformat(locked.purge_at)
        if not changes:
            return
        try:
            with transaction.atomic():
                locked.save(update_fields=list(changes))
        except IntegrityError:
            raise errors.CollectionNameTaken from None
        audit.record("collection.update", by=by, tenant=locked.tenant, target=locked, now=now, **changes)


@retry_on_deadlock
def delete_collection(collection: Collection, *, by: User, now: datetime) -> None:
    """Makes a collection unreadable. It is purged after the grace period; until then `restore_collection` undoes the deletion.

    Raises: Held, NotFound, NotOpen, Refused.
    """
    with transaction.atomic():
        locked = lock_collection(collection)
        check_can_manage(by, locked)
        _check_open(locked)
        holds.check_not_held(locked)
        locked.status, locked.deleted_at = Collection.Status.DELETED, now
        locked.save(update_fields=["status", "deleted_at"])
        audit.record("collection.delete", by=by, tenant=locked.tenant, target=locked, now=now)


@retry_on_deadlock
def restore_collection(collection: Collection, *, by: User, now: datetime) -> None:
    """Undoes the deletion of a collection.

    Raises: NotDeleted, NotFound, Refused.
    """
    with transaction.atomic():
        locked = lock_collection(collection)
        check_can_manage(by, locked)
        if locked.status != Collection.Status.DELETED:
            raise errors.NotDeleted
        locked.status, locked.deleted_at = Collection.Status.OPEN, None
        locked.save(update_fields=["status", "deleted_at"])
        audit.record("collection.restore", by=by, tenant=locked.tenant, target=locked, now=now)


@retry_on_deadlock
def update_file(
    file: StoredFile,
    *,
    by: User,
    now: datetime,
    filename: str | None = None,
    content_type: str | None = None,
    notes: str | None = None,
    keep_until: datetime | None = None,
    clear_keep_until: bool = False,
) -> StoredFile:
    """Changes the values that are not None, and returns the changed file. `clear_keep_until` removes the purge date.

    Raises: Held, Invalid, NameTaken, NotFound, NotOpen, Refused.
    """
    if filename is not None:
        try:
            check_filename(filename)
        except ValueError as error:
            raise Invalid("filename", str(error), code="bad_filename") from None
    if content_type is not None and not is_media_type(content_type):
        raise Invalid("content_type", "This is not a media type. Use a type such as text/csv, without parameters.")
    _check_in_future("keep_until", keep_until, now)
    with transaction.atomic():
        collection, locked = _lock_file(file, by)
        values = {"filename": filename, "content_type": content_type, "notes": notes, "keep_until": keep_until}
        changes: dict[str, str | datetime | None] = {
            name: value for name, value in values.items() if value is not None and value != getattr(locked, name)
        }
        if clear_keep_until and locked.keep_until is not None:
            changes["keep_until"] = None
        if not changes:
            return locked
        if "filename" in changes:
            check_can_rename(by, locked)
        holds.check_not_held(collection, locked)
        for name, value in changes.items():
            setattr(locked, name, value)
        locked.name_key = unique_key(locked.filename)
        try:
            with transaction.atomic():
                locked.save(update_fields=[*changes, "name_key"])
        except IntegrityError:
            raise errors.NameTaken from None
        facts = {name: _isoformat(value) if isinstance(value, datetime) else value for name, value in changes.items()}
        audit.record("file.update", by=by, tenant=collection.tenant, target=locked, now=now, **facts)
        return locked


@retry_on_deadlock
def delete_file(file: StoredFile, *, by: User, now: datetime, if_match: str | None = None) -> None:
    """Deletes a file. `if_match` is the value of an If-Match header.

    Only the row holds the key salt, so the object cannot be decrypted after this. A tick deletes the object soon afterwards.

    Raises: Held, NotFound, NotOpen, PreconditionFailed, Refused.
    """
    with transaction.atomic():
        collection, locked = _lock_file(file, by)
        if not etag_matches(if_match, locked.etag):
            raise errors.PreconditionFailed
        holds.check_not_held(collection, locked)
        delete_locked_file(collection, locked, now=now)
        audit.record(
            "file.delete",
            by=by,
            tenant=collection.tenant,
            target=file,
            now=now,
            collection=str(collection.uuid),
            filename=locked.filename,
            length=locked.length,
            sha256=locked.sha256,
        )


def delete_locked_file(collection: Collection, locked: StoredFile, *, now: datetime) -> None:
    """Deletes a file row, queues its object for deletion and updates the counts. Both rows are locked and under no hold."""
    queue_deletion(locked, due_after=0, now=now)
    locked.delete()
    Collection.objects.filter(pk=collection.pk).update(
        file_count=F("file_count") - 1, total_length=F("total_length") - locked.length
    )


def _lock_file(file: StoredFile, by: User) -> tuple[Collection, StoredFile]:
    collection, locked = lock_file(file)
    check_can_edit(by, locked)
    _check_open(collection)
    return collection, locked


def _check_open(collection: Collection) -> None:
    if collection.status != Collection.Status.OPEN:
        raise errors.NotOpen


def _check_in_future(field: str, moment: datetime | None, now: datetime) -> None:
    if moment is not None and moment <= now:
        raise Invalid(field, "This time is in the past. Choose a time in the future.")


def _isoformat(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
