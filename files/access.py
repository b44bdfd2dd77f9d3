"""Who may do what to which collection and file: the only way to one. Not yours and not there are the same 404.

A tenant's admins manage all that it has, its auditors see everything but bytes, and its members have what they are granted.
People of other tenants have what they are granted for as long as the tenant allows that. The highest level wins; no grant takes
away.
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


NO_ACCESS = 0  # below every level: not there
Row = TypeVar("Row", Collection, StoredFile)
# What a grant is worth on the collection: its name only, if it is on one of the files.
IS_HELD: Final = Exists(Hold.objects.filter(collection=OuterRef("pk")))
LEVEL_ON_COLLECTION: Final = Case(When(file=None, then=F("level")), default=Value(Level.NAME), output_field=IntegerField())

# --- Collections ---


def visible_collections(user: User) -> QuerySet[Collection]:
    """Open collections of which the user may know at least the name, each with `my_level`."""
    open_ones = Collection.objects.filter(status=Collection.Status.OPEN, kind=Collection.Kind.FILES)
    return _visible_with_level(open_ones, user, people.principal_of(user))


def get_collection(user: User, slug: str, *, deleted: bool = False) -> Collection:
    """With `deleted`, a manager also sees a collection that waits for its destruction."""
    return _get_collection(user, people.principal_of(user), slug, deleted=deleted)


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


# --- Files ---


def visible_files(user: User, slug: str) -> QuerySet[StoredFile]:
    """Files of a collection that the user may know of, each with `my_level`."""
    principal = people.principal_of(user)
    return _visible_files(user, principal, _get_collection(user, principal, slug), least=Level.METADATA)


def readable_files(user: User, collection: Collection) -> QuerySet[StoredFile]:
    """Files whose bytes are the user's to read, in a collection that came from here."""
    return _visible_files(user, people.principal_of(user), collection, least=Level.VIEWER)


def get_file(user: User, slug: str, filename: str) -> StoredFile:
    principal = people.principal_of(user)
    collection = _get_collection(user, principal, slug)
    files = _visible_files(user, principal, collection, least=Level.METADATA).select_related("created_by", "updated_by")
    file = files.filter(name_key=unique_key(filename)).first()
    if file is None:
        raise NotFound
    file.collection = collection
    return file


def check_can_read(file: StoredFile) -> None:
    """For a file that came from here just now: raises Refused for who may know of it, and not have its bytes."""
    if level_of(file) < Level.VIEWER:
        raise Refused


def get_readable_files(user: User, collection: Collection, filenames: Iterable[str] = ()) -> QuerySet[StoredFile]:
    """The named files, or all that the user can read, of a collection that came from here. Raises NotFound, Refused."""
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
    """Whether a stream that was allowed to begin may go on: of one file, or of whatever the collection has."""
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


def level_of(thing: Collection | StoredFile) -> Level:
    """Of a collection or file that came from here, as it was then."""
    return Level(thing.my_level)


def current_level(user: User, collection: Collection, file: StoredFile | None = None) -> int:
    """As it is now, in whatever state the collection is; NO_ACCESS for strangers. To be called on the locked row."""
    principal = people.principal_of(user)
    found = _find_visible(Collection.objects.all(), user, principal, pk=collection.pk)
    if found is None:
        return NO_ACCESS
    if file is None:
        return level_of(found)
    same = _visible_files(user, principal, found, least=Level.METADATA).filter(pk=file.pk).first()
    return level_of(found) if same is None else level_of(same)


def check_can_upload(user: User, collection: Collection, existing: StoredFile | None) -> int:
    """A new file takes an editor of the collection, a new content of a file one of that file. Returns the level on it.

    Whether an invisible file has the name is nobody's to learn: it is refused as a free one is.
    """
    level = current_level(user, collection, existing)
    if level == NO_ACCESS:
        raise NotFound
    if level < Level.EDITOR:
        raise Refused
    return level


