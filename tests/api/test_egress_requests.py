"""POST, GET /api/v1/egress/requests/, a request itself, and the staged files of its reviewers.

bob asks; grace and ruth decide, at the first and at the second stage; alice is admin, erin audits, carol has no part in it.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from egress.models import EgressRequest, StagedFile
from files.models import Collection, StoredFile
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, facts, problem
from tests.api.cases import Case
from tests.api.worlds import make_in_review, make_reviewable, reviewing
from tests.factories import make_key, make_member
from tests.services.egress import (
    FILES,
    REASON,
    body,
    decide,
    fill,
    path,
    see,
    submit,
    work_on,
)
from tests.worlds import provides_world


pytestmark = pytest.mark.usefixtures("vault")
REVIEWERS = ("grace", "gary", "ruth", "rick")
Api = Callable[[User | str | None], APIClient]
REQUESTS = "/api/v1/egress/requests/"


@pytest.fixture
@provides_world(make_reviewable)
def people() -> dict[str, User]:
    """Those who decide."""
    return {name: User.objects.get(username=name) for name in REVIEWERS}


@pytest.fixture
@provides_world(make_reviewable)
def slug() -> str:
    """Of a collection of bob's, with FILES in it."""
    return Collection.objects.get(display_name="Results").slug


@pytest.fixture
@provides_world(make_in_review)
def reviewed(people: dict[str, User], slug: str, built: Any) -> Any:
    """A request of bob's, in review."""
    return built


def ask(client: APIClient, slug: str, **wish: Any) -> Any:
    return client.post(REQUESTS, {"collection": slug, "justification": REASON, **wish})


def refused(answer: Any, field: str, code: str) -> str:
    """What a 400 says of this field, and of no other."""
    errors = problem(answer, 400, code)["errors"]
    assert set(errors) == {field}
    return str(errors[field][0]["detail"])


def listed(client: APIClient, **query: Any) -> list[str]:
    answer = client.get(REQUESTS, query)
    assert answer.status_code == 200, answer.json()
    return [found["id"] for found in answer.json()["results"]]


# --- Submitting ---


def test_submit_all_that_there_is(api: Api, bob: User, slug: str) -> None:
    answer = ask(api(bob), slug)
    made = answer.json()
    assert answer.status_code == 201
    assert answer["Location"] == made["links"]["self"] == f"http://testserver{path(made)}"
    assert (made["status"], made["waits_for"], made["stage"], made["awaited_role"]) == ("submitted", "system", None, "")
    assert (made["collection"], made["collection_name"], made["tenant"]) == (slug, "Results", "acme")
    assert (made["requester"], made["justification"], made["round"]) == ("bob", REASON, 1)
    assert (made["file_count"], made["total_length"]) == (3, sum(map(len, FILES.values())))
    assert [(item["number"], item["filename"], item["length"]) for item in made["items"]] == [
        (number, name, len(FILES[name])) for number, name in enumerate(sorted(FILES), start=1)
    ]
    assert api(bob).get(made["links"]["collection"]).json()["egress_status"] == "processing"


def test_submit_some_by_the_name_of_their_collection(api: Api, bob: User, slug: str) -> None:
    made = submit(api(bob), "Results", files=["b.csv", "B.CSV", "empty.txt"])
    assert [item["filename"] for item in made["items"]] == ["b.csv", "empty.txt"]
    assert made["collection"] == slug


def test_submission_is_on_record(api: Api, bob: User, slug: str) -> None:
    """INV-14."""
    made = submit(api(bob), slug)
    assert audited("egress.submit") == [("egress.submit", "bob")]
    assert facts("egress.submit")["content"] == made["content_sha256"]
    assert facts("egress.submit")["justification"] == REASON
    assert "a.csv" not in AuditEvent.objects.get(action="egress.submit").body


def test_submit_keeps_to_one_at_a_time(api: Api, bob: User, slug: str) -> None:
    first = submit(api(bob), slug, files=["a.csv"])
    said = problem(ask(api(bob), slug, files=["b.csv"]), 409, "request_open")
    assert first["id"] in said["detail"]


def test_open_request_of_somebody_else_is_not_named(api: Api, bob: User, carol: User, slug: str) -> None:
    first = submit(api(carol), slug)
    said = problem(ask(api(bob), slug), 409, "request_open")
    assert first["id"] not in said["detail"]


