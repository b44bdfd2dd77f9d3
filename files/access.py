"""Who may do what to which collection: the only way to one. Not yours and not there are the same 404.

For now a tenant's admins manage all its collections and its members read and write them.
"""

from collections.abc import Iterable
from enum import StrEnum
from uuid import UUID

from django.db.models import Case, CharField, Q, QuerySet, Value, When

from files.models import Collection, StoredFile
from files.names import unique_key
from tenants import access
from tenants.context import tenant_id
from tenants.errors import Invalid, NotFound, Refused
from tenants.models import Role, User


class Level(StrEnum):
    EDITOR = "editor"
    MANAGER = "manager"


def levels(user: User) -> dict[UUID, Level]:
    """Tenant -> what the user may do with its collections, read from the database at every call (INV-16)."""
    return {
        tenant: Level.MANAGER if Role.ADMIN in roles else Level.EDITOR
        for tenant, roles in access.standing_of(user).roles.items()
        if roles & {Role.ADMIN, Role.MEMBER}
    }


def visible_collections(user: User) -> QuerySet[Collection]:
    """Open collections the user may read, each with `my_level`."""
    return _with_level(user, Collection.objects.filter(status=Collection.Status.OPEN, kind=Collection.Kind.FILES))


def get_collection(user: User, slug: str, *, deleted: bool = False) -> Collection:
    """With `deleted`, a manager also sees a collection that waits for its destruction."""
    statuses = [Collection.Status.OPEN, Collection.Status.DELETED] if deleted else [Collection.Status.OPEN]
    collections = _with_level(user, Collection.objects.filter(status__in=statuses, kind=Collection.Kind.FILES))
    collection = collections.select_related("tenant", "key", "created_by").filter(slug=slug).first()
    if collection is None or (collection.status != Collection.Status.OPEN and not can_manage(collection)):
        raise NotFound
    tenant_id.set(str(collection.tenant_id))
    return collection


def find_collection(user: User, name: str, *, tenant: str | None) -> Collection:
    """By id or by display name, which is unique in a tenant only."""
    found = visible_collections(user).select_related("tenant", "key").filter(Q(slug=name) | Q(display_name=name))
    if tenant is not None:
        found = found.filter(tenant__slug=tenant)
    collections = list(found[:2])
    if not collections:
        raise Invalid("collection", "You can read no collection of this id or name.", code="unknown_collection")
    if len(collections) > 1:
        raise Invalid("tenant", "Several collections have this name: name the tenant.", code="required")
    return collections[0]


def visible_files(user: User, collection: Collection) -> QuerySet[StoredFile]:
    """Files of a collection that `get_collection` returned."""
    return collection.files.exclude(status=StoredFile.Status.DELETING)


def get_file(user: User, slug: str, filename: str) -> StoredFile:
    collection = get_collection(user, slug)
    files = visible_files(user, collection).select_related("created_by", "updated_by")
    file = files.filter(name_key=unique_key(filename)).first()
    if file is None:
        raise NotFound
    file.collection = collection
    return file


def get_files(user: User, collection: Collection, filenames: Iterable[str]) -> list[StoredFile]:
    """The named files of a collection that `get_collection` returned, each once."""
    names = {unique_key(name) for name in filenames}
    files = list(visible_files(user, collection).filter(name_key__in=names))
    if len(files) != len(names):
        raise NotFound
    return files


def level_of(collection: Collection) -> Level:
    return Level(getattr(collection, "my_level"))  # noqa: B009  annotated by _with_level, the only way to a collection


def check_can_write(user: User, collection: Collection) -> None:
    """To be called on the locked row: raises NotFound for strangers."""
    if collection.tenant_id not in levels(user):
        raise NotFound


def check_can_manage(user: User, collection: Collection) -> None:
    check_can_write(user, collection)
    if levels(user)[collection.tenant_id] != Level.MANAGER:
        raise Refused


def can_manage(collection: Collection) -> bool:
    return level_of(collection) == Level.MANAGER


def _with_level(user: User, collections: QuerySet[Collection]) -> QuerySet[Collection]:
    mine = levels(user)
    managed = [tenant for tenant, level in mine.items() if level == Level.MANAGER]
    level = Case(When(tenant_id__in=managed, then=Value(Level.MANAGER)), default=Value(Level.EDITOR), output_field=CharField())
    return collections.filter(tenant_id__in=mine).annotate(my_level=level)
