"""The one way from state to state: a step, the new status, who hears of it, and the audit row, in the caller's transaction."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from egress import errors, letters
from egress.models import EgressRequest, Item, Step
from egress.states import FINAL, OPEN, PINNING, TRANSITIONS, State
from files.locks import lock_collection
from files.models import Collection, Hold
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User


ABOUT_COLLECTION: Final = {
    State.RELEASED: Collection.EgressStatus.PROCESSED,
    State.REJECTED: Collection.EgressStatus.PENDING,
    State.WITHDRAWN: Collection.EgressStatus.NONE,
    State.EXPIRED: Collection.EgressStatus.NONE,
}


def lock_request(request: EgressRequest) -> EgressRequest:
    """As it is now. Its collection first, as everybody does who locks more than one thing (files.locks)."""
    if request.collection is not None:
        with suppress(NotFound):  # destroyed just now
            lock_collection(request.collection)
    locked = EgressRequest.objects.select_for_update(of=("self",)).select_related("tenant").filter(pk=request.pk).first()
    if locked is None:
        raise NotFound
    return locked


def move(
    locked: EgressRequest, to: State, *, by: User | None, now: datetime, reason: str = "", action: str, **changes: Any
) -> None:
    """Moves a locked request, with these fields changed along. Raises WrongState, and leaves it as it is, if that is no way.

    To be called last: the audit trail is locked from here to the end of the transaction.
    """
    came_from = State(locked.status)
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
        _let_go(locked)
    if about := ABOUT_COLLECTION.get(to):
        set_egress_status(locked, about)
    if to in FINAL and locked.package_collection_id is not None:
        Collection.objects.filter(package_of=locked).update(purge_at=now)  # the next tick destroys it
    letters.announce(locked, now=now)
    audit.record(
        action,
        by=by,
        tenant=locked.tenant,
        target=locked,
        now=now,
        came_from=came_from,
        came_to=to,
        round=locked.round,
        stage=locked.stage + 1,
        reason=reason,
    )


def write_step(request: EgressRequest, came_from: str, *, by: User | None, now: datetime, reason: str) -> None:
    Step.objects.create(
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


def set_egress_status(request: EgressRequest, status: Collection.EgressStatus) -> None:
    Collection.objects.filter(uuid=request.collection_uuid).update(egress_status=status)


def _let_go(request: EgressRequest) -> None:
    """Its files may be changed again, and nobody reads the copies from here on. The tick deletes them."""
    Hold.objects.filter(kind=Hold.Kind.EGRESS, ref=str(request.pk)).delete()
    request.items.filter(status__in=[Item.Status.PINNED, Item.Status.STAGED]).update(status=Item.Status.WIPING, file=None)
