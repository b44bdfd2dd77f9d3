"""Mails to whoever answers for a collection, seven days and one day before it, or files of it, are destroyed by their date.

A mail says what is so when it is sent: without a reason any more it is dropped, and written anew should there be one again.
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
from purge.rules import FILE_HOLDS, HOLDS
from tenants.models import Mail, Membership, Role, User
from tenants.work import outbox


log = logging.getLogger(__name__)

COLLECTION: Final = "collection_expires"  # kinds of mail
FILES: Final = "files_expire"
WEEK: Final = timedelta(days=7)
DAY: Final = timedelta(days=1)


def announce(*, now: datetime) -> None:
    """Writes the mails that are due, each once, however often and by however many this is run."""
    for collection in _expiring(now).filter(purge_at__lte=now + WEEK).order_by("purge_at"):
        purge_at = collection.purge_at
        if purge_at is not None:
            _tell(COLLECTION, collection, _days_left(purge_at, now), purge_at.isoformat(), now)
    days = _expiring_files(now).filter(keep_until__lte=now + WEEK).annotate(day=TruncDate("keep_until", tzinfo=UTC))
    groups = list(days.values("collection", "day").annotate(first=Min("keep_until")).order_by("first", "collection"))
    those = Collection.objects.in_bulk({group["collection"] for group in groups})
    for group in groups:
        if of_these := those.get(group["collection"]):
            _tell(FILES, of_these, _days_left(group["first"], now), group["day"].isoformat(), now)


def _tell(kind: str, collection: Collection, days_left: int, at: str, now: datetime) -> None:
    try:
        with transaction.atomic():
            for address in sorted(_owners(collection)):  # in this order, so that two runs do not wait for each other
                outbox.queue(
                    kind,
                    to=address,
                    now=now,
                    once_per=outbox.FOREVER,
                    collection=str(collection.uuid),
                    at=at,
                    days=str(days_left),
                )
    except Exception:  # one collection must not keep the owners of the rest from hearing
        log.exception("owners were not told", extra={"collection": str(collection.uuid)})


def _expiring(now: datetime) -> QuerySet[Collection]:
    """Open collections that will go by their date, if nobody does anything."""
    ordinary = Collection.objects.filter(kind=Collection.Kind.FILES)  # who may fetch a package was told when it ends
    return ordinary.filter(~Exists(HOLDS), status="open", tenant__is_active=True, purge_at__gt=now)


def _expiring_files(now: datetime) -> QuerySet[StoredFile]:
    """Likewise, and not with their collection before that."""
    outlived = Q(collection__purge_at=None) | Q(collection__purge_at__gt=F("keep_until"))
    open_ones = Q(collection__status="open", collection__kind=Collection.Kind.FILES, collection__tenant__is_active=True)
    return StoredFile.objects.filter(~Exists(FILE_HOLDS), outlived, open_ones, keep_until__gt=now)


def _days_left(moment: datetime, now: datetime) -> int:
    return 1 if moment - now <= DAY else 7


def _owners(collection: Collection) -> set[str]:
    """Mail addresses of who was made a manager of it by name, and still is; of the tenant's admins if nobody is."""
    named = collection.grants.filter(file=None, level=Level.MANAGER)
    people = User.objects.filter(grants__in=named, service_of=None)
    if managers := {each.email for each in people if access.current_level(each, collection) >= Level.MANAGER}:
        return managers
    admins = Membership.objects.filter(tenant=collection.tenant_id).of_active_people().with_role(Role.ADMIN)
    return set(admins.values_list("user__email", flat=True))


@outbox.context_builder(COLLECTION)
def _collection_letter(mail: Mail, now: datetime) -> outbox.Context | None:
    purge_at = datetime.fromisoformat(mail.facts["at"])
    collection = _expiring(now).filter(uuid=mail.facts["collection"], purge_at=purge_at).select_related("tenant").first()
    if collection is None or not _still_counts(mail, collection, purge_at, now):
        return None
    return _about(collection) | {"when": f"{purge_at:%-d %B %Y, %H:%M} UTC", "count": str(collection.file_count)}


@outbox.context_builder(FILES)
def _files_letter(mail: Mail, now: datetime) -> outbox.Context | None:
    day = datetime.combine(date.fromisoformat(mail.facts["at"]), time(), UTC)
    files = _expiring_files(now).filter(
        collection__uuid=mail.facts["collection"], keep_until__gte=day, keep_until__lt=day + timedelta(days=1)
    )
    found = files.aggregate(count=Count("pk"), first=Min("keep_until"))
    collection = Collection.objects.select_related("tenant").filter(uuid=mail.facts["collection"]).first()
    if collection is None or not found["count"] or not _still_counts(mail, collection, found["first"], now):
        return None
    before = f"{day + timedelta(days=1):%Y-%m-%dT00:00:00Z}"
    return _about(collection) | {"when": f"{day:%-d %B %Y}", "count": str(found["count"]), "before": before}


def _still_counts(mail: Mail, collection: Collection, moment: datetime, now: datetime) -> bool:
    """Whether it comes in time, and to somebody who answers for the collection (INV-16)."""
    return str(_days_left(moment, now)) == mail.facts["days"] and mail.recipient in _owners(collection)


def _about(collection: Collection) -> outbox.Context:
    return {
        "id": collection.slug,
        "name": collection.display_name,
        "tenant": collection.tenant.name,
        "link": f"{settings.APP_URL}/collections/{collection.slug}" if settings.APP_URL else "",
        "api": f"{settings.PUBLIC_URL or f'http://127.0.0.1:{settings.PORT}'}/api/v1",
    }
