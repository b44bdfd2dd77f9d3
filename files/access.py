"""Access rules of collections and files. All other code loads them through this module.

An unknown object and an object that is not visible to the user cause the same NotFound. Admins of a tenant manage all of its
collections, and auditors see all metadata but no content. Members have the levels that grants give them. Users of other tenants
have the levels of their grants while the tenant allows external sharing. The highest level applies; a grant never lowers it.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from django.db.models import Case, Exists, F, IntegerField, Max, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Greatest

from files.filenames import unique_key
from files.models import Collection, Grant, Hold, Level, StoredFile
from tenants import access as people
from tenants.access import Principal
from tenants.errors import Invalid, NotFound, Refused
from tenants.models import Role, Tenant, User
from tenants.request_context import tenant_id


NO_ACCESS = 0  # lower than every level; the object is not visible
Row = TypeVar("Row", Collection, StoredFile)
IS_HELD: Final = Exists(Hold.objects.filter(collection=OuterRef("pk")))
# The level that a grant gives on the collection. A grant on a single file only reveals the name of the collection.
LEVEL_ON_COLLECTION: Final = Case(When(file=None, then=F("level")), default=Value(Level.NAME), output_field=IntegerField())

# --- Collections ---


def visible_collections(user: User) -> QuerySet[Collection]:
    """Open collections on which the user has at least Level.NAME. Each row has `my_level`."""
    open_collections = Collection.objects.filter(status=Collection.Status.OPEN, kind=Collection.Kind.FILES)
    return _visible_with_level(open_collections, user, people.principal_of(user))


def get_collection(user: User, slug: str, *, deleted: bool = False) -> Collection:
    """One visible collection. With `deleted`, managers also get a deleted collection until its purge starts.

    Raises: NotFound.
    """
    return _get_collection(user, people.principal_of(user), slug, deleted=deleted)


def find_collection(user: User, name: str, *, tenant: str | None) -> Collection:
    """One visible, open collection by its id (slug) or its display name. Display names are unique only within a tenant.

    Raises: Invalid.
    """
    found = visible_collections(user).select_related("tenant", "key").filter(Q(slug=name) | Q(display_name=name))
    if tenant is not None:
        found = found.filter(tenant__slug=tenant)
    collections = list(found[:2])
    if not collections:
        raise Invalid("collection", "There is no collection with this id or name that you can see.", code="unknown_collection")
    if len(collections) > 1:
        raise Invalid("tenant", "More than one collection has this name. Add the tenant, or use the id.", code="required")
    return collections[0]


# --- Files ---


def visible_files(user: User, slug: str) -> QuerySet[StoredFile]:
    """Files of a collection on which the user has at least Level.METADATA. Each row has `my_level`.

    Raises: NotFound.
    """
    principal = people.principal_of(user)
    return _visible_files(user, principal, _get_collection(user, principal, slug), least=Level.METADATA)


def readable_files(user: User, collection: Collection) -> QuerySet[StoredFile]:
    """Files whose content the user can read. `collection` came from this module."""
    return _visible_files(user, people.principal_of(user), collection, least=Level.VIEWER)


def get_file(user: User, slug: str, filename: str) -> StoredFile:
    """One visible file of a visible, open collection.

    Raises: NotFound.
    """
    principal = people.principal_of(user)
    collection = _get_collection(user, principal, slug)
    files = _visible_files(user, principal, collection, least=Level.METADATA).select_related("created_by", "updated_by")
    file = files.filter(name_key=unique_key(filename)).first()
    if file is None:
        raise NotFound
    file.collection = collection
    return file


def check_can_read(file: StoredFile) -> None:
    """Checks that the user for whom this module loaded the file can read its content.

    Raises: Refused.
    """
    if level_of(file) < Level.VIEWER:
        raise Refused


def get_readable_files(user: User, collection: Collection, filenames: Iterable[str] = ()) -> QuerySet[StoredFile]:
    """The named files, or all files that the user can read. `collection` came from this module.

    Refuses the request if one of the named files is visible but not readable, or if the user cannot read any file.

    Raises: NotFound, Refused.
    """
    principal = people.principal_of(user)
    readable = _visible_files(user, principal, collection, least=Level.VIEWER)
    if names := {unique_key(name) for name in filenames}:
        known = _visible_files(user, principal, collection, least=Level.METADATA).filter(name_key__in=names)
        readable = readable.filter(name_key__in=names)
        if known.count() != len(names):
            raise NotFound
        if readable.count() != len(names):
            raise Refused
    elif level_of(collection) < Level.VIEWER and not readable.exists():
        raise Refused
    return readable


def can_read(user: User, collection_id: int, file_id: int | None = None) -> bool:
    """Whether the user can now read the file or, without `file_id`, all files of the collection. Rechecks a running stream."""
    principal = people.principal_of(user)
    collections = Collection.objects.filter(status=Collection.Status.OPEN, kind=Collection.Kind.FILES)
    if file_id is not None:
        collections = collections.filter(files=file_id)
    collection = _find_visible(collections, user, principal, pk=collection_id)
    if collection is None:
        return False
    if file_id is None or level_of(collection) >= Level.VIEWER:
        return level_of(collection) >= Level.VIEWER
    return _visible_files(user, principal, collection, least=Level.VIEWER).filter(pk=file_id).exists()


# --- Levels ---


def level_of(row: Collection | StoredFile) -> Level:
    """The level at the time when this module loaded the collection or file."""
    return Level(row.my_level)


def current_level(user: User, collection: Collection, file: StoredFile | None = None) -> int:
    """The user's current level, or NO_ACCESS. Ignores the status of the collection. Call it with the locked row."""
    principal = people.principal_of(user)
    found = _find_visible(Collection.objects.all(), user, principal, pk=collection.pk)
    if found is None:
        return NO_ACCESS
    if file is None:
        return level_of(found)
    visible = _visible_files(user, principal, found, least=Level.METADATA).filter(pk=file.pk).first()
    return level_of(found) if visible is None else level_of(visible)


