"""The only code that changes the status of a request. Also writes the transition, mails and audit event, in one transaction."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from egress import errors, notifications
from egress.models import EgressRequest, StagedFile, Transition
from egress.states import FINAL, OPEN, PINNING, TRANSITIONS, State
from files.models import Collection, Hold
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User


COLLECTION_STATUS: Final = {
    State.RELEASED: Collection.EgressStatus.PROCESSED,
    State.REJECTED: Collection.EgressStatus.PENDING,
    State.WITHDRAWN: Collection.EgressStatus.NONE,
    State.EXPIRED: Collection.EgressStatus.NONE,
}


def lock_request(request: EgressRequest) -> EgressRequest:
    """Locks the collection, then the request, in the order of `files.locks`. Returns the current row of the request.

    Raises: NotFound.
    """
    if request.collection_id is not None:  # The collection may be destroyed concurrently. Then only the request is locked.
        Collection.objects.select_for_update(of=("self",)).filter(pk=request.collection_id).first()
    locked = EgressRequest.objects.select_for_update(of=("self",)).select_related("tenant").filter(pk=request.pk).first()
    if locked is None:
        raise NotFound
    return locked


def move(
    locked: EgressRequest,
    to: State,
    *,
    by: User | None,
    now: datetime,
    reason: str = "",
    action: str,
    facts: Mapping[str, str | int] | None = None,
    **changes: Any,
) -> None:
    """Changes the status of a locked request and sets the fields in `changes`. `facts` are added to the audit event.

    The audit event names the stage before the change. Call `move` last in a transaction, because it locks the audit trail until
    the end of the transaction.

    Raises: WrongState.
    """
    came_from, stage = State(locked.status), locked.stage + 1
    if to not in TRANSITIONS[came_from]:
        raise errors.WrongState(locked.status)
    changes.setdefault("problem", "")  # The blocking reason of the previous status no longer applies.
    for name, value in changes.items():
        setattr(locked, name, value)
    locked.status, locked.step = to, locked.step + 1
    locked.awaited_role = locked.stages[locked.stage] if to == State.IN_REVIEW else ""
    if to != came_from:
        locked.changed_at, locked.attempts_before = now, locked.attempts
        locked.expires_at = now + timedelta(days=locked.policy["request_expiry_days"]) if to in OPEN else None
    write_transition(locked, came_from, by=by, now=now, reason=reason)
    locked.save(update_fields=["status", "step", "awaited_role", "changed_at", "attempts_before", "expires_at", *changes])
    if to not in PINNING:
        _unpin_files(locked)
    if to != came_from and to in COLLECTION_STATUS:
        set_egress_status(locked, _collection_status(locked, to))
    if to in FINAL and locked.package_collection_id is not None:
        Collection.objects.filter(package_of=locked).update(purge_at=now)  # The next tick destroys the package.
    notifications.announce(locked, now=now)
    audit.record(
        action,
        by=by,
        tenant=locked.tenant,
        target=locked,
        now=now,
        came_from=came_from,
        came_to=to,
        round=locked.round,
        stage=stage,
        reason=reason,
        **(facts or {}),
    )


def write_transition(request: EgressRequest, came_from: str, *, by: User | None, now: datetime, reason: str) -> None:
    """Adds the current status of the request to its timeline."""
    Transition.objects.create(
        request=request,
        number=request.step,
        from_status=came_from,
        to_status=request.status,
        round=request.round,
        stage=request.stage,
        at=now,
        by=by,
        by_name=by.username if by else "system",
        reason=reason,
    )


def _collection_status(request: EgressRequest, to: State) -> Collection.EgressStatus:
    """The status to show on the collection. A collection with an earlier release stays `processed`."""
    status = COLLECTION_STATUS[to]
    earlier = EgressRequest.objects.filter(collection_uuid=request.collection_uuid, released_at__isnull=False)
    return Collection.EgressStatus.PROCESSED if status == Collection.EgressStatus.NONE and earlier.exists() else status


def set_egress_status(request: EgressRequest, status: Collection.EgressStatus) -> None:
    """Sets the egress status of the request's collection, if the collection exists."""
    Collection.objects.filter(uuid=request.collection_uuid).update(egress_status=status)


def _unpin_files(request: EgressRequest) -> None:
    """Releases the holds, so that the files can be changed again. Marks the copies for deletion by the next tick."""
    Hold.objects.filter(collection=request.collection_id, kind=Hold.Kind.EGRESS, ref=str(request.pk)).delete()
    request.items.filter(status__in=[StagedFile.Status.PINNED, StagedFile.Status.STAGED]).update(
        status=StagedFile.Status.WIPING, file=None
    )
