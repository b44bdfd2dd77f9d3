"""Whether this database and its vault belong together, and whether the one is as young as the other.

The vault has a mark with the database's uuid, and one numbered, signed entry for each destruction: the ledger, which `purge`
writes. A database that does not know the newest entry is a backup from before; what it would show may have been destroyed since
(INV-08, F-63). One with another uuid is somebody else's (F-20, F-68).
"""

import json
import threading
import time
from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import F

from tenants import audit
from tenants.retries import retried
from vault import audit_checkpoints, errors, signing
from vault.models import Deployment
from vault.stores import ObjectStore, StoreError, get_store


OWN: Final = ".strongroom/"  # what no row names: neither purge nor sweep touches it
MARK: Final = f"{OWN}deployment.json"
LEDGER: Final = f"{OWN}ledger/"
PER_FOLDER: Final = 1000
CHECK_SECONDS: Final = 60.0


_asking = threading.Lock()
_checked_at: dict[str, float] = {}  # what, and the monotonic time at which it was well


def check(*, now: datetime) -> None:
    """Raises ForeignVault, or DatabaseRestored if something was destroyed that this database does not know of.

    Asks the vault once a minute, and each time while something is wrong. One that does not answer says nothing new:
    StoreUnavailable only in a process that has never reached it.
    """
    # One thread asks; who knows of an earlier answer does not wait for it.
    if _is_fresh("vault") or not _asking.acquire(blocking="vault" not in _checked_at):
        return
    try:
        if not _is_fresh("vault"):
            _ask_vault(now)
    finally:
        _asking.release()


def _ask_vault(now: datetime) -> None:
    try:
        store = get_store("vault")
        _check_mark(store, now)
        if unknown_entries(store):
            raise errors.DatabaseRestored
    except (StoreError, FileNotFoundError) as error:
        if "vault" not in _checked_at:
            raise errors.StorageUnavailable from error
    except (errors.ForeignVault, errors.DatabaseRestored):
        _checked_at.pop("vault", None)  # the others wait for the answer from here on
        raise
    else:
        _checked_at["vault"] = time.monotonic()


def check_history(*, now: datetime) -> None:
    """Raises DatabaseRestored if something happened that this database does not know of: what is due by it, or an orphan by it,
    may be so no longer. Also StoreUnavailable, and WrongKey if the keyring does not open the key that signed."""
    if _is_fresh("history"):
        return
    try:
        if audit_checkpoints.lost(now=now):
            raise errors.DatabaseRestored
    except (StoreError, FileNotFoundError) as error:
        raise errors.StorageUnavailable from error
    _checked_at["history"] = time.monotonic()


def forget() -> None:
    """The next checks ask the vault."""
    _checked_at.clear()


def _is_fresh(what: str) -> bool:
    return time.monotonic() - _checked_at.get(what, float("-inf")) < CHECK_SECONDS


def current() -> Deployment:
    return Deployment.objects.get_or_create(pk=1)[0]


def next_number() -> int:
    """The number of one more destruction. To be called in its first transaction: others wait for its end."""
    current()
    Deployment.objects.filter(pk=1).update(ledger_number=F("ledger_number") + 1)
    return Deployment.objects.values_list("ledger_number", flat=True).get(pk=1)


def entry_name(number: int) -> str:
    return f"{LEDGER}{number // PER_FOLDER:06}/{number:09}.json"


def unknown_entries(store: ObjectStore, *, every: bool = False) -> list[str]:
    """Names of entries with numbers that this database has not come to; unless all are wanted, some of them if there are any."""
    folder = current().ledger_number // PER_FOLDER
    places = [LEDGER] if every else [f"{LEDGER}{following:06}/" for following in (folder, folder + 1)]
    there = [entry.key for place in places for entry in store.entries(place) if entry.kind == "object"]
    # Read behind the listing: a destruction of this moment has its number before it has its entry.
    newest = entry_name(current().ledger_number)
    return sorted(name for name in there if name > newest)


@retried
def adopt(*, now: datetime) -> None:
    """An operator says that this vault is this database's, though the mark is not there: it was moved, or emptied by intent.

    Raises ForeignVault if it has somebody else's mark.
    """
    store, deployment = get_store("vault"), current()
    if _marked_for(store) is None:
        _put_mark(store, deployment)
    if _marked_for(store) != str(deployment.uuid):
        raise errors.ForeignVault
    with transaction.atomic():
        Deployment.objects.filter(pk=1).update(marked_at=now)
        audit.record("deployment.adopt", by=None, tenant=None, target=deployment, now=now)
    forget()


def _check_mark(store: ObjectStore, now: datetime) -> None:
    deployment = current()
    marked_for = _marked_for(store)
    if marked_for is None and deployment.marked_at is None:
        _put_mark(store, deployment)
        marked_for = _marked_for(store)  # another process may have been faster, with another database
    if marked_for != str(deployment.uuid):
        raise errors.ForeignVault
    if deployment.marked_at is None:
        audit_checkpoints.ensure_signing_key(now=now)  # what the ledger is signed with is in every backup from here on
        Deployment.objects.filter(pk=1).update(marked_at=now)


def _marked_for(store: ObjectStore) -> str | None:
    try:
        content = signing.fetch(store, MARK)
    except FileNotFoundError:
        store.check()  # StoreRefused: a bucket that is not there has no mark either
        return None
    try:
        return str(json.loads(content)["id"])
    except (ValueError, KeyError, TypeError):
        return ""  # nobody's


def _put_mark(store: ObjectStore, deployment: Deployment) -> None:
    try:
        signing.put(store, MARK, signing.canonical({"id": str(deployment.uuid), "version": 1}))
    except FileExistsError:
        return
