"""Filters, ordering and paging of the lists, and what may stand in a query (F-43)."""

import base64
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.db import transaction
from django.utils import timezone
from rest_framework.test import APIClient

from files.models import Collection, StoredFile
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.api.answers import problem
from tests.api.cases import Case
from tests.api.worlds import make_four_files, make_people
from tests.clients import Clients
from tests.worlds import provides_world


pytestmark = [pytest.mark.usefixtures("vault")]
Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]


def shown(answer: Any, name: str) -> list[Any]:
    assert answer.status_code == 200, answer.json()
    return [found[name] for found in answer.json()["results"]]


# --- Collections ---


def make_collections() -> None:
    people, globex = make_people(), Tenant.objects.get(slug="globex")
    client = Clients(people)["alice"]
    Membership.objects.create(user=people["alice"], tenant=globex, roles=["member"], created_at=timezone.now())
    for tenant, name, purge_at in (
        ("acme", "Alpha", "2090-01-01T00:00:00Z"),
        ("acme", "Beta 100%", "2095-01-01T00:00:00Z"),
        ("acme", "alphabet_", None),
        ("globex", "Alpha", None),
    ):
        client.post(paths.COLLECTIONS, {"tenant": tenant, "display_name": name, "purge_at": purge_at})


@pytest.fixture
@provides_world(make_collections)
def collections() -> None:
    """alice's, in two tenants."""


@pytest.mark.both_databases
def test_list_of_collections_filters(alice: User, collections: None, api: Api, case: Case) -> None:
    for query, found in [
        ({}, ["Alpha", "Alpha", "Beta 100%", "alphabet_"]),
        ({"tenant": "acme"}, ["Alpha", "Beta 100%", "alphabet_"]),
        ({"tenant": "globex"}, ["Alpha"]),
        ({"tenant": "nobody"}, []),
        ({"tenant": ""}, ["Alpha", "Alpha", "Beta 100%", "alphabet_"]),
        ({"search": "ALPHA"}, ["Alpha", "Alpha", "alphabet_"]),
        ({"search": "%"}, ["Beta 100%"]),
        ({"search": "_"}, ["alphabet_"]),
        ({"search": "'; --"}, []),
        ({"purge_before": "2092-01-01T00:00:00Z"}, ["Alpha"]),
        ({"purge_before": "2090-01-01T00:00:00Z"}, []),
        ({"purge_before": "2095-01-01T02:00:01+02:00"}, ["Alpha", "Beta 100%"]),
        ({"purge_before": "2099-01-01"}, ["Alpha", "Beta 100%"]),
        ({"tenant": "globex", "search": "beta"}, []),
    ]:
        with case(query, found):
            assert sorted(shown(api(alice).get(paths.COLLECTIONS, query), "display_name")) == found


def test_list_of_collections_by_a_foreign_tenant_is_as_by_an_unknown_one(
    mallory: User, alice: User, november: str, api: Api
) -> None:
    foreign = api(mallory).get(paths.COLLECTIONS, {"tenant": "acme"})
    unknown = api(mallory).get(paths.COLLECTIONS, {"tenant": "nobody"})
    assert foreign.content == unknown.content
    assert shown(foreign, "id") == []


# --- Files ---


@pytest.fixture
@provides_world(make_four_files)
def filed(november: str) -> str:
    return november


