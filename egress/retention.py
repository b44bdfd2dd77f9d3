"""Functions that `purge` calls before it destroys a collection or issues its certificate."""

from datetime import datetime

from django.db import transaction

from egress.models import EgressRequest, StagedFile
from egress.states import OPEN, State
from egress.transitions import lock_request, move
from files.models import Collection, StoredFile


def packages_in_window(collection: Collection) -> list[EgressRequest]:
    """Released requests of this collection whose package is available. The package outlives the collection (INV-07)."""
    released = EgressRequest.objects.filter(collection_uuid=collection.uuid, status=State.RELEASED)
    return list(released.select_related("package_collection").order_by("released_at"))


def end_open_requests(collection: Collection, *, now: datetime) -> None:
    """Ends the open request of a collection that must be destroyed despite its holds. Uses the caller's transaction.

    Raises: NotFound, WrongState.
    """
    for request in EgressRequest.objects.filter(collection_uuid=collection.uuid, status__in=OPEN):
        locked = lock_request(request)
        if locked.status == State.APPROVED:
            _move_by_system(locked, State.FAILED, "egress.fail", now)
        if locked.status in OPEN:
            _move_by_system(locked, State.EXPIRED, "egress.expire", now)


def _move_by_system(locked: EgressRequest, to: State, action: str, now: datetime) -> None:
    move(locked, to, by=None, now=now, action=action, reason="The collection was destroyed.")


def detach_rows(collection: Collection) -> None:
    """Removes all references to the collection and its files. Requests keep the names and digests of both."""
    with transaction.atomic():
        StagedFile.objects.filter(file__in=StoredFile.objects.filter(collection=collection)).update(file=None)
        EgressRequest.objects.filter(collection=collection).update(collection=None)
        EgressRequest.objects.filter(package_collection=collection).update(package_collection=None)
