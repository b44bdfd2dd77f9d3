"""Destroys a collection: first its key, then every version of its objects, then its rows. A certificate remains.

The first transaction destroys the key: after it, no content of the collection can be read, and nothing undoes it (INV-08). The
later steps are idempotent: each looks for what is left. A killed process loses at most one step (F-26), and two workers never do
the same work (F-33).
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, Exists, F, OuterRef, QuerySet
from django.utils import timezone

from egress import retention
from files import holds
from files.locks import lock_collection
from files.models import Collection, DownloadLink, Grant, Hold, PendingDeletion, StoredFile, Upload
from purge import certificates, ledger
from purge.ledger import LedgerEntry
from purge.models import Destruction, Shard
from purge.rules import rule_for
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock
from tenants.work.leases import LeaseLost, claim
from vault import identity, keys
from vault.models import Cipher
from vault.stores import EraseFailure, ObjectStore, StoreError, StoreUnavailable, get_store


log = logging.getLogger(__name__)

OBJECTS_PER_REQUEST: Final = 1_000  # S3's limit
SHARDING_THRESHOLD: Final = 16 * OBJECTS_PER_REQUEST  # a bucket with more files than this is divided into 16 shards
ROWS_PER_TRANSACTION: Final = 2_000
LEASE_TIMEOUT: Final = timedelta(minutes=5)  # since the last heartbeat, before another worker takes over


class DeletionRefused(Exception):
    """The store refuses to delete an object, and an immediate retry would not help. The text is the store's reason."""


# --- Start ---


@retry_on_deadlock
def start_destruction(collection: Collection, *, by: User | None, now: datetime) -> Destruction | None:
    """Destroys the key of a collection that is due. Returns None if its locked row is not due, is held, or no longer exists."""
    with suppress(NotFound), transaction.atomic():
        locked = lock_collection(collection)
        rule = rule_for(locked, now)
        if rule is None or holds.holds_on(locked).exists():
            return None
        return _shred(
            locked,
            reason=rule.reason,
            due_at=rule.due_at(locked) or now,
            by=by,
            now=now,
            number=identity.next_ledger_number(),
            entered_at=None,
        )
    return None  # another worker has already destroyed it


@retry_on_deadlock
def redo_from_ledger(collection: Collection, entry: LedgerEntry, *, now: datetime) -> Destruction | None:
    """Destroys a collection again that is in the ledger and that a database backup has restored. Returns None if its destruction
    has already started. Restored holds are deleted: they were lifted before the first destruction.

    Raises: WrongState.
    """
    with suppress(NotFound), transaction.atomic():
        locked = lock_collection(collection)
        if locked.status in {Collection.Status.PURGING, Collection.Status.BLOCKED}:
            return None
        retention.end_open_requests(locked, now=now)
        Hold.objects.filter(collection=locked).delete()
        return _shred(
            locked,
            reason=entry.reason,
            due_at=entry.started_at,
            by=None,
            now=now,
            number=entry.number,
            entered_at=entry.started_at,
        )
    return None


def _shred(
    locked: Collection,
    *,
    reason: str,
    due_at: datetime,
    by: User | None,
    now: datetime,
    number: int,
    entered_at: datetime | None,
) -> Destruction:
    destruction = Destruction.objects.create(
        tenant=locked.tenant,
        collection=locked,
        collection_uuid=locked.uuid,
        slug=locked.slug,
        display_name=locked.display_name,
        file_count=locked.file_count,
        total_length=locked.total_length,
        unencrypted_count=locked.files.filter(cipher=Cipher.NONE).count(),
        number=number,
        ledgered_at=entered_at,
        reason=reason,
        due_at=due_at,
        started_at=now,
        started_by=by.username if by else "system",
    )
    Shard.objects.bulk_create(_shards(destruction, locked))
    keys.destroy(locked.key_id, now=now)
    DownloadLink.objects.filter(collection=locked).delete()
    Collection.objects.filter(pk=locked.pk).update(status=Collection.Status.PURGING)
    audit.record(
        "collection.shred",
        by=by,
        tenant=locked.tenant,
        target=locked,
        now=now,
        slug=locked.slug,
        reason=reason,
        files=locked.file_count,
        length=locked.total_length,
        ledger=number,
    )
    return destruction


