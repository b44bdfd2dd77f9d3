"""Objects going away, and what a kill left of uploads. Each function does a bounded piece; the tick calls them again."""

import logging
from datetime import datetime, timedelta

from django.db import transaction

from files.models import DownloadLink, PendingDeletion, StoredFile, Upload
from tenants.work.leases import LeaseLost, claim
from vault.stores import ObjectStore, StoreError, get_store


log = logging.getLogger(__name__)

LINK_RETENTION = timedelta(hours=1)  # after they died: longer than a claimed one may be resumed


def erase_object(store: ObjectStore, key: str) -> None:
    """Every version and every unfinished part of one object. Raises StoreError if anything of it remains."""
    if failures := store.erase(list(store.entries(key))):
        raise StoreError(f"{len(failures)} entries remain: {failures[0].reason}")


def delete_due_objects(*, now: datetime, limit: int = 20) -> int:
    """Erases objects that no file needs any more; returns how many are gone."""
    erased = 0
    for erasure in claim(PendingDeletion.objects.filter(due_at__lte=now).order_by("due_at"), now=now, limit=limit):
        try:
            if StoredFile.objects.filter(object_key=erasure.object_key).exists():
                raise AssertionError("a file still names the object")  # a bug must not become a loss
            erase_object(get_store(erasure.store), erasure.object_key)
            erased += erasure.fenced().delete()[0]
        except LeaseLost:
            continue
        except (
            Exception
        ) as error:  # one object that will not go must not hold up the rest; its lease runs out and it is tried again
            log.warning("erasure failed", extra={"object": erasure.object_key, "attempts": erasure.attempts, "error": str(error)})
    return erased


def abandon_stalled_uploads(*, now: datetime, limit: int = 100) -> int:
    """Uploads without a sign of life for 15 minutes: their objects become erasures. Returns how many."""
    stalled = Upload.objects.filter(heartbeat_at__lt=now - timedelta(seconds=Upload.STALLED_AFTER_SECONDS))
    given_up = 0
    for upload in stalled.order_by("heartbeat_at")[:limit]:
        with transaction.atomic():
            # The other contenders are the upload's own commit and its heartbeat: who deletes the row decides over the object.
            if stalled.filter(pk=upload.pk).delete()[0]:
                PendingDeletion.objects.create(store=upload.store, object_key=upload.object_key, due_at=now, requested_at=now)
                given_up += 1
    return given_up


def delete_expired_links(*, now: datetime, limit: int = 1000) -> int:
    dead = DownloadLink.objects.filter(expires_at__lt=now - LINK_RETENTION).values("pk")[:limit]
    return DownloadLink.objects.filter(pk__in=list(dead.values_list("pk", flat=True))).delete()[0]