def test_submit_from_no_collection(api: Api, bob: User, slug: str, case: Case) -> None:
    for named in ["no-such-collection", "Resul"]:
        with case(named):
            refused(ask(api(bob), named), "collection", "unknown_collection")


def test_submit_from_a_collection_without_files(api: Api, bob: User) -> None:
    refused(ask(api(bob), fill(api(bob), files={})), "files", "empty")


def test_submit_no_files(api: Api, bob: User, slug: str) -> None:
    refused(ask(api(bob), slug, files=[]), "files", "empty")


def test_unreadable_file_is_as_one_that_is_not_there(api: Api, alice: User, bob: User, carol: User) -> None:
    """Bob was granted one file of three: he learns nothing of the others."""
    alices = api(alice)
    slug = fill(alices)
    for grant in alices.get(paths.grants(slug)).json()["results"]:
        if grant["user"] != "alice":
            alices.delete(f"{paths.grants(slug)}{grant['id']}/")
    assert alices.post(paths.file_grants(slug, "a.csv"), {"user": "bob", "level": "viewer"}).status_code == 201
    answers = [ask(api(bob), slug, files=["a.csv", name]) for name in ("b.csv", "c.csv")]
    says = [refused(answer, "files", "unknown_file") for answer in answers]
    assert says[0].replace("b.csv", "c.csv") == says[1]
    refused(ask(api(carol), slug), "collection", "unknown_collection")
    assert not StagedFile.objects.exists()

    made = submit(api(bob), slug)

    assert [item["filename"] for item in made["items"]] == ["a.csv"]
    assert made["total_length"] == len(FILES["a.csv"])


def test_policy_says_what_may_leave(api: Api, alice: User, bob: User, slug: str, case: Case) -> None:
    for policy, code, says, allowed in [
        ({"file_types": ["txt", "pdf"]}, "file_type_not_allowed", "a.csv, b.csv", "empty.txt"),
        ({"file_types": ["csv"]}, "file_type_not_allowed", "empty.txt", "a.csv"),
        ({"max_files": 2}, "too_many_files", "2 files", "a.csv"),
        ({"max_file_bytes": 400}, "file_too_large", "b.csv", "a.csv"),
        ({"max_total_bytes": 400}, "too_large", "400 bytes", "a.csv"),
    ]:
        with case(policy, code, says, allowed):
            assert api(alice).put("/api/v1/tenants/acme/egress-policy/", policy).status_code == 200
            assert says in refused(ask(api(bob), slug), "files", code)
            assert ask(api(bob), slug, files=[allowed]).status_code == 201


def test_name_that_the_package_has_for_itself(api: Api, bob: User, case: Case) -> None:
    slug = fill(api(bob), files={"other.json": b"{}", "a.csv": b"1"})
    for name in [
        "manifest.json",
        "Manifest.JSON",
        "manifest.json.sig",
        "manifest.json.",
        "manifest.json:x",
        "mani\u200bfest.json",
    ]:
        with case(name):
            assert api(bob).patch(paths.file(slug, "other.json"), {"filename": name}).status_code == 200
            assert name in refused(ask(api(bob), slug), "files", "reserved_name")
            assert ask(api(bob), slug, files=["a.csv"]).status_code == 201


def test_file_whose_object_is_missing(api: Api, bob: User, slug: str) -> None:
    StoredFile.objects.filter(filename="empty.txt").update(status=StoredFile.Status.MISSING)
    problem(ask(api(bob), slug), 409, "files_missing")
    StoredFile.objects.update(status=StoredFile.Status.READY)
    assert ask(api(bob), slug).status_code == 201


def test_justification_has_to_say_something(api: Api, bob: User, slug: str, case: Case) -> None:
    for justification, code in [
        ("too short", "too_short"),
        ("", "blank"),
        ("   ", "blank"),
        (None, "null"),
        ("x" * 5001, "max_length"),
        ("\x07" * 20, "control"),
    ]:
        with case(justification, code):
            refused(ask(api(bob), slug, justification=justification), "justification", code)
            assert api(bob).get(paths.collection(slug)).json()["egress_status"] == "none"


def test_justification_is_words(api: Api, bob: User, slug: str, case: Case) -> None:
    for justification, code in [
        (12345678901234, "invalid"),
        (True, "invalid"),
        (["Tables of the paper."], "invalid"),
        ("a" + " " * 20 + "b", "too_short"),
    ]:
        with case(justification, code):
            refused(ask(api(bob), slug, justification=justification), "justification", code)


