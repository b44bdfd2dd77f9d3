"""A database that was restored from a backup: what was destroyed since is destroyed in it again before it serves (F-63)."""

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

FEW: Final = 10  # entries that are applied without an operator


class UnsignedEntries(Exception):
    """There are entries that nobody signed. The text names them."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What the vault has and the database lacks."""

    entries: list[LedgerEntry]
    problems: list[str]  # entries that nobody signed
    lost: Checkpoint | None  # it names audit events that are gone


def find_gap(*, now: datetime) -> Gap:
    """Raises StoreError, FileNotFoundError, WrongKey."""
    entries, problems = ledger.find_unknown_entries()
    return Gap(entries, problems, audit_checkpoints.find_lost_events(now=now))


def close_gap(gap: Gap, *, now: datetime, lost_too: bool) -> int:
    """Destroys what the entries name, as far as the database brought it back; returns how many collections that is.

    `lost_too`: an operator accepts that events are lost. Raises UnsignedEntries, and has done nothing then.
    """
    if gap.problems:
        raise UnsignedEntries("; ".join(gap.problems))
    destroyed = 0
    for entry in gap.entries:
        if collection := Collection.objects.filter(uuid=entry.collection).first():
            destroyed += destruction.redo_from_ledger(collection, entry, now=now) is not None
    _note(gap, destroyed, lost_until=gap.lost.key if gap.lost and lost_too else "", now=now)
    identity.clear_checks()
    return destroyed


@retry_on_deadlock
def _note(gap: Gap, destroyed: int, *, lost_until: str, now: datetime) -> None:
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
    """Whether work may go on: the vault is ours, and nothing was destroyed that we do not know of.

    A few entries are applied; many, or unsigned ones, wait for an operator.
    """
    try:
        try:
            identity.check(now=now)
        except errors.DatabaseRestored:
            gap = find_gap(now=now)
            if len(gap.entries) > FEW:
                raise
            close_gap(gap, now=now, lost_too=False)
            log.warning("a restored database: the ledger was applied", extra={"entries": len(gap.entries)})
            identity.check(now=now)
    except (errors.ForeignVault, errors.DatabaseRestored, UnsignedEntries, WrongKey) as error:
        log_throttled("nothing is destroyed until an operator has looked: manage.py ledger", error=str(error))
        return False
    except (StoreError, FileNotFoundError, errors.StorageUnavailable):
        return False
    return True


def has_whole_history(*, now: datetime) -> bool:
    """Whether what is due by this database still is: a backup does not know what was kept, held or restored since."""
    try:
        identity.check_history(now=now)
    except (errors.DatabaseRestored, WrongKey) as error:
        log_throttled("nothing new is destroyed until an operator has looked: manage.py ledger", error=str(error))
        return False
    except errors.StorageUnavailable:
        return False
    return True