def _shards(destruction: Destruction, collection: Collection) -> list[Shard]:
    """Shards for every bucket: the certificate states for each of them that no object remains."""
    stores = {*settings.BUCKETS, collection.tenant.vault_alias}
    stores |= set(collection.uploads.values_list("store", flat=True))
    counts = dict.fromkeys(stores, 0)
    counts |= dict(collection.files.values_list("store").annotate(Count("pk")))
    whole, sixteenths = [collection.prefix], [f"{collection.prefix}{digit}" for digit in "0123456789abcdef"]
    return [
        Shard(destruction=destruction, store=store, prefix=prefix)
        for store, count in sorted(counts.items())
        for prefix in (sixteenths if count > SHARDING_THRESHOLD else whole)
    ]


# --- Steps ---


def run_next_step(*, now: datetime, seconds: float, only: Iterable[Destruction] | None = None) -> bool:
    """Runs the next step of one running destruction, for about `seconds`. `only` limits the choice to these destructions.

    Returns False if there is no step to run, or if other workers have leased all of them.
    """
    running = Destruction.objects.filter(status=Destruction.Status.RUNNING)
    if only is not None:
        running = running.filter(pk__in=[each.pk for each in only])
    for destruction in claim(running.filter(ledgered_at=None).order_by("number"), now=now, limit=1, timeout=LEASE_TIMEOUT):
        _run(destruction, partial(_append_to_ledger, destruction), destruction)
        return True
    running = running.exclude(ledgered_at=None)
    # An upload in progress could create its object after the listing. The destruction waits until it ends or times out.
    uploads = Upload.objects.filter(collection__destruction=OuterRef("destruction"))
    shards = Shard.objects.filter(destruction__in=running, verified_at=None).exclude(Exists(uploads))
    for shard in claim(shards.select_related("destruction").order_by("attempts", "pk"), now=now, limit=1, timeout=LEASE_TIMEOUT):
        _run(shard.destruction, partial(_erase_shard, shard, until=time.monotonic() + seconds), shard)
        return True
    unverified = Shard.objects.filter(destruction=OuterRef("pk"), verified_at=None)
    for destruction in claim(running.exclude(Exists(unverified)).order_by("started_at"), now=now, limit=1, timeout=LEASE_TIMEOUT):
        _run(destruction, partial(_finish, destruction), destruction)
        return True
    return False


def _run(destruction: Destruction, step: Any, leased: Shard | Destruction) -> None:
    """Runs a step. Its errors are logged or block this destruction; they must not stop the others."""
    try:
        step()
    except LeaseLost:
        return
    except StoreUnavailable as error:  # another attempt is made when the lease has expired
        log.warning(
            "a destruction is delayed: the store is unavailable", extra={"destruction": str(destruction.pk), "error": str(error)}
        )
    except (DeletionRefused, StoreError, FileNotFoundError) as error:
        _block(destruction, str(error) or "the bucket does not exist")
        with suppress(LeaseLost):
            leased.release()
    except Exception:  # a bug: log it and continue with the other collections; this one is retried when its lease has expired
        log.exception("a step of a destruction failed", extra={"destruction": str(destruction.pk)})


def _append_to_ledger(destruction: Destruction) -> None:
    """Writes the ledger entry before the first object is deleted, so that a database backup is recognised as one (INV-08)."""
    ledger.append_entry(destruction)
    if destruction.fenced().update(ledgered_at=timezone.now(), lease_owner="", lease_at=None) != 1:
        raise LeaseLost


def _erase_shard(shard: Shard, *, until: float) -> None:
    """Deletes every version of every object of a shard. The shard is verified once a listing is empty."""
    store = get_store(shard.store)
    while _erase_pass(shard, store, until=until):
        if time.monotonic() > until:
            shard.release()
            return
    if shard.fenced().update(verified_at=timezone.now(), lease_owner="", lease_at=None) != 1:
        raise LeaseLost


