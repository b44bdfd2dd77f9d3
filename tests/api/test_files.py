"""GET collections/{id}/files/, GET, PUT, PATCH and DELETE collections/{id}/files/{filename}/."""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from files import tasks
from files.models import PendingDeletion, StoredFile
from tenants import services
from tenants.models import Membership, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import EACH_IN_TURN, Case, Combine
from tests.api.vault import WatchedStore
from tests.api.worlds import REPORT, make_report
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
CONTENT = REPORT


@pytest.fixture
@provides_world(make_report)
def report(november: str, built: dict[str, Any]) -> dict[str, Any]:
    """What the upload of report.csv answered."""
    return built


# --- Details and list ---


def test_details_of_a_file(bob: User, november: str, report: dict[str, Any], api: Api) -> None:
    answer = api(bob).get(paths.file(november, "report.csv"))
    assert answer.status_code == 200
    assert answer.json() == report
    base = f"http://testserver/api/v1/collections/{november}"
    assert report["links"] == {
        "self": f"{base}/files/report.csv/",
        "preview": f"{base}/files/report.csv/preview/",
        "enclosure": f"{base}/files/report.csv/download/",
        "content": f"{base}/content/report.csv",
    }
    assert UUID(report["id"])
    assert report["etag"] == answer["ETag"]
    assert report["created_at"] == report["updated_at"]
    assert abs(datetime.fromisoformat(report["created_at"]) - timezone.now()) < timedelta(minutes=1)
    assert {name: report[name] for name in report if name not in {"id", "etag", "links", "created_at", "updated_at"}} == {
        "collection": november,
        "filename": "report.csv",
        "content_type": "text/csv",
        "length": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "notes": "",
        "cipher": "AES-GCM",
        "status": "ready",
        "keep_until": None,
        "created_by": "bob",
        "updated_by": "bob",
        "is_held": False,
        "my_level": "editor",
        "allowed_actions": ["download", "update", "delete"],
    }


def test_details_tell_nothing_of_how_the_file_is_kept(bob: User, november: str, report: dict[str, Any], api: Api) -> None:
    row = StoredFile.objects.get()
    told = api(bob).get(paths.file(november, "report.csv")).content.decode() + str(report)
    for secret in (row.object_key, bytes(row.key_salt).hex(), bytes(row.key_commitment).hex(), bytes(row.header).hex(), "vault"):
        assert secret not in told


def test_list_takes_as_many_queries_for_many(
    bob: User, november: str, put: Put, api: Api, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client = api(bob)
    for number in range(6):
        put(client, november, f"{number}.txt", b"x")
    with django_assert_max_num_queries(5):
        assert len(client.get(paths.files(november)).json()["results"]) == 6


def test_a_file_is_found_in_any_case_and_shown_as_it_was_named(
    bob: User, november: str, report: dict[str, Any], api: Api, case: Case
) -> None:
    for name in ["REPORT.CSV", "Report.csv", "report.csv"]:
        with case(name):
            assert api(bob).get(paths.file(november, name)).json() == report


def test_a_file_is_found_in_any_unicode_form(bob: User, november: str, put: Put, api: Api) -> None:
    made = put(api(bob), november, "u\u0308bung.txt", b"1").json()
    assert made["filename"] == "u\u0308bung.txt"
    assert api(bob).get(paths.file(november, "\u00fcbung.txt")).json() == made
    problem(put(api(bob), november, "\u00dcBUNG.txt", b"2"), 428, "precondition_required")


# --- Whose it is ---


def every_answer(client: APIClient, slug: str, filename: str) -> list[Any]:
    """One request for each thing that can be done to a file."""
    return [
        client.get(paths.files(slug)),
        client.get(paths.file(slug, filename)),
        client.patch(paths.file(slug, filename), {"notes": "x"}),
        client.put(paths.file(slug, filename), {"notes": "x"}),
        client.delete(paths.file(slug, filename)),
        client.get(paths.content(slug, filename)),
        client.head(paths.content(slug, filename)),
        client.put(paths.content(slug, filename), b"x", content_type="text/csv", headers={"If-Match": "*"}),
        client.get(paths.preview(slug, filename)),
        client.get(paths.download(slug, filename)),
        client.post(paths.download(slug, filename), {}),
        client.get(paths.archive(slug)),
        client.post(paths.archive_link(slug), {}),
        client.post(paths.files(slug), b"--b\r\n", content_type="multipart/form-data; boundary=b"),
    ]


def test_files_that_are_not_mine_look_like_files_that_are_not_there(
    mallory: User, rita: User, root: User, november: str, report: dict[str, Any], api: Api, vault: WatchedStore, case: Case
) -> None:
    for who in (mallory, rita, root):
        with case(who.username):
            client, before = api(who), audited()
            vault.forget()
            for foreign, unknown in zip(
                every_answer(client, november, "report.csv"),
                every_answer(client, "november-2012-zzzz", "report.csv"),
                strict=True,
            ):
                assert foreign.status_code == unknown.status_code == 404
                assert foreign.content == unknown.content
            assert (vault.reads, vault.created, audited()) == ([], 0, before)
            assert StoredFile.objects.get().notes == ""


def test_files_are_401_without_a_token(november: str, report: dict[str, Any], api: Api, vault: WatchedStore) -> None:
    vault.forget()
    for answer in every_answer(api(None), november, "report.csv"):
        assert answer.status_code == 401
        assert answer["WWW-Authenticate"] == 'Bearer realm="strongroom"'
    assert (vault.reads, vault.created) == ([], 0)


def test_files_are_404_on_the_request_after_the_membership_ended(
    bob: User, november: str, report: dict[str, Any], api: Api
) -> None:
    client = api(bob)
    assert client.get(paths.file(november, "report.csv")).status_code == 200
    services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())
    assert {answer.status_code for answer in every_answer(client, november, "report.csv")} == {404}