def check_can_edit(user: User, file: StoredFile) -> None:
    file.my_level = current_level(user, file.collection, file)
    _check_level(file.my_level, Level.EDITOR, known_from=Level.METADATA)


def check_can_rename(user: User, file: StoredFile) -> None:
    """Names are the collection's: whoever has one file of it must not learn which others are taken."""
    if current_level(user, file.collection) < Level.EDITOR:
        raise Refused("Renaming takes an editor of the collection.")


def check_can_manage(user: User, collection: Collection) -> None:
    _check_level(current_level(user, collection), Level.MANAGER, known_from=Level.NAME)


def check_can_share(user: User, collection: Collection, file: StoredFile | None) -> None:
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
    """All grants in a collection, or those on a file alone: for who may change them, and for auditors."""
    _check_can_oversee(user, collection, file)
    return collection.grants.filter(file=file) if file else collection.grants.all()


def get_grant(user: User, grant_id: str, collection: Collection, file: StoredFile | None = None) -> Grant:
    grants = visible_grants(user, collection, file).select_related("collection", "file", "user")
    grant = grants.filter(pk=people.parse_uuid(grant_id)).first()
    if grant is None:
        raise NotFound
    return grant


def tenant_grants(user: User, tenant: Tenant) -> QuerySet[Grant]:
    """Every grant on what the tenant keeps, for its admins and auditors."""
    people.check_can_audit(user, tenant)
    return Grant.objects.filter(tenant=tenant)


def grants_to(collection: Collection, file: StoredFile | None, *, username: str | None) -> QuerySet[Grant]:
    """What a person, or all members if None, was given on exactly this. For whoever may see it all."""
    given = Grant.objects.filter(collection=collection, file=file)
    return given.filter(user=None) if username is None else given.filter(user__username=username)


# --- Holds ---


def visible_holds(user: User, collection: Collection) -> QuerySet[Hold]:
    """All in a collection: for its managers and for auditors."""
    _check_can_oversee(user, collection)
    return collection.holds.all()


def get_hold(user: User, hold_id: str, collection: Collection) -> Hold:
    holds = visible_holds(user, collection).select_related("collection", "file", "placed_by")
    hold = holds.filter(pk=people.parse_uuid(hold_id)).first()
    if hold is None:
        raise NotFound
    return hold


def check_can_place_hold(user: User, collection: Collection) -> None:
    """Legal holds are for the tenant's admins alone: no grant, and no superuser, reaches that far."""
    if collection.tenant_id not in people.principal_of(user).tenants_with_role(Role.ADMIN):
        raise Refused("Legal holds are placed and lifted by the tenant's admins.")


def _check_can_oversee(user: User, collection: Collection, file: StoredFile | None = None) -> None:
    is_manager = level_of(file or collection) >= Level.MANAGER
    if not is_manager and collection.tenant_id not in people.principal_of(user).tenants_with_role(Role.AUDITOR):
        raise Refused


# --- Operators ---


def get_target_as_operator(slug: str, filename: str | None) -> tuple[Collection, StoredFile | None]:
    """For management commands, whose user has the database itself."""
    collection = Collection.objects.filter(slug=slug, kind=Collection.Kind.FILES).select_related("tenant").first()
    if collection is None:
        raise NotFound(f"There is no collection {slug}.")
    if filename is None:
        return collection, None
    file = collection.files.exclude(status=StoredFile.Status.DELETING).filter(name_key=unique_key(filename)).first()
    if file is None:
        raise NotFound(f"There is no file of this name in {slug}.")
    return collection, file


# --- How levels come about ---


def _get_collection(user: User, principal: Principal, slug: str, *, deleted: bool = False) -> Collection:
    statuses = [Collection.Status.OPEN, Collection.Status.DELETED] if deleted else [Collection.Status.OPEN]
    collections = Collection.objects.filter(status__in=statuses, kind=Collection.Kind.FILES)
    collection = _find_visible(collections.select_related("tenant", "key", "created_by"), user, principal, slug=slug)
    if collection is None or (collection.status != Collection.Status.OPEN and level_of(collection) < Level.MANAGER):
        raise NotFound
    tenant_id.set(str(collection.tenant_id))
    return collection


