"""The states of an egress request, and who may move it from which to which. Everything else that knows of them reads this table:
the service that moves a request, the database's guard, the tests, and the diagram in docs/egress-states.md.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from django.db.models import TextChoices


class State(TextChoices):
    SUBMITTED = "submitted", "Submitted"  # pinned, and being copied to staging
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


class By(StrEnum):
    """Who moves a request. `move` asks nobody for it: each service checks its own."""

    REQUESTER = "requester"
    REVIEWER = "reviewer"
    OPERATOR = "operator"
    SYSTEM = "system"


TRANSITIONS: Final[dict[State, dict[State, tuple[By, ...]]]] = {
    State.SUBMITTED: {
        State.IN_REVIEW: (By.SYSTEM,),
        State.WITHDRAWN: (By.REQUESTER,),
        State.EXPIRED: (By.SYSTEM,),
    },
    State.IN_REVIEW: {
        State.IN_REVIEW: (By.REVIEWER,),  # the next stage
        State.APPROVED: (By.REVIEWER,),
        State.REJECTED: (By.REVIEWER,),
        State.RETURNED: (By.REVIEWER,),
        State.WITHDRAWN: (By.REQUESTER,),
        State.EXPIRED: (By.SYSTEM,),
    },
    State.APPROVED: {
        State.RELEASED: (By.SYSTEM,),
        State.IN_REVIEW: (By.SYSTEM,),  # somebody who approved may not any more
        State.FAILED: (By.SYSTEM,),
    },
    State.FAILED: {
        State.APPROVED: (By.OPERATOR,),
        State.RETURNED: (By.REVIEWER,),
        State.WITHDRAWN: (By.REQUESTER,),
        State.EXPIRED: (By.SYSTEM,),
    },
    State.RETURNED: {
        State.SUBMITTED: (By.REQUESTER,),
        State.WITHDRAWN: (By.REQUESTER,),
        State.EXPIRED: (By.SYSTEM,),
    },
    State.RELEASED: {
        State.RELEASED: (By.REVIEWER,),  # extended
        State.CLOSED: (By.SYSTEM,),
        State.REVOKED: (By.REVIEWER, By.OPERATOR),
    },
    State.CLOSED: {},
    State.REJECTED: {},
    State.WITHDRAWN: {},
    State.EXPIRED: {},
    State.REVOKED: {},
}

# Whose turn it is. Nobody's, once it has ended.
OWNERS: Final[dict[State, By | None]] = {
    State.SUBMITTED: By.SYSTEM,
    State.IN_REVIEW: By.REVIEWER,
    State.APPROVED: By.SYSTEM,
    State.RELEASED: By.REQUESTER,
    State.RETURNED: By.REQUESTER,
    State.FAILED: By.OPERATOR,
    State.CLOSED: None,
    State.REJECTED: None,
    State.WITHDRAWN: None,
    State.EXPIRED: None,
    State.REVOKED: None,
}

# A collection has at most one request in these, and each has a deadline.
OPEN: Final = (State.SUBMITTED, State.IN_REVIEW, State.APPROVED, State.FAILED, State.RETURNED)
# In these its files stay as they are.
PINNING: Final = (State.SUBMITTED, State.IN_REVIEW, State.APPROVED, State.FAILED)
FINAL: Final = tuple(state for state, following in TRANSITIONS.items() if not following)


def pairs() -> Iterator[tuple[State, State, tuple[By, ...]]]:
    for source, following in TRANSITIONS.items():
        for target, movers in following.items():
            yield source, target, movers


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    arrows = [f"    {source} --> {target}: {' or '.join(movers)}" for source, target, movers in pairs()]
    ends = [f"    {state} --> [*]" for state in FINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.SUBMITTED}: {By.REQUESTER}", *arrows, *ends]) + "\n"