@pytest.mark.both_databases
def test_list_of_files_filters_and_orders(bob: User, filed: str, api: Api, case: Case) -> None:
    for query, found in [
        ({}, ["100%_.bin", "C.csv", "b.txt", "a.csv"]),
        ({"search": "CSV"}, ["C.csv", "a.csv"]),
        ({"search": "%_"}, ["100%_.bin"]),
        ({"content_type": "text/csv"}, ["C.csv", "a.csv"]),
        ({"content_type": "text/c%"}, []),
        ({"status": "ready", "search": "b"}, ["100%_.bin", "b.txt"]),
        ({"status": "missing"}, []),
        ({"ordering": "length"}, ["100%_.bin", "b.txt", "C.csv", "a.csv"]),
        ({"ordering": "-length"}, ["a.csv", "C.csv", "b.txt", "100%_.bin"]),
        ({"ordering": "created_at"}, ["a.csv", "b.txt", "C.csv", "100%_.bin"]),
        ({"ordering": "-updated_at"}, ["100%_.bin", "C.csv", "b.txt", "a.csv"]),
    ]:
        with case(query, found):
            assert shown(api(bob).get(paths.files(filed), query), "filename") == found


@pytest.mark.both_databases
def test_list_of_files_by_how_long_they_are_kept(bob: User, november: str, put: Put, api: Api) -> None:
    for name, keep_until in (("a.csv", "2090-01-01T00:00:00Z"), ("b.csv", "2095-01-01T00:00:00Z"), ("c.csv", None)):
        put(api(bob), november, name, b"1")
        api(bob).patch(paths.file(november, name), {"keep_until": keep_until})
    for before, found in (
        ("2090-01-01T00:00:00Z", []),
        ("2095-01-01T02:00:00+02:00", ["a.csv"]),
        ("2099-01-01", ["b.csv", "a.csv"]),
    ):
        assert shown(api(bob).get(paths.files(november), {"keep_before": before}), "filename") == found


@pytest.mark.both_databases
def test_list_of_files_leaves_out_what_is_being_deleted(bob: User, filed: str, api: Api) -> None:
    StoredFile.objects.filter(filename="b.txt").update(status="missing")
    assert shown(api(bob).get(paths.files(filed), {"status": "missing"}), "filename") == ["b.txt"]
    StoredFile.objects.filter(filename="b.txt").update(status="deleting")
    assert "b.txt" not in shown(api(bob).get(paths.files(filed)), "filename")
    assert shown(api(bob).get(paths.files(filed), {"status": "deleting"}), "filename") == []
    problem(api(bob).get(paths.content(filed, "b.txt")), 404, "not_found")
    StoredFile.objects.update(status="ready")


@pytest.mark.both_databases
@pytest.mark.parametrize("sizes", [[2], pytest.param([1, 3], marks=pytest.mark.long)])
def test_list_of_files_pages_through_each_ordering_once(bob: User, filed: str, api: Api, case: Case, sizes: list[int]) -> None:
    for ordering in ["length", "-length", "filename", "-filename", "created_at", "-created_at", ""]:
        for size in sizes:
            with case(ordering, size):
                client, query = api(bob), {"ordering": ordering} if ordering else {}
                whole = shown(client.get(paths.files(filed), query), "filename")
                address, seen = f"{paths.files(filed)}?{urlencode({**query, 'page_size': size})}", []
                while address:
                    page = client.get(address)
                    seen += shown(page, "filename")
                    address = page.json()["next"]
                assert seen == whole
                assert sorted(seen) == sorted(["a.csv", "b.txt", "C.csv", "100%_.bin"])


@pytest.mark.both_databases
def test_list_of_many_files_of_one_length_ends(bob: User, november: str, api: Api) -> None:
    """DRF's cursor stops counting at 1,000 equal values, and then serves one page for ever."""
    collection = Collection.objects.get()
    moment = collection.created_at
    with transaction.atomic():
        StoredFile.objects.bulk_create(
            StoredFile(
                collection=collection, filename=f"{number}", name_key=f"{number}", content_type="text/plain", length=0, sha256="",
                created_at=moment, updated_at=moment, cipher="NONE", segment_size=128, object_id=f"{number:032x}",
                object_key=f"{number}", object_size=0, store="vault", header=b"", key_salt=b"", key_commitment=b"",
            )
            for number in range(2500)
        )  # fmt: skip
    client, address, seen = api(bob), f"{paths.files(november)}?ordering=length&page_size=1000", []
    for _ in range(3):
        page = client.get(address)
        seen += shown(page, "filename")
        address = page.json()["next"]
    assert address is None
    assert len(seen) == len(set(seen)) == 2500
    StoredFile.objects.all().delete()


