"""What comes past the services: the database itself refuses (INV-10, INV-11, INV-12, F-61)."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, Final

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import Model
from django.utils import timezone

from egress.models import Contributor, Decision, EgressRequest, StagedFile, Transition
from egress.states import TRANSITIONS, State, allowed_transitions
from tenants.work import triggers
from tests.services.egress import REASON, row
from tests.services.egress_world import STARTS, World, everything, make_world, undone
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, starts_from(make_world)]
KEPT: Final[list[type[Model]]] = [EgressRequest, Transition, StagedFile, Contributor, Decision]
OURS: Final = [guard.refusal for guard in triggers.guards if guard.table.startswith("egress_")]
REFUSALS: Final = "|".join([*OURS, "constraint", "violates"])  # the database has each rule once


def assert_refused(attempt: Callable[[], object], *, match: str = REFUSALS) -> None:
    before = everything()
    with pytest.raises(DatabaseError, match=match), transaction.atomic():
        attempt()
    assert everything() == before


def execute(sql: str, *given: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, given or None)


def at(world: World, start: str) -> EgressRequest:
    return row(world.requests[start])


def write_step(request: EgressRequest, to: str, **wrong: Any) -> Transition:
    """As `egress.transitions` does, by somebody who writes it himself."""
    request.step += 1
    wish = {"number": request.step, "from_status": request.status, "round": request.round, "stage": request.stage} | wrong
    return Transition.objects.create(request=request, to_status=to, at=timezone.now(), by_name="nobody", **wish)


def forced(request: EgressRequest, to: str) -> dict[str, Any]:
    """What the constraints ask of a row in that state, so that it is not they who refuse."""
    now = timezone.now()
    wish: dict[str, Any] = {"status": to, "step": request.step + 1, "awaited_role": "research_it" if to == "in_review" else ""}
    wish["expires_at"] = now if to in {"submitted", "in_review", "approved", "failed", "returned"} else None
    if to in {"released", "closed", "revoked"} and not request.manifest:
        wish |= {"released_at": now, "available_until": now, "manifest": "{}", "signature": "x"}
    return wish


# --- States ---


def test_no_status_without_a_step(world: World) -> None:
    """Listed or not, with the number of the next step or without."""
    for start, target in product(STARTS, State):
        request = at(world, start)
        if target != request.status:
            rows, wish = EgressRequest.objects.filter(pk=request.pk), forced(request, target)
            assert_refused(partial(rows.update, **wish))
            assert_refused(partial(rows.update, **wish | {"step": request.step}))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda request: request.save(),
        lambda request: request.save(update_fields=["status", "expires_at"]),
        lambda request: EgressRequest.objects.bulk_update([request], ["status", "expires_at"]),
        lambda request: EgressRequest.objects.update_or_create(
            {"status": "withdrawn", "expires_at": None, "awaited_role": ""}, pk=request.pk
        ),
        lambda request: EgressRequest.objects.bulk_create(
            [request], update_conflicts=True, unique_fields=["id"], update_fields=["status", "expires_at"]
        ),
        lambda request: execute("UPDATE egress_egressrequest SET status = 'withdrawn', expires_at = NULL"),
    ],
)
def test_no_status_by_any_call_of_the_orm(world: World, attempt: Callable[[EgressRequest], object]) -> None:
    request = at(world, "returned")
    request.status, request.expires_at = State.WITHDRAWN, None
    assert_refused(partial(attempt, request))


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 2},
        {"stage": 1},
        {"stage": 1, "awaited_role": "research_it"},
        {"awaited_role": "member"},
        {"step": 1},
        {"step": 7},
        {"stages": ["member"]},
        {"stage_count": 1},
        {"policy": {}},
        {"requester": 1},
        {"requester_name": "alice"},
        {"justification": "Another one, which nobody read."},
        {"content_sha256": "0" * 64},
        {"file_count": 1},
        {"total_length": 1},
        {"collection_uuid": "00000000-0000-0000-0000-000000000000"},
        {"manifest": "{}"},
        {"signature": "x"},
        {"package_sha256": "0" * 64},
        {"expires_at": None},
        {"download_count": 2},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_nothing_that_was_asked_or_decided_changes_behind_a_state(world: World, changes: dict[str, Any]) -> None:
    assert_refused(partial(EgressRequest.objects.filter(pk=at(world, "first stage").pk).update, **changes))


@pytest.mark.parametrize(("name", "value"), [("manifest", "{}"), ("signature", "x"), ("package_sha256", "0" * 64)])
def test_what_was_signed_stays(world: World, name: str, value: str) -> None:
    for start in ("released", "closed", "revoked"):
        assert_refused(partial(EgressRequest.objects.filter(pk=at(world, start).pk).update, **{name: value}))


def test_no_unlisted_transition_with_a_step_either(world: World) -> None:
    def go(request: EgressRequest, target: State) -> None:
        write_step(request, target)
        EgressRequest.objects.filter(pk=request.pk).update(**forced(at(world, start), target))

    for start, state in STARTS.items():
        for target in set(State) - set(TRANSITIONS[state]) - {state}:
            assert_refused(lambda start=start, target=target: go(at(world, start), target))  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong", [{"from_status": "submitted"}, {"round": 2}, {"stage": 1}, {"number": 40}], ids=lambda wrong: " ".join(wrong)
)
def test_listed_transition_takes_its_own_step(world: World, wrong: dict[str, Any]) -> None:
    request = at(world, "first stage")
    changes = forced(request, State.REJECTED)

    def go() -> None:
        write_step(at(world, "first stage"), State.REJECTED, **wrong)
        EgressRequest.objects.filter(pk=request.pk).update(**changes)

    assert_refused(go)


def test_listed_transition_with_its_step_is_taken(world: World) -> None:
    """The forms above are refused for what is wrong with them, and for nothing else."""
    taken = 0
    for source, target, _ in allowed_transitions():
        if target in {State.APPROVED, State.RELEASED, State.SUBMITTED, source}:
            continue
        start = next(start for start, state in STARTS.items() if state == source)
        with undone():
            request = at(world, start)
            changes = forced(request, target)
            write_step(request, target)
            taken += EgressRequest.objects.filter(pk=request.pk).update(**changes)
    assert (
        taken == sum(1 for _, to, _ in allowed_transitions() if to not in {State.APPROVED, State.RELEASED, State.SUBMITTED}) - 1
    )


def test_step_of_the_past_is_not_used_again(world: World) -> None:
    """Back by a number, and along a step that was taken before."""
    request = at(world, "second stage")
    step = request.steps.get(from_status="in_review", to_status="in_review")
    go = EgressRequest.objects.filter(pk=request.pk).update
    assert_refused(partial(go, step=step.number - 1, stage=0, awaited_role="information_governance"))


def test_new_round_is_one_further(world: World) -> None:
    request = at(world, "returned")
    for number in (1, 3):
        changes = forced(request, State.SUBMITTED) | {"round": number}

        def go(number: int = number, changes: dict[str, Any] = changes) -> None:
            write_step(at(world, "returned"), State.SUBMITTED, round=number)
            EgressRequest.objects.filter(pk=request.pk).update(**changes)

        assert_refused(go)


# --- Approval and release ---


@pytest.mark.parametrize("start", ["first stage", "second stage"])
def test_nothing_is_approved_without_all_decisions(world: World, start: str) -> None:
    request = at(world, start)
    changes = forced(request, State.APPROVED)

    def go() -> None:
        write_step(at(world, start), State.APPROVED)
        EgressRequest.objects.filter(pk=request.pk).update(**changes)

    assert_refused(go, match="approval at every stage")


def test_nothing_is_released_when_a_decision_is_void(world: World) -> None:
    request = at(world, "approved")
    changes = forced(request, State.RELEASED)

    def go() -> None:
        request.decisions.filter(stage=0).update(voided_at=timezone.now())
        write_step(at(world, "approved"), State.RELEASED)
        EgressRequest.objects.filter(pk=request.pk).update(**changes)

    assert_refused(go, match="approval at every stage")


def test_two_requests_have_no_package_together(world: World) -> None:
    """On SQLite, UPDATE OR REPLACE would delete the other request."""
    theirs = at(world, "released").package_collection_id
    verb = "UPDATE OR REPLACE" if connection.vendor == "sqlite" else "UPDATE"
    for start in ("approved", "revoked"):
        pk = at(world, start).pk
        pk_in_db = pk.hex if connection.vendor == "sqlite" else pk
        assert_refused(
            partial(execute, f"{verb} egress_egressrequest SET package_collection_id = %s WHERE id = %s", theirs, pk_in_db)
        )


def test_second_open_request_of_a_collection_is_refused(world: World) -> None:
    request = at(world, "first stage")
    request.pk, request.status, request.step, request.awaited_role = None, State.SUBMITTED, 0, ""
    request._state.adding = True
    assert_refused(partial(request.save, force_insert=True))


@pytest.mark.parametrize(
    "changes", [{"status": "approved"}, {"round": 2}, {"stage": 1}, {"step": 1}], ids=lambda changes: " ".join(changes)
)
def test_request_begins_at_its_beginning(world: World, changes: dict[str, Any]) -> None:
    request = at(world, "withdrawn")
    request.status, request.step, request.expires_at = State.SUBMITTED, 0, timezone.now()
    request._state.adding, request.pk = True, None
    for name, value in changes.items():
        setattr(request, name, value)
    assert_refused(partial(request.save, force_insert=True), match="must be submitted")


# --- Decisions ---


def decision(world: World, start: str, who: str, **wrong: Any) -> Decision:
    request, person = at(world, start), world.people[who]
    right = {
        "request": request, "round": request.round, "stage": request.stage, "role": request.awaited_role, "verdict": "approve",
        "reason": REASON, "content_sha256": request.content_sha256, "by": person, "by_name": who, "by_email": person.email,
        "at": timezone.now(),
    }  # fmt: skip
    return Decision(**right | wrong)


@pytest.mark.parametrize(
    ("start", "who", "wrong"),
    [
        ("first stage", "bob", {}),  # the requester
        ("first stage", "cora", {}),  # wrote one of the files
        ("second stage", "grace", {}),  # has decided at the first stage
        ("first stage", "grace", {"stage": 1}),
        ("first stage", "grace", {"stage": 1, "role": "research_it"}),
        ("second stage", "ruth", {"stage": 0, "role": "information_governance"}),
        ("first stage", "grace", {"role": "research_it"}),
        ("first stage", "grace", {"round": 2}),
        ("first stage", "grace", {"content_sha256": "0" * 64}),
        ("first stage", "grace", {"reason": ""}),
        ("first stage", "grace", {"voided_at": "2026-11-01T00:00:00Z"}),
        *[(start, "gary", {}) for start, state in STARTS.items() if state != State.IN_REVIEW],
        *[(start, "gary", {"role": "information_governance", "stage": 0}) for start in STARTS if start != "first stage"],
    ],
)
def test_decision_that_does_not_fit_is_refused(world: World, start: str, who: str, wrong: dict[str, Any]) -> None:
    made = decision(world, start, who, **wrong)
    assert_refused(made.save)
    assert_refused(partial(Decision.objects.bulk_create, [made]))
    with undone():
        decision(world, "first stage", "grace").save()  # is not refused


def test_stage_is_decided_once(world: World) -> None:
    decision(world, "first stage", "grace").save()
    assert_refused(decision(world, "first stage", "gary").save)


# --- What is written stays ---


def edits(world: World) -> Iterator[Callable[[], object]]:
    ended = at(world, "released")
    changes: dict[str, Any]
    for changes in (
        {"reason": "Another."}, {"verdict": "reject"}, {"by": 1}, {"by_name": "alice"}, {"stage": 7},
        {"content_sha256": "0" * 64}, {"voided_at": timezone.now()}, {"at": timezone.now()}, {"round": 2}, {"role": "member"},
    ):  # fmt: skip
        yield partial(Decision.objects.filter(request=ended, stage=0).update, **changes)
    for changes in (
        {"to_status": "closed"},
        {"by_name": "alice"},
        {"at": timezone.now()},
        {"reason": "Another."},
        {"number": 40},
    ):
        yield partial(ended.steps.filter(number=1).update, **changes)
    for changes in (
        {"sha256": "0" * 64},
        {"length": 1},
        {"filename": "x.csv"},
        {"object_id": ended.pk},
        {"object_key": "x"},
        {"round": 2},
        {"status": "staged", "wiped_at": None},
        {"status": "pinned", "wiped_at": None},
        {"wiped_at": timezone.now()},
    ):
        yield partial(ended.items.filter(number=1).update, **changes)
    yield partial(ended.contributors.all().update, user=1)


def test_no_step_decision_or_file_is_edited(world: World) -> None:
    for edit in edits(world):
        assert_refused(edit)


@pytest.mark.parametrize("model", KEPT, ids=lambda model: model.__name__)
def test_nothing_is_deleted(world: World, model: type[Model]) -> None:
    table = model._meta.db_table
    assert model._default_manager.exists()
    assert_refused(partial(execute, f"DELETE FROM {table}"))  # noqa: S608  constants
    assert_refused(partial(model._default_manager.all()._raw_delete, "default"))
    if connection.vendor == "postgresql":
        assert_refused(partial(execute, f"TRUNCATE {table} CASCADE"))
    else:
        assert_refused(partial(execute, f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))  # noqa: S608
        assert_refused(partial(execute, f"REPLACE INTO {table} SELECT * FROM {table} LIMIT 1"))  # noqa: S608
        assert_refused(partial(execute, f"UPDATE OR REPLACE {table} SET id = (SELECT max(id) FROM {table})"))  # noqa: S608


def test_files_of_a_round_are_named_when_it_begins(world: World) -> None:
    """INV-11."""
    for start in STARTS:
        item = at(world, start).items.filter(number=1).get()
        item.pk, item.number, item.object_key, item.status, item.wiped_at = (
            None,
            3,
            f"another-{start}",
            StagedFile.Status.PINNED,
            None,
        )
        item._state.adding = True
        assert_refused(item.save)


def test_request_is_not_about_another_collection(world: World) -> None:
    other = at(world, "second stage").collection
    assert_refused(partial(EgressRequest.objects.filter(pk=at(world, "first stage").pk).update, collection=other))
