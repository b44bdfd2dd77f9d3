"""What tenants may keep, what they keep, and the counts that the quota rests on (INV-18, F-70)."""

import logging
from contextlib import suppress
from datetime import datetime
from typing import TypedDict

from django.db import transaction
from django.db.models import Count, F, Q, Sum

from files import errors
from files.locks import lock_collection
from files.models import Collection, Upload
from tenants import audit
from tenants.errors import NotFound
from tenants.models import Tenant
from tenants.work.deadlocks import retry_on_deadlock


log = logging.getLogger(__name__)

COUNTED_STATUSES = (Collection.Status.OPEN, Collection.Status.DELETED)  # the others are losing their rows, and need no counts


class Usage(TypedDict):
    collections: int
    file_count: int
    quota_files: int | None
    total_length: int
    quota_bytes: int | None
    uploads: int


def tenant_usage(tenant: Tenant) -> Usage:
    """Counts what the quota counts: every collection, deleted ones too, whose objects are still there (INV-18). No packages."""
    collections = Collection.objects.filter(tenant=tenant, kind=Collection.Kind.FILES)
    totals = collections.aggregate(
        collections=Count("pk"), files=Sum("file_count", default=0), length=Sum("total_length", default=0)
    )
    return Usage(
        collections=totals["collections"],
        file_count=totals["files"],
        quota_files=tenant.quota_files,
        total_length=totals["length"],
        quota_bytes=tenant.quota_bytes,
        uploads=Upload.objects.filter(collection__in=collections).count(),
    )


def has_quota(tenant: Tenant) -> bool:
    return tenant.quota_files is not None or tenant.quota_bytes is not None


def check_quota(collection: Collection, *, more_files: int, more_bytes: int) -> None:
    tenant = collection.tenant
    if not has_quota(tenant):
        return
    # A package is no use of the quota: it goes by itself, and a release must not fail for want of room.
    used = Collection.objects.filter(tenant=tenant, kind=Collection.Kind.FILES).aggregate(
        files=Sum("file_count", default=0), length=Sum("total_length", default=0)
    )
    # What adds nothing is let through: a tenant whose quota was lowered must be able to get below it again.
    if more_files > 0 and tenant.quota_files is not None and used["files"] + more_files > tenant.quota_files:
        raise errors.QuotaExceeded(f"The tenant may keep {tenant.quota_files} files.")
    if more_bytes > 0 and tenant.quota_bytes is not None and used["length"] + more_bytes > tenant.quota_bytes:
        raise errors.QuotaExceeded(f"The tenant may keep {tenant.quota_bytes} bytes.")


# --- Counts ---


def recount(*, now: datetime) -> int:
    """Mends every count that has drifted, says so, and returns how many collections that were."""
    counted = Collection.objects.filter(status__in=COUNTED_STATUSES).annotate(
        files_there=Count("files"), length_there=Sum("files__length", default=0)
    )
    drifted = counted.filter(~Q(file_count=F("files_there")) | ~Q(total_length=F("length_there")))
    return sum(_correct_counts(collection, now) for collection in list(drifted.order_by("pk")))


@retry_on_deadlock
def _correct_counts(collection: Collection, now: datetime) -> bool:
    """Counted again under the lock: an upload may have committed between the counts."""
    with suppress(NotFound), transaction.atomic():
        locked = lock_collection(collection)
        there = locked.files.aggregate(count=Count("pk"), length=Sum("length", default=0))
        if locked.status not in COUNTED_STATUSES or (locked.file_count, locked.total_length) == (there["count"], there["length"]):
            return False
        facts = {"files": there["count"] - locked.file_count, "length": there["length"] - locked.total_length}
        log.error("a collection's counts had drifted", extra={"collection": str(locked.uuid), **facts})
        locked.file_count, locked.total_length = there["count"], there["length"]
        locked.save(update_fields=["file_count", "total_length"])
        audit.record("collection.recount", by=None, tenant=locked.tenant, target=locked, now=now, **facts)
        return True
    return False  # it is gone