@pytest.mark.both_databases
def test_nothing_shifts_for_who_pages_while_files_come_and_go(bob: User, filed: str, put: Put, api: Api) -> None:
    client = api(bob)
    first = client.get(paths.files(filed), {"page_size": "2"})
    put(client, filed, "new.txt", b"")
    client.delete(paths.file(filed, "100%_.bin"))
    assert shown(first, "filename") + shown(client.get(first.json()["next"]), "filename") == [
        "100%_.bin", "C.csv", "b.txt", "a.csv"
    ]  # fmt: skip


# --- What no query may do ---


def cursor(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


LIST_OF_COLLECTIONS, LIST_OF_FILES = "collections", "files"
BOTH = (LIST_OF_COLLECTIONS, LIST_OF_FILES)
BAD_IN_BOTH = {
    "page-size-huge": ("page_size", "1000000000"),
    "page-size-just-too-large": ("page_size", "1001"),
    "page-size-beyond-integers": ("page_size", "9" * 5000),
    "page-size-zero": ("page_size", "0"),
    "page-size-negative": ("page_size", "-1"),
    "page-size-a-word": ("page_size", "many"),
    "page-size-a-fraction": ("page_size", "1.5"),
    "page-size-other-digits": ("page_size", "\u0661"),
    "page-size-empty": ("page_size", ""),
    "cursor-a-word": ("cursor", "garbage"),
    "cursor-no-base64": ("cursor", "!!!"),
    "cursor-not-ascii": ("cursor", "é"),
    "cursor-not-utf8": ("cursor", base64.b64encode(b"p=\xff\xfe").decode()),
    "cursor-no-date": ("cursor", cursor("p=yesterday")),
    "cursor-no-such-date": ("cursor", cursor("p=2026-02-30 00:00:00")),
    "cursor-before-years": ("cursor", cursor("p=0001-01-01 00:00:00+14:00")),
    "cursor-negative-offset": ("cursor", cursor("o=-1")),
    "cursor-offset-a-word": ("cursor", cursor("o=x")),
    "search-8-KB": ("search", "x" * 8192),
    "search-201": ("search", "x" * 201),
}
BAD_IN_ONE = {
    "keep-before-a-word": (LIST_OF_FILES, "keep_before", "tomorrow"),
    "purge-before-a-word": (LIST_OF_COLLECTIONS, "purge_before", "tomorrow"),
    "purge-before-a-number": (LIST_OF_COLLECTIONS, "purge_before", "12"),
    "purge-before-no-such-day": (LIST_OF_COLLECTIONS, "purge_before", "2026-02-30"),
    "purge-before-month-13": (LIST_OF_COLLECTIONS, "purge_before", "2026-13-01T00:00:00Z"),
    "purge-before-before-years": (LIST_OF_COLLECTIONS, "purge_before", "0001-01-01T00:00:00+14:00"),
    "purge-before-after-years": (LIST_OF_COLLECTIONS, "purge_before", "9999-12-31T23:59:59-14:00"),
    "tenant-too-long": (LIST_OF_COLLECTIONS, "tenant", "a" * 51),
    "status-unknown": (LIST_OF_FILES, "status", "gone"),
    "status-a-list": (LIST_OF_FILES, "status", "['ready']"),
    "content-type-too-long": (LIST_OF_FILES, "content_type", "a" * 128),
    "ordering-by-a-hidden-field": (LIST_OF_FILES, "ordering", "key_salt"),
    "ordering-through-a-relation": (LIST_OF_FILES, "ordering", "collection__key__wrapped"),
    "ordering-by-nothing-known": (LIST_OF_FILES, "ordering", "?"),
    "ordering-twice-reversed": (LIST_OF_FILES, "ordering", "--length"),
    "ordering-partly-known": (LIST_OF_FILES, "ordering", "length,sha256"),
}
BAD = {f"{name}-of-{where}": (where, *value) for name, value in BAD_IN_BOTH.items() for where in BOTH} | BAD_IN_ONE


def test_list_with_a_bad_value_is_400_and_names_the_parameter(bob: User, november: str, api: Api, case: Case) -> None:
    for name_of_case, (where, name, value) in BAD.items():
        with case(name_of_case):
            address = paths.COLLECTIONS if where == LIST_OF_COLLECTIONS else paths.files(november)
            answer = api(bob).get(address, {name: value})
            assert list(problem(answer, 400, answer.json().get("code"))["errors"]) == [name]
            assert len(answer.content) < 2000


@pytest.mark.both_databases
def test_list_with_an_odd_query_is_answered(bob: User, november: str, api: Api, case: Case) -> None:
    for query in [
        "tenant=nobody&tenant=acme",
        "tenant[]=x&tenant[$ne]=y&search[0]=z",
        "collection__key__wrapped=1&id__gt=0&format=html&_method=DELETE",
        "search=%FF%FE&tenant=acme",
        "search=%ED%A0%80",
        "search=" + "+".join(["term"] * 39),
        "&&&==&=x&;",
        "page_size=1000",
        "q=" + "x" * 3000,
        "cursor=",
        f"cursor={cursor(f'o={10**30}')}",
    ]:
        with case(query):
            for address in (paths.COLLECTIONS, paths.files(november)):
                assert api(bob).get(f"{address}?{query}").status_code == 200


@pytest.mark.both_databases
def test_list_with_a_nul_is_400(bob: User, november: str, api: Api, case: Case) -> None:
    for query in ["search=%00", "cursor=%00", "tenant=a%00b", "ordering=%00", "search=\x00"]:
        with case(query):
            for address in (paths.COLLECTIONS, paths.files(november)):
                problem(api(bob).get(f"{address}?{query}"), 400, "bad_request")


@pytest.mark.both_databases
def test_a_cursor_of_another_list_opens_nothing_foreign(bob: User, mallory: User, filed: str, api: Api) -> None:
    for number in range(3):
        api(bob).post(paths.COLLECTIONS, {"display_name": f"More {number}"})
    following = api(bob).get(paths.COLLECTIONS, {"page_size": "1"}).json()["next"]
    assert shown(api(mallory).get(following), "id") == []
    stolen = following.partition("cursor=")[2].partition("&")[0]
    assert api(bob).get(f"{paths.files(filed)}?cursor={quote(stolen)}").status_code in {200, 400}


@pytest.mark.both_databases
def test_unreadable_positions_of_names_are_no_500(bob: User, filed: str, api: Api) -> None:
    for position in ("\x00", "\udc80".encode("utf-8", "surrogatepass").decode("latin-1"), "x" * 9000, "'", "%"):
        answer = api(bob).get(paths.files(filed), {"ordering": "filename", "cursor": cursor(urlencode({"p": position}))})
        assert answer.status_code in {200, 400}, answer.json()


@pytest.mark.both_databases
def test_dates_far_away_are_no_500(alice: User, november: str, api: Api) -> None:
    for year in ("0001", "1970", "2038", "9999"):
        assert api(alice).get(paths.COLLECTIONS, {"purge_before": f"{year}-01-02T00:00:00Z"}).status_code == 200
    kept = api(alice).patch(paths.collection(november), {"purge_at": "9999-12-30T00:00:00Z"}).json()
    assert kept["purge_at"] == "9999-12-30T00:00:00.000000Z"
    assert datetime.fromisoformat(kept["created_at"]) < datetime.fromisoformat(kept["purge_at"]) - timedelta(days=365)
