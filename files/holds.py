"""Holds: they prevent the modification and deletion of a collection or one file. All operations lock the collection."""

from datetime import datetime

from django.db import transaction
from django.db.models import Q, QuerySet

from files import errors
from files.access import check_can_place_hold
from files.filenames import unique_key
from files.locks import lock_collection
from files.models import Collection, Hold, StoredFile
from tenants import audit
from tenants.errors import Invalid, NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


def holds_on(collection: Collection, file: StoredFile | None = None) -> QuerySet[Hold]:
    """The holds on a file and on its whole collection or, without a file, all holds on the collection and its files."""
    holds = Hold.objects.filter(collection=collection)
    return holds.filter(Q(file=file) | Q(file=None)) if file else holds


def check_not_held(collection: Collection, file: StoredFile | None = None) -> None:
    """Checks that there is no hold. The error names the kinds of holds but not their reasons, which only managers can see.

    The collection must be locked, so that no other transaction can place a hold after the check.

    Raises: Held.
    """
    if kinds := sorted(set(holds_on(collection, file).values_list("kind", flat=True))):
        holds = " and ".join(f"{kind} hold" for kind in kinds)
        raise errors.Held(f"This cannot be changed or deleted while it is under {holds}.")


@retry_on_deadlock
def place(collection: Collection, *, filename: str | None, ref: str, reason: str, by: User, now: datetime) -> Hold:
    """Places a legal hold on one file or, if `filename` is None, on the collection with all its current and future files.

    Raises: Invalid, NotFound, NotOpen, Refused.
    """
    with transaction.atomic():
        locked = lock_collection(collection)
        check_can_place_hold(by, locked)
        if locked.status not in {Collection.Status.OPEN, Collection.Status.DELETED}:
            raise errors.NotOpen("The collection is being purged, so it can no longer be held.")
        file = _find_file(locked, filename) if filename is not None else None
        hold = Hold.objects.create(
            collection=locked,
            file=file,
            kind=Hold.Kind.LEGAL,
            ref=ref,
            reason=reason,
            placed_at=now,
            placed_by=by,
        )
        _record("hold.place", hold, locked, file, by=by, now=now, reason=reason)
    return hold


@retry_on_deadlock
def lift(hold: Hold, *, by: User, now: datetime) -> None:
    """Lifts a legal hold. An egress request lifts its holds itself.

    Raises: NotALegalHold, NotFound, Refused.
    """
    with transaction.atomic():
        locked = lock_collection(hold.collection)
        check_can_place_hold(by, locked)
        stored = Hold.objects.select_related("file").filter(pk=hold.pk).first()
        if stored is None:
            raise NotFound  # another request lifted it first
        if stored.kind != Hold.Kind.LEGAL:
            raise errors.NotALegalHold
        stored.delete()
        _record("hold.lift", hold, locked, stored.file, by=by, now=now)


def _record(
    action: str, hold: Hold, collection: Collection, file: StoredFile | None, *, by: User, now: datetime, **facts: str
) -> None:
    audit.record(
        action, by=by, tenant=collection.tenant, target=file or collection, now=now, hold=str(hold.pk), ref=hold.ref, **facts
    )


def _find_file(collection: Collection, filename: str) -> StoredFile:
    file = collection.files.filter(name_key=unique_key(filename)).first()
    if file is None:
        raise Invalid("file", "The collection has no file with this name.", code="unknown_file")
    return file
