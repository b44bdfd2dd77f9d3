"""Destroys single files. Deleting the row deletes the only copy of the key salt: the object can no longer be decrypted."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Final

from django.db import transaction

from files import holds
from files.locks import lock_file
from files.models import StoredFile
from files.services import delete_locked_file
from purge.rules import FILE_RULES, file_rule_for, files_due
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


log = logging.getLogger(__name__)

BATCH: Final = 500


def find_destroyable(now: datetime, *, slugs: list[str] | None = None) -> Iterator[list[StoredFile]]:
    """Yields batches of due files that are not held. Non-empty `slugs` limit the search to these collections."""
    for rule in FILE_RULES:
        free, last = files_due(rule, now, is_held=False, slugs=slugs).order_by("pk"), 0
        while batch := list(free.filter(pk__gt=last)[:BATCH]):  # each file is returned once, even if it is not deleted
            yield batch
            last = batch[-1].pk


def destroy_each(files: Iterable[StoredFile], *, by: User | None, now: datetime) -> int:
    """Destroys those of the files that are still due; returns their number. The error of one file does not stop the others."""
    return sum(_attempt(file, by=by, now=now) for file in files)


@retry_on_deadlock
def destroy(file: StoredFile, *, by: User | None, now: datetime) -> bool:
    """Destroys a file that is due; the object is deleted within a few seconds.

    Returns False if the locked row is not due, is held, or no longer exists.
    """
    with suppress(NotFound), transaction.atomic():
        collection, locked = lock_file(file)
        rule = file_rule_for(locked, now)
        if rule is None or holds.holds_on(collection, locked).exists():
            return False
        explanation = rule.explain(locked, now)
        delete_locked_file(collection, locked, now=now)
        audit.record(
            "file.purge",
            by=by,
            tenant=collection.tenant,
            target=file,
            now=now,
            collection=str(collection.uuid),
            filename=locked.filename,
            length=locked.length,
            sha256=locked.sha256,
            reason=rule.reason,
            explanation=explanation,
        )
        return True
    return False  # another worker or a user has already deleted it


def _attempt(file: StoredFile, *, by: User | None, now: datetime) -> bool:
    try:
        return destroy(file, by=by, now=now)
    except Exception:  # one failure must not stop the rest
        log.exception("a file was not destroyed", extra={"file": str(file.uuid)})
        return False