def check_can_upload(user: User, collection: Collection, existing: StoredFile | None) -> int:
    """Checks that the user is an editor of the collection or, to replace `existing`, of that file. Returns the level.

    The error is the same whether or not a file that the user cannot see has this name, so that it does not reveal that file.

    Raises: NotFound, Refused.
    """
    level = current_level(user, collection, existing)
    if level == NO_ACCESS:
        raise NotFound
    if level < Level.EDITOR:
        raise Refused
    return level


def check_can_edit(user: User, file: StoredFile) -> None:
    """Checks that the user is an editor of the file, and updates its `my_level`.

    Raises: NotFound, Refused.
    """
    file.my_level = current_level(user, file.collection, file)
    _check_level(file.my_level, Level.EDITOR, known_from=Level.METADATA)


def check_can_rename(user: User, file: StoredFile) -> None:
    """Checks that the user is an editor of the collection. Otherwise a grant on one file would reveal the names of others.

    Raises: Refused.
    """
    if current_level(user, file.collection) < Level.EDITOR:
        raise Refused("Only an editor of the collection can rename a file.")


def check_can_manage(user: User, collection: Collection) -> None:
    """Checks that the user is a manager of the collection.

    Raises: NotFound, Refused.
    """
    _check_level(current_level(user, collection), Level.MANAGER, known_from=Level.NAME)


def check_can_share(user: User, collection: Collection, file: StoredFile | None) -> None:
    """Checks that the user is a manager of the file or, if `file` is None, of the collection.

    Raises: NotFound, Refused.
    """
    if file is None:
        check_can_manage(user, collection)
    else:
        _check_level(current_level(user, collection, file), Level.MANAGER, known_from=Level.METADATA)


def _check_level(level: int, least: Level, *, known_from: Level) -> None:
    if level < known_from:
        raise NotFound
    if level < least:
        raise Refused


# --- Grants ---


