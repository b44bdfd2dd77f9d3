"""Who decides on what, and that what they decided on is what leaves (INV-10, INV-11, F-53, F-54)."""

import io
import json
import zipfile
from collections.abc import Callable
from itertools import product
from typing import Any, Final

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from egress import jobs
from egress.models import Decision
from egress.states import OPEN, PINNING
from files.models import Collection, StoredFile
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.services.egress import REASON, body, decide, fill, path, row, see, submit
from tests.services.egress_world import ROLES, STARTS, World, everything, give_roles, make_world, undone, work_on
from tests.worlds import starts_from
from vault.stores import get_store


pytestmark = [pytest.mark.django_db, starts_from(make_world)]
POLICY: Final = "/api/v1/tenants/acme/egress-policy/"


def put(world: World, who: str, slug: str, filename: str, content: bytes) -> int:
    replacing = {"if-match": "*"} if StoredFile.objects.filter(collection__slug=slug, filename=filename).exists() else {}
    address, kind = paths.content(slug, filename), "application/octet-stream"
    return int(world.clients[who].put(address, content, content_type=kind, headers=replacing).status_code)


def build() -> None:
    assert jobs.build_package(now=timezone.now())
    while jobs.build_package(now=timezone.now()):
        pass


def released(request: Any) -> list[str]:
    """Keys of what is in the release bucket for it."""
    package = row(request).package_collection
    return [entry.key for entry in get_store("release").entries(package.prefix)] if package else []


def package_of(world: World, request: Any) -> tuple[dict[str, bytes], Any]:
    """The files that leave, and the manifest."""
    answer = world.clients["bob"].get(path(request, "package.zip"))
    with zipfile.ZipFile(io.BytesIO(body(answer))) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    del files["manifest.json.sig"]
    return files, manifest


def assert_code(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.content


# --- Four eyes, and two more ---


def test_requester_who_became_a_reviewer_decides_nothing_about_it(world: World) -> None:
    give_roles(world.people["bob"], "member", *ROLES)
    for start in ("first stage", "second stage"):
        assert_code(decide(world.clients["bob"], world.requests[start]), 403, "own_request")
    assert_code(decide(world.clients["bob"], world.requests["failed"], "return"), 403, "own_request")


@pytest.mark.parametrize("writers", [("cora", "bob"), ("bob", "cora")], ids=["of the first content", "of the pinned content"])
def test_uploader_decides_nothing_about_it(world: World, writers: tuple[str, str]) -> None:
    slug = fill(world.clients["alice"], "Readings", {"mine.csv": b"m"})
    for turn, who in enumerate(writers):
        assert put(world, who, slug, "theirs.csv", b"x" * turn) == (200 if turn else 201)
    request = submit(world.clients["carol"], slug)
    work_on()
    assert_code(decide(world.clients["cora"], request), 403, "own_contribution")
    assert decide(world.clients["grace"], request).status_code == 201
    assert_code(decide(world.clients["cora"], request), 403, "own_contribution")


def test_uploader_of_another_file_decides(world: World) -> None:
    slug = fill(world.clients["alice"], "Readings", {"mine.csv": b"m"})
    assert put(world, "cora", slug, "theirs.csv", b"x") == 201
    request = submit(world.clients["carol"], slug, files=["mine.csv"])
    work_on()
    assert decide(world.clients["cora"], request).status_code == 201


def test_one_person_decides_one_stage(world: World) -> None:
    give_roles(world.people["gary"], *ROLES)
    gary, request = world.clients["gary"], world.requests["first stage"]
    assert decide(gary, request).status_code == 201
    assert_code(decide(gary, request), 409, "already_decided")
    assert decide(world.clients["ruth"], request).status_code == 201
    build()
    assert row(request).status == "released"


def test_whoever_made_a_key_of_a_service_account_decides_nothing_about_what_it_wrote(world: World) -> None:
    """It has no person of its own: anybody who held a key of it may have been the writer."""
    give_roles(world.people["gary"], "admin", "information_governance")
    tenant = "/api/v1/tenants/acme/"
    assert world.clients["gary"].post(f"{tenant}service-accounts/", {"name": "robot", "roles": ["admin"]}).status_code == 201
    made = world.clients["gary"].post(f"{tenant}api-keys/", {"name": "nightly", "owner": "robot@acme", "scopes": ["write"]})
    robot = APIClient(headers={"authorization": f"Bearer {made.json()['key']}"})
    slug = fill(world.clients["alice"], "Readings", {"mine.csv": b"m"})
    address = paths.content(slug, "theirs.csv")
    assert robot.put(address, b"x", content_type="application/octet-stream").status_code == 201
    request = submit(world.clients["alice"], slug)
    work_on()
    assert_code(decide(world.clients["gary"], request), 403, "own_contribution")
    assert decide(world.clients["grace"], request).status_code == 201


def test_decision_on_what_was_read_does_not_fall_on_what_came_after(world: World) -> None:
    """A page that was opened in round 1, or at the stage before: what is seen there is not what would be decided."""
    request, gary = world.requests["first stage"], world.clients["gary"]
    read = see(gary, request)
    decision = {"verdict": "approve", "reason": REASON, "round": read["round"], "stage": read["stage"]}
    assert decide(world.clients["grace"], request, "return").status_code == 201
    assert world.clients["bob"].post(path(request, "resubmit/"), {}).status_code == 200
    work_on()
    assert_code(gary.post(path(request, "decisions/"), decision), 409, "moved_on")
    assert not row(request).decisions.filter(round=2).exists()
    decision["round"] = 2
    assert gary.post(path(request, "decisions/"), decision).status_code == 201

    give_roles(world.people["rick"], *ROLES)
    late = world.clients["rick"].post(path(request, "decisions/"), decision | {"verdict": "reject"})
    assert_code(late, 409, "moved_on")
    assert row(request).status == "in_review"


@pytest.mark.parametrize("field", ["round", "stage"])
@pytest.mark.parametrize("value", [0, -1, "first", 10**30, None])
def test_round_and_stage_of_a_decision_are_numbers(world: World, field: str, value: object) -> None:
    request = world.requests["first stage"]
    answer = world.clients["grace"].post(path(request, "decisions/"), {"verdict": "approve", "reason": REASON, field: value})
    if value == 10**30:
        assert_code(answer, 409, "moved_on")
    else:
        assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])


