"""The end of a single file: the row goes, and with it the only copy of its key salt, so that the object is noise from then on."""

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
    """Files that can go and that nothing holds, in batches. Of these collections only, if any are given."""
    for rule in FILE_RULES:
        free, last = files_due(rule, now, is_held=False, slugs=slugs).order_by("pk"), 0
        while batch := list(free.filter(pk__gt=last)[:BATCH]):  # one that will not go is not met again
            yield batch
            last = batch[-1].pk


def destroy_each(files: Iterable[StoredFile], *, by: User | None, now: datetime) -> int:
    """Returns how many are gone."""
    return sum(_attempt(file, by=by, now=now) for file in files)


@retry_on_deadlock
def destroy(file: StoredFile, *, by: User | None, now: datetime) -> bool:
    """False if there is no reason to, as the locked rows stand, or a hold against it. The object goes within a tick or two."""
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
    return False  # somebody else was faster


def _attempt(file: StoredFile, *, by: User | None, now: datetime) -> bool:
    try:
        return destroy(file, by=by, now=now)
    except Exception:  # one file that cannot go must not hold up the rest
        log.exception("a file was not destroyed", extra={"file": str(file.uuid)})
        return False