def test_justification_of_several_lines(api: Api, bob: User, slug: str) -> None:
    lines = "For the paper.\n\n* Table 1\n* Figure 2: größer als 5 %"
    assert submit(api(bob), slug, justification=lines)["justification"] == lines


def test_submit_what_is_no_request(api: Api, bob: User, slug: str, case: Case) -> None:
    """F-41."""
    for sent in [b"[]", b"null", b'"x"', b"{", b'{"collection": ["x"]}', b'{"files": "a.csv"}', b'{"files": [null]}']:
        with case(sent):
            answer = api(bob).post(REQUESTS, sent, content_type="application/json")
            assert answer.status_code == 400
            assert not EgressRequest.objects.exists()


def test_submit_while_it_is_deleted(api: Api, bob: User, slug: str) -> None:
    assert api(bob).delete(paths.collection(slug)).status_code == 202
    refused(ask(api(bob), slug), "collection", "unknown_collection")


# --- Who submits ---


def test_who_reads_but_is_no_member_submits_nothing(
    api: Api, acme: Tenant, alice: User, bob: User, erin: User, mallory: User, slug: str
) -> None:
    acme.allow_external_sharing = True
    acme.save()
    assert api(alice).post(paths.grants(slug), {"user": "mallory", "level": "viewer"}).status_code == 201
    for user in (mallory, erin):
        problem(ask(api(user), slug), 403, "refused")
    assert ask(api(alice), slug).status_code == 201


def test_who_decides_a_stage_sees_no_collection_to_submit_from(api: Api, rita: User, root: User, slug: str) -> None:
    for user in (rita, root):
        refused(ask(api(user), slug), "collection", "unknown_collection")


def test_member_who_decides_a_stage_too_may_submit(api: Api, bob: User, slug: str) -> None:
    Membership.objects.filter(user=bob).update(roles=["member", "research_it"])
    assert ask(api(bob), slug).status_code == 201


def test_service_account_submits_nothing(api: Api, alice: User, slug: str) -> None:
    account = api(alice).post("/api/v1/tenants/acme/service-accounts/", {"name": "importer", "roles": ["member"]}).json()
    key = make_key(User.objects.get(username=account["username"]), "read", "write")
    assert api(key).get(paths.collection(slug)).status_code == 200
    problem(ask(api(key), slug), 403, "people_only")


def test_key_of_a_person_submits_with_the_scope_for_that(api: Api, bob: User, slug: str) -> None:
    problem(ask(api(make_key(bob, "read", "share")), slug), 403, "insufficient_scope")
    assert ask(api(make_key(bob, "write")), slug).status_code == 201


def test_name_in_two_tenants_needs_the_tenant(api: Api, bob: User, globex: Tenant, now: datetime, slug: str) -> None:
    Membership.objects.create(user=bob, tenant=globex, roles=["member"], created_at=now)
    made = api(bob).post(paths.COLLECTIONS, {"display_name": "Results", "tenant": "globex"}).json()
    api(bob).put(paths.content(made["id"], "g.csv"), b"g", content_type="text/csv")
    refused(ask(api(bob), "Results"), "tenant", "required")
    assert ask(api(bob), "Results", tenant="globex").json()["collection"] == made["id"]
    assert ask(api(bob), "Results", tenant="acme").json()["collection"] == slug
    refused(ask(api(bob), slug, tenant="globex"), "collection", "unknown_collection")


# --- The list ---


def make_three() -> dict[str, str]:
    with reviewing() as clients:
        bob, carol = clients["bob"], clients["carol"]
        first = submit(bob, fill(bob, "First", {"a.csv": b"1"}))
        second = submit(carol, fill(carol, "Second", {"a.csv": b"2"}))
        work_on()
        assert decide(clients["grace"], first).status_code == 201
        third = submit(bob, fill(bob, "Third", {"a.csv": b"3"}))
        assert bob.post(path(third, "withdraw/"), {}).status_code == 200
    return {"first": first["id"], "second": second["id"], "third": third["id"]}


@pytest.fixture
@provides_world(make_three)
def three(people: dict[str, User], built: dict[str, str]) -> dict[str, str]:
    """bob's first, in review at the second stage; carol's, in review at the first; bob's second, withdrawn."""
    return built


