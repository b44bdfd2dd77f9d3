"""What goes on by itself: finding what is due, and working on what has begun."""

import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from django.db.models import Exists
from django.utils import timezone

from files.models import Collection
from purge import limits, recovery
from purge.destruction import begin, retry_blocked, work
from purge.file_destruction import destroy_each, find_destroyable
from purge.models import Destruction
from purge.rules import HOLDS, Deleted, Ended, find_due


log = logging.getLogger(__name__)

TICK: Final = 4.0  # seconds: a tick is over before the next one


def purge_expired(*, now: datetime) -> int:
    """Begins the end of whatever is due and not held; returns of how many collections. What was blocked is tried again."""
    if not recovery.catch_up(now=now):
        return 0
    for destruction in Destruction.objects.filter(status=Destruction.Status.BLOCKED).order_by("started_at"):
        retry_blocked(destruction, by=None, now=now)
    begun = _begin_each((due.collection for due in find_due(now) if not due.is_held), now=now)
    _destroy_files(now=now)
    return begun


def tick(*, now: datetime) -> None:
    """Deleted collections go when their grace is over, and packages with their window, at whatever hour."""
    if not recovery.catch_up(now=now):
        return
    for rule in (Deleted(), Ended()):
        _begin_each(rule.due(now).filter(~Exists(HOLDS)).order_by("deleted_at", "purge_at")[:20], now=now)
    until = time.monotonic() + TICK
    while (left := until - time.monotonic()) > 0 and work(now=timezone.now(), seconds=left):
        pass


def _may_begin(now: datetime) -> bool:
    """Whether the clock and the database are to be believed. Asked only when something is due."""
    return limits.is_time(now) and recovery.has_whole_history(now=now)


def _begin_each(collections: Iterable[Collection], *, now: datetime) -> int:
    begun = 0
    for number, collection in enumerate(collections):
        if number == 0 and not _may_begin(now):
            break
        # Counted each time: other workers may be at the same. A package is a copy that had its time: it waits for nothing.
        if collection.kind == Collection.Kind.FILES and not limits.remaining_collections(now):
            limits.log_that_some_wait("collections")
            break
        begun += _begin(collection, now=now)
    return begun


def _destroy_files(*, now: datetime) -> None:
    for number, files in enumerate(find_destroyable(now)):
        if number == 0 and not _may_begin(now):
            break
        room = limits.remaining_files(now)
        destroy_each(files[:room], by=None, now=now)
        if room < len(files):
            limits.log_that_some_wait("files")
            break


def _begin(collection: Collection, *, now: datetime) -> bool:
    try:
        return begin(collection, by=None, now=now) is not None
    except Exception:  # one collection that cannot go must not hold up the rest
        log.exception("a destruction did not begin", extra={"collection": str(collection.uuid)})
        return False