def test_decision_is_on_record_with_stage_role_and_content(world: World) -> None:
    request = world.requests["first stage"]
    for who in ("grace", "ruth"):
        assert decide(world.clients[who], request).status_code == 201
    events = AuditEvent.objects.filter(action="egress.approve", target_id=request["id"]).order_by("seq")
    facts = [json.loads(event.body)["facts"] for event in events]
    assert [(each["stage"], each["role"], each["came_to"]) for each in facts] == [
        (1, "information_governance", "in_review"),
        (2, "research_it", "approved"),
    ]
    assert {each["content"] for each in facts} == {row(request).content_sha256}


# --- Between the approval and the release ---


HARMS: Final[dict[str, Callable[[User], object]]] = {
    "demoted": lambda person: give_roles(person, "member"),
    "moved to another stage": lambda person: give_roles(person, "statistics"),
    "removed": lambda person: Membership.objects.filter(user=person).delete(),
    "deactivated": lambda person: User.objects.filter(pk=person.pk).update(is_active=False),
}


STAGES: Final = {"grace": (0, "gary"), "ruth": (1, "rick")}
HARMED: Final = {("demoted", "grace"), ("moved to another stage", "ruth"), ("deactivated", "grace"), ("removed", "ruth")}


@pytest.mark.parametrize(
    ("harm", "who"),
    [pytest.param(*each, marks=[] if each in HARMED else pytest.mark.long) for each in product(HARMS, STAGES)],
)
def test_approver_who_is_not_one_any_more_is_asked_again(world: World, harm: str, who: str) -> None:
    """F-53: the decision is void, the other one stands, and nothing is released until a third person has decided."""
    request, (stage, third) = world.requests["approved"], STAGES[who]
    HARMS[harm](world.people[who])
    build()

    found = see(world.clients["bob"], request)
    assert (found["status"], row(request).stage, row(request).awaited_role) == ("in_review", stage, ROLES[stage])
    principal = {decision["by"] for decision in found["decisions"] if decision["voided_at"] is None}
    assert principal == {"grace", "ruth"} - {who}
    assert (released(request), row(request).manifest) == ([], "")
    assert who in row(request).steps.order_by("number").last().reason  # type: ignore[union-attr]

    assert decide(world.clients[third], request).status_code == 201
    assert row(request).status == "approved"
    build()
    assert row(request).status == "released"
    files, manifest = package_of(world, request)
    assert files == {"a.csv": b"a,1\n" * 100, "b.csv": b"b,2\n"}
    assert {decision["by"]["username"] for decision in manifest["decisions"]} == {"grace", "ruth", third} - {who}


def test_suspended_tenant_releases_nothing(world: World) -> None:
    """Nobody is anything in it: all that was approved is void, and is decided anew when it is back."""
    request = world.requests["approved"]
    Tenant.objects.filter(slug="acme").update(is_active=False)
    build()
    assert (row(request).status, row(request).stage, released(request)) == ("in_review", 0, [])
    assert not Decision.objects.filter(request=request["id"], voided_at=None).exists()

    Tenant.objects.filter(slug="acme").update(is_active=True)
    assert decide(world.clients["grace"], request).status_code == 201
    assert decide(world.clients["ruth"], request).status_code == 201
    build()
    assert row(request).status == "released"