# --- Update ---


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"notes": "Seen by Ada"}, {"notes": "Seen by Ada"}),
    ({"notes": " two\nlines\t"}, {"notes": " two\nlines\t"}),
    ({"notes": ""}, {}),
    ({"content_type": "text/plain"}, {"content_type": "text/plain"}),
    ({"filename": "renamed.csv"}, {"filename": "renamed.csv"}),
    ({"filename": "REPORT.csv"}, {"filename": "REPORT.csv"}),
    ({"filename": None, "content_type": None, "notes": None}, {}),
    ({}, {}),
    ({"length": 0, "sha256": "", "id": "mine", "status": "missing", "cipher": "NONE"}, {}),
    ({"notes": "x", "collection": "elsewhere", "color": {"a": [1]}}, {"notes": "x"}),
    (
        {"filename": "n.csv", "content_type": "a/b", "notes": "c"},
        {"filename": "n.csv", "content_type": "a/b", "notes": "c"},
    ),
]


@EACH_IN_TURN
def test_update_changes_what_is_named_and_leaves_the_rest(
    bob: User, november: str, report: dict[str, Any], api: Api, case: Case, combine: Combine
) -> None:
    for (body, changes), method in combine(CHANGES, ["put", "patch"]):
        with case(method, body, changes):
            answer = getattr(api(bob), method)(paths.file(november, "report.csv"), body)
            assert answer.status_code == 200
            updated = answer.json()
            assert {name: value for name, value in updated.items() if name != "links"} == {
                name: value for name, value in {**report, **changes}.items() if name != "links"
            }
            assert api(bob).get(updated["links"]["self"]).json() == updated
            assert b"".join(api(bob).get(updated["links"]["content"])) == CONTENT
            assert audited("file.update") == ([("file.update", "bob")] if changes else [])


def test_rename_frees_the_old_name(bob: User, november: str, report: dict[str, Any], put: Put, api: Api) -> None:
    client = api(bob)
    client.patch(paths.file(november, "report.csv"), {"filename": "other.csv"})
    problem(client.get(paths.file(november, "report.csv")), 404, "not_found")
    assert put(client, november, "report.csv", b"new").status_code == 201
    assert b"".join(client.get(paths.content(november, "other.csv"))) == CONTENT


def test_rename_to_a_taken_name_is_409_and_changes_nothing(
    bob: User, november: str, report: dict[str, Any], put: Put, api: Api, case: Case
) -> None:
    for name in ["taken.csv", "TAKEN.CSV"]:
        with case(name):
            put(api(bob), november, "taken.csv", b"1")
            answer = api(bob).patch(paths.file(november, "report.csv"), {"filename": name, "notes": "x"})
            problem(answer, 409, "name_taken")
            assert api(bob).get(paths.file(november, "report.csv")).json() == report
            assert audited("file.update") == []


