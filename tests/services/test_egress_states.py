"""Every state, every way to move and everybody: what the table lists happens, and nothing else (INV-12, INV-14)."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import product
from typing import Any, Final

import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from rest_framework.test import APIClient

from egress import jobs
from egress.errors import WrongState
from egress.models import EgressRequest
from egress.states import FINAL, NEXT_ACTORS, OPEN, PINNING, TRANSITIONS, ActorKind, State, allowed_transitions
from egress.transitions import lock_request, move
from tenants.models import Membership, User
from tests.services.egress import REASON, body, decide, path, row
from tests.services.egress_world import ROLES, STARTS, Tables, World, everything, give_roles, make_world, undone, work_on
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, starts_from(make_world)]
Send = Callable[[APIClient, Any], Any]

WITH_ROLES: Final = "bob with roles"  # the requester, whom somebody gave the roles of both stages since
ACTORS: Final = [
    "bob", WITH_ROLES, "key of bob", "cora", "grace", "key of grace", "ruth", "alice", "erin", "carol", "mallory", "root",
]  # fmt: skip
STRANGERS: Final = {"carol", "mallory"}

ACTIONS: Final[dict[str, Send]] = {
    "approve": lambda client, request: decide(client, request, "approve"),
    "reject": lambda client, request: decide(client, request, "reject"),
    "return": lambda client, request: decide(client, request, "return"),
    "resubmit": lambda client, request: client.post(path(request, "resubmit/"), {"justification": REASON}),
    "withdraw": lambda client, request: client.post(path(request, "withdraw/"), {"reason": REASON}),
    "revoke": lambda client, request: client.post(path(request, "revoke/"), {"reason": REASON}),
    "retry": lambda client, request: client.post(path(request, "retry/"), {"reason": REASON}),
    "extend": lambda client, request: client.post(path(request, "extend/"), {"downloads": 1, "days": 2, "reason": REASON}),
    "download": lambda client, request: client.post(path(request, "downloads/")),
    "read_items": lambda client, request: client.get(path(request, "items/1/content")),
}


@dataclass(frozen=True)
class Way:
    """From one state to another, or on the spot (None), for these actors and nobody else."""

    to: State | None
    by: ActorKind
    actors: tuple[str, ...]


REQUESTER: Final = ("bob", WITH_ROLES, "key of bob")
WAYS: Final[dict[tuple[str, str], list[Way]]] = {
    ("approve", "first stage"): [Way(State.IN_REVIEW, ActorKind.REVIEWER, ("grace",))],
    ("approve", "second stage"): [Way(State.APPROVED, ActorKind.REVIEWER, ("ruth",))],
    ("reject", "first stage"): [Way(State.REJECTED, ActorKind.REVIEWER, ("grace",))],
    ("reject", "second stage"): [Way(State.REJECTED, ActorKind.REVIEWER, ("ruth",))],
    ("return", "first stage"): [Way(State.RETURNED, ActorKind.REVIEWER, ("grace",))],
    ("return", "second stage"): [Way(State.RETURNED, ActorKind.REVIEWER, ("ruth",))],
    ("return", "failed"): [Way(State.RETURNED, ActorKind.REVIEWER, ("ruth",))],
    ("resubmit", "returned"): [Way(State.SUBMITTED, ActorKind.REQUESTER, REQUESTER)],
    ("withdraw", "submitted"): [Way(State.WITHDRAWN, ActorKind.REQUESTER, REQUESTER)],
    ("withdraw", "first stage"): [Way(State.WITHDRAWN, ActorKind.REQUESTER, REQUESTER)],
    ("withdraw", "second stage"): [Way(State.WITHDRAWN, ActorKind.REQUESTER, REQUESTER)],
    ("withdraw", "failed"): [Way(State.WITHDRAWN, ActorKind.REQUESTER, REQUESTER)],
    ("withdraw", "returned"): [Way(State.WITHDRAWN, ActorKind.REQUESTER, REQUESTER)],
    ("revoke", "released"): [
        Way(State.REVOKED, ActorKind.REVIEWER, ("grace", "ruth", "cora", WITH_ROLES)),  # whoever sees harm may stop it
        Way(State.REVOKED, ActorKind.OPERATOR, ("alice", "root")),
    ],
    ("retry", "failed"): [Way(State.APPROVED, ActorKind.OPERATOR, ("root",))],
    ("extend", "released"): [Way(State.RELEASED, ActorKind.REVIEWER, ("ruth",))],
    ("download", "released"): [Way(None, ActorKind.REQUESTER, REQUESTER)],
    ("read_items", "first stage"): [Way(None, ActorKind.REVIEWER, ("grace", "key of grace", "ruth", "cora"))],
    ("read_items", "second stage"): [Way(None, ActorKind.REVIEWER, ("grace", "key of grace", "ruth", "cora"))],
}
AUDITED: Final = {action: f"egress.{action}" for action in ACTIONS} | {"download": "link.mint", "read_items": "egress.read"}

# What goes on by itself, and where each leads to.
SYSTEM: Final[dict[str, dict[str, State]]] = {
    "copies": {"submitted": State.IN_REVIEW},
    "package": {"approved": State.RELEASED},
    "package, requester gone": {"approved": State.FAILED},
    "package, approver gone": {"approved": State.IN_REVIEW},
    "deadline": {
        "submitted": State.EXPIRED,
        "first stage": State.EXPIRED,
        "second stage": State.EXPIRED,
        "returned": State.EXPIRED,
        "failed": State.EXPIRED,
        "approved": State.FAILED,
        "released": State.CLOSED,
    },
    "downloads used": {"released": State.CLOSED},
}

# Fields of a request that a way may change, besides those that every move changes.
MOVING: Final = {"status", "step", "stage", "awaited_role", "changed_at", "attempts_before", "expires_at", "problem"}
LEASE: Final = {"lease_owner", "lease_at", "attempts"}
RELEASING: Final = {
    "package_collection_id", "released_at", "available_until", "package_length", "package_sha256", "manifest", "signature",
}  # fmt: skip
CHANGING: Final[dict[str, set[str]]] = {
    "resubmit": MOVING | {"round", "submitted_at", "justification"},
    "extend": {"max_downloads", "available_until", "step"},
    "download": set(),
    "read_items": set(),
    "copies": MOVING | LEASE,
    "package": MOVING | LEASE | RELEASING | {"packed"},
    "package, requester gone": MOVING | LEASE,
    "package, approver gone": MOVING | LEASE,
}


# --- The tables ---


def test_every_state_has_its_place_in_each_table(world: World) -> None:
    """A state that is added and not covered here fails the suite."""
    assert set(State) == set(TRANSITIONS) == set(NEXT_ACTORS) == set(STARTS.values())
    assert {row(request).status for request in world.requests.values()} == set(State)
    assert {state for state, owner in NEXT_ACTORS.items() if owner is None} == set(FINAL)
    assert set(OPEN) | set(FINAL) | {State.RELEASED} == set(State)
    assert set(PINNING) == set(OPEN) - {State.RETURNED}


def test_every_transition_has_a_way_and_every_way_is_a_transition() -> None:
    ways = defaultdict(set)
    for (_, start), found in WAYS.items():
        for way in found:
            if way.to is not None:
                ways[STARTS[start], way.to].add(way.by)
    for targets in SYSTEM.values():
        for start, to in targets.items():
            ways[STARTS[start], to].add(ActorKind.SYSTEM)
    assert ways == {(source, target): set(movers) for source, target, movers in allowed_transitions()}
    assert {source for source, _, movers in allowed_transitions() if ActorKind.SYSTEM in movers} >= set(OPEN), (
        "each open state ends by itself"
    )


# --- What people do ---


@pytest.mark.parametrize("most", [1, pytest.param(len(ACTORS), marks=pytest.mark.long)], ids=["one", "all"])
@pytest.mark.parametrize(("action", "start"), WAYS)
def test_whoever_may_moves_it_as_listed(world: World, action: str, start: str, most: int) -> None:
    """With one step and one audit row, and everything else as it was."""
    request, before = world.requests[start], everything()
    for way in WAYS[action, start]:
        for who in way.actors[:most]:
            with undone():
                answer = ACTIONS[action](as_(who, world), request)
                assert answer.status_code in {200, 201}, (who, answer.content)
                if action == "read_items":
                    body(answer)
                after = everything()
            assert_moved(request, before, after, way.to, action, who.removesuffix(" with roles").removeprefix("key of "))
            assert [event["action"] for event in new(before, after, "tenants_auditevent")] == [AUDITED[action]]
            assert len(new(before, after, "egress_egressrequest")) <= 1, who  # no other request


def others(action: str, start: str) -> list[str]:
    takers = {actor for way in WAYS.get((action, start), []) for actor in way.actors}
    return [actor for actor in ACTORS if actor not in takers]


@cache
def samples() -> dict[tuple[str, str], list[str]]:
    """One for each way at each place, in turn: who has tried least in this way and at this place."""
    chosen, tried = {}, Counter[tuple[str, str]]()
    for action, start in product(ACTIONS, STARTS):
        who = min(others(action, start), key=lambda who: 100 * tried[action, who] + tried[start, who])
        tried.update([(action, who), (start, who)])
        chosen[action, start] = [who]
    return chosen


def sample(action: str, start: str) -> list[str]:
    return samples()[action, start]


def test_sample_of_those_who_may_not_has_everybody_in_every_way() -> None:
    for action in ACTIONS:
        tried = {who for start in STARTS for who in sample(action, start)}
        assert tried == {who for start in STARTS for who in others(action, start)}, action


@pytest.mark.parametrize("chosen", [sample, pytest.param(others, marks=pytest.mark.long)])
@pytest.mark.parametrize("action", ACTIONS)
def test_everybody_else_changes_nothing(world: World, action: str, chosen: Callable[[str, str], list[str]]) -> None:
    before = everything()
    for start in STARTS:
        with undone():  # the roles that `as_` gives, last
            for who in sorted(chosen(action, start), key=WITH_ROLES.__eq__):
                answer = ACTIONS[action](as_(who, world), world.requests[start])
                assert answer.status_code in ({404} if who in STRANGERS else {403, 409}), (start, who, answer.content)
            assert everything() == before, start


def some_actors(start: str) -> list[str]:
    """Those who may do something there, and two of the others in turn."""
    takers = {actor for (_, at), ways in WAYS.items() if at == start for way in ways for actor in way.actors}
    others, turn = [who for who in ACTORS if who not in takers], 2 * list(STARTS).index(start)
    return [*takers, *(others[number % len(others)] for number in (turn, turn + 1))]


@pytest.mark.parametrize("chosen", [some_actors, pytest.param(lambda start: ACTORS, marks=pytest.mark.long)])
def test_allowed_actions_are_those_that_the_endpoints_take(world: World, chosen: Callable[[str], list[str]]) -> None:
    for start, who in [(place, actor) for place in STARTS for actor in chosen(place)]:
        with undone():
            answer = as_(who, world).get(path(world.requests[start]))
        if who in STRANGERS:
            assert answer.status_code == 404
            continue
        taken = {action for (action, at), ways in WAYS.items() if at == start for way in ways if who in way.actors}
        if STARTS[start] == State.IN_REVIEW and taken & {"approve", "reject", "return"}:
            taken = taken - {"approve", "reject", "return"} | {"decide"}
        assert set(answer.json()["allowed_actions"]) == taken, (start, who)


def as_(who: str, world: World) -> APIClient:
    if who == WITH_ROLES:
        give_roles(world.people["bob"], "member", *ROLES)
        return world.clients["bob"]
    return world.clients[who]


# --- What goes on by itself ---


@pytest.mark.parametrize("name", SYSTEM)
def test_system(world: World, name: str) -> None:
    if name == "downloads used":
        EgressRequest.objects.update(download_count=F("max_downloads"))
    before = everything()
    run(name, world)
    after = everything()
    for start, request in world.requests.items():
        if to := SYSTEM[name].get(start):
            assert_moved(request, before, after, to, name, "system")
        else:
            assert about(request, after) == about(request, before), start


def run(name: str, world: World) -> None:
    now = timezone.now()
    if name == "copies":
        work_on()
    elif name == "deadline":
        jobs.end_expired(now=now + timedelta(days=400))
    elif name == "downloads used":
        jobs.end_expired(now=now)
    else:
        if name == "package, requester gone":
            User.objects.filter(username="bob").update(is_active=False)
        if name == "package, approver gone":
            Membership.objects.filter(user=world.people["ruth"]).delete()
        jobs.build_package(now=now)


# --- Past the services ---


@pytest.mark.parametrize("start", STARTS)
def test_move_takes_only_what_is_listed(world: World, start: str) -> None:
    before = everything()
    for target in set(State) - set(TRANSITIONS[STARTS[start]]):
        with pytest.raises(WrongState), transaction.atomic():
            move(lock_request(row(world.requests[start])), target, by=None, now=timezone.now(), action="egress.test")
        assert everything() == before, target


# --- What there is ---


def about(request: Any, tables: Tables) -> Tables:
    """What of it is about this request."""
    keys, digits = ("id", "request_id", "about", "ref", "target_id"), request["id"].replace("-", "")
    return {
        name: [found for found in rows if digits in {str(found.get(key)).replace("-", "") for key in keys}]
        for name, rows in tables.items()
    }


def new(before: Tables, after: Tables, name: str) -> list[dict[str, Any]]:
    """Rows that were added, or are not as they were."""
    return [found for found in after[name] if found not in before[name]]


def assert_moved(request: Any, before: Tables, after: Tables, to: State | None, how: str, by: str) -> None:
    """To this state, with one step, one audit row of it, and everything else as it was; on the spot without a step."""
    before, after = about(request, before), about(request, after)
    (was,), (now,) = before["egress_egressrequest"], after["egress_egressrequest"]
    assert {name for name in was if was[name] != now[name]} <= CHANGING.get(how, MOVING)
    steps, moves = (
        new(before, after, "egress_transition"),
        [event for event in new(before, after, "tenants_auditevent") if "came_to" in event["body"]],
    )
    if to is None:
        assert (now["status"], steps, moves) == (was["status"], [], [])
        return
    assert now["status"] == to
    (step,), (event,) = steps, moves
    told = {name: step[name] for name in ("number", "from_status", "to_status", "round", "stage", "by_name")}
    assert told == {
        "number": was["step"] + 1, "from_status": was["status"], "to_status": to, "round": now["round"], "stage": now["stage"],
        "by_name": by,
    }  # fmt: skip
    assert (now["step"], event["actor"]) == (was["step"] + 1, by)
    assert len(after["egress_transition"]) == len(before["egress_transition"]) + 1
    assert_decided(before, after, is_review=was["status"] == State.IN_REVIEW, how=how)
    assert_pins(before, after, to=to, how=how)


def assert_decided(before: Tables, after: Tables, *, is_review: bool, how: str) -> None:
    """What was decided stands, whatever comes of it: a decision adds one, and who is gone has theirs voided."""
    added = new(before, after, "egress_decision")
    assert len(after["egress_decision"]) == len(before["egress_decision"]) + (
        is_review and how in {"approve", "reject", "return"}
    )
    if how == "package, approver gone":
        assert [(found["by_name"], bool(found["voided_at"])) for found in added] == [("ruth", True)]
    else:
        assert len(added) == len(after["egress_decision"]) - len(before["egress_decision"])


def assert_pins(before: Tables, after: Tables, *, to: State, how: str) -> None:
    """As long as it can go on as it is, its files stay as they are; after that nobody reads the copies."""
    assert bool(after["files_hold"]) == (to in PINNING)
    copies = {item["status"] for item in after["egress_stagedfile"] if item["round"] == after["egress_egressrequest"][0]["round"]}
    if to not in PINNING:
        assert copies <= {"wiping", "wiped"}
    elif how not in {"copies", "resubmit"}:
        assert new(before, after, "egress_stagedfile") == []
