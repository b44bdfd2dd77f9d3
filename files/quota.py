"""Quotas of tenants, their usage, and the counts that the quotas depend on (INV-18, F-70)."""

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

COUNTED_STATUSES = (Collection.Status.OPEN, Collection.Status.DELETED)  # a purge deletes the rows without updating the counts


class Usage(TypedDict):
    collections: int
    file_count: int
    quota_files: int | None
    total_length: int
    quota_bytes: int | None
    uploads: int


def tenant_usage(tenant: Tenant) -> Usage:
    """The quota of a tenant and its usage: all collections that are not purged yet, without egress packages (INV-18)."""
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
    """Whether the number of files or bytes of the tenant is limited."""
    return tenant.quota_files is not None or tenant.quota_bytes is not None


def check_quota(collection: Collection, *, more_files: int, more_bytes: int) -> None:
    """Checks that so many more files and plaintext bytes fit into the quota of the tenant.

    Raises: QuotaExceeded.
    """
    tenant = collection.tenant
    if not has_quota(tenant):
        return
    # Packages do not count: they are deleted automatically, and a quota must not make a release fail.
    used = Collection.objects.filter(tenant=tenant, kind=Collection.Kind.FILES).aggregate(
        files=Sum("file_count", default=0), length=Sum("total_length", default=0)
    )
    # Changes that add nothing are always allowed. Otherwise a tenant could not get below a lowered quota by replacing files.
    if more_files > 0 and tenant.quota_files is not None and used["files"] + more_files > tenant.quota_files:
        raise errors.QuotaExceeded(f"This exceeds the tenant's quota of {tenant.quota_files} files. Delete files to make room.")
    if more_bytes > 0 and tenant.quota_bytes is not None and used["length"] + more_bytes > tenant.quota_bytes:
        raise errors.QuotaExceeded(f"This exceeds the tenant's quota of {tenant.quota_bytes} bytes. Delete files to make room.")


# --- Counts ---


def recount(*, now: datetime) -> int:
    """Corrects the stored counts of collections that differ from their rows. Logs and records that. Returns how many."""
    counted = Collection.objects.filter(status__in=COUNTED_STATUSES).annotate(
        actual_files=Count("files"), actual_length=Sum("files__length", default=0)
    )
    drifted = counted.filter(~Q(file_count=F("actual_files")) | ~Q(total_length=F("actual_length")))
    return sum(_correct_counts(collection, now) for collection in list(drifted.order_by("pk")))


@retry_on_deadlock
def _correct_counts(collection: Collection, now: datetime) -> bool:
    """Counts again under the lock, because an upload may have committed meanwhile. Returns whether the counts were wrong."""
    with suppress(NotFound), transaction.atomic():
        locked = lock_collection(collection)
        actual = locked.files.aggregate(count=Count("pk"), length=Sum("length", default=0))
        if locked.status not in COUNTED_STATUSES or (locked.file_count, locked.total_length) == (
            actual["count"],
            actual["length"],
        ):
            return False
        facts = {"files": actual["count"] - locked.file_count, "length": actual["length"] - locked.total_length}
        log.error("corrected the counts of a collection", extra={"collection": str(locked.uuid), **facts})
        locked.file_count, locked.total_length = actual["count"], actual["length"]
        locked.save(update_fields=["file_count", "total_length"])
        audit.record("collection.recount", by=None, tenant=locked.tenant, target=locked, now=now, **facts)
        return True
    return False  # the collection was deleted