def named(three: dict[str, str], found: list[str]) -> list[str]:
    return [name for request in found for name, number in three.items() if number == request]


def test_list_is_of_those_that_are_ones_own_to_see(
    api: Api,
    three: dict[str, str],
    people: dict[str, User],
    alice: User,
    bob: User,
    carol: User,
    erin: User,
    root: User,
    mallory: User,
) -> None:
    """The newest first. INV-01."""
    for user in (alice, erin, root, *people.values()):
        assert named(three, listed(api(user))) == ["third", "second", "first"]
    assert named(three, listed(api(bob))) == ["third", "first"]
    assert named(three, listed(api(carol))) == ["second"]
    assert listed(api(mallory)) == []


def test_list_is_narrowed(api: Api, three: dict[str, str], people: dict[str, User], case: Case) -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"status": "in_review"}, ["second", "first"]),
        ({"status": ["withdrawn", "in_review"]}, ["third", "second", "first"]),
        ({"status": "released"}, []),
        ({"tenant": "acme"}, ["third", "second", "first"]),
        ({"tenant": "globex"}, []),
        ({"tenant": "no-such-tenant"}, []),
        ({"requester": "bob"}, ["third", "first"]),
        ({"requester": "me"}, []),
        ({"requester": "bob", "status": "in_review"}, ["first"]),
        ({"awaiting_me": "true"}, ["first"]),
        ({"awaiting_me": "false"}, ["third", "second"]),
        ({"awaiting_me": ""}, ["third", "second", "first"]),
    ]
    for query, found in cases:
        with case(query, found):
            assert named(three, listed(api(people["ruth"]), **query)) == found


def test_list_of_ones_own_and_of_a_collection(api: Api, three: dict[str, str], bob: User, carol: User) -> None:
    assert named(three, listed(api(carol), requester="me")) == ["second"]
    of_second = see(api(carol), {"id": three["second"]})["collection"]
    assert named(three, listed(api(carol), collection=of_second)) == ["second"]
    assert listed(api(bob), collection=of_second) == []


def test_what_awaits_whom(
    api: Api, three: dict[str, str], people: dict[str, User], alice: User, bob: User, carol: User, root: User
) -> None:
    """The same who are allowed to decide: not whoever asked, wrote the files, or has decided in this round."""
    Membership.objects.filter(user=bob).update(roles=["member", "information_governance", "research_it"])
    Membership.objects.filter(user=people["gary"]).update(roles=["information_governance", "research_it"])
    Membership.objects.filter(user=people["grace"]).update(roles=["information_governance", "research_it"])
    submit(api(carol), fill(api(alice), "Fourth", {"a.csv": b"4"}))  # of which carol wrote nothing
    work_on()
    Membership.objects.filter(user=carol).update(roles=["member", "information_governance"])
    expected: dict[str, list[str]] = {"gary": ["second", "first"], "grace": ["second"], "ruth": ["first"], "bob": ["second"]}
    for user in (*people.values(), alice, bob, carol, root):
        client = api(user)
        allowed = [found["id"] for found in client.get(REQUESTS).json()["results"] if "decide" in found["allowed_actions"]]
        assert listed(client, awaiting_me="true") == allowed
        if user.username in expected:
            assert (user.username, named(three, allowed)) == (user.username, expected[user.username])


def test_filter_that_means_nothing_is_refused(api: Api, bob: User, case: Case) -> None:
    """F-43."""
    for name, value in [
        ("status", "gone"),
        ("status", "IN_REVIEW"),
        ("awaiting_me", "perhaps"),
        ("awaiting_me", "1"),
        ("tenant", "x" * 51),
        ("collection", "x" * 81),
        ("requester", "x" * 151),
        ("page_size", "0"),
        ("page_size", "many"),
        ("cursor", "x"),
    ]:
        with case(name, value):
            answer = api(bob).get(REQUESTS, {name: value})
            assert answer.status_code == 400, answer.json()
            assert set(answer.json()["errors"]) == {name}


def test_list_is_paged(api: Api, three: dict[str, str], alice: User) -> None:
    client, found = api(alice), []
    page = client.get(REQUESTS, {"page_size": 2}).json()
    found += [each["id"] for each in page["results"]]
    assert len(found) == 2
    page = client.get(page["next"]).json()
    assert page["next"] is None
    assert named(three, found + [each["id"] for each in page["results"]]) == ["third", "second", "first"]


