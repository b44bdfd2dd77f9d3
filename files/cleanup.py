"""Clean-up of objects, stalled uploads and expired links. Each call does a limited amount of work; ticks call again."""

import logging
from datetime import datetime, timedelta

from django.db import transaction

from files.models import DownloadLink, PendingDeletion, StoredFile, Upload
from tenants.work.leases import LeaseLost, claim
from vault.stores import ObjectStore, StoreError, get_store


log = logging.getLogger(__name__)

LINK_RETENTION = timedelta(hours=1)  # after the expiry; must be longer than links.RESUME_WINDOW


def erase_object(store: ObjectStore, key: str) -> None:
    """Deletes every version and every unfinished multipart upload of one object.

    Raises: StoreError, StoreRefused, StoreUnavailable.
    """
    if failures := store.erase(list(store.entries(key))):
        raise StoreError(f"{len(failures)} entries remain: {failures[0].reason}")


def delete_due_objects(*, now: datetime, limit: int = 20) -> int:
    """Deletes the objects that are due for deletion. Returns how many it deleted."""
    deleted = 0
    for deletion in claim(PendingDeletion.objects.filter(due_at__lte=now).order_by("due_at"), now=now, limit=limit):
        try:
            if StoredFile.objects.filter(object_key=deletion.object_key).exists():
                raise AssertionError("a file still uses the object")  # a bug must not cause data loss
            erase_object(get_store(deletion.store), deletion.object_key)
            deleted += deletion.fenced().delete()[0]
        except LeaseLost:
            continue
        except Exception as error:  # One failure must not block the other objects. It is retried when its lease expires.
            facts = {"object": deletion.object_key, "attempts": deletion.attempts, "error": str(error)}
            log.warning("deleting an object failed", extra=facts)
    return deleted


def abandon_stalled_uploads(*, now: datetime, limit: int = 100) -> int:
    """Ends uploads without a heartbeat for 15 minutes and queues their objects for deletion. Returns how many it ended."""
    stalled = Upload.objects.filter(heartbeat_at__lt=now - timedelta(seconds=Upload.STALLED_AFTER_SECONDS))
    abandoned = 0
    for upload in stalled.order_by("heartbeat_at")[:limit]:
        with transaction.atomic():
            # The other contenders are the upload's commit and its heartbeat. The one that deletes the row owns the object.
            if stalled.filter(pk=upload.pk).delete()[0]:
                PendingDeletion.objects.create(store=upload.store, object_key=upload.object_key, due_at=now, requested_at=now)
                abandoned += 1
    return abandoned


def delete_expired_links(*, now: datetime, limit: int = 1000) -> int:
    """Deletes links `LINK_RETENTION` after their expiry. Returns how many it deleted."""
    expired = DownloadLink.objects.filter(expires_at__lt=now - LINK_RETENTION).values("pk")[:limit]
    return DownloadLink.objects.filter(pk__in=list(expired.values_list("pk", flat=True))).delete()[0]
