"""Mails that warn the managers of a collection seven days and one day before the collection, or files in it, expire.

A mail is rendered when it is sent, and dropped if its reason no longer applies. A new reason queues a new mail.
"""

import logging
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Exists, F, Min, Q, QuerySet
from django.db.models.functions import TruncDate

from files import access
from files.models import Collection, Level, StoredFile
from purge.rules import COLLECTION_HOLDS, FILE_HOLDS
from tenants.models import Mail, Membership, Role, User
from tenants.work import outbox


log = logging.getLogger(__name__)

COLLECTION: Final = "collection_expires"  # kinds of mail
FILES: Final = "files_expire"
WEEK: Final = timedelta(days=7)
DAY: Final = timedelta(days=1)


def announce(*, now: datetime) -> None:
    """Queues the warnings that are due. Each is queued once, even if several workers run this at the same time."""
    for collection in _expiring(now).filter(purge_at__lte=now + WEEK).order_by("purge_at"):
        purge_at = collection.purge_at
        if purge_at is not None:
            _queue(COLLECTION, collection, _days_left(purge_at, now), purge_at.isoformat(), now)
    days = _expiring_files(now).filter(keep_until__lte=now + WEEK).annotate(day=TruncDate("keep_until", tzinfo=UTC))
    groups = list(days.values("collection", "day").annotate(first=Min("keep_until")).order_by("first", "collection"))
    collections = Collection.objects.in_bulk({group["collection"] for group in groups})
    for group in groups:
        if collection_of_group := collections.get(group["collection"]):
            _queue(FILES, collection_of_group, _days_left(group["first"], now), group["day"].isoformat(), now)


def _queue(kind: str, collection: Collection, days_left: int, at: str, now: datetime) -> None:
    try:
        with transaction.atomic():
            for address in sorted(_owners(collection)):  # sorted, so that two runs cannot deadlock
                outbox.queue(
                    kind,
                    to=address,
                    now=now,
                    once_per=outbox.FOREVER,
                    collection=str(collection.uuid),
                    at=at,
                    days=str(days_left),
                )
    except Exception:  # one failure must not stop the other warnings
        log.exception("an expiry warning was not queued", extra={"collection": str(collection.uuid)})


def _expiring(now: datetime) -> QuerySet[Collection]:
    """Open collections with a purge date in the future that no hold blocks."""
    ordinary = Collection.objects.filter(kind=Collection.Kind.FILES)  # recipients of a package know when it expires
    return ordinary.filter(~Exists(COLLECTION_HOLDS), status="open", tenant__is_active=True, purge_at__gt=now)


def _expiring_files(now: datetime) -> QuerySet[StoredFile]:
    """Files with a `keep_until` in the future that no hold blocks, unless their collection expires before them."""
    outlived = Q(collection__purge_at=None) | Q(collection__purge_at__gt=F("keep_until"))
    open_ones = Q(collection__status="open", collection__kind=Collection.Kind.FILES, collection__tenant__is_active=True)
    return StoredFile.objects.filter(~Exists(FILE_HOLDS), outlived, open_ones, keep_until__gt=now)


def _days_left(moment: datetime, now: datetime) -> int:
    return 1 if moment - now <= DAY else 7


def _owners(collection: Collection) -> set[str]:
    """Mail addresses of the users whom a grant makes managers of the collection; of the tenant's admins if there are none."""
    named = collection.grants.filter(file=None, level=Level.MANAGER)
    people = User.objects.filter(grants__in=named, service_of=None)
    if managers := {each.email for each in people if access.current_level(each, collection) >= Level.MANAGER}:
        return managers
    admins = Membership.objects.filter(tenant=collection.tenant_id).of_active_people().with_role(Role.ADMIN)
    return set(admins.values_list("user__email", flat=True))


@outbox.context_builder(COLLECTION)
def _collection_context(mail: Mail, now: datetime) -> outbox.Context | None:
    purge_at = datetime.fromisoformat(mail.facts["at"])
    collection = _expiring(now).filter(uuid=mail.facts["collection"], purge_at=purge_at).select_related("tenant").first()
    if collection is None or not _still_counts(mail, collection, purge_at, now):
        return None
    return _common_context(collection) | {"when": f"{purge_at:%-d %B %Y, %H:%M} UTC", "count": str(collection.file_count)}


@outbox.context_builder(FILES)
def _files_context(mail: Mail, now: datetime) -> outbox.Context | None:
    day = datetime.combine(date.fromisoformat(mail.facts["at"]), time(), UTC)
    files = _expiring_files(now).filter(
        collection__uuid=mail.facts["collection"], keep_until__gte=day, keep_until__lt=day + timedelta(days=1)
    )
    found = files.aggregate(count=Count("pk"), first=Min("keep_until"))
    collection = Collection.objects.select_related("tenant").filter(uuid=mail.facts["collection"]).first()
    if collection is None or not found["count"] or not _still_counts(mail, collection, found["first"], now):
        return None
    before = f"{day + timedelta(days=1):%Y-%m-%dT00:00:00Z}"
    return _common_context(collection) | {"when": f"{day:%-d %B %Y}", "count": str(found["count"]), "before": before}


def _still_counts(mail: Mail, collection: Collection, moment: datetime, now: datetime) -> bool:
    """Whether the stated number of days is right, and the recipient is still an owner of the collection (INV-16)."""
    return str(_days_left(moment, now)) == mail.facts["days"] and mail.recipient in _owners(collection)


def _common_context(collection: Collection) -> outbox.Context:
    return {
        "id": collection.slug,
        "name": collection.display_name,
        "tenant": collection.tenant.name,
        "link": f"{settings.APP_URL}/collections/{collection.slug}" if settings.APP_URL else "",
        "api": f"{settings.PUBLIC_URL or f'http://127.0.0.1:{settings.PORT}'}/api/v1",
    }
