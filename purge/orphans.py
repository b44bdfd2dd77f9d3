"""Objects that no row names, and rows whose object is gone. One listing of each bucket finds both; looking changes nothing.

What the sweep takes for an orphan it destroys, so that it would rather leave ten than take one that somebody needs: only keys of
our own form and tenants, only what is older than any upload, nothing on a listing that broke off (F-19), nothing if it would be
much (F-20), and nothing while the database is older than the vault (F-63, F-64).
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import models, transaction
from django.db.models import Count
from django.utils import timezone

from egress.models import StagedFile
from files.models import Collection, PendingDeletion, StoredFile, Upload
from tenants import audit
from tenants.models import Tenant
from tenants.work.deadlocks import retry_on_deadlock
from vault import identity
from vault.stores import ObjectStore, StoreEntry, get_store


log = logging.getLogger(__name__)

# Every model whose rows name objects, in the order in which a name moves from one to the next: whoever asks them in this order
# does not miss one on its way.
HOLDERS: Final[tuple[type[models.Model], ...]] = (Upload, StoredFile, PendingDeletion, StagedFile)
UUID_FORM: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KEY: Final = re.compile(rf"[0-9a-f]{{4}}/({UUID_FORM})/({UUID_FORM})/{UUID_FORM}")
BATCH: Final = 1_000
MOST: Final = 10_000  # found in one bucket at a time; the next sweep finds the rest
FEW: Final = 100  # never too many, however little there is
PART: Final = 20  # more than one in so many is too much to be true


class TooMany(Exception):
    """More would go than is likely. The text says how many."""


@dataclass(slots=True)
class Survey:
    """What one bucket has, and what the database says that it has."""

    store: str
    objects: int = 0  # of ours, with versions, markers and unfinished uploads
    strangers: int = 0  # keys that are not ours: left alone
    young: int = 0  # without a row, but not older than the grace
    orphans: list[StoreEntry] = field(default_factory=list)
    orphaned: int = 0  # all of them, also those that did not fit the list
    orphaned_bytes: int = 0
    files: int = 0  # that should be there
    missing: list[StoredFile] = field(default_factory=list)  # ready, and not there or of another size
    found: list[StoredFile] = field(default_factory=list)  # missing until now

    @property
    def is_clean(self) -> bool:
        return not (self.orphaned or self.missing or self.found)


def survey(*, now: datetime) -> Iterator[Survey]:
    """One bucket after the other. Raises ForeignVault, DatabaseRestored, StoreError, FileNotFoundError before it says anything of
    a bucket that it could not read to its end."""
    identity.clear_checks()
    identity.check(now=now)
    identity.check_history(now=now)
    aliases = {*settings.BUCKETS, *Tenant.objects.values_list("vault_alias", flat=True).distinct()}
    for alias in sorted(aliases):
        yield _survey(alias, get_store(alias), now)


def sweep(found: Survey, *, at_most: int | None, now: datetime) -> int:
    """Destroys the orphans, marks what is missing and what is there again. Returns how many orphans are queued or gone.

    Raises TooMany, and has changed nothing then, if more is orphaned or missing than `at_most`, or than is likely.
    """
    for what, count, of in (("orphaned", found.orphaned, found.objects), ("missing", len(found.missing), found.files)):
        if count > (max(FEW, of // PART) if at_most is None else at_most):
            raise TooMany(f"{count} of {of} are {what} in {found.store}")
    for file in found.missing:
        _mark(file, StoredFile.Status.READY, StoredFile.Status.MISSING, "file.missing", now)
    for file in found.found:
        _mark(file, StoredFile.Status.MISSING, StoredFile.Status.READY, "file.found", now)
    gone = 0
    for start in range(0, len(found.orphans), BATCH):
        gone += _destroy(found.store, found.orphans[start : start + BATCH], now)
    return gone


def report(*, now: datetime) -> bool:
    """Tells the log of every bucket in which something is not as it should be. True if all is well."""
    is_well = True
    for found in survey(now=now):
        if not found.is_clean:
            is_well = False
            log.error(
                "a bucket and the database differ: manage.py sweep",
                extra={
                    "store": found.store,
                    "orphaned": found.orphaned,
                    "missing": len(found.missing),
                    "found": len(found.found),
                },
            )
    return is_well


# --- Looking ---


def _survey(alias: str, store: ObjectStore, now: datetime) -> Survey:
    found = Survey(alias)
    tenants = {str(pk) for pk in Tenant.objects.values_list("pk", flat=True)}
    before = now - timedelta(seconds=settings.SWEEP_GRACE)
    present: Counter[str] = Counter()  # files that are there as they should be, by collection
    entries = store.entries("")
    while batch := list(islice(entries, BATCH)):
        ours = []
        for entry in batch:
            match = KEY.fullmatch(entry.key)
            if match and match[1] in tenants:
                ours.append((entry, match[2]))
            elif not entry.key.startswith(identity.SYSTEM_PREFIX):
                found.strangers += 1
        named = _named(alias, {entry.key for entry, _ in ours})
        ending = _ending({collection for _, collection in ours})
        for entry, collection in ours:
            found.objects += 1
            holder = named.get(entry.key)
            if holder is None and collection in ending:
                continue  # a destruction is at it
            if holder is None or (entry.kind == "upload" and not isinstance(holder, Upload)):
                if entry.modified > before:
                    found.young += 1
                    continue
                found.orphaned += 1
                found.orphaned_bytes += entry.size
                if len(found.orphans) < MOST:
                    found.orphans.append(entry)
            elif entry.kind == "object" and isinstance(holder, StoredFile) and entry.size == holder.object_size:
                present[collection] += holder.status == StoredFile.Status.READY
                if holder.status == StoredFile.Status.MISSING and len(found.found) < MOST:
                    found.found.append(holder)
    _find_missing(found, store, present)
    return found


def _named(alias: str, keys: set[str]) -> dict[str, Any]:
    """The row that names each of these keys, the last that does in the order of HOLDERS."""
    return {row.object_key: row for model in HOLDERS for row in _rows(model, alias, keys)}


def _rows(model: type[models.Model], alias: str, keys: set[str]) -> models.QuerySet[Any]:
    rows = model._default_manager.filter(store=alias, object_key__in=keys)
    return (
        rows.exclude(status=StagedFile.Status.WIPED) if model is StagedFile else rows
    )  # its tombstone names what has to be gone


def _ending(collections: set[str]) -> set[str]:
    ending = Collection.objects.filter(uuid__in=collections, status__in=[Collection.Status.PURGING, Collection.Status.BLOCKED])
    return {str(uuid) for uuid in ending.values_list("uuid", flat=True)}


def _find_missing(found: Survey, store: ObjectStore, present: Counter[str]) -> None:
    """Where the listing had fewer than there are rows, each row's object is asked for: it may have come after the listing."""
    ready = StoredFile.objects.filter(store=found.store, status=StoredFile.Status.READY)
    ready = ready.exclude(collection__status__in=[Collection.Status.PURGING, Collection.Status.BLOCKED])
    short: list[UUID] = []
    for uuid, count in ready.order_by().values_list("collection__uuid").annotate(count=Count("pk")):
        found.files += count
        if count != present[str(uuid)]:
            short.append(uuid)
    for uuid in short:
        for file in ready.filter(collection__uuid=uuid).select_related("collection__tenant").iterator(BATCH):
            if len(found.missing) < MOST and not _is_there(store, file):
                found.missing.append(file)