def visible_grants(user: User, collection: Collection, file: StoredFile | None = None) -> QuerySet[Grant]:
    """The grants on one file or, without `file`, on a collection and all its files. For managers and auditors.

    Raises: Refused.
    """
    _check_can_oversee(user, collection, file)
    return collection.grants.filter(file=file) if file else collection.grants.all()


def get_grant(user: User, grant_id: str, collection: Collection, file: StoredFile | None = None) -> Grant:
    """One of the grants that `visible_grants` returns.

    Raises: NotFound, Refused.
    """
    grants = visible_grants(user, collection, file).select_related("collection", "file", "user")
    grant = grants.filter(pk=people.parse_uuid(grant_id)).first()
    if grant is None:
        raise NotFound
    return grant


def tenant_grants(user: User, tenant: Tenant) -> QuerySet[Grant]:
    """All grants in a tenant. For its admins and auditors.

    Raises: NotFound, Refused.
    """
    people.check_can_audit(user, tenant)
    return Grant.objects.filter(tenant=tenant)


def grants_to(collection: Collection, file: StoredFile | None, *, username: str | None) -> QuerySet[Grant]:
    """The grants of a user, or to all members if `username` is None, on exactly this collection or file. Checks no access."""
    grants = Grant.objects.filter(collection=collection, file=file)
    return grants.filter(user=None) if username is None else grants.filter(user__username=username)


# --- Holds ---


def visible_holds(user: User, collection: Collection) -> QuerySet[Hold]:
    """The holds on a collection and on its files. For managers of the collection and auditors.

    Raises: Refused.
    """
    _check_can_oversee(user, collection)
    return collection.holds.all()


def get_hold(user: User, hold_id: str, collection: Collection) -> Hold:
    """One of the holds that `visible_holds` returns.

    Raises: NotFound, Refused.
    """
    holds = visible_holds(user, collection).select_related("collection", "file", "placed_by")
    hold = holds.filter(pk=people.parse_uuid(hold_id)).first()
    if hold is None:
        raise NotFound
    return hold


def check_can_place_hold(user: User, collection: Collection) -> None:
    """Checks that the user is an admin of the tenant. Neither grants nor superuser rights are sufficient.

    Raises: Refused.
    """
    if collection.tenant_id not in people.principal_of(user).tenants_with_role(Role.ADMIN):
        raise Refused("Only an admin of the tenant can place and lift legal holds.")


def _check_can_oversee(user: User, collection: Collection, file: StoredFile | None = None) -> None:
    is_manager = level_of(file or collection) >= Level.MANAGER
    if not is_manager and collection.tenant_id not in people.principal_of(user).tenants_with_role(Role.AUDITOR):
        raise Refused


# --- Operators ---


def get_target_as_operator(slug: str, filename: str | None) -> tuple[Collection, StoredFile | None]:
    """A collection and, if named, one of its files. Checks no access: for management commands, whose user has the database.

    Raises: NotFound.
    """
    collection = Collection.objects.filter(slug=slug, kind=Collection.Kind.FILES).select_related("tenant").first()
    if collection is None:
        raise NotFound(f"There is no collection with the id {slug}.")
    if filename is None:
        return collection, None
    file = collection.files.exclude(status=StoredFile.Status.DELETING).filter(name_key=unique_key(filename)).first()
    if file is None:
        raise NotFound(f"The collection {slug} has no file of this name.")
    return collection, file


# --- Computation of levels ---


def _get_collection(user: User, principal: Principal, slug: str, *, deleted: bool = False) -> Collection:
    statuses = [Collection.Status.OPEN, Collection.Status.DELETED] if deleted else [Collection.Status.OPEN]
    collections = Collection.objects.filter(status__in=statuses, kind=Collection.Kind.FILES)
    collection = _find_visible(collections.select_related("tenant", "key", "created_by"), user, principal, slug=slug)
    if collection is None or (collection.status != Collection.Status.OPEN and level_of(collection) < Level.MANAGER):
        raise NotFound
    tenant_id.set(str(collection.tenant_id))
    return collection