@pytest.mark.parametrize("many", [4, pytest.param(20, marks=pytest.mark.long)])
def test_list_costs_the_same_for_one_and_for_many(api: Api, alice: User, bob: User, people: dict[str, User], many: int) -> None:
    readers = {"alice": alice, "bob": bob, "grace": people["grace"]}

    def count() -> dict[str, tuple[int, int]]:
        counts = {}
        for name, user in readers.items():
            client = api(user)
            with CaptureQueriesContext(connection) as queries:
                found = listed(client)
            counts[name] = len(found), len(queries)
        return counts

    def add(number: int) -> None:
        submit(api(bob), fill(api(bob), f"Results {number}", {"a.csv": b"1"}))

    add(1)
    work_on()
    for_one = count()
    for number in range(2, many + 1):
        add(number)
    work_on()
    assert {found for found, _ in for_one.values()} == {1}
    assert count() == {name: (many, queries) for name, (_, queries) in for_one.items()}


# --- A request ---


def test_request_shows_all_that_there_is_to_know(api: Api, bob: User, people: dict[str, User], reviewed: Any) -> None:
    body(api(people["ruth"]).get(path(reviewed, "items/2/content")))
    decide(api(people["grace"]), reviewed, reason="The counts are above ten.")
    seen = see(api(bob), reviewed)
    assert (seen["status"], seen["waits_for"], seen["stage"], seen["awaited_role"]) == ("in_review", "reviewer", 2, "research_it")
    assert seen["file_types"] == ["csv", "txt"]
    assert [(item["status"], item["opened_by"] and item["opened_by"][0]["by"]) for item in seen["items"]] == [
        ("staged", []),
        ("staged", "ruth"),
        ("staged", []),
    ]
    (decision,) = seen["decisions"]
    assert decision | {"at": None} == {
        "round": 1,
        "stage": 1,
        "role": "information_governance",
        "verdict": "approve",
        "reason": "The counts are above ten.",
        "by": "grace",
        "at": None,
        "voided_at": None,
    }
    assert [(step["number"], step["status"], step["by"], step["stage"], step["reason"]) for step in seen["timeline"]] == [
        (1, "submitted", "bob", 1, REASON),
        (2, "in_review", "system", 1, ""),
        (3, "in_review", "grace", 2, "The counts are above ten."),
    ]
    assert {mail["to"] for mail in seen["notifications"]} == {f"{name}@example.org" for name in (*REVIEWERS, "rita")}
    assert {mail["state"] for mail in seen["notifications"]} == {"waiting"}
    assert seen["policy"]["stages"] == seen["stages"] == ["information_governance", "research_it"]
    assert (seen["download_count"], seen["max_downloads"], seen["downloads_left"], seen["downloads"]) == (0, 1, 0, [])
    assert (seen["released_at"], seen["available_until"], seen["package_length"], seen["package_sha256"]) == (
        None,
        None,
        None,
        "",
    )
    assert seen["links"] == {
        "self": f"http://testserver{path(reviewed)}",
        "collection": f"http://testserver{paths.collection(reviewed['collection'])}",
        "package": None,
        "manifest": None,
    }
    assert seen["expires_at"] > seen["submitted_at"]


def test_released_request_shows_its_package_and_who_fetched_it(
    api: Api, bob: User, people: dict[str, User], reviewed: Any
) -> None:
    for name in ("grace", "ruth"):
        decide(api(people[name]), reviewed)
    work_on()
    released = see(api(bob), reviewed)
    assert (released["status"], released["waits_for"], released["stage"]) == ("released", "requester", None)
    assert (released["downloads_left"], released["expires_at"]) == (1, None)
    assert released["links"]["package"] == f"http://testserver{path(reviewed, 'package.zip')}"
    assert released["package_length"] == len(body(api(bob).get(released["links"]["package"])))
    assert api(bob).get(released["links"]["manifest"]).json()["manifest"]["request"]["id"] == reviewed["id"]
    fetched = see(api(people["grace"]), reviewed)
    assert (fetched["links"]["package"], fetched["links"]["collection"]) == (None, None)  # they would open nothing for her
    assert (fetched["download_count"], fetched["downloads_left"]) == (1, 0)
    assert [download["by"] for download in fetched["downloads"]] == ["bob"]
    assert {item["status"] for item in fetched["items"]} == {"wiped"}
    assert all(item["wiped_at"] for item in fetched["items"])


