"""Packages when their time is over, and collections whose time is over while a request is about them (INV-07, F-57)."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from egress import jobs, services
from egress.models import EgressRequest, StagedFile
from files.models import Collection, StoredFile
from purge.jobs import purge_expired
from purge.jobs import tick as purge_tick
from tenants.models import Tenant, User
from tests.services.egress import REASON, Api, body, decide, make_reviewers, path, row, see, submit, work_on
from tests.services.purging import work_on as destroy
from vault.stores import get_store


pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


def copies(request: Any) -> list[str]:
    """Keys in staging, as a listing has them."""
    wanted = set(StagedFile.objects.filter(request=request["id"]).values_list("object_key", flat=True))
    return [entry.key for entry in get_store("staging").entries("") if entry.key in wanted]


# --- Packages ---


@pytest.fixture
def people(acme: Tenant, bob: User) -> dict[str, User]:
    return make_reviewers(acme) | {"bob": bob}


def assert_no_package(api: Api, people: dict[str, User], request: Any, *, now: datetime | None = None) -> None:
    """It is gone with its key, and the request has its manifest still."""
    purge_tick(now=now or timezone.now())
    destroy(now=now)
    assert list(get_store("release").entries("")) == []
    assert not Collection.objects.filter(kind="release").exists()
    assert not StoredFile.objects.filter(collection__kind="release").exists()
    bob = api(people["bob"])
    assert bob.get(path(request, "package.zip")).status_code == 409
    assert bob.get(path(request, "manifest/")).json()["manifest"]["request"]["id"] == request["id"]
    assert see(bob, request)["status"] in {"closed", "revoked"}


@pytest.mark.both_databases
def test_package_ends_with_its_window(api: Api, people: dict[str, User], released: Any) -> None:
    until = row(released).available_until
    assert until
    jobs.end_expired(now=until - SECOND)
    assert row(released).status == "released"
    jobs.end_expired(now=until)
    assert row(released).status == "closed"
    assert_no_package(api, people, released, now=until)


def test_package_ends_when_the_clock_says_so_whoever_is_first(api: Api, people: dict[str, User], released: Any) -> None:
    """The tick of purge may come before that of egress."""
    past = timezone.now() - SECOND
    EgressRequest.objects.update(available_until=past)
    Collection.objects.filter(kind="release").update(purge_at=past)
    purge_tick(now=timezone.now())
    assert api(people["bob"]).get(path(released, "package.zip")).status_code == 409
    jobs.end_expired(now=timezone.now())
    assert row(released).status == "closed"
    assert_no_package(api, people, released)


def test_package_that_was_fetched_to_the_limit_ends_when_it_cannot_be_resumed(
    api: Api, people: dict[str, User], released: Any
) -> None:
    assert body(api(people["bob"]).get(path(released, "package.zip")))
    touched = row(released).downloads.get().touched_at
    jobs.end_expired(now=touched + jobs.RESUME_PERIOD - SECOND)
    assert row(released).status == "released"
    jobs.end_expired(now=touched + jobs.RESUME_PERIOD)
    assert row(released).status == "closed"
    assert_no_package(api, people, released, now=touched + jobs.RESUME_PERIOD)


def test_extended_package_ends_at_its_new_time(api: Api, people: dict[str, User], released: Any) -> None:
    before = row(released).available_until
    extend = {"days": 2, "reason": "The network was down all week."}
    assert api(people["ruth"]).post(path(released, "extend/"), extend).status_code == 200
    until = row(released).available_until
    assert before
    assert until == before + timedelta(days=2)
    assert Collection.objects.get(kind="release").purge_at == until
    jobs.end_expired(now=before + SECOND)
    assert row(released).status == "released"
    jobs.end_expired(now=until)
    assert row(released).status == "closed"


def test_package_whose_time_is_over_is_not_extended(api: Api, people: dict[str, User], released: Any) -> None:
    """Not even before the tick that closes it: the one that destroys it may have been faster."""
    past = timezone.now() - SECOND
    EgressRequest.objects.update(available_until=past)
    Collection.objects.filter(kind="release").update(purge_at=past)
    purge_tick(now=timezone.now())
    assert "extend" not in see(api(people["ruth"]), released)["allowed_actions"]
    answer = api(people["ruth"]).post(path(released, "extend/"), {"days": 2, "reason": REASON})
    assert (answer.status_code, answer.json()["code"]) == (409, "package_gone")
    jobs.end_expired(now=timezone.now())
    assert row(released).status == "closed"


def test_extension_is_on_the_timeline(api: Api, people: dict[str, User], released: Any) -> None:
    extend = {"days": 2, "downloads": 1, "reason": "The network was down all week."}
    answer = api(people["ruth"]).post(path(released, "extend/"), extend)
    last = answer.json()["timeline"][-1]
    assert (last["status"], last["by"], last["reason"]) == ("released", "ruth", extend["reason"])
    assert answer.json()["changed_at"] == see(api(people["bob"]), released)["released_at"]


def test_package_whose_purge_came_first_is_not_extended(api: Api, people: dict[str, User], released: Any) -> None:
    """However early by the clock: there would be nothing to be had for those days."""
    Collection.objects.filter(kind="release").update(purge_at=timezone.now() - SECOND)
    purge_tick(now=timezone.now())
    answer = api(people["ruth"]).post(path(released, "extend/"), {"days": 2, "reason": REASON})
    assert (answer.status_code, answer.json()["code"]) == (409, "package_gone")
    assert len(see(api(people["bob"]), released)["timeline"]) == 5


def test_revoked_package_is_gone_with_the_next_tick(api: Api, people: dict[str, User], released: Any) -> None:
    revoked = api(people["grace"]).post(path(released, "revoke/"), {"reason": "Names were left in it."})
    assert revoked.status_code == 200
    assert_no_package(api, people, released)


# --- What they are about ---


@pytest.mark.both_databases
def test_source_that_expires_is_held_back_until_it_is_decided(api: Api, people: dict[str, User], in_review: Any) -> None:
    """F-57: the request stays, with what it was about, when the collection is destroyed after its end."""
    source = row(in_review).collection
    assert source
    Collection.objects.filter(pk=source.pk).update(purge_at=timezone.now() - SECOND)
    for who in ("grace", "ruth"):
        assert purge_expired(now=timezone.now()) == 0
        assert decide(api(people[who]), in_review).status_code == 201
    assert purge_expired(now=timezone.now()) == 0
    work_on()
    assert row(in_review).status == "released"

    assert purge_expired(now=timezone.now()) == 1
    destroy()
    assert not Collection.objects.filter(uuid=source.uuid).exists()
    found = row(in_review)
    assert (found.collection, found.collection_uuid, found.status) == (None, source.uuid, "released")
    assert body(api(people["bob"]).get(path(in_review, "package.zip")))  # it has a key of its own


def test_source_of_a_rejected_request_goes_at_its_time(api: Api, people: dict[str, User], in_review: Any) -> None:
    Collection.objects.update(purge_at=timezone.now() - SECOND)
    assert decide(api(people["grace"]), in_review, "reject").status_code == 201
    assert purge_expired(now=timezone.now()) == 1
    work_on()
    destroy()
    assert not Collection.objects.exists()
    assert copies(in_review) == []
    assert row(in_review).status == "rejected"


def test_source_that_is_destroyed_before_the_copies_are_wiped(api: Api, people: dict[str, User], in_review: Any) -> None:
    Collection.objects.update(purge_at=timezone.now() - SECOND)
    assert decide(api(people["grace"]), in_review, "reject").status_code == 201
    assert purge_expired(now=timezone.now()) == 1
    destroy()
    work_on()
    assert copies(in_review) == []
    assert set(row(in_review).items.values_list("status", flat=True)) == {"wiped"}


def test_returned_request_whose_source_is_gone_cannot_go_on(api: Api, people: dict[str, User], in_review: Any) -> None:
    assert decide(api(people["grace"]), in_review, "return").status_code == 201
    Collection.objects.update(purge_at=timezone.now() - SECOND)
    purge_expired(now=timezone.now())
    destroy()
    found = row(in_review)
    bob = api(people["bob"])
    assert found.collection is None
    assert found.status in {"expired", "returned"}
    assert bob.post(path(in_review, "resubmit/"), {"justification": "Once more, if you please."}).status_code == 409


def test_request_that_was_read_before_its_source_went_is_withdrawn(api: Api, people: dict[str, User], in_review: Any) -> None:
    """As an operator's page has it, or a tick: the collection it names is not there any more."""
    assert decide(api(people["grace"]), in_review, "return").status_code == 201
    work_on()
    read, source = row(in_review), Collection.objects.filter(slug=in_review["collection"])
    source.update(purge_at=timezone.now() - SECOND)
    purge_expired(now=timezone.now())
    destroy()
    assert not source.exists()
    services.withdraw(read, reason="", by=people["bob"], now=timezone.now())
    assert row(in_review).status == "withdrawn"


def test_collection_of_which_something_was_released_stays_processed(api: Api, people: dict[str, User], released: Any) -> None:
    bob = api(people["bob"])
    again = submit(bob, released["collection"])
    assert bob.get(f"/api/v1/collections/{released['collection']}/").json()["egress_status"] == "processing"
    assert bob.post(path(again, "withdraw/"), {}).status_code == 200
    assert bob.get(f"/api/v1/collections/{released['collection']}/").json()["egress_status"] == "processed"
