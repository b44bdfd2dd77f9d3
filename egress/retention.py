"""What purge asks of egress before it removes a collection, and what it says of it on the certificate."""

from datetime import datetime

from django.db import transaction

from egress.models import EgressRequest, StagedFile
from egress.states import OPEN, State
from egress.transitions import lock_request, move
from files.models import Collection, StoredFile


def packages_in_window(collection: Collection) -> list[EgressRequest]:
    """Released from this collection, and still to be had: they outlive it, which its certificate says (INV-07)."""
    released = EgressRequest.objects.filter(collection_uuid=collection.uuid, status=State.RELEASED)
    return list(released.select_related("package_collection").order_by("released_at"))


def end_open_requests(collection: Collection, *, now: datetime) -> None:
    """In the caller's transaction: ends the open request about a collection that has to go whatever holds it."""
    for request in EgressRequest.objects.filter(collection_uuid=collection.uuid, status__in=OPEN):
        locked = lock_request(request)
        if locked.status == State.APPROVED:
            _move_by_system(locked, State.FAILED, "egress.fail", now)
        if locked.status in OPEN:
            _move_by_system(locked, State.EXPIRED, "egress.expire", now)


def _move_by_system(locked: EgressRequest, to: State, action: str, now: datetime) -> None:
    move(locked, to, by=None, now=now, action=action, reason="The collection was destroyed.")


def detach_rows(collection: Collection) -> None:
    """Nothing here points at the collection or its files any more. Requests stay, with what they were about."""
    with transaction.atomic():
        StagedFile.objects.filter(file__in=StoredFile.objects.filter(collection=collection)).update(file=None)
        EgressRequest.objects.filter(collection=collection).update(collection=None)
        EgressRequest.objects.filter(package_collection=collection).update(package_collection=None)
