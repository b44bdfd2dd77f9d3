"""`keep_until` of PATCH and PUT collections/{id}/files/{filename}/. What comes of it: services/test_purge_files.py. F-65."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from rest_framework.test import APIClient

from files import holds, services
from files.models import Collection, StoredFile
from tenants.errors import Invalid
from tenants.models import Tenant, User
from tests.api import paths
from tests.api.answers import audited, facts, problem
from tests.api.cases import Case
from tests.api.worlds import make_report
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
CHRISTMAS = "2099-12-24T18:00:00Z"


@pytest.fixture
@provides_world(make_report)
def report(november: str, built: dict[str, Any]) -> dict[str, Any]:
    return built


def change(client: APIClient, november: str, **body: Any) -> Any:
    return client.patch(paths.file(november, "report.csv"), body)


def test_keep_until_is_set_kept_and_taken_away(bob: User, november: str, report: dict[str, Any], api: Api, case: Case) -> None:
    for method in ["put", "patch"]:
        with case(method):
            send, address = getattr(api(bob), method), paths.file(november, "report.csv")
            told = "2099-12-24T18:00:00.000000Z"

            assert send(address, {"keep_until": CHRISTMAS}).json() == report | {"keep_until": told}
            assert send(address, {"notes": "x"}).json()["keep_until"] == told
            assert send(address, {"keep_until": CHRISTMAS}).json()["keep_until"] == told
            assert send(address, {"keep_until": None}).json() == report | {"notes": "x"}
            assert send(address, {"keep_until": None}).json() == api(bob).get(address).json()

            assert audited("file.update") == [("file.update", "bob")] * 3
            assert [facts("file.update", which) for which in range(3)] == [
                {"keep_until": "2099-12-24T18:00:00+00:00"},
                {"notes": "x"},
                {"keep_until": None},
            ]


def test_keep_until_is_a_time_in_utc(bob: User, november: str, report: dict[str, Any], api: Api, case: Case) -> None:
    for given, stored in [
        ("2099-01-01T00:00:00+02:00", "2098-12-31T22:00:00.000000Z"),
        ("2099-01-01T00:00:00", "2099-01-01T00:00:00.000000Z"),  # without a zone: UTC
        ("2038-01-19T03:14:08Z", "2038-01-19T03:14:08.000000Z"),
        ("9999-12-30T00:00:00Z", "9999-12-30T00:00:00.000000Z"),
    ]:
        with case(given, stored):
            assert change(api(bob), november, keep_until=given).json()["keep_until"] == stored
            assert api(bob).get(paths.file(november, "report.csv")).json()["keep_until"] == stored


def test_keep_until_that_does_not_lie_ahead_is_400_and_names_the_field(
    bob: User, november: str, report: dict[str, Any], api: Api, case: Case
) -> None:
    for given in [
        "2001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2099-02-30T00:00:00Z",
        "soon",
        "",
        5,
        True,
    ]:
        with case(given):
            answer = change(api(bob), november, keep_until=given, notes="x")
            assert list(problem(answer, 400, answer.json()["code"])["errors"]) == ["keep_until"]
            assert api(bob).get(paths.file(november, "report.csv")).json() == report
            assert audited("file.update") == []


def test_keep_until_lies_ahead_from_the_next_moment_on(bob: User, report: dict[str, Any], now: datetime, case: Case) -> None:
    for microseconds, is_taken in [(-1, False), (0, False), (1, True)]:
        with case(microseconds, is_taken):
            moment = now + timedelta(microseconds=microseconds)
            try:
                services.update_file(StoredFile.objects.get(), by=bob, now=now, keep_until=moment)
            except Invalid:
                moment = None  # type: ignore[assignment]
            assert (moment is not None) == is_taken
            assert StoredFile.objects.get().keep_until == moment


def test_keep_until_survives_a_replacement(bob: User, november: str, report: dict[str, Any], put: Put, api: Api) -> None:
    change(api(bob), november, keep_until=CHRISTMAS)
    replaced = put(api(bob), november, "report.csv", b"new", if_match=report["etag"]).json()
    assert replaced["keep_until"] == "2099-12-24T18:00:00.000000Z"


def test_keep_until_takes_an_editor(acme: Tenant, alice: User, bob: User, put: Put, api: Api, case: Case) -> None:
    for level, status in [("viewer", 403), ("editor", 200), ("manager", 200)]:
        for on_file in [False, True]:
            with case(level, status, on_file):
                Tenant.objects.update(new_collections=Tenant.NewCollections.PRIVATE)
                slug = api(alice).post(paths.COLLECTIONS, {"display_name": "Private"}).json()["id"]
                put(api(alice), slug, "report.csv", b"a,b")
                assert change(api(bob), slug, keep_until=CHRISTMAS).status_code == 404
                grants = paths.file_grants(slug, "report.csv") if on_file else paths.grants(slug)
                assert api(alice).post(grants, {"user": "bob", "level": level}).status_code == 201

                assert change(api(bob), slug, keep_until=CHRISTMAS).status_code == status

                assert StoredFile.objects.filter(keep_until=None).exists() == (status != 200)


def test_keep_until_stays_while_the_file_is_held(
    alice: User, bob: User, november: str, report: dict[str, Any], api: Api, case: Case
) -> None:
    for filename in ["report.csv", None]:
        with case(filename):
            collection = Collection.objects.get()
            hold = holds.place(collection, filename=filename, ref="", reason="a suit", by=alice, now=timezone.now())
            for keep_until in (CHRISTMAS, None):
                if keep_until is None:
                    StoredFile.objects.update(keep_until=datetime(2098, 1, 1, tzinfo=UTC))
                problem(change(api(bob), november, keep_until=keep_until), 409, "held")
            holds.lift(hold, by=alice, now=timezone.now())
            assert change(api(bob), november, keep_until=CHRISTMAS).status_code == 200


def test_keep_until_that_is_over_can_be_moved_until_the_file_is_gone(
    bob: User, november: str, report: dict[str, Any], api: Api
) -> None:
    change(api(bob), november, keep_until="2090-01-01T00:00:00Z")
    with time_machine.travel(timezone.now() + timedelta(seconds=1)):
        StoredFile.objects.update(keep_until=timezone.now() - timedelta(minutes=1))
        assert change(api(bob), november, keep_until=None).json()["keep_until"] is None
