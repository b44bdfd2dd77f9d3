"""Two at once about one egress request, on both databases: one outcome, that every table agrees on (F-31, F-52, INV-13)."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from egress import jobs
from egress.models import EgressRequest
from egress.states import PINNING, TRANSITIONS, State
from files.models import Collection, Hold, StoredFile
from tenants.models import AuditEvent, User
from tests import invariants
from tests.api import paths
from tests.races import attempts, race
from tests.services.egress import FILES, REASON, Api, body, decide, path, row, submit, work_on


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]
Call = Callable[[], int]
TWICE = attempts(2)


class Office:
    """What each of them does, in a thread of their own: the status of the answer."""

    def __init__(self, api: Api, people: dict[str, User], slug: str) -> None:
        self.api, self.people, self.slug = api, people, slug

    def submit(self) -> Any:
        return submit(self.api(self.people["bob"]), self.slug)

    def decides(self, who: str, request: Any, verdict: str = "approve") -> Call:
        client = self.api(self.people[who])
        return lambda: int(decide(client, request, verdict).status_code)

    def posts(self, who: str, address: str, wish: dict[str, Any]) -> Call:
        client = self.api(self.people[who])
        return lambda: int(client.post(address, wish).status_code)


def ends(now: datetime) -> Call:
    """Whatever is overdue: no answer to look at."""

    def end() -> int:
        jobs.end_expired(now=now)
        return 0

    return end


@pytest.fixture
def office(own_buckets: Path, api: Api) -> Office:
    people = {user.username: user for user in User.objects.all()}
    return Office(api, people, Collection.objects.get(kind=Collection.Kind.FILES).slug)


@pytest.fixture
def at_second_stage(office: Office, in_review: Any) -> Any:
    assert office.decides("gary", in_review)() == 201
    return in_review


def assert_consistent(request: Any) -> EgressRequest:
    """Steps are one chain that ends where the request is, with an audit row each; decisions, holds and package fit the state."""
    found = row(request)
    steps = list(found.steps.order_by("number"))
    assert [step.number for step in steps] == list(range(1, found.step + 1))
    assert [step.from_status for step in steps] == ["", *(step.to_status for step in steps[:-1])]
    assert all(step.to_status in TRANSITIONS[State(step.from_status)] for step in steps[1:])
    assert (steps[-1].to_status, steps[-1].round, steps[-1].stage) == (found.status, found.round, found.stage)
    events = AuditEvent.objects.filter(target_id=str(found.pk), body__contains='"came_to"').count()
    assert events == len(steps) - 1
    decided = [step for step in steps if step.from_status == "in_review" and step.by_id and step.to_status != "withdrawn"]
    assert found.decisions.count() == len(decided)
    if found.status in {"approved", "released", "closed"}:
        assert set(found.decisions.filter(round=found.round, verdict="approve").values_list("stage", flat=True)) == {0, 1}
    assert Hold.objects.filter(ref=str(found.pk)).exists() == (found.status in PINNING)
    assert StoredFile.objects.filter(collection__kind="release").count() == (found.status == "released")
    assert Collection.objects.filter(kind="release").count() <= 1
    invariants.check_all()
    return found


# --- Reviewers ---


@TWICE
def test_two_reviewers_of_one_stage(office: Office, in_review: Any, attempt: int) -> None:
    request = in_review
    assert sorted(race([office.decides("grace", request), office.decides("gary", request)])) == [201, 409]
    found = assert_consistent(request)
    assert (found.status, found.stage, found.decisions.count()) == ("in_review", 1, 1)


def test_one_reviewer_twenty_times(office: Office, in_review: Any) -> None:
    request = in_review
    assert Counter(race([office.decides("grace", request)] * 20)) == {201: 1, 409: 19}
    assert assert_consistent(request).decisions.count() == 1


@TWICE
def test_approval_against_rejection(office: Office, at_second_stage: Any, attempt: int) -> None:
    request = at_second_stage
    answers = race([office.decides("ruth", request), office.decides("rick", request, "reject")])
    assert answers in ([201, 409], [409, 201])
    assert assert_consistent(request).status == ("approved" if answers[0] == 201 else "rejected")


@TWICE
def test_approval_against_withdrawal(office: Office, at_second_stage: Any, attempt: int) -> None:
    request = at_second_stage
    answers = race([office.decides("ruth", request), office.posts("bob", path(request, "withdraw/"), {})])
    assert answers in ([201, 409], [409, 200])
    assert assert_consistent(request).status == ("approved" if answers[0] == 201 else "withdrawn")


@TWICE
def test_approval_against_expiry(office: Office, at_second_stage: Any, attempt: int) -> None:
    request = at_second_stage
    now = timezone.now()
    EgressRequest.objects.update(expires_at=now - timedelta(seconds=1))
    approval, _ = race([office.decides("ruth", request), ends(now)])
    assert approval in {201, 409}
    assert assert_consistent(request).status == ("approved" if approval == 201 else "expired")


@TWICE
def test_second_stage_before_the_first(office: Office, in_review: Any, attempt: int) -> None:
    request = in_review
    first, second = race([office.decides("grace", request), office.decides("ruth", request)])
    assert (first, second) in {(201, 201), (201, 409)}
    assert assert_consistent(request).status == ("approved" if second == 201 else "in_review")


# --- The requester ---


@TWICE
def test_two_requests_for_one_collection(office: Office, results: str, attempt: int) -> None:
    wish = {"collection": office.slug, "justification": REASON}
    asks = [office.posts("bob", "/api/v1/egress/requests/", wish) for _ in range(4)]
    assert Counter(race(asks)) == {201: 1, 409: 3}
    assert_consistent({"id": str(EgressRequest.objects.get().pk)})


@TWICE
def test_two_resubmissions(office: Office, in_review: Any, attempt: int) -> None:
    request = in_review
    assert office.decides("grace", request, "return")() == 201
    assert sorted(race([office.posts("bob", path(request, "resubmit/"), {"justification": REASON})] * 2)) == [200, 409]
    found = assert_consistent(request)
    assert (found.status, found.round, found.items.filter(round=2).count()) == ("submitted", 2, len(FILES))


@TWICE
def test_submission_against_a_new_content(office: Office, results: str, attempt: int) -> None:
    """INV-11: what is pinned is what is there, and what leaves, whoever was first."""
    client, slug = office.api(office.people["bob"]), office.slug
    address = paths.content(slug, "a.csv")

    def put() -> int:
        return int(client.put(address, b"new", content_type="text/csv", headers={"if-match": "*"}).status_code)

    wish = {"collection": slug, "justification": REASON}
    submitted, replaced = race([office.posts("bob", "/api/v1/egress/requests/", wish), put])
    assert (submitted, replaced) in {(201, 200), (201, 409)}
    request = {"id": str(EgressRequest.objects.get().pk)}
    item, file = row(request).items.get(filename="a.csv"), StoredFile.objects.get(filename="a.csv")
    assert (item.object_id, item.sha256, item.length) == (file.object_id, file.sha256, file.length)
    work_on()
    for who in ("grace", "ruth"):
        assert office.decides(who, request)() == 201
    work_on()
    assert_consistent(request)
    assert row(request).status == "released"
    package = client.get(path(request, "package.zip"))
    assert (b"new" if replaced == 200 else FILES["a.csv"]) in body(package)


# --- After the release ---


@TWICE
def test_revocation_against_the_end_of_the_window(office: Office, released: Any, attempt: int) -> None:
    request = released
    now = timezone.now()
    EgressRequest.objects.update(available_until=now - timedelta(seconds=1))
    revoked, _ = race([office.posts("grace", path(request, "revoke/"), {"reason": REASON}), ends(now)])
    assert revoked in {200, 409}
    found = row(request)
    assert found.status == ("revoked" if revoked == 200 else "closed")
    assert found.steps.filter(from_status="released").count() == 1
    assert Collection.objects.get(kind="release").purge_at <= timezone.now()  # type: ignore[operator]


# --- Workers ---


def test_workers_at_once_make_one_package(office: Office, results: str) -> None:
    """F-31: ticks at once, again, and out of order."""
    request = office.submit()

    def build() -> bool:
        return jobs.build_package(now=timezone.now())

    def work() -> bool:
        return jobs.process_copies(now=timezone.now(), until=float("inf"))

    race([work, build] * 4)
    assert assert_consistent(request).status == "in_review"
    for who in ("grace", "ruth"):
        assert office.decides(who, request)() == 201
    race([build, work] * 4)
    work_on()
    found = assert_consistent(request)
    assert (found.status, found.steps.count()) == ("released", 5)
    digest = found.package_sha256
    race([build, work] * 4)
    assert (assert_consistent(request).package_sha256, row(request).step) == (digest, found.step)


def test_worker_that_was_taken_for_dead_comes_back(office: Office, approved: Any) -> None:
    """Two with the same request at once, of whom one has its lease: one package."""
    request = approved
    later = timezone.now() + jobs.LEASE_TIMEOUT + timedelta(minutes=1)
    race([lambda: jobs.build_package(now=timezone.now()), lambda: jobs.build_package(now=later)])
    while jobs.build_package(now=later + jobs.LEASE_TIMEOUT + timedelta(minutes=1)):
        pass
    found = row(request)
    assert found.status == "released"
    assert found.steps.filter(to_status="released").count() == 1
    assert StoredFile.objects.filter(collection__kind="release").count() == 1
