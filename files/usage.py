"""What a tenant keeps, beside what it may keep."""

from typing import TypedDict

from django.db.models import Count, Sum

from files.models import Collection, Upload
from tenants.models import Tenant


class Usage(TypedDict):
    collections: int
    file_count: int
    quota_files: int | None
    total_length: int
    quota_bytes: int | None
    uploads: int


def usage_of(tenant: Tenant) -> Usage:
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
