"""Copies of pinned files in the staging bucket. The store copies the ciphertext; copies that are no longer needed are deleted.

A worker needs the lease of the request for both. This prevents new copies after the listing that confirms the deletion.
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
from files.downloads import mark_missing
from files.models import StoredFile
from tenants import audit
from tenants.work.deadlocks import retry_on_deadlock
from tenants.work.leases import LeaseLost
from vault.stores import EraseFailure, StoreRefused, StoreUnavailable, get_store


log = logging.getLogger(__name__)

BATCH: Final = 1_000
COPY_THREADS: Final = 8
HEARTBEAT_SECONDS: Final = 5.0


def copy_pinned_files(request: EgressRequest, *, until: float) -> bool:
    """Copies pinned files until the time `until` on the monotonic clock. Returns True when every file of the round has a copy.

    Also lets errors of the stores and FileNotFoundError pass.

    Raises: LeaseLost.
    """
    pinned = request.items.filter(round=request.round, status=StagedFile.Status.PINNED).select_related("file").order_by("number")
    with ThreadPoolExecutor(COPY_THREADS, "staging") as pool:
        while items := list(pinned[:COPY_THREADS]):
            heartbeat(request, State.SUBMITTED)
            _await_copies(request, {pool.submit(_copy, item): item for item in items})
            if time.monotonic() > until:
                return False
    return True


def _await_copies(request: EgressRequest, copies: Mapping[Future[str], StagedFile]) -> None:
    """Waits for all copies, even after an error, then raises the first error.

    The heartbeat keeps the lease during a large copy. Without it another worker could confirm the deletion of all copies while
    one is still being written.
    """
    pending, first_error = set(copies), None
    while pending:
        done, pending = wait(pending, HEARTBEAT_SECONDS, FIRST_COMPLETED)
        for copy in done:
            try:
                _record_copy(copies[copy], copy)
            except Exception as error:  # raised after the other copies have finished
                first_error = first_error or error
        if not done:
            try:
                request.heartbeat(timezone.now())
            except LeaseLost as error:
                first_error = error
    if first_error is not None:
        raise first_error


def _record_copy(item: StagedFile, copy: Future[str]) -> None:
    """Records a finished copy. Deletes it if the request has ended: `wipe` may have listed the copies before this one existed."""
    try:
        etag = copy.result()
    except FileNotFoundError as error:
        if item.file is not None and item.file.status != StoredFile.Status.MISSING:
            mark_missing(item.file, None, timezone.now(), error)
        raise
    # The other contender is a service that ends the request and marks its copies for deletion. Those marks must remain.
    pinned = StagedFile.objects.filter(pk=item.pk, status=StagedFile.Status.PINNED)
    is_marked = pinned.update(status=StagedFile.Status.STAGED, object_etag=etag) == 1
    if not is_marked and not StagedFile.objects.filter(pk=item.pk, status=StagedFile.Status.STAGED).exists():
        erase_object(get_store(item.store), item.object_key)


def _copy(item: StagedFile) -> str:
    file = item.file
    if file is None:
        raise LeaseLost  # The request has ended.
    store = get_store(item.store)
    try:
        return store.copy(file.object_key, item.object_key, source=get_store(file.store)).etag
    except FileExistsError:  # A worker was killed before it recorded the copy. The package job verifies every byte.
        return store.stat(item.object_key).etag


@retry_on_deadlock
def begin_review(request: EgressRequest, *, now: datetime) -> None:
    """Moves a submitted request into review if every file has a copy.

    Raises: LeaseLost, NotFound, WrongState.
    """
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.SUBMITTED)
        if locked.items.filter(round=locked.round).exclude(status=StagedFile.Status.STAGED).exists():
            return
        move(locked, State.IN_REVIEW, by=None, now=now, action="egress.review")


def check_claim(request: EgressRequest, locked: EgressRequest, status: State) -> None:
    """Checks that the locked row is still leased to this worker, in this status, and in the same round.

    Raises: LeaseLost.
    """
    if locked.lease_owner != request.lease_owner or locked.status != status or locked.round != request.round:
        raise LeaseLost


def wipe(request: EgressRequest, *, now: datetime) -> None:
    """Deletes every version of the copies that are no longer needed. Records that a listing has confirmed the deletion.

    Also lets errors of the stores pass.

    Raises: LeaseLost.
    """
    for store in request.items.filter(status=StagedFile.Status.WIPING).order_by().values_list("store", flat=True).distinct():
        while items := list(request.items.filter(status=StagedFile.Status.WIPING, store=store).order_by("pk")[:BATCH]):
            request.heartbeat(timezone.now())
            _erase(request, items)
            _mark_wiped(request, items, now=now)


def _erase(request: EgressRequest, items: list[StagedFile]) -> None:
    """Lists and deletes twice at most. Raises StoreRefused or StoreUnavailable if a listing still finds copies."""
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
        # The blocking reason of this job is gone. The reason of a failed request remains: these copies are of an earlier round.
        request.fenced().exclude(status=State.FAILED).update(problem="")
        wiping: QuerySet[StagedFile] = StagedFile.objects.filter(
            pk__in=[item.pk for item in items], status=StagedFile.Status.WIPING
        )
        count = wiping.update(status=StagedFile.Status.WIPED, wiped_at=now)
        audit.record("egress.wipe", by=None, tenant=request.tenant, target=request, now=now, files=count)


def heartbeat(request: EgressRequest, status: State, **progress: int) -> None:
    """Extends the lease of a request that is still in this status and round, and stores the progress.

    Raises: LeaseLost.
    """
    if request.fenced().filter(status=status, round=request.round).update(lease_at=timezone.now(), **progress) != 1:
        raise LeaseLost
