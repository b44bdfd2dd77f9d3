"""What collections say that they hold, against the rows that they do hold. The quota is counted by it (INV-18, F-70)."""

import logging
from contextlib import suppress
from datetime import datetime

from django.db import transaction
from django.db.models import Count, F, Q, Sum

from files.locks import lock_collection
from files.models import Collection
from tenants import audit
from tenants.errors import NotFound
from tenants.work.deadlocks import retried


log = logging.getLogger(__name__)

OPEN = (Collection.Status.OPEN, Collection.Status.DELETED)  # the others are losing their rows, and need no counts


def recount(*, now: datetime) -> int:
    """Mends every count that has drifted, says so, and returns how many collections that were."""
    counted = Collection.objects.filter(status__in=OPEN).annotate(
        files_there=Count("files"), length_there=Sum("files__length", default=0)
    )
    drifted = counted.filter(~Q(file_count=F("files_there")) | ~Q(total_length=F("length_there")))
    return sum(_mend(collection, now) for collection in list(drifted.order_by("pk")))


@retried
def _mend(collection: Collection, now: datetime) -> bool:
    """Counted again under the lock: an upload may have committed between the counts."""
    with suppress(NotFound), transaction.atomic():
        locked = lock_collection(collection)
        there = locked.files.aggregate(count=Count("pk"), length=Sum("length", default=0))
        if locked.status not in OPEN or (locked.file_count, locked.total_length) == (there["count"], there["length"]):
            return False
        facts = {"files": there["count"] - locked.file_count, "length": there["length"] - locked.total_length}
        log.error("a collection's counts had drifted", extra={"collection": str(locked.uuid), **facts})
        locked.file_count, locked.total_length = there["count"], there["length"]
        locked.save(update_fields=["file_count", "total_length"])
        audit.record("collection.recount", by=None, tenant=locked.tenant, target=locked, now=now, **facts)
        return True
    return False  # it is gone
