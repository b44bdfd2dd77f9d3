"""The states of an egress request and the transitions between them.

`TRANSITIONS` is the only definition. The service that changes states, the database trigger, the tests and the diagram in
docs/egress-states.md are derived from it.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from django.db.models import TextChoices


class State(TextChoices):
    SUBMITTED = "submitted", "Submitted"  # its files are pinned and are being copied to staging
    IN_REVIEW = "in_review", "In review"
    APPROVED = "approved", "Approved"  # its package is being built
    RELEASED = "released", "Released"
    CLOSED = "closed", "Closed"
    RETURNED = "returned", "Returned"  # for changes
    REJECTED = "rejected", "Rejected"
    WITHDRAWN = "withdrawn", "Withdrawn"
    EXPIRED = "expired", "Expired"
    FAILED = "failed", "Failed"
    REVOKED = "revoked", "Revoked"


class ActorKind(StrEnum):
    """Who performs a transition. `move` does not check this: each service calls its own access check."""

    REQUESTER = "requester"
    REVIEWER = "reviewer"
    OPERATOR = "operator"
    SYSTEM = "system"


TRANSITIONS: Final[dict[State, dict[State, tuple[ActorKind, ...]]]] = {
    State.SUBMITTED: {
        State.IN_REVIEW: (ActorKind.SYSTEM,),
        State.WITHDRAWN: (ActorKind.REQUESTER,),
        State.EXPIRED: (ActorKind.SYSTEM,),
    },
    State.IN_REVIEW: {
        State.IN_REVIEW: (ActorKind.REVIEWER,),  # the next stage
        State.APPROVED: (ActorKind.REVIEWER,),
        State.REJECTED: (ActorKind.REVIEWER,),
        State.RETURNED: (ActorKind.REVIEWER,),
        State.WITHDRAWN: (ActorKind.REQUESTER,),
        State.EXPIRED: (ActorKind.SYSTEM,),
    },
    State.APPROVED: {
        State.RELEASED: (ActorKind.SYSTEM,),
        State.IN_REVIEW: (ActorKind.SYSTEM,),  # an approver lost the right to approve
        State.FAILED: (ActorKind.SYSTEM,),
    },
    State.FAILED: {
        State.APPROVED: (ActorKind.OPERATOR,),
        State.RETURNED: (ActorKind.REVIEWER,),
        State.WITHDRAWN: (ActorKind.REQUESTER,),
        State.EXPIRED: (ActorKind.SYSTEM,),
    },
    State.RETURNED: {
        State.SUBMITTED: (ActorKind.REQUESTER,),
        State.WITHDRAWN: (ActorKind.REQUESTER,),
        State.EXPIRED: (ActorKind.SYSTEM,),
    },
    State.RELEASED: {
        State.RELEASED: (ActorKind.REVIEWER,),  # extended
        State.CLOSED: (ActorKind.SYSTEM,),
        State.REVOKED: (ActorKind.REVIEWER, ActorKind.OPERATOR),
    },
    State.CLOSED: {},
    State.REJECTED: {},
    State.WITHDRAWN: {},
    State.EXPIRED: {},
    State.REVOKED: {},
}

# Who acts next. None in a final state.
NEXT_ACTORS: Final[dict[State, ActorKind | None]] = {
    State.SUBMITTED: ActorKind.SYSTEM,
    State.IN_REVIEW: ActorKind.REVIEWER,
    State.APPROVED: ActorKind.SYSTEM,
    State.RELEASED: ActorKind.REQUESTER,
    State.RETURNED: ActorKind.REQUESTER,
    State.FAILED: ActorKind.OPERATOR,
    State.CLOSED: None,
    State.REJECTED: None,
    State.WITHDRAWN: None,
    State.EXPIRED: None,
    State.REVOKED: None,
}

# A collection has at most one request in these states. Each such request has a deadline.
OPEN: Final = (State.SUBMITTED, State.IN_REVIEW, State.APPROVED, State.FAILED, State.RETURNED)
# In these states the files of the request cannot be changed.
PINNING: Final = (State.SUBMITTED, State.IN_REVIEW, State.APPROVED, State.FAILED)
FINAL: Final = tuple(state for state, following in TRANSITIONS.items() if not following)


def allowed_transitions() -> Iterator[tuple[State, State, tuple[ActorKind, ...]]]:
    """Triples of source state, target state and actors."""
    for source, following in TRANSITIONS.items():
        for target, movers in following.items():
            yield source, target, movers


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    arrows = [f"    {source} --> {target}: {' or '.join(movers)}" for source, target, movers in allowed_transitions()]
    ends = [f"    {state} --> [*]" for state in FINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.SUBMITTED}: {ActorKind.REQUESTER}", *arrows, *ends]) + "\n"