def _find_visible(collections: QuerySet[Collection], user: User, principal: Principal, **name: str | int) -> Collection | None:
    """The collection with this pk or slug if it is visible to the user. Takes two thirds of the time of `_visible_with_level`.

    Runs both queries whatever the first one finds, so that the response time does not reveal whether the collection exists
    (INV-01).
    """
    if not principal.is_active:
        return None
    collection = _annotate(collections, is_held=IS_HELD).filter(**name).first()
    grants = _effective_grants(user, principal).filter(**{f"collection__{field}": value for field, value in name.items()})
    by_grant: int = grants.aggregate(best=Max(LEVEL_ON_COLLECTION))["best"] or NO_ACCESS
    if collection is None:
        return None
    role_levels = (Level.MANAGER, Role.ADMIN), (Level.METADATA, Role.AUDITOR)
    by_role = [level for level, role in role_levels if collection.tenant_id in principal.tenants_with_role(role)]
    collection.my_level = max(by_grant, *by_role, NO_ACCESS)
    return collection if collection.my_level > NO_ACCESS else None


def _visible_with_level(collections: QuerySet[Collection], user: User, principal: Principal) -> QuerySet[Collection]:
    """Those of `collections` that are visible to the user. Each row has `my_level`."""
    if not principal.is_active:
        return collections.none()
    grants = _effective_grants(user, principal).filter(collection=OuterRef("pk"))
    managed, audited = principal.tenants_with_role(Role.ADMIN), principal.tenants_with_role(Role.AUDITOR)
    by_role = Case(
        When(tenant__in=managed, then=Value(Level.MANAGER)),
        When(tenant__in=audited, then=Value(Level.METADATA)),
        default=Value(NO_ACCESS),
        output_field=IntegerField(),
    )
    visible = _annotate(collections, is_held=IS_HELD).filter(Q(tenant__in=[*managed, *audited]) | Exists(grants))
    return _annotate(visible, my_level=Greatest(by_role, _highest_level(grants, "collection", LEVEL_ON_COLLECTION)))


def _visible_files(user: User, principal: Principal, collection: Collection, *, least: Level) -> QuerySet[StoredFile]:
    held = Hold.objects.filter(Q(file=OuterRef("pk")) | Q(file=None), collection=collection)
    files = _annotate(collection.files.exclude(status=StoredFile.Status.DELETING), is_held=Exists(held))
    level = level_of(collection)
    if level == Level.MANAGER:
        return _annotate(files, my_level=Value(level, output_field=IntegerField()))
    grants = _effective_grants(user, principal).filter(collection=collection, file__isnull=False)
    by_grant = _highest_level(grants.filter(file=OuterRef("pk")), "file", F("level"))
    if level < least:
        files = files.filter(pk__in=grants.values("file"))
    return _annotate(files, my_level=Greatest(Value(level), by_grant))


def _annotate(rows: QuerySet[Row], **values: Any) -> QuerySet[Row]:
    """Adds attributes that the models declare. Keeps the type of the queryset, which `annotate` would change."""
    return rows.annotate(**values)


def _highest_level(grants: QuerySet[Grant], per: str, level: Any) -> Coalesce:
    best = grants.order_by().values(per).annotate(best=Max(level)).values("best")
    return Coalesce(Subquery(best, output_field=IntegerField()), Value(NO_ACCESS))


def _effective_grants(user: User, principal: Principal) -> QuerySet[Grant]:
    """The grants that apply to the user: those to the user or to all members in tenants where the user is a member or admin.

    In other tenants that allow external sharing, only the grants to the user apply, and none of them applies to an API key.
    """
    counting = Q(user=user) | Q(user=None)
    counting &= Q(tenant__in=principal.tenants_with_role(Role.ADMIN, Role.MEMBER))
    if principal.key_tenant_id is None:
        sharing = Q(tenant__is_active=True, tenant__allow_external_sharing=True)
        counting |= Q(user=user, membership=None) & sharing & ~Q(tenant__in=list(principal.roles))
    return Grant.objects.filter(counting)
