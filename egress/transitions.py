"""The one way from state to state: a step, the new status, who hears of it, and the audit row, in the caller's transaction."""

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
    """As it is now. Its collection first, as everybody does who locks more than one thing (files.locks)."""
    if request.collection_id is not None:  # it may have been destroyed just now: then there is nothing to lock
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
    """Moves a locked request, with these fields changed along. Raises WrongState, and leaves it as it is, if that is no way.

    `facts` go on record beside what every step has there, of which `stage` is where it was done. To be called last: the audit
    trail is locked from here to the end of the transaction.
    """
    came_from, stage = State(locked.status), locked.stage + 1
    if to not in TRANSITIONS[came_from]:
        raise errors.WrongState(locked.status)
    changes.setdefault("problem", "")  # what was in the way of the last state is not in the way of this one
    for name, value in changes.items():
        setattr(locked, name, value)
    locked.status, locked.step = to, locked.step + 1
    locked.awaited_role = locked.stages[locked.stage] if to == State.IN_REVIEW else ""
    if to != came_from:
        locked.changed_at, locked.attempts_before = now, locked.attempts
        locked.expires_at = now + timedelta(days=locked.policy["request_expiry_days"]) if to in OPEN else None
    write_step(locked, came_from, by=by, now=now, reason=reason)
    locked.save(update_fields=["status", "step", "awaited_role", "changed_at", "attempts_before", "expires_at", *changes])
    if to not in PINNING:
        _unpin_files(locked)
    if to != came_from and to in COLLECTION_STATUS:
        set_egress_status(locked, _collection_status(locked, to))
    if to in FINAL and locked.package_collection_id is not None:
        Collection.objects.filter(package_of=locked).update(purge_at=now)  # the next tick destroys it
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


def write_step(request: EgressRequest, came_from: str, *, by: User | None, now: datetime, reason: str) -> None:
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
    """What was released of it before stays released, whatever became of this request."""
    status = COLLECTION_STATUS[to]
    earlier = EgressRequest.objects.filter(collection_uuid=request.collection_uuid, released_at__isnull=False)
    return Collection.EgressStatus.PROCESSED if status == Collection.EgressStatus.NONE and earlier.exists() else status


def set_egress_status(request: EgressRequest, status: Collection.EgressStatus) -> None:
    Collection.objects.filter(uuid=request.collection_uuid).update(egress_status=status)


def _unpin_files(request: EgressRequest) -> None:
    """Its files may be changed again, and nobody reads the copies from here on. The tick deletes them."""
    Hold.objects.filter(collection=request.collection_id, kind=Hold.Kind.EGRESS, ref=str(request.pk)).delete()
    request.items.filter(status__in=[StagedFile.Status.PINNED, StagedFile.Status.STAGED]).update(
        status=StagedFile.Status.WIPING, file=None
    )
