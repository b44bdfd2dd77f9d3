"""The scheduled jobs: the daily run starts due destructions, and the tick continues them."""

import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from django.db.models import Exists
from django.utils import timezone

from files.models import Collection
from purge import limits, recovery
from purge.destruction import retry_blocked, run_next_step, start_destruction
from purge.file_destruction import destroy_each, find_destroyable
from purge.models import Destruction
from purge.rules import COLLECTION_HOLDS, Deleted, Ended, find_due


log = logging.getLogger(__name__)

TICK_SECONDS: Final = 4.0  # less than the interval between two ticks


def purge_expired(*, now: datetime) -> int:
    """The daily run: destroys due files, starts the destruction of due collections, and retries blocked destructions.

    Returns the number of collections whose destruction has started. Held collections and files are skipped.

    Raises: WrongState.
    """
    if not recovery.catch_up(now=now):
        return 0
    for destruction in Destruction.objects.filter(status=Destruction.Status.BLOCKED).order_by("started_at"):
        retry_blocked(destruction, by=None, now=now)
    started = _start_each((due.collection for due in find_due(now) if not due.is_held), now=now)
    _destroy_files(now=now)
    return started


def tick(*, now: datetime) -> None:
    """Starts the destruction of deleted collections and expired packages, then runs steps of running destructions.

    Raises: WrongState.
    """
    if not recovery.catch_up(now=now):
        return
    for rule in (Deleted(), Ended()):
        _start_each(rule.due(now).filter(~Exists(COLLECTION_HOLDS)).order_by("deleted_at", "purge_at")[:20], now=now)
    until = time.monotonic() + TICK_SECONDS
    while (left := until - time.monotonic()) > 0 and run_next_step(now=timezone.now(), seconds=left):
        pass


def _may_start(now: datetime) -> bool:
    """Whether the vault confirms the clock and the database. It costs requests, so it is called only if something is due."""
    return limits.is_clock_confirmed(now) and recovery.has_complete_history(now=now)


def _start_each(collections: Iterable[Collection], *, now: datetime) -> int:
    started = 0
    for number, collection in enumerate(collections):
        if number == 0 and not _may_start(now):
            break
        # Other workers may start destructions at the same time, so the quota is read for each collection. Packages have none.
        if collection.kind == Collection.Kind.FILES and not limits.remaining_collections(now):
            limits.log_limit_reached("collections")
            break
        started += _start(collection, now=now)
    return started


def _destroy_files(*, now: datetime) -> None:
    for number, files in enumerate(find_destroyable(now)):
        if number == 0 and not _may_start(now):
            break
        quota = limits.remaining_files(now)
        destroy_each(files[:quota], by=None, now=now)
        if quota < len(files):
            limits.log_limit_reached("files")
            break


def _start(collection: Collection, *, now: datetime) -> bool:
    try:
        return start_destruction(collection, by=None, now=now) is not None
    except Exception:  # one failure must not stop the rest
        log.exception("a destruction did not start", extra={"collection": str(collection.uuid)})
        return False
