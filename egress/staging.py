"""Copies of what was pinned: made by the store itself, as ciphertext, and wiped when the request does not need them any more.

Whoever works on a request has its lease, so that nothing is copied behind the back of the listing that says that all is gone.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from egress.models import EgressRequest, Item
from egress.moving import lock_request, move
from egress.states import State
from files.stores import Failure, StoreRefused, StoreUnavailable, get_store
from tenants import audit
from tenants.leases import LeaseLost
from tenants.retries import retried


log = logging.getLogger(__name__)

BATCH: Final = 1_000
AT_ONCE: Final = 8  # copies, each of which waits for the store


def copy_some(request: EgressRequest, *, until: float) -> bool:
    """Copies pinned files that have no copy yet; True once all have. Raises LeaseLost, StoreError, FileNotFoundError."""
    pinned = request.items.filter(round=request.round, status=Item.Status.PINNED).select_related("file").order_by("number")
    with ThreadPoolExecutor(AT_ONCE, "staging") as pool:
        while items := list(pinned[:AT_ONCE]):
            heartbeat(request, State.SUBMITTED)
            for item, etag in zip(items, pool.map(_copy, items), strict=True):
                # The other contender is whoever ends the request: what it marked for wiping stays marked.
                Item.objects.filter(pk=item.pk, status=Item.Status.PINNED).update(status=Item.Status.STAGED, object_etag=etag)
            if time.monotonic() > until:
                return False
    return True


def _copy(item: Item) -> str:
    file = item.file
    if file is None:
        raise LeaseLost  # the request ended just now
    store = get_store(item.store)
    try:
        return store.copy(file.object_key, item.object_key, source=get_store(file.store)).etag
    except FileExistsError:  # a worker was killed between the copy and its mark; the package is verified byte by byte anyway
        return store.stat(item.object_key).etag


@retried
def begin_review(request: EgressRequest, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        check_ours(request, locked, State.SUBMITTED)
        if locked.items.filter(round=locked.round).exclude(status=Item.Status.STAGED).exists():
            return
        move(locked, State.IN_REVIEW, by=None, now=now, action="egress.review")


def check_ours(request: EgressRequest, locked: EgressRequest, status: State) -> None:
    """Raises LeaseLost if the locked row is not what this worker claimed any more."""
    if locked.lease_owner != request.lease_owner or locked.status != status or locked.round != request.round:
        raise LeaseLost


def wipe(request: EgressRequest, *, now: datetime) -> None:
    """Deletes every version of the copies that nobody needs, and puts on record that a listing does not find them any more."""
    for store in request.items.filter(status=Item.Status.WIPING).order_by().values_list("store", flat=True).distinct():
        while items := list(request.items.filter(status=Item.Status.WIPING, store=store).order_by("pk")[:BATCH]):
            request.heartbeat(timezone.now())
            _erase(request, items)
            _tombstone(request, items, now=now)


def _erase(request: EgressRequest, items: list[Item]) -> None:
    """Two passes of one listing: what the first finds is deleted, and the second has to find nothing."""
    store, keys = get_store(items[0].store), {item.object_key for item in items}
    prefix = items[0].object_key.rpartition("/")[0] + "/"
    failures: list[Failure] = []
    for _ in range(2):
        found = [entry for entry in store.entries(prefix) if entry.key in keys]
        if not found:
            return
        failures = store.erase(found)
        request.heartbeat(timezone.now())
    if [entry for entry in store.entries(prefix) if entry.key in keys]:
        refused = next((failure for failure in failures if not failure.may_pass), None)
        raise (StoreRefused if refused else StoreUnavailable)(refused.reason if refused else "staged copies remain")


@retried
def _tombstone(request: EgressRequest, items: list[Item], *, now: datetime) -> None:
    with transaction.atomic():
        request.heartbeat(now)
        wiping: QuerySet[Item] = Item.objects.filter(pk__in=[item.pk for item in items], status=Item.Status.WIPING)
        count = wiping.update(status=Item.Status.WIPED, wiped_at=now)
        audit.record("egress.wipe", by=None, tenant=request.tenant, target=request, now=now, files=count)


def heartbeat(request: EgressRequest, status: State, **progress: int) -> None:
    """A sign of life on a request that is still in this state, and in this round, with how far it is."""
    if request.fenced().filter(status=status, round=request.round).update(lease_at=timezone.now(), **progress) != 1:
        raise LeaseLost
