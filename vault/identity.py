"""The identity of this deployment: whether the database and its vault belong together, and whether the database is up to date.

The vault has a mark with the database's UUID, and one numbered, signed ledger entry for each destruction, which `purge` writes. A
database that does not know the newest entry is a backup from before it, and its content may have been destroyed since (INV-08,
F-63). A mark with another UUID means that the vault belongs to another database (F-20, F-68).
"""

import json
import threading
import time
from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import F

from tenants import audit
from tenants.work.deadlocks import retry_on_deadlock
from vault import audit_checkpoints, errors, signing
from vault.models import Deployment
from vault.stores import ObjectStore, StoreError, get_store


SYSTEM_PREFIX: Final = ".strongroom/"  # objects without rows, which purge and sweep ignore
MARK_KEY: Final = f"{SYSTEM_PREFIX}deployment.json"
LEDGER_PREFIX: Final = f"{SYSTEM_PREFIX}ledger/"
ENTRIES_PER_FOLDER: Final = 1000
CHECK_SECONDS: Final = 60.0


_checking = threading.Lock()
_checked_at: dict[str, float] = {}  # monotonic time of the last success of each check


# --- Checks ---


def check(*, now: datetime) -> None:
    """Checks that the vault has this database's mark, and no destruction that this database does not know.

    Reads the vault once a minute, and each time after a failure. If the vault is unavailable, the last result applies;
    StorageUnavailable is raised only in a process that has never reached it.

    Raises: ForeignVault, DatabaseRestored, StorageUnavailable.
    """
    # One thread checks. The others do not wait for it if there is an earlier result.
    if _is_fresh("vault") or not _checking.acquire(blocking="vault" not in _checked_at):
        return
    try:
        if not _is_fresh("vault"):
            _check_vault(now)
    finally:
        _checking.release()


def _check_vault(now: datetime) -> None:
    try:
        store = get_store("vault")
        _check_mark(store, now)
        if unknown_ledger_keys(store):
            raise errors.DatabaseRestored
    except (StoreError, FileNotFoundError) as error:
        if "vault" not in _checked_at:
            raise errors.StorageUnavailable from error
    except (errors.ForeignVault, errors.DatabaseRestored):
        _checked_at.pop("vault", None)  # from now on, the other threads wait for the result
        raise
    else:
        _checked_at["vault"] = time.monotonic()


def check_history(*, now: datetime) -> None:
    """Checks that no signed audit event is missing. If one is, objects may seem due or orphaned that are not.

    Raises: DatabaseRestored, StorageUnavailable, WrongKey.
    """
    if _is_fresh("history"):
        return
    try:
        if audit_checkpoints.find_lost_events(now=now):
            raise errors.DatabaseRestored
    except (StoreError, FileNotFoundError) as error:
        raise errors.StorageUnavailable from error
    _checked_at["history"] = time.monotonic()


def clear_checks() -> None:
    """Makes the next checks read the vault."""
    _checked_at.clear()


def _is_fresh(name: str) -> bool:
    return time.monotonic() - _checked_at.get(name, float("-inf")) < CHECK_SECONDS


# --- The ledger ---


def this_deployment() -> Deployment:
    return Deployment.objects.get_or_create(pk=1)[0]


def next_ledger_number() -> int:
    """Returns the number of a new destruction. Call it in the destruction's first transaction: others wait until it ends."""
    this_deployment()
    Deployment.objects.filter(pk=1).update(ledger_number=F("ledger_number") + 1)
    return Deployment.objects.values_list("ledger_number", flat=True).get(pk=1)


def ledger_key(number: int) -> str:
    """The object key of a ledger entry."""
    return f"{LEDGER_PREFIX}{number // ENTRIES_PER_FOLDER:06}/{number:09}.json"


def unknown_ledger_keys(store: ObjectStore, *, every: bool = False) -> list[str]:
    """Returns the object keys of ledger entries with higher numbers than this database knows. Without `every`, only some of them.

    Raises: StoreUnavailable, StoreRefused.
    """
    folder = this_deployment().ledger_number // ENTRIES_PER_FOLDER
    prefixes = [LEDGER_PREFIX] if every else [f"{LEDGER_PREFIX}{number:06}/" for number in (folder, folder + 1)]
    found = [entry.key for prefix in prefixes for entry in store.entries(prefix) if entry.kind == "object"]
    # Read after the listing: a destruction that starts meanwhile gets its number before its entry.
    newest = ledger_key(this_deployment().ledger_number)
    return sorted(key for key in found if key > newest)


# --- The mark ---


@retry_on_deadlock
def adopt_vault(*, now: datetime) -> None:
    """Marks a vault that has no mark as this database's. An operator decides this, after the vault was moved or emptied.

    Raises: ForeignVault, StoreUnavailable, StoreRefused.
    """
    store, deployment = get_store("vault"), this_deployment()
    if _marked_for(store) is None:
        _put_mark(store, deployment)
    if _marked_for(store) != str(deployment.uuid):
        raise errors.ForeignVault
    with transaction.atomic():
        Deployment.objects.filter(pk=1).update(marked_at=now)
        audit.record("deployment.adopt", by=None, tenant=None, target=deployment, now=now)
    clear_checks()


def _check_mark(store: ObjectStore, now: datetime) -> None:
    deployment = this_deployment()
    marked_for = _marked_for(store)
    if marked_for is None and deployment.marked_at is None:
        _put_mark(store, deployment)
        marked_for = _marked_for(store)  # a process with another database may have marked it first
    if marked_for != str(deployment.uuid):
        raise errors.ForeignVault
    if deployment.marked_at is None:
        audit_checkpoints.ensure_signing_key(now=now)  # so that every later backup has the key that signs the ledger
        Deployment.objects.filter(pk=1).update(marked_at=now)


def _marked_for(store: ObjectStore) -> str | None:
    """Returns the UUID in the mark; None if there is no mark, "" if the mark is invalid."""
    try:
        content = signing.read_document(store, MARK_KEY)
    except FileNotFoundError:
        store.check()  # StoreRefused: a bucket that does not exist has no mark either
        return None
    try:
        return str(json.loads(content)["id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _put_mark(store: ObjectStore, deployment: Deployment) -> None:
    try:
        signing.write_document(store, MARK_KEY, signing.canonical_json({"id": str(deployment.uuid), "version": 1}))
    except FileExistsError:
        return