def test_actions_are_those_that_each_may_take(
    api: Api, reviewed: Any, people: dict[str, User], alice: User, bob: User, erin: User, root: User
) -> None:
    def allowed() -> dict[str, list[str]]:
        seers = {**people, "alice": alice, "bob": bob, "erin": erin, "root": root}
        return {name: see(api(user), reviewed)["allowed_actions"] for name, user in seers.items()}

    nothing: dict[str, list[str]] = {name: [] for name in (*people, "alice", "bob", "erin", "root")}
    deciding, reading = ["read_items", "decide"], ["read_items"]
    first = {"grace": deciding, "gary": deciding, "ruth": reading, "rick": reading, "bob": ["withdraw"]}
    assert allowed() == nothing | first
    decide(api(people["grace"]), reviewed)
    assert allowed() == nothing | first | {"grace": reading, "gary": reading, "ruth": deciding, "rick": deciding}
    decide(api(people["ruth"]), reviewed)
    assert allowed() == nothing
    work_on()
    last = ["extend", "revoke"]
    released = {"grace": ["revoke"], "gary": ["revoke"], "ruth": last, "rick": last, "alice": ["revoke"], "root": ["revoke"]}
    assert allowed() == nothing | released | {"bob": ["download"]}


def test_requester_who_is_no_member_any_more_is_offered_no_further_round(
    api: Api, bob: User, people: dict[str, User], reviewed: Any, case: Case
) -> None:
    for role in ["auditor", "information_governance"]:
        with case(role):
            assert decide(api(people["grace"]), reviewed, "return").status_code == 201
            assert see(api(bob), reviewed)["allowed_actions"] == ["resubmit", "withdraw"]
            Membership.objects.filter(user=bob).update(roles=[role])
            assert see(api(bob), reviewed)["allowed_actions"] == ["withdraw"]
            assert api(bob).post(path(reviewed, "resubmit/"), {}).status_code == 403


def test_requester_who_lost_the_collection_is_told_so(
    api: Api, alice: User, bob: User, carol: User, people: dict[str, User]
) -> None:
    slug = fill(api(bob), "Shared")
    request = submit(api(carol), slug)
    work_on()
    assert decide(api(people["grace"]), request, "return").status_code == 201
    for grant in api(bob).get(paths.grants(slug)).json()["results"]:
        if grant["user"] != "bob":
            assert api(bob).delete(f"{paths.grants(slug)}{grant['id']}/").status_code == 204
    said = problem(api(carol).post(path(request, "resubmit/"), {}), 403, "refused")
    assert "collection" in said["detail"]


def test_manager_learns_whose_request_keeps_a_file(api: Api, bob: User, carol: User, slug: str) -> None:
    """Whoever reads may ask; what that keeps as it is is somebody else's."""
    request = submit(api(carol), slug, files=["a.csv"])
    (hold,) = api(bob).get(f"/api/v1/collections/{slug}/holds/").json()["results"]
    assert request["id"] in hold["reason"]
    assert "carol" in hold["reason"]


def test_request_of_another_tenant_is_not_there(api: Api, mallory: User, reviewed: Any, globex: Tenant) -> None:
    """INV-01, and for those who hold the same role elsewhere, or were in the tenant once."""
    gina = make_member(globex, "gina", "information_governance", "research_it", "admin")
    bob = User.objects.get(username="bob")
    Membership.objects.filter(user=bob).delete()
    unknown = api(mallory).get(f"{REQUESTS}{UUID(int=1)}/")
    problem(unknown, 404, "not_found")
    for user in (mallory, gina, bob):
        for address in (
            path(reviewed),
            path(reviewed, "items/1/content"),
            path(reviewed, "package.zip"),
            path(reviewed, "manifest/"),
        ):
            answer = api(user).get(address)
            assert (answer.status_code, answer.content) == (404, unknown.content)


def test_address_that_names_no_request(api: Api, root: User, reviewed: Any, case: Case) -> None:
    for number in ["1", "x", "00000000", "' OR 1=1", "..", f"{{{UUID(int=1)}}}"]:
        with case(number):
            problem(api(root).get(f"{REQUESTS}{number}/"), 404, "not_found")