def _erase_pass(shard: Shard, store: ObjectStore, *, until: float) -> int:
    """Deletes the entries of one listing and returns their number. The next page is listed while the previous one is deleted."""
    entries, found = store.entries(shard.prefix), 0
    remaining: dict[bool, EraseFailure] = {}  # by `is_transient`: the last failure of each kind
    with ThreadPoolExecutor(1, "purge-listing") as lister:
        # Half a page: a store yields the last entries of a page only after it has read the next page.
        batch = list(islice(entries, OBJECTS_PER_REQUEST // 2))
        while batch:
            following = lister.submit(lambda: list(islice(entries, OBJECTS_PER_REQUEST)))
            failures = store.erase(batch)
            found += len(batch)
            remaining |= {failure.is_transient: failure for failure in failures}
            erased = F("erased") + len(batch) - len(failures)
            if shard.fenced().update(erased=erased, lease_at=timezone.now()) != 1:
                raise LeaseLost
            if time.monotonic() > until and not remaining:
                return found
            batch = following.result()
    if refused := remaining.get(False):
        raise DeletionRefused(refused.reason)
    if delayed := remaining.get(True):
        raise StoreUnavailable(delayed.reason)
    return found


@retry_on_deadlock
def _block(destruction: Destruction, reason: str) -> None:
    with transaction.atomic():
        running = Destruction.objects.filter(pk=destruction.pk, status=Destruction.Status.RUNNING)
        if running.update(status=Destruction.Status.BLOCKED, blocked_by=reason[:500]) != 1:
            return  # another worker has already blocked it
        _set_status(destruction, Collection.Status.BLOCKED)
        _record("collection.purge_blocked", destruction, by=None, now=timezone.now(), reason=reason[:500])


@retry_on_deadlock
def retry_blocked(destruction: Destruction, *, by: User | None, now: datetime) -> bool:
    """Continues a blocked destruction, because an object lock may have expired or a missing permission may have been granted.

    Returns False if the destruction is not blocked.
    """
    with transaction.atomic():
        blocked = Destruction.objects.filter(pk=destruction.pk, status=Destruction.Status.BLOCKED)
        if blocked.update(status=Destruction.Status.RUNNING, blocked_by="") != 1:
            return False
        _set_status(destruction, Collection.Status.PURGING)
        _record("collection.purge_retried", destruction, by=by, now=now)
    return True


def _set_status(destruction: Destruction, status: str) -> None:
    Collection.objects.filter(destruction=destruction).update(status=status)


# --- Completion ---


def _finish(destruction: Destruction) -> None:
    """Lists every shard again, then deletes the rows and saves the certificate."""
    collection = Collection.objects.get(destruction=destruction)
    for shard in destruction.shards.all():
        if next(get_store(shard.store).entries(shard.prefix), None) is not None:
            Shard.objects.filter(pk=shard.pk).update(verified_at=None)  # a late write of an upload that had timed out
            destruction.release()
            return
        destruction.heartbeat(timezone.now())
    retention.detach_rows(collection)
    for rows in (
        DownloadLink.objects.filter(collection=collection),
        Grant.objects.filter(collection=collection),
        PendingDeletion.objects.filter(object_key__startswith=collection.prefix),
        StoredFile.objects.filter(collection=collection),
    ):
        _delete(rows, destruction)
    _certify(destruction, collection)
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log still contains the deleted rows


def _delete(rows: QuerySet[Any], destruction: Destruction) -> None:
    """Deletes rows in batches. Bypasses the ORM's collector, which would load every row and its related rows (D-10)."""
    while pks := list(rows.order_by("pk").values_list("pk", flat=True)[:ROWS_PER_TRANSACTION]):
        with transaction.atomic():
            destruction.heartbeat(timezone.now())  # raises LeaseLost if another worker has taken over
            rows.model._default_manager.filter(pk__in=pks)._raw_delete(connection.alias)


@retry_on_deadlock
def _certify(destruction: Destruction, collection: Collection) -> None:
    now = timezone.now()
    certificate = certificates.make(destruction, collection, now=now)
    destruction.collection = collection  # the target of the audit event
    with transaction.atomic():
        Collection.objects.select_for_update().get(pk=collection.pk)
        if Upload.objects.filter(collection=collection).exists():  # it started while the key was being destroyed
            destruction.shards.update(verified_at=None)
            destruction.release()
            return
        done = destruction.fenced().update(
            collection=None,
            status=Destruction.Status.DONE,
            completed_at=now,
            certificate=certificate.text,
            signature=certificate.signature,
            lease_owner="",
            lease_at=None,
        )
        if done != 1:
            raise LeaseLost
        Collection.objects.filter(pk=collection.pk)._raw_delete(connection.alias)
        keys.delete_row(collection.key_id)
        _record("collection.purge", destruction, by=None, now=now, certificate=certificate.sha256)


def _record(action: str, destruction: Destruction, *, by: User | None, now: datetime, **facts: str) -> None:
    audit.record(action, by=by, tenant=destruction.tenant, target=destruction.collection, now=now, slug=destruction.slug, **facts)
