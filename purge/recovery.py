"""Recovery of a database that was restored from a backup. Collections that were destroyed after the backup are destroyed again
before the server provides any content (F-63).
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.db import transaction

from files.models import Collection
from purge import destruction, ledger
from purge.ledger import LedgerEntry
from purge.limits import log_throttled
from tenants import audit
from tenants.work.deadlocks import retry_on_deadlock
from vault import audit_checkpoints, errors, identity
from vault.audit_checkpoints import Checkpoint
from vault.crypto import WrongKey
from vault.models import Deployment
from vault.stores import StoreError


log = logging.getLogger(__name__)

MAX_AUTOMATIC_ENTRIES: Final = 10  # more ledger entries than this wait for an operator


class UnsignedEntries(Exception):
    """Ledger entries have no valid signature. The text names them."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is recorded in the vault and missing in the database."""

    entries: list[LedgerEntry]
    problems: list[str]  # one line for each entry without a valid signature
    lost: Checkpoint | None  # the audit checkpoint whose events are missing


def find_gap(*, now: datetime) -> Gap:
    """Compares the database with the ledger and the audit checkpoints in the vault.

    Raises: StoreUnavailable, StoreRefused, FileNotFoundError, WrongKey.
    """
    entries, problems = ledger.find_unknown_entries()
    return Gap(entries, problems, audit_checkpoints.find_lost_events(now=now))


def close_gap(gap: Gap, *, now: datetime, accept_lost_events: bool) -> int:
    """Destroys the collections that the ledger entries name and that exist again; returns their number.

    `accept_lost_events` records that an operator accepts the loss of audit events. If any entry is unsigned, nothing is changed.

    Raises: UnsignedEntries, WrongState.
    """
    if gap.problems:
        raise UnsignedEntries("; ".join(gap.problems))
    destroyed = 0
    for entry in gap.entries:
        if collection := Collection.objects.filter(uuid=entry.collection).first():
            destroyed += destruction.redo_from_ledger(collection, entry, now=now) is not None
    _record(gap, destroyed, lost_until=gap.lost.key if gap.lost and accept_lost_events else "", now=now)
    identity.clear_checks()
    return destroyed


@retry_on_deadlock
def _record(gap: Gap, destroyed: int, *, lost_until: str, now: datetime) -> None:
    here = identity.this_deployment()
    changes: dict[str, int | str] = {}
    if gap.entries:
        changes["ledger_number"] = gap.entries[-1].number
    if lost_until:
        changes["lost_until"] = lost_until
    if not changes:
        return
    with transaction.atomic():
        Deployment.objects.filter(pk=here.pk).update(**changes)
        audit.record("deployment.catch_up", by=None, tenant=None, target=here, now=now, destroyed=destroyed, **changes)


def catch_up(*, now: datetime) -> bool:
    """Whether the vault belongs to this database and the database knows all destructions; applies up to ten missing entries.

    More entries, or entries without a valid signature, wait for an operator.

    Raises: WrongState.
    """
    try:
        try:
            identity.check(now=now)
        except errors.DatabaseRestored:
            gap = find_gap(now=now)
            if len(gap.entries) > MAX_AUTOMATIC_ENTRIES:
                raise
            close_gap(gap, now=now, accept_lost_events=False)
            log.warning("the ledger was applied to a restored database", extra={"entries": len(gap.entries)})
            identity.check(now=now)
    except (errors.ForeignVault, errors.DatabaseRestored, UnsignedEntries, WrongKey) as error:
        log_throttled("no destruction until an operator has run `manage.py ledger`", error=str(error))
        return False
    except (StoreError, FileNotFoundError, errors.StorageUnavailable):
        return False
    return True


def has_complete_history(*, now: datetime) -> bool:
    """Whether the database has all signed audit events. A backup lacks later events, such as a new hold or a changed purge date,
    so no destruction may start from it."""
    try:
        identity.check_history(now=now)
    except (errors.DatabaseRestored, WrongKey) as error:
        log_throttled("no new destruction until an operator has run `manage.py ledger`", error=str(error))
        return False
    except errors.StorageUnavailable:
        return False
    return True
