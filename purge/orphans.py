"""Finds orphans (objects without a row) and missing objects (rows without an object) by listing every bucket.

The survey changes nothing. The sweep destroys orphans, so it is cautious: it takes only keys of our form and tenants, and only
objects that are older than any upload in progress. It does nothing after an incomplete listing (F-19), if the number of orphans
is suspicious (F-20), or while the database is older than the vault (F-63, F-64).
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

# Every model whose rows name objects. An object key moves from one model to the next in this order, so that queries in this order
# cannot miss it.
OBJECT_MODELS: Final[tuple[type[models.Model], ...]] = (Upload, StoredFile, PendingDeletion, StagedFile)
UUID_FORM: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KEY: Final = re.compile(rf"[0-9a-f]{{4}}/({UUID_FORM})/({UUID_FORM})/{UUID_FORM}")
BATCH: Final = 1_000
MAX_LISTED: Final = 10_000  # of each kind in one bucket; the next sweep finds the rest
ALWAYS_ALLOWED: Final = 100  # orphans or missing files, however small the bucket is
ALLOWED_FRACTION: Final = 20  # above that: at most one in 20


class TooManyDifferences(Exception):
    """A sweep would destroy or mark suspiciously many objects. The text has the numbers."""


@dataclass(slots=True)
class Survey:
    """The differences between one bucket and the database."""

    store: str
    objects: int = 0  # with keys of this application, including versions, delete markers and unfinished uploads
    foreign: int = 0  # other keys, which are ignored
    recent: int = 0  # objects without a row that are not older than SWEEP_GRACE
    orphans: list[StoreEntry] = field(default_factory=list)
    orphaned: int = 0  # including those that exceed MAX_LISTED
    orphaned_bytes: int = 0
    files: int = 0  # rows that should have an object
    missing: list[StoredFile] = field(default_factory=list)  # ready files whose object is missing or has another size
    restored: list[StoredFile] = field(default_factory=list)  # files marked missing whose object exists again

    @property
    def is_clean(self) -> bool:
        return not (self.orphaned or self.missing or self.restored)


def survey(*, now: datetime) -> Iterator[Survey]:
    """Yields one survey for each bucket. A bucket that cannot be listed completely raises an error in place of its survey.

    Raises: ForeignVault, DatabaseRestored, StorageUnavailable, StoreUnavailable, StoreRefused, FileNotFoundError, WrongKey.
    """
    identity.clear_checks()
    identity.check(now=now)
    identity.check_history(now=now)
    aliases = {*settings.BUCKETS, *Tenant.objects.values_list("vault_alias", flat=True).distinct()}
    for alias in sorted(aliases):
        yield _survey(alias, get_store(alias), now)


def sweep(found: Survey, *, at_most: int | None, now: datetime) -> int:
    """Destroys the orphans and marks missing and restored files. Returns the number of orphans that are deleted or queued.

    Changes nothing if there are more orphans or missing files than `at_most`; default: 100, or one in 20.

    Raises: StoreRefused, StoreUnavailable, TooManyDifferences.
    """
    for what, count, of in (("orphaned", found.orphaned, found.objects), ("missing", len(found.missing), found.files)):
        if count > (max(ALWAYS_ALLOWED, of // ALLOWED_FRACTION) if at_most is None else at_most):
            raise TooManyDifferences(f"{count} of {of} are {what} in {found.store}")
    for file in found.missing:
        _mark(file, StoredFile.Status.READY, StoredFile.Status.MISSING, "file.missing", now)
    for file in found.restored:
        _mark(file, StoredFile.Status.MISSING, StoredFile.Status.READY, "file.found", now)
    destroyed = 0
    for start in range(0, len(found.orphans), BATCH):
        destroyed += _destroy(found.store, found.orphans[start : start + BATCH], now)
    return destroyed


def report(*, now: datetime) -> bool:
    """Logs an error for each bucket that differs from the database. Returns True if none does.

    Raises: DatabaseRestored, ForeignVault, StorageUnavailable, StoreRefused, StoreUnavailable, WrongKey.
    """
    is_clean = True
    for found in survey(now=now):
        if not found.is_clean:
            is_clean = False
            log.error(
                "a bucket and the database differ: run `manage.py sweep`",
                extra={
                    "store": found.store,
                    "orphaned": found.orphaned,
                    "missing": len(found.missing),
                    "restored": len(found.restored),
                },
            )
    return is_clean


# --- Survey ---


def _survey(alias: str, store: ObjectStore, now: datetime) -> Survey:
    found = Survey(alias)
    tenants = {str(pk) for pk in Tenant.objects.values_list("pk", flat=True)}
    before = now - timedelta(seconds=settings.SWEEP_GRACE)
    present: Counter[str] = Counter()  # number of intact files, by collection
    entries = store.entries("")
    while batch := list(islice(entries, BATCH)):
        ours = []
        for entry in batch:
            match = KEY.fullmatch(entry.key)
            if match and match[1] in tenants:
                ours.append((entry, match[2]))
            elif not entry.key.startswith(identity.SYSTEM_PREFIX):
                found.foreign += 1
        rows = _rows_by_key(alias, {entry.key for entry, _ in ours})
        purging = _purging({collection for _, collection in ours})
        for entry, collection in ours:
            found.objects += 1
            row = rows.get(entry.key)
            if row is None and collection in purging:
                continue  # its destruction deletes it
            if row is None or (entry.kind == "upload" and not isinstance(row, Upload)):
                if entry.modified > before:
                    found.recent += 1
                    continue
                found.orphaned += 1
                found.orphaned_bytes += entry.size
                if len(found.orphans) < MAX_LISTED:
                    found.orphans.append(entry)
            elif entry.kind == "object" and isinstance(row, StoredFile) and entry.size == row.object_size:
                present[collection] += row.status == StoredFile.Status.READY
                if row.status == StoredFile.Status.MISSING and len(found.restored) < MAX_LISTED:
                    found.restored.append(row)
    _find_missing(found, store, present)
    return found


def _rows_by_key(alias: str, keys: set[str]) -> dict[str, Any]:
    """The row that names each object key; if several do, the row of the last model in OBJECT_MODELS."""
    return {row.object_key: row for model in OBJECT_MODELS for row in _rows(model, alias, keys)}


def _rows(model: type[models.Model], alias: str, keys: set[str]) -> models.QuerySet[Any]:
    rows = model._default_manager.filter(store=alias, object_key__in=keys)
    # A wiped file still has the key of its object, which must no longer exist.
    return rows.exclude(status=StagedFile.Status.WIPED) if model is StagedFile else rows


def _purging(collections: set[str]) -> set[str]:
    purging = Collection.objects.filter(uuid__in=collections, status__in=[Collection.Status.PURGING, Collection.Status.BLOCKED])
    return {str(uuid) for uuid in purging.values_list("uuid", flat=True)}


def _find_missing(found: Survey, store: ObjectStore, present: Counter[str]) -> None:
    """Where fewer objects were listed than there are rows, checks each object: some may have been created after the listing."""
    ready = StoredFile.objects.filter(store=found.store, status=StoredFile.Status.READY)
    ready = ready.exclude(collection__status__in=[Collection.Status.PURGING, Collection.Status.BLOCKED])
    short: list[UUID] = []
    for uuid, count in ready.order_by().values_list("collection__uuid").annotate(count=Count("pk")):
        found.files += count
        if count != present[str(uuid)]:
            short.append(uuid)
    for uuid in short:
        for file in ready.filter(collection__uuid=uuid).select_related("collection__tenant").iterator(BATCH):
            if len(found.missing) < MAX_LISTED and not _is_present(store, file):
                found.missing.append(file)


def _is_present(store: ObjectStore, file: StoredFile) -> bool:
    try:
        return store.stat(file.object_key).size == file.object_size
    except FileNotFoundError:
        return False


# --- Sweep ---


@retry_on_deadlock
def _mark(file: StoredFile, old: StoredFile.Status, new: StoredFile.Status, action: str, now: datetime) -> None:
    with transaction.atomic():
        row = StoredFile.objects.filter(pk=file.pk, object_id=file.object_id, status=old)
        if row.update(status=new):  # a replacement, a deletion or a download may have changed it
            tenant = file.collection.tenant
            audit.record(action, by=None, tenant=tenant, target=file, now=now, object=str(file.object_id))


def _destroy(alias: str, orphans: list[StoreEntry], now: datetime) -> int:
    """Aborts unfinished uploads immediately, because their key may belong to a file. Queues the other keys for deletion."""
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
        free = keys - _rows_by_key(alias, keys).keys()
        PendingDeletion.objects.bulk_create(
            [PendingDeletion(store=alias, object_key=key, due_at=now, requested_at=timezone.now()) for key in sorted(free)]
        )
        audit.record("sweep.destroy", by=None, tenant=None, target=None, now=now, store=alias, objects=len(free), uploads=aborted)
    return len(free)