def _is_there(store: ObjectStore, file: StoredFile) -> bool:
    try:
        return store.stat(file.object_key).size == file.object_size
    except FileNotFoundError:
        return False


# --- Changing ---


@retry_on_deadlock
def _mark(file: StoredFile, old: StoredFile.Status, new: StoredFile.Status, action: str, now: datetime) -> None:
    with transaction.atomic():
        row = StoredFile.objects.filter(pk=file.pk, object_id=file.object_id, status=old)
        if row.update(status=new):  # the other contenders are its readers, a replacement and a deletion
            tenant = file.collection.tenant
            audit.record(action, by=None, tenant=tenant, target=file, now=now, object=str(file.object_id))


def _destroy(alias: str, orphans: list[StoreEntry], now: datetime) -> int:
    """Unfinished uploads at once, as their key may have a file; of a key that nobody names everything, by the tick."""
    store = get_store(alias)
    unfinished = [entry for entry in orphans if entry.kind == "upload"]
    keys = {entry.key for entry in orphans if entry.kind != "upload"}
    running = {row.object_key for row in _rows(Upload, alias, {entry.key for entry in unfinished})}
    aborted = [entry for entry in unfinished if entry.key not in running]
    failures = store.erase(aborted)
    queued = _queue(alias, keys, len(aborted) - len(failures), now)
    return len(aborted) - len(failures) + queued


@retry_on_deadlock
def _queue(alias: str, keys: set[str], aborted: int, now: datetime) -> int:
    with transaction.atomic():
        free = keys - _named(alias, keys).keys()
        PendingDeletion.objects.bulk_create(
            [PendingDeletion(store=alias, object_key=key, due_at=now, requested_at=timezone.now()) for key in sorted(free)]
        )
        audit.record("sweep.destroy", by=None, tenant=None, target=None, now=now, store=alias, objects=len(free), uploads=aborted)
    return len(free)
