"""The rules that make collections and single files due for destruction."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final, Protocol

from django.conf import settings
from django.db.models import CharField, Count, Exists, Func, OuterRef, Q, QuerySet, Sum

from files.models import Collection, Hold, StoredFile
from purge.models import Destruction
from tenants.models import AuditEvent


# --- Collections ---


class Rule(Protocol):
    reason: Destruction.Reason

    def due(self, now: datetime) -> QuerySet[Collection]: ...

    def due_at(self, collection: Collection) -> datetime | None:
        """The time at which a due collection became due."""

    def explain(self, collection: Collection, now: datetime) -> str:
        """The reason in words, for operators."""


class Expired:
    """The purge date has passed. Its owners were warned before, so there is no grace period."""

    reason: Destruction.Reason = Destruction.Reason.EXPIRED

    def due(self, now: datetime) -> QuerySet[Collection]:
        return _past(now).filter(kind=Collection.Kind.FILES)

    def due_at(self, collection: Collection) -> datetime | None:
        return collection.purge_at

    def explain(self, collection: Collection, now: datetime) -> str:
        return f"expired on {_since(collection.purge_at, now)}"


class Ended:
    """The collection contains an egress package that can no longer be downloaded. It is destroyed immediately, not by the daily
    run."""

    reason: Destruction.Reason = Destruction.Reason.ENDED

    def due(self, now: datetime) -> QuerySet[Collection]:
        return _past(now).filter(kind=Collection.Kind.RELEASE)

    def due_at(self, collection: Collection) -> datetime | None:
        return collection.purge_at

    def explain(self, collection: Collection, now: datetime) -> str:
        return f"a package whose download window ended on {_since(collection.purge_at, now)}"


class Deleted:
    """A user deleted the collection, and the grace period, in which it can be restored, has ended."""

    reason: Destruction.Reason = Destruction.Reason.DELETED

    def due(self, now: datetime) -> QuerySet[Collection]:
        return Collection.objects.filter(status="deleted", deleted_at__lte=now - grace())

    def due_at(self, collection: Collection) -> datetime | None:
        return collection.deleted_at and collection.deleted_at + grace()

    def explain(self, collection: Collection, now: datetime) -> str:
        return f"deleted on {_since(collection.deleted_at, now)}"


RULES: tuple[Rule, ...] = (Expired(), Deleted(), Ended())
COLLECTION_HOLDS: Final = Hold.objects.filter(collection=OuterRef("pk"))  # on the collection or on one of its files


@dataclass(frozen=True, slots=True)
class DueCollection:
    collection: Collection
    rule: Rule
    is_held: bool


def _past(now: datetime) -> QuerySet[Collection]:
    return Collection.objects.filter(status__in=["open", "deleted"], purge_at__lte=now)


def grace() -> timedelta:
    return timedelta(seconds=settings.DELETE_GRACE)


def find_due(now: datetime, *, slugs: list[str] | None = None) -> Iterator[DueCollection]:
    """Yields all due collections, including held ones, by rule and then by date. Non-empty `slugs` limit the search."""
    seen = set()
    for rule in RULES:
        found = rule.due(now).select_related("tenant").annotate(held=Exists(COLLECTION_HOLDS))
        for collection in (found.filter(slug__in=slugs) if slugs else found).order_by("purge_at", "deleted_at", "pk"):
            if collection.pk not in seen:
                seen.add(collection.pk)
                yield DueCollection(collection, rule, bool(collection.held))


def rule_for(collection: Collection, now: datetime) -> Rule | None:
    """The rule that makes this collection due, by its locked row; None if there is none."""
    if collection.status not in {Collection.Status.OPEN, Collection.Status.DELETED}:
        return None
    for rule in RULES:
        if rule.due(now).filter(pk=collection.pk).exists():
            return rule
    return None


# --- Single files ---


class FileRule(Protocol):
    reason: str  # as recorded in the audit trail

    def due(self, now: datetime) -> QuerySet[StoredFile]: ...

    def explain(self, file: StoredFile, now: datetime) -> str:
        """The reason in words, for operators and the audit trail."""


class KeptLongEnough:
    """The file's `keep_until` has passed."""

    reason = "kept_long_enough"

    def due(self, now: datetime) -> QuerySet[StoredFile]:
        return StoredFile.objects.filter(collection__status="open", keep_until__lte=now)

    def explain(self, file: StoredFile, now: datetime) -> str:
        return f"keep_until was {_since(file.keep_until, now)}"


