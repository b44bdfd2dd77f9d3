"""Holds: what keeps a collection, or one file, from being changed and destroyed. All under the collection's lock."""

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
    """What keeps this file as it is; without one, what keeps the collection: holds on its files count, too."""
    holds = Hold.objects.filter(collection=collection)
    return holds.filter(Q(file=file) | Q(file=None)) if file else holds


def check_not_held(collection: Collection, file: StoredFile | None = None) -> None:
    """Raises Held, which says what kinds of holds there are, and nothing of their reasons: those are for managers.

    To be called on the locked collection, so that no hold comes between.
    """
    if kinds := sorted(set(holds_on(collection, file).values_list("kind", flat=True))):
        raise errors.Held(f"This stays as it is: it is under {' and '.join(f'{kind} hold' for kind in kinds)}.")


@retry_on_deadlock
def place(collection: Collection, *, filename: str | None, ref: str, reason: str, by: User, now: datetime) -> Hold:
    """A legal hold on one file, or on the collection with all that it has and will have."""
    with transaction.atomic():
        locked = lock_collection(collection)
        check_can_place_hold(by, locked)
        if locked.status not in {Collection.Status.OPEN, Collection.Status.DELETED}:
            raise errors.NotOpen("The collection is being destroyed.")
        file = _named(locked, filename) if filename is not None else None
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
    with transaction.atomic():
        locked = lock_collection(hold.collection)
        check_can_place_hold(by, locked)
        stored = Hold.objects.select_related("file").filter(pk=hold.pk).first()
        if stored is None:
            raise NotFound  # somebody else was faster
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


def _named(collection: Collection, filename: str) -> StoredFile:
    file = collection.files.filter(name_key=unique_key(filename)).first()
    if file is None:
        raise Invalid("file", "The collection has no file of this name.", code="unknown_file")
    return file