@pytest.mark.parametrize("harm", ["removed", "deactivated", "without a grant"])
def test_requester_who_is_gone_gets_nothing(world: World, harm: str) -> None:
    """Failed, with nothing in the release bucket; an operator tries it again when they are back."""
    request, bob = world.requests["approved"], world.people["bob"]
    before = list(Membership.objects.filter(user=bob))
    if harm == "without a grant":
        collection = row(request).collection
        assert collection
        Collection.objects.filter(pk=collection.pk).update(created_by=world.people["alice"])
        collection.grants.all().delete()
    else:
        HARMS[harm](bob)
    build()
    assert (row(request).status, released(request), row(request).manifest) == ("failed", [], "")
    assert row(request).problem
    assert not row(request).decisions.exclude(voided_at=None).exists()

    if harm != "without a grant":
        Membership.objects.filter(user=bob).delete()
        Membership.objects.bulk_create(before)
        User.objects.filter(pk=bob.pk).update(is_active=True)
        assert world.clients["root"].post(path(request, "retry/")).status_code == 200
        build()
        assert row(request).status == "released"


# --- Rounds ---


@pytest.mark.parametrize("start", ["first stage", "second stage"])
def test_returned_and_changed_is_decided_anew(world: World, start: str) -> None:
    """INV-11: the new round's content is what is released, on the new round's decisions."""
    request = world.requests[start]
    before = row(request)
    returning = world.clients["grace" if start == "first stage" else "ruth"]
    assert decide(returning, request, "return").status_code == 201
    assert put(world, "bob", request["collection"], "b.csv", b"b,3\n") == 200
    again = world.clients["bob"].post(path(request, "resubmit/"), {"justification": "Cells below ten are masked now."})
    assert (again.status_code, again.json()["status"], again.json()["round"]) == (200, "submitted", 2)
    assert row(request).content_sha256 != before.content_sha256
    work_on()

    assert (row(request).status, row(request).stage) == ("in_review", 0)
    assert_code(decide(world.clients["ruth"], request), 409, "not_your_stage")  # whatever was approved before
    assert decide(world.clients["grace"], request).status_code == 201
    assert row(request).status == "in_review"
    assert decide(world.clients["ruth"], request).status_code == 201
    build()
    files, manifest = package_of(world, request)
    assert files == {"a.csv": b"a,1\n" * 100, "b.csv": b"b,3\n"}
    assert manifest["request"]["round"] == 2
    assert manifest["request"]["justification"] == "Cells below ten are masked now."
    assert {decision["content_sha256"] for decision in manifest["decisions"]} == {row(request).content_sha256}


def test_failed_and_returned_is_decided_anew(world: World) -> None:
    request = world.requests["failed"]
    assert decide(world.clients["ruth"], request, "return").status_code == 201
    assert world.clients["bob"].post(path(request, "resubmit/"), {"files": ["a.csv"]}).status_code == 200
    work_on()
    for who in ("gary", "rick"):
        assert decide(world.clients[who], request).status_code == 201
    build()
    files, manifest = package_of(world, request)
    assert list(files) == ["a.csv"]
    assert [decision["by"]["username"] for decision in manifest["decisions"]] == ["gary", "rick"]


def test_contributor_of_the_new_round_alone_is_one(world: World) -> None:
    """cora's file is left out, and grace writes one: now grace may not, and cora may."""
    request = world.requests["returned"]
    give_roles(world.people["grace"], "member", *ROLES)
    assert put(world, "grace", request["collection"], "a.csv", b"a,2\n") == 200
    assert world.clients["bob"].post(path(request, "resubmit/"), {"files": ["a.csv"]}).status_code == 200
    work_on()
    assert_code(decide(world.clients["grace"], request), 403, "own_contribution")
    assert decide(world.clients["cora"], request).status_code == 201


# --- Policies ---


def set_policy(world: World, **wish: Any) -> None:
    answer = world.clients["alice"].put(POLICY, wish)
    assert answer.status_code == 200, answer.content


def test_single_approval_is_the_first_stage_alone(world: World) -> None:
    set_policy(world, single_approval=True)
    request = submit(world.clients["bob"], fill(world.clients["bob"]))
    work_on()
    assert decide(world.clients["ruth"], request).status_code in {403, 404}
    assert decide(world.clients["grace"], request).status_code == 201
    assert row(request).status == "approved"
    build()
    assert row(request).status == "released"


