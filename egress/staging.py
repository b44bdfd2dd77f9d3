"""Copies of what was pinned: made by the store itself, as ciphertext, and wiped when the request does not need them any more.

Whoever works on a request has its lease, so that nothing is copied behind the back of the listing that says that all is gone.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from egress.models import EgressRequest, StagedFile
from egress.states import State
from egress.transitions import lock_request, move
from files.cleanup import erase_object
from files.downloads import note_missing
from files.models import StoredFile
from tenants import audit
from tenants.work.deadlocks import retry_on_deadlock
from tenants.work.leases import LeaseLost
from vault.stores import EraseFailure, StoreRefused, StoreUnavailable, get_store


log = logging.getLogger(__name__)

BATCH: Final = 1_000
COPY_THREADS: Final = 8  # copies, each of which waits for the store
HEARTBEAT_SECONDS: Final = 5.0  # seconds between signs of life


def copy_pinned_files(request: EgressRequest, *, until: float) -> bool:
    """Copies pinned files that have no copy yet; True once all have. Raises LeaseLost, StoreError, FileNotFoundError."""
    pinned = request.items.filter(round=request.round, status=StagedFile.Status.PINNED).select_related("file").order_by("number")
    with ThreadPoolExecutor(COPY_THREADS, "staging") as pool:
        while items := list(pinned[:COPY_THREADS]):
            heartbeat(request, State.SUBMITTED)
            _await_copies(request, {pool.submit(_copy, item): item for item in items})
            if time.monotonic() > until:
                return False
    return True


def _await_copies(request: EgressRequest, copies: Mapping[Future[str], StagedFile]) -> None:
    """Waits for all of them, whatever becomes of one or of the request, and shows signs of life as long as the store is at it.

    A large copy takes longer than a silent worker is waited for, and nobody is to list what is gone while one is still pending.
    """
    pending, first_error = set(copies), None
    while pending:
        done, pending = wait(pending, HEARTBEAT_SECONDS, FIRST_COMPLETED)
        for copy in done:
            try:
                _record_copy(copies[copy], copy)
            except Exception as error:  # told when the rest has come, too
                first_error = first_error or error
        if not done:
            try:
                request.heartbeat(timezone.now())
            except LeaseLost as error:
                first_error = error
    if first_error is not None:
        raise first_error


def _record_copy(item: StagedFile, copy: Future[str]) -> None:
    """What has come of a copy. If the request ended meanwhile, it goes again: who wipes may have looked for it before it came."""
    try:
        etag = copy.result()
    except FileNotFoundError as error:
        if item.file is not None and item.file.status != StoredFile.Status.MISSING:
            note_missing(item.file, None, timezone.now(), error)
        raise
    # The other contender is whoever ends the request: what it marked for wiping stays marked.
    pinned = StagedFile.objects.filter(pk=item.pk, status=StagedFile.Status.PINNED)
    is_marked = pinned.update(status=StagedFile.Status.STAGED, object_etag=etag) == 1
    if not is_marked and not StagedFile.objects.filter(pk=item.pk, status=StagedFile.Status.STAGED).exists():
        erase_object(get_store(item.store), item.object_key)


def _copy(item: StagedFile) -> str:
    file = item.file
    if file is None:
        raise LeaseLost  # the request ended just now
    store = get_store(item.store)
    try:
        return store.copy(file.object_key, item.object_key, source=get_store(file.store)).etag
    except FileExistsError:  # a worker was killed between the copy and its mark; the package is verified byte by byte anyway
        return store.stat(item.object_key).etag


@retry_on_deadlock
def begin_review(request: EgressRequest, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.SUBMITTED)
        if locked.items.filter(round=locked.round).exclude(status=StagedFile.Status.STAGED).exists():
            return
        move(locked, State.IN_REVIEW, by=None, now=now, action="egress.review")


def check_claim(request: EgressRequest, locked: EgressRequest, status: State) -> None:
    """Raises LeaseLost if the locked row is not what this worker claimed any more."""
    if locked.lease_owner != request.lease_owner or locked.status != status or locked.round != request.round:
        raise LeaseLost


def wipe(request: EgressRequest, *, now: datetime) -> None:
    """Deletes every version of the copies that nobody needs, and puts on record that a listing does not find them any more."""
    for store in request.items.filter(status=StagedFile.Status.WIPING).order_by().values_list("store", flat=True).distinct():
        while items := list(request.items.filter(status=StagedFile.Status.WIPING, store=store).order_by("pk")[:BATCH]):
            request.heartbeat(timezone.now())
            _erase(request, items)
            _mark_wiped(request, items, now=now)


def _erase(request: EgressRequest, items: list[StagedFile]) -> None:
    """Two passes of one listing: what the first finds is deleted, and the second has to find nothing."""
    store, keys = get_store(items[0].store), {item.object_key for item in items}
    prefix = items[0].object_key.rpartition("/")[0] + "/"
    failures: list[EraseFailure] = []
    for _ in range(2):
        found = [entry for entry in store.entries(prefix) if entry.key in keys]
        if not found:
            return
        failures = store.erase(found)
        request.heartbeat(timezone.now())
    if [entry for entry in store.entries(prefix) if entry.key in keys]:
        refused = next((failure for failure in failures if not failure.is_transient), None)
        raise (StoreRefused if refused else StoreUnavailable)(refused.reason if refused else "staged copies remain")


@retry_on_deadlock
def _mark_wiped(request: EgressRequest, items: list[StagedFile], *, now: datetime) -> None:
    with transaction.atomic():
        request.heartbeat(now)
        # Nothing is in the way any more. What a request failed for stays to be read: these were an earlier round's copies.
        request.fenced().exclude(status=State.FAILED).update(problem="")
        wiping: QuerySet[StagedFile] = StagedFile.objects.filter(
            pk__in=[item.pk for item in items], status=StagedFile.Status.WIPING
        )
        count = wiping.update(status=StagedFile.Status.WIPED, wiped_at=now)
        audit.record("egress.wipe", by=None, tenant=request.tenant, target=request, now=now, files=count)


def heartbeat(request: EgressRequest, status: State, **progress: int) -> None:
    """A sign of life on a request that is still in this state, and in this round, with how far it is."""
    if request.fenced().filter(status=status, round=request.round).update(lease_at=timezone.now(), **progress) != 1:
        raise LeaseLost