class AuditId(Func):
    """A UUID column in the canonical text form that the audit trail stores."""

    output_field = CharField()
    template = "CAST(%(expressions)s AS varchar)"

    def as_sqlite(self, compiler: Any, connection: Any, **_: Any) -> tuple[str, Any]:
        parts = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))  # SQLite stores the 32 digits without hyphens
        return self.as_sql(
            compiler, connection, template=" || '-' || ".join(f"substr(%(expressions)s, {at}, {size})" for at, size in parts)
        )


class NeverUsed:
    """The file is older than UNUSED_FILE_DAYS, was never downloaded, previewed or replaced, and has no `keep_until`.

    The audit trail records every use and is never truncated. It records an archive for the collection only, so an archive counts
    as a use of every file that existed then.
    """

    reason = "never_used"
    uses: Final = ("file.download", "file.download_range", "file.replace", "file.corrupt", "link.claim", "link.resume")
    collection_uses: Final = ("collection.archive", "link.claim")

    def due(self, now: datetime) -> QuerySet[StoredFile]:
        if not settings.UNUSED_FILE_DAYS:
            return StoredFile.objects.none()
        return StoredFile.objects.filter(
            ~Exists(AuditEvent.objects.filter(target_id=AuditId(OuterRef("uuid")), action__in=self.uses)),
            ~Exists(
                AuditEvent.objects.filter(
                    target_id=AuditId(OuterRef("collection__uuid")),
                    action__in=self.collection_uses,
                    at__gte=OuterRef("created_at"),
                )
            ),
            collection__status="open",
            collection__kind=Collection.Kind.FILES,
            status=StoredFile.Status.READY,
            keep_until=None,
            created_at__lte=now - timedelta(days=settings.UNUSED_FILE_DAYS),
        )

    def explain(self, file: StoredFile, now: datetime) -> str:
        return f"never downloaded, previewed or replaced since {_since(file.created_at, now)}"


FILE_RULES: tuple[FileRule, ...] = (KeptLongEnough(), NeverUsed())
FILE_HOLDS: Final = Hold.objects.filter(Q(file=OuterRef("pk")) | Q(file=None), collection=OuterRef("collection"))


@dataclass(frozen=True, slots=True)
class DueFiles:
    """Files of one collection that are due by the same rule, either all held or none."""

    collection: Collection
    rule: FileRule
    first: StoredFile  # to become due
    count: int
    length: int  # plaintext bytes
    is_held: bool


def find_due_files(now: datetime, *, slugs: list[str] | None = None) -> Iterator[DueFiles]:
    """Yields all due files, including held ones, by rule and collection. Non-empty `slugs` limit the search to collections."""
    for rule, is_held in product(FILE_RULES, (False, True)):
        found = files_due(rule, now, is_held=is_held, slugs=slugs)
        for each in found.values("collection").annotate(count=Count("pk"), sum=Sum("length")).order_by("collection"):
            files = found.filter(collection=each["collection"]).select_related("collection__tenant")
            first = files.order_by("keep_until", "created_at", "pk").first()
            if first is not None:  # None: they have been deleted meanwhile
                yield DueFiles(first.collection, rule, first, each["count"], each["sum"], is_held)


def files_due(rule: FileRule, now: datetime, *, is_held: bool, slugs: list[str] | None = None) -> QuerySet[StoredFile]:
    held = Exists(FILE_HOLDS)
    found = rule.due(now).filter(held if is_held else ~held)
    return found.filter(collection__slug__in=slugs) if slugs else found


def file_rule_for(file: StoredFile, now: datetime) -> FileRule | None:
    """The rule that makes this file due, by its locked row; None if there is none."""
    return next((rule for rule in FILE_RULES if rule.due(now).filter(pk=file.pk).exists()), None)


def _since(moment: datetime | None, now: datetime) -> str:
    days = (now - moment).days if moment else 0
    return f"{moment:%Y-%m-%d %H:%M} UTC, {f'{days} days ago' if days else 'today'}"
