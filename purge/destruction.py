"""The end of a collection: its key first, then an entry in the ledger, its objects with every version, its rows, a certificate.

From the first transaction on nobody reads it, and nothing leads back (INV-08). Everything behind it is repeated until it is done:
each step looks for what is left, so that a kill costs no more than a step (F-26), and two workers do nothing twice (F-33).
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

BATCH: Final = 1_000  # objects in one request, which is what S3 takes
MANY: Final = 16 * BATCH  # files in one bucket from which on they are shared out among workers, in 16 shards
ROWS: Final = 2_000  # in one transaction
PATIENCE: Final = timedelta(minutes=5)  # without a sign of life, before another worker takes over


class Blocked(Exception):
    """Something in the store will not go, and trying again at once helps nobody."""


# --- The beginning ---


@retry_on_deadlock
def begin(collection: Collection, *, by: User | None, now: datetime) -> Destruction | None:
    """Destroys the key. None if there is no reason to, as the locked row stands, or a hold against it."""
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
    return None  # another worker was faster, and it is gone


@retry_on_deadlock
def redo_from_ledger(collection: Collection, entry: LedgerEntry, *, now: datetime) -> Destruction | None:
    """What the ledger says is destroyed, and a restored database brought back. A hold from then counts no more."""
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
        began_by=by.username if by else "system",
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
    """In every bucket that there is: a certificate says of each that nothing was left."""
    stores = {*settings.BUCKETS, collection.tenant.vault_alias}
    stores |= set(collection.uploads.values_list("store", flat=True))
    counts = dict.fromkeys(stores, 0)
    counts |= dict(collection.files.values_list("store").annotate(Count("pk")))
    whole, ways = [collection.prefix], [f"{collection.prefix}{digit}" for digit in "0123456789abcdef"]
    return [
        Shard(destruction=destruction, store=store, prefix=prefix)
        for store, count in sorted(counts.items())
        for prefix in (ways if count > MANY else whole)
    ]


# --- The work ---


def work(*, now: datetime, seconds: float, only: Iterable[Destruction] | None = None) -> bool:
    """Does one piece of the work there is, for about so long. False if there was nothing to do, or others are at it."""
    running = Destruction.objects.filter(status=Destruction.Status.RUNNING)
    if only is not None:
        running = running.filter(pk__in=[each.pk for each in only])
    for destruction in claim(running.filter(ledgered_at=None).order_by("number"), now=now, limit=1, timeout=PATIENCE):
        _attempt(destruction, partial(_enter, destruction), destruction)
        return True
    running = running.exclude(ledgered_at=None)
    # What is still arriving would lie there behind our listing: it ends first, or is given up for dead.
    arriving = Upload.objects.filter(collection__destruction=OuterRef("destruction"))
    shards = Shard.objects.filter(destruction__in=running, verified_at=None).exclude(Exists(arriving))
    for shard in claim(shards.select_related("destruction").order_by("attempts", "pk"), now=now, limit=1, timeout=PATIENCE):
        _attempt(shard.destruction, partial(_erase, shard, until=time.monotonic() + seconds), shard)
        return True
    unverified = Shard.objects.filter(destruction=OuterRef("pk"), verified_at=None)
    for destruction in claim(running.exclude(Exists(unverified)).order_by("started_at"), now=now, limit=1, timeout=PATIENCE):
        _attempt(destruction, partial(_finish, destruction), destruction)
        return True
    return False


def _attempt(destruction: Destruction, step: Any, leased: Shard | Destruction) -> None:
    """What goes wrong with one collection must not hold up the others."""
    try:
        step()
    except LeaseLost:
        return
    except StoreUnavailable as error:  # its lease runs out, and somebody tries again
        log.warning("the store did not answer", extra={"destruction": str(destruction.pk), "error": str(error)})
    except (Blocked, StoreError, FileNotFoundError) as error:
        _block(destruction, str(error) or "the bucket is not there")
        with suppress(LeaseLost):
            leased.release()
    except Exception:  # a bug met by one collection: the others go on, its lease runs out, and the log has it
        log.exception("a destruction did not go on", extra={"destruction": str(destruction.pk)})


def _enter(destruction: Destruction) -> None:
    """Before the first object goes: a database from before must not be believed any more (INV-08)."""
    ledger.append_entry(destruction)
    if destruction.fenced().update(ledgered_at=timezone.now(), lease_owner="", lease_at=None) != 1:
        raise LeaseLost


def _erase(shard: Shard, *, until: float) -> None:
    """Every version of every object, until a listing finds none."""
    store = get_store(shard.store)
    while _erase_pass(shard, store, until=until):
        if time.monotonic() > until:
            shard.release()
            return
    if shard.fenced().update(verified_at=timezone.now(), lease_owner="", lease_at=None) != 1:
        raise LeaseLost


def _erase_pass(shard: Shard, store: ObjectStore, *, until: float) -> int:
    """Deletes what a listing finds; returns how much that was. The next page is listed while the one before it is deleted."""
    entries, found = store.entries(shard.prefix), 0
    remaining: dict[bool, EraseFailure] = {}  # one of those that may pass, and one of those that will not
    with ThreadPoolExecutor(1, "purge-listing") as lister:
        batch = list(islice(entries, BATCH // 2))  # a whole page ends with what a store gives away only when it has the next
        while batch:
            following = lister.submit(lambda: list(islice(entries, BATCH)))
            failures = store.erase(batch)
            found += len(batch)
            remaining |= {failure.is_transient: failure for failure in failures}
            gone = F("erased") + len(batch) - len(failures)
            if shard.fenced().update(erased=gone, lease_at=timezone.now()) != 1:
                raise LeaseLost
            if time.monotonic() > until and not remaining:
                return found
            batch = following.result()
    if refused := remaining.get(False):
        raise Blocked(refused.reason)
    if delayed := remaining.get(True):
        raise StoreUnavailable(delayed.reason)
    return found


@retry_on_deadlock
def _block(destruction: Destruction, reason: str) -> None:
    with transaction.atomic():
        running = Destruction.objects.filter(pk=destruction.pk, status=Destruction.Status.RUNNING)
        if running.update(status=Destruction.Status.BLOCKED, blocked_by=reason[:500]) != 1:
            return  # another worker's shard met the same
        _set_status(destruction, Collection.Status.BLOCKED)
        _record("collection.purge_blocked", destruction, by=None, now=timezone.now(), reason=reason[:500])


@retry_on_deadlock
def retry_blocked(destruction: Destruction, *, by: User | None, now: datetime) -> bool:
    """Whatever was in the way may have gone: a lock that ran out, a permission that was given."""
    with transaction.atomic():
        blocked = Destruction.objects.filter(pk=destruction.pk, status=Destruction.Status.BLOCKED)
        if blocked.update(status=Destruction.Status.RUNNING, blocked_by="") != 1:
            return False
        _set_status(destruction, Collection.Status.PURGING)
        _record("collection.purge_retried", destruction, by=by, now=now)
    return True


def _set_status(destruction: Destruction, status: str) -> None:
    Collection.objects.filter(destruction=destruction).update(status=status)


# --- The end ---


def _finish(destruction: Destruction) -> None:
    """Looks once more, then removes the rows and leaves the certificate in their place."""
    collection = Collection.objects.get(destruction=destruction)
    for shard in destruction.shards.all():
        if next(get_store(shard.store).entries(shard.prefix), None) is not None:
            Shard.objects.filter(pk=shard.pk).update(verified_at=None)  # an upload that had been given up for dead was not
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
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log holds deleted rows until it is written anew


def _delete(rows: QuerySet[Any], destruction: Destruction) -> None:
    """In batches, and past the ORM's collector, which would load every row and what hangs on it (D-10)."""
    while pks := list(rows.order_by("pk").values_list("pk", flat=True)[:ROWS]):
        with transaction.atomic():
            destruction.heartbeat(timezone.now())  # whoever has lost the lease deletes nothing more
            rows.model._default_manager.filter(pk__in=pks)._raw_delete(connection.alias)


@retry_on_deadlock
def _certify(destruction: Destruction, collection: Collection) -> None:
    now = timezone.now()
    certificate = certificates.make(destruction, collection, now=now)
    destruction.collection = collection  # what the last event is about
    with transaction.atomic():
        Collection.objects.select_for_update().get(pk=collection.pk)
        if Upload.objects.filter(collection=collection).exists():  # it began in the moment of the shredding
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