def test_update_with_a_bad_value_is_400_and_names_the_field(
    bob: User, november: str, report: dict[str, Any], api: Api, case: Case
) -> None:
    for body, field in [
        ({"filename": ""}, "filename"),
        ({"filename": ["a"]}, "filename"),
        ({"filename": True}, "filename"),
        ({"filename": {}}, "filename"),
        ({"content_type": ""}, "content_type"),
        ({"content_type": "text"}, "content_type"),
        ({"content_type": "text/html; charset=utf-8"}, "content_type"),
        ({"content_type": "text/html\r\nSet-Cookie: a=b"}, "content_type"),
        ({"content_type": "text/ html"}, "content_type"),
        ({"content_type": f"{'a' * 64}/{'b' * 64}"}, "content_type"),
        ({"content_type": 7}, "content_type"),
        ({"notes": "x" * 10_001}, "notes"),
        ({"notes": ["a"]}, "notes"),
    ]:
        with case(body, field):
            answer = api(bob).patch(paths.file(november, "report.csv"), body)
            assert list(problem(answer, 400, answer.json()["code"])["errors"]) == [field]
            assert api(bob).get(paths.file(november, "report.csv")).json() == report


def test_update_takes_notes_of_ten_thousand_characters(bob: User, november: str, report: dict[str, Any], api: Api) -> None:
    notes = "ü" * 10_000
    assert api(bob).patch(paths.file(november, "report.csv"), {"notes": notes}).json()["notes"] == notes


def test_update_of_an_unknown_file_is_404(bob: User, november: str, api: Api) -> None:
    problem(api(bob).patch(paths.file(november, "nothing.csv"), {"notes": "x"}), 404, "not_found")


# --- Delete ---


def test_delete_takes_the_file_and_its_object(
    bob: User, alice: User, november: str, report: dict[str, Any], put: Put, api: Api, vault: WatchedStore
) -> None:
    put(api(bob), november, "kept.txt", b"123")
    kept = StoredFile.objects.get(filename="kept.txt").object_key
    gone = api(alice).delete(paths.file(november, "report.csv"))
    assert (gone.status_code, gone.content) == (204, b"")
    assert "Content-Type" not in gone
    for address in (paths.file, paths.content, paths.preview, paths.download):
        problem(api(bob).get(address(november, "report.csv")), 404, "not_found")
    problem(api(bob).delete(paths.file(november, "report.csv")), 404, "not_found")
    shown = api(bob).get(paths.collection(november)).json()
    assert (shown["file_count"], shown["total_length"]) == (1, 3)
    assert audited("file.delete") == [("file.delete", "alice")]

    tasks.tick()
    assert not PendingDeletion.objects.exists()
    assert vault.keys() == {kept}


def test_delete_of_a_file_that_is_not_in_the_expected_state_is_412(
    bob: User, november: str, report: dict[str, Any], api: Api, case: Case
) -> None:
    for condition in ['"other"', "W/{etag}", "garbage", ""]:
        with case(condition):
            headers = {"If-Match": condition.format(etag=report["etag"])}
            problem(api(bob).delete(paths.file(november, "report.csv"), headers=headers), 412, "precondition_failed")
            assert api(bob).get(paths.file(november, "report.csv")).json() == report
            assert audited("file.delete") == []


def test_delete_of_a_file_in_the_expected_state(bob: User, november: str, report: dict[str, Any], api: Api, case: Case) -> None:
    for condition in ["{etag}", '"other", {etag}', "*"]:
        with case(condition):
            headers = {"If-Match": condition.format(etag=report["etag"])}
            assert api(bob).delete(paths.file(november, "report.csv"), headers=headers).status_code == 204


def test_delete_gives_a_replaced_object_time_for_the_downloads_that_read_it(
    bob: User, november: str, report: dict[str, Any], put: Put, api: Api, vault: WatchedStore
) -> None:
    running = iter(api(bob).get(paths.content(november, "report.csv")))
    put(api(bob), november, "report.csv", b"new", if_match=report["etag"])
    tasks.tick()
    assert len(vault.keys()) == 2
    assert b"".join(running) == CONTENT
    with time_machine.travel(timezone.now() + timedelta(hours=1, seconds=1)):
        tasks.tick()
    assert len(vault.keys()) == 1
