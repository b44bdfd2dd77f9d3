"""Why a collection can go. Each rule says it in words, which the dry run prints, and finds what it applies to."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from files.models import Collection, Hold
from purge.models import Destruction


class Rule(Protocol):
    why: Destruction.Why

    def due(self, now: datetime) -> QuerySet[Collection]: ...

    def due_at(self, collection: Collection) -> datetime | None:
        """Since when it can go, for one that can."""

    def explain(self, collection: Collection) -> str: ...


class Expired:
    """Its purge date is over. That was announced, so that there is no further grace."""

    why: Destruction.Why = Destruction.Why.EXPIRED

    def due(self, now: datetime) -> QuerySet[Collection]:
        return Collection.objects.filter(status__in=["open", "deleted"], purge_at__lte=now)

    def due_at(self, collection: Collection) -> datetime | None:
        return collection.purge_at

    def explain(self, collection: Collection) -> str:
        return f"expired on {collection.purge_at:%Y-%m-%d %H:%M} UTC"


class Deleted:
    """Somebody deleted it, and the time to think better of it is over."""

    why: Destruction.Why = Destruction.Why.DELETED

    def due(self, now: datetime) -> QuerySet[Collection]:
        return Collection.objects.filter(status="deleted", deleted_at__lte=now - grace())

    def due_at(self, collection: Collection) -> datetime | None:
        return collection.deleted_at and collection.deleted_at + grace()

    def explain(self, collection: Collection) -> str:
        return f"deleted on {collection.deleted_at:%Y-%m-%d %H:%M} UTC"


RULES: tuple[Rule, ...] = (Expired(), Deleted())


@dataclass(frozen=True, slots=True)
class Due:
    collection: Collection
    rule: Rule
    is_held: bool


def grace() -> timedelta:
    return timedelta(seconds=settings.DELETE_GRACE)


def find_due(now: datetime, *, slugs: list[str] | None = None) -> Iterator[Due]:
    """Everything that can go, held or not, the longest due first by rule. Of these ids only, if any are given."""
    seen = set()
    for rule in RULES:
        found = rule.due(now).select_related("tenant").annotate(held=Exists(Hold.objects.filter(collection=OuterRef("pk"))))
        for collection in (found.filter(slug__in=slugs) if slugs else found).order_by("purge_at", "deleted_at", "pk"):
            if collection.pk not in seen:
                seen.add(collection.pk)
                yield Due(collection, rule, bool(collection.held))


def rule_for(collection: Collection, now: datetime) -> Rule | None:
    """Why this collection can go, as its locked row stands."""
    if collection.status not in {Collection.Status.OPEN, Collection.Status.DELETED}:
        return None
    for rule in RULES:
        if rule.due(now).filter(pk=collection.pk).exists():
            return rule
    return None
