"""What goes on by itself: finding what is due, and working on what has begun."""

import logging
import time
from datetime import datetime
from typing import Final

from django.utils import timezone

from files.models import Collection
from purge import destroying
from purge.due import Deleted, find_due
from purge.files import destroy_each, find_free
from purge.models import Destruction


log = logging.getLogger(__name__)

TICK: Final = 4.0  # seconds: a tick is over before the next one


def purge_expired(*, now: datetime) -> int:
    """Begins the end of whatever is due and not held; returns of how many collections. What was blocked is tried again."""
    for destruction in Destruction.objects.filter(status=Destruction.Status.BLOCKED).order_by("began_at"):
        destroying.try_again(destruction, by=None, now=now)
    begun = sum(_begin(due.collection, now=now) for due in find_due(now) if not due.is_held)
    for files in find_free(now):
        destroy_each(files, by=None, now=now)
    return begun


def tick(*, now: datetime) -> None:
    """Deleted collections go when their grace is over, at whatever hour."""
    for collection in Deleted().due(now).order_by("deleted_at")[:20]:
        _begin(collection, now=now)
    until = time.monotonic() + TICK
    while (left := until - time.monotonic()) > 0 and destroying.work(now=timezone.now(), seconds=left):
        pass


def _begin(collection: Collection, *, now: datetime) -> bool:
    try:
        return destroying.begin(collection, by=None, now=now) is not None
    except Exception:  # one collection that cannot go must not hold up the rest
        log.exception("a destruction did not begin", extra={"collection": str(collection.uuid)})
        return False
