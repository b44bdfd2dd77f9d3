"""What a destruction has to do with egress: packages outlive what they were made of, requests outlive both.

INV-07, INV-08; F-57, F-63.
"""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from egress.models import EgressRequest
from files.models import Collection, Hold, StoredFile
from purge import jobs
from purge.destruction import start_destruction
from purge.models import Destruction
from tenants.models import Tenant, User
from tests import invariants
from tests.services import purging
from tests.services.egress import (
    FILES,
    REASON,
    Api,
    assert_wiped,
    body,
    collection_of,
    decide,
    in_bucket,
    make_reviewers,
    path,
    row,
    see,
    submit,
    work_on,
)
from tests.services.test_purge_ledger import back_up, restore
from vault import identity
from vault.stores import get_store


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.fixture
def request_(released: Any) -> Any:
    return released


def certificate_of(collection: Collection) -> Any:
    return json.loads(purging.of(collection).certificate)


def test_package_outlives_its_source_whose_certificate_names_it(request_: Any, api: Api, bob: User) -> None:
    """INV-07, F-57."""
    source, release = collection_of(request_), Collection.objects.get(kind=Collection.Kind.RELEASE)
    destruction = purging.end(source)
    assert destruction.status == "done"

    (named,) = certificate_of(source)["packages"]
    assert (named["request"], named["collection"]) == (request_["id"], str(release.uuid))
    assert named["available_until"][:19] == see(api(bob), request_)["available_until"][:19]
    assert row(request_).collection is None
    assert body(api(bob).get(path(request_, "package.zip")))[:2] == b"PK"
    assert see(api(bob), request_)["collection"] == request_["collection"]
    invariants.check_all()


def test_certificate_names_no_package_whose_window_is_over(request_: Any, api: Api, bob: User, people: dict[str, User]) -> None:
    source = collection_of(request_)
    assert api(people["ruth"]).post(path(request_, "revoke/"), {"reason": REASON}).status_code == 200
    purging.end(source)
    assert certificate_of(source)["packages"] == []


def test_destroyed_package_leaves_the_request_and_its_manifest(request_: Any, api: Api, bob: User) -> None:
    """At the end of its window: what left, and who let it out, stays to be read."""
    release = Collection.objects.get(kind=Collection.Kind.RELEASE)
    EgressRequest.objects.update(available_until=timezone.now())
    Collection.objects.filter(pk=release.pk).update(purge_at=timezone.now() - timedelta(minutes=1))
    before = api(bob).get(path(request_, "manifest/")).json()
    work_on()
    jobs.tick(now=timezone.now())
    purging.work_on()

    assert purging.of(release).status == "done"
    assert in_bucket("release") == []
    assert (row(request_).status, row(request_).package_collection) == ("closed", None)
    assert api(bob).get(path(request_, "manifest/")).json() == before
    assert [item["filename"] for item in see(api(bob), request_)["items"]] == list(FILES)
    assert api(bob).get(path(request_, "package.zip")).status_code == 409


def test_collection_with_an_open_request_waits_for_its_end(api: Api, people: dict[str, User], in_review: Any) -> None:
    """F-57: no part of it is released, and none destroyed; once it has ended, the collection goes."""
    request = in_review
    source = collection_of(request)
    purging.expire(source)
    assert start_destruction(source, by=None, now=timezone.now()) is None
    assert decide(api(people["grace"]), request, "reject").status_code == 201
    assert start_destruction(source, by=None, now=timezone.now())
    purging.work_on()
    work_on()
    assert purging.of(source).status == "done"
    assert_wiped(request)


@pytest.mark.parametrize(
    "state",
    ["in_review", "approved", "returned", *(pytest.param(each, marks=pytest.mark.long) for each in ("submitted", "failed"))],
)
def test_open_request_of_a_restored_database_ends_with_its_collection(
    api: Api, bob: User, people: dict[str, User], results: str, state: str
) -> None:
    """F-63: the ledger says that the collection is destroyed, which nothing that was open then may stop."""
    identity.clear_checks()
    request = submit(api(bob), results)
    source = collection_of(request)
    bring_to(state, api, request, people)
    assert row(request).status == state
    backup = back_up()
    end_it(api(bob), request, people, api)
    purging.end(source)
    work_on()
    assert purging.of(source).status == "done"

    restore(backup)
    assert row(request).status == state
    jobs.tick(now=timezone.now())
    work_on()

    assert purging.of(source).status == "done"
    assert Destruction.objects.get(collection_uuid=source.uuid).number == 1
    assert row(request).status == "expired"
    assert not Hold.objects.exists()
    assert not StoredFile.objects.exists()
    assert_wiped(request)
    # A package that was released in the time that the database has lost is an orphan, which the sweep finds.
    assert len(in_bucket("release")) == (state == "approved")


def bring_to(state: str, api: Api, request: Any, people: dict[str, User]) -> None:
    if state == "submitted":
        return
    work_on()
    if state == "returned":
        assert decide(api(people["grace"]), request, "return").status_code == 201
    if state in {"approved", "failed"}:
        for name in ("grace", "ruth"):
            assert decide(api(people[name]), request).status_code == 201
    if state == "failed":
        store = get_store("staging")
        store.erase(list(store.entries(row(request).items.get(number=2).object_key)))
        work_on()


def end_it(client: APIClient, request: Any, people: dict[str, User], api: Api) -> None:
    """By hand, if it can be; what is approved is released."""
    if row(request).status == "approved":
        work_on()
    else:
        assert client.post(path(request, "withdraw/"), {"reason": REASON}).status_code == 200