def test_stages_are_those_of_the_policy_in_their_order(world: World) -> None:
    stages = ["caldicott_guardian", "statistics", "research_it"]
    set_policy(world, stages=stages)
    give_roles(world.people["grace"], "caldicott_guardian")
    give_roles(world.people["gary"], "statistics")
    request = submit(world.clients["bob"], fill(world.clients["bob"]))
    work_on()
    for number, who in enumerate(("grace", "gary", "ruth")):
        assert (row(request).stage, row(request).awaited_role) == (number, stages[number])
        for other in {"grace", "gary", "ruth"} - {who}:
            assert decide(world.clients[other], request).status_code == 409
        assert decide(world.clients[who], request).status_code == 201
    build()
    assert [(decision["role"], decision["stage"]) for decision in package_of(world, request)[1]["decisions"]] == [
        (stages[0], 1), (stages[1], 2), (stages[2], 3),
    ]  # fmt: skip


def test_policy_is_that_of_the_submission(world: World) -> None:
    """Neither fewer stages nor more downloads, once it is asked for; and a second round keeps them, too."""
    set_policy(world, single_approval=True, max_downloads=50, stages=["statistics"], min_reason_length=500)
    for request in (world.requests["first stage"], world.requests["returned"]):
        if row(request).status == "returned":
            assert world.clients["bob"].post(path(request, "resubmit/"), {"justification": REASON}).status_code == 200
            work_on()
        assert decide(world.clients["grace"], request).status_code == 201
        assert (row(request).status, row(request).awaited_role) == ("in_review", "research_it")
        assert (row(request).max_downloads, row(request).policy["max_downloads"]) == (1, 1)


# --- Reasons ---


@pytest.mark.parametrize("reason", ["", "Too short", "         x", "x" + " " * 20])
def test_decision_without_a_reason_is_none(world: World, reason: str) -> None:
    before = everything()
    for verdict in ("approve", "reject", "return"):
        assert decide(world.clients["grace"], world.requests["first stage"], verdict, reason).status_code == 400
    assert decide(world.clients["ruth"], world.requests["failed"], "return", reason).status_code == 400
    asked = world.requests["released"]
    assert world.clients["grace"].post(path(asked, "revoke/"), {"reason": reason}).status_code == 400
    assert world.clients["ruth"].post(path(asked, "extend/"), {"days": 1, "reason": reason}).status_code == 400
    again = world.requests["returned"]
    assert world.clients["bob"].post(path(again, "resubmit/"), {"justification": reason}).status_code == 400
    new = {"collection": world.requests["withdrawn"]["collection"], "justification": reason}
    assert world.clients["bob"].post("/api/v1/egress/requests/", new).status_code == 400
    assert everything() == before


# --- Pins ---


CHANGES: Final[dict[str, Callable[[World, str], Any]]] = {
    "put": lambda world, slug: world.clients["bob"].put(
        paths.content(slug, "a.csv"), b"another", content_type="text/csv", headers={"if-match": "*"}
    ),
    "rename": lambda world, slug: world.clients["bob"].patch(paths.file(slug, "a.csv"), {"filename": "z.csv"}),
    "delete": lambda world, slug: world.clients["bob"].delete(paths.file(slug, "a.csv")),
    "delete the collection": lambda world, slug: world.clients["bob"].delete(paths.collection(slug)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_pinned_files_stay_as_they_are(world: World, change: str) -> None:
    """F-54: until it is decided or given back; then they are their owner's again."""
    before = everything()
    for start in STARTS:
        with undone():
            answer = CHANGES[change](world, world.requests[start]["collection"])
            if STARTS[start] in PINNING:
                assert_code(answer, 409, "held")
                assert everything() == before, start
            else:
                assert answer.status_code in {200, 202, 204}, (start, answer.content)


def test_files_beside_the_pinned_ones_are_free(world: World) -> None:
    slug = fill(world.clients["bob"], "Readings", {"mine.csv": b"m", "other.csv": b"o"})
    submit(world.clients["bob"], slug, files=["mine.csv"])
    assert put(world, "bob", slug, "other.csv", b"p") == 200
    assert world.clients["bob"].delete(paths.file(slug, "other.csv")).status_code == 204
    assert put(world, "bob", slug, "mine.csv", b"p") == 409


def test_collection_has_one_open_request(world: World) -> None:
    events = AuditEvent.objects.count()
    for start in STARTS:
        with undone():
            wish = {"collection": world.requests[start]["collection"], "justification": REASON}
            answer = world.clients["bob"].post("/api/v1/egress/requests/", wish)
            if STARTS[start] in OPEN:
                assert_code(answer, 409, "request_open")
                assert AuditEvent.objects.count() == events, start
            else:
                assert answer.status_code == 201, start
                assert Collection.objects.get(slug=wish["collection"]).egress_status == "processing", start