def _find_visible(collections: QuerySet[Collection], user: User, principal: Principal, **name: str | int) -> Collection | None:
    """The one of this name, if it is there for the user: as `_visible_with_level`, at two thirds of the time.

    Both queries are made whatever the first one finds, so that not even the time tells a stranger more (INV-01).
    """
    if not principal.is_active:
        return None
    collection = _annotate(collections, is_held=IS_HELD).filter(**name).first()
    grants = _effective_grants(user, principal).filter(**{f"collection__{field}": value for field, value in name.items()})
    given: int = grants.aggregate(best=Max(LEVEL_ON_COLLECTION))["best"] or NO_ACCESS
    if collection is None:
        return None
    by_role = (Level.MANAGER, Role.ADMIN), (Level.METADATA, Role.AUDITOR)
    held = [level for level, role in by_role if collection.tenant_id in principal.tenants_with_role(role)]
    collection.my_level = max(given, *held, NO_ACCESS)
    return collection if collection.my_level > NO_ACCESS else None


def _visible_with_level(collections: QuerySet[Collection], user: User, principal: Principal) -> QuerySet[Collection]:
    """Those of them that are there for the user."""
    if not principal.is_active:
        return collections.none()
    given = _effective_grants(user, principal).filter(collection=OuterRef("pk"))
    managed, audited = principal.tenants_with_role(Role.ADMIN), principal.tenants_with_role(Role.AUDITOR)
    by_role = Case(
        When(tenant__in=managed, then=Value(Level.MANAGER)),
        When(tenant__in=audited, then=Value(Level.METADATA)),
        default=Value(NO_ACCESS),
        output_field=IntegerField(),
    )
    there = _annotate(collections, is_held=IS_HELD).filter(Q(tenant__in=[*managed, *audited]) | Exists(given))
    return _annotate(there, my_level=Greatest(by_role, _highest_level(given, "collection", LEVEL_ON_COLLECTION)))


def _visible_files(user: User, principal: Principal, collection: Collection, *, least: Level) -> QuerySet[StoredFile]:
    held = Hold.objects.filter(Q(file=OuterRef("pk")) | Q(file=None), collection=collection)
    files = _annotate(collection.files.exclude(status=StoredFile.Status.DELETING), is_held=Exists(held))
    level = level_of(collection)
    if level == Level.MANAGER:
        return _annotate(files, my_level=Value(level, output_field=IntegerField()))
    given = _effective_grants(user, principal).filter(collection=collection, file__isnull=False)
    by_grant = _highest_level(given.filter(file=OuterRef("pk")), "file", F("level"))
    if level < least:
        files = files.filter(pk__in=given.values("file"))
    return _annotate(files, my_level=Greatest(Value(level), by_grant))


def _annotate(things: QuerySet[Row], **values: Any) -> QuerySet[Row]:
    """With attributes that the models declare."""
    return things.annotate(**values)


def _highest_level(grants: QuerySet[Grant], per: str, level: Any) -> Coalesce:
    best = grants.order_by().values(per).annotate(best=Max(level)).values("best")
    return Coalesce(Subquery(best, output_field=IntegerField()), Value(NO_ACCESS))


def _effective_grants(user: User, principal: Principal) -> QuerySet[Grant]:
    """Those that count for the user: their own and everybody's where they are a member, their own where they are none."""
    counting = Q(user=user) | Q(user=None)
    counting &= Q(tenant__in=principal.tenants_with_role(Role.ADMIN, Role.MEMBER))
    if principal.key_tenant_id is None:
        sharing = Q(tenant__is_active=True, tenant__allow_external_sharing=True)
        counting |= Q(user=user, membership=None) & sharing & ~Q(tenant__in=list(principal.roles))
    return Grant.objects.filter(counting)
