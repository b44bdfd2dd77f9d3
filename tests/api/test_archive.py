"""GET and HEAD collections/{id}/archive.zip: a zip whose length is known before its first byte (Z-1)."""

import io
import zipfile
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings as current
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from files import downloads
from files.http import streaming
from files.http.streaming import SLOTS, TransferEnded
from files.models import Collection, StoredFile
from tenants import services
from tenants.models import Membership, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore
from tests.api.worlds import ARCHIVED as CONTENTS
from tests.api.worlds import make_archived
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]


@pytest.fixture
@provides_world(make_archived)
def filled(november: str) -> str:
    return november


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(set(archive.namelist()))
        return {name: archive.read(name) for name in archive.namelist()}


def until_it_breaks(pieces: Iterable[bytes]) -> bytes:
    arrived = b""
    try:
        for piece in pieces:
            arrived += piece
    except TransferEnded:
        return arrived
    pytest.fail("the archive ended as if it were whole")


def test_an_archive_holds_every_file_by_its_name(bob: User, filled: str, api: Api) -> None:
    answer = api(bob).get(paths.archive(filled))
    assert answer.status_code == 200
    content = b"".join(answer)
    assert answer["Content-Length"] == str(len(content))
    assert unzipped(content) == CONTENTS
    expected = {
        "Content-Type": "application/zip",
        "Content-Disposition": f"attachment; filename=\"{filled}.zip\"; filename*=UTF-8''{filled}.zip",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
        "Cross-Origin-Resource-Policy": "same-site",
        "Referrer-Policy": "no-referrer",
    }
    assert {name: answer[name] for name in expected} == expected
    assert not {"ETag", "Accept-Ranges", "Repr-Digest"} & set(answer.headers)  # none of them would hold for the next one
    assert audited("collection.archive", "file.download") == [("collection.archive", "bob")]


def test_an_archive_takes_no_range(bob: User, filled: str, api: Api) -> None:
    answer = api(bob).get(paths.archive(filled), headers={"Range": "bytes=0-9"})
    assert answer.status_code == 200
    assert unzipped(b"".join(answer)) == CONTENTS


def test_head_tells_the_length_and_reads_nothing(bob: User, filled: str, api: Api, vault: WatchedStore) -> None:
    head = api(bob).head(paths.archive(filled))
    assert vault.reads == []
    assert audited("collection.archive") == []
    assert head["Content-Length"] == str(len(b"".join(api(bob).get(paths.archive(filled)))))
    assert head.content == b""


def test_an_archive_of_a_selection(bob: User, filled: str, api: Api, case: Case) -> None:
    for names in [["a.csv"], ["名前.txt", "b.bin"], ["A.CSV"], ["a.csv", "a.csv", "A.csv"], list(CONTENTS)]:
        with case(names):
            content = b"".join(api(bob).get(f"{paths.archive(filled)}?{urlencode({'file': names}, doseq=True)}"))
            chosen = {name.casefold() for name in names}
            assert unzipped(content) == {name: content for name, content in CONTENTS.items() if name.casefold() in chosen}


def test_an_archive_of_a_file_that_is_not_there_is_404(bob: User, filled: str, api: Api, vault: WatchedStore, case: Case) -> None:
    for names in [["nothing"], ["a.csv", "nothing"], [""], ["."], ["../a.csv"], ["a.csv", ""], ["x" * 3000]]:
        for method in ["get", "head"]:
            with case(names, method):
                answer = getattr(api(bob), method)(f"{paths.archive(filled)}?{urlencode({'file': names}, doseq=True)}")
                assert answer.status_code == 404
                if method == "get":
                    problem(answer, 404, "not_found")
                assert vault.reads == []


def test_an_archive_of_a_file_of_another_collection_is_404(bob: User, filled: str, put: Put, api: Api) -> None:
    other = api(bob).post(paths.COLLECTIONS, {"display_name": "Other"}).json()["id"]
    put(api(bob), other, "theirs.csv", b"1")
    problem(api(bob).get(paths.archive(filled), {"file": "theirs.csv"}), 404, "not_found")
    assert unzipped(b"".join(api(bob).get(paths.archive(other)))) == {"theirs.csv": b"1"}


def test_an_archive_of_nothing_is_an_empty_zip(bob: User, november: str, api: Api) -> None:
    answer = api(bob).get(paths.archive(november))
    assert (answer.status_code, answer["Content-Length"]) == (200, "22")
    assert unzipped(b"".join(answer)) == {}
    assert audited("collection.archive") == [("collection.archive", "bob")]


def test_an_archive_reads_its_files_as_it_goes(bob: User, filled: str, api: Api, vault: WatchedStore) -> None:
    answer = api(bob).get(paths.archive(filled))
    assert len(vault.reads) == 1  # the first segment of the first file, before there is an answer
    b"".join(answer)
    assert sum(length for _, length in vault.reads) == sum(StoredFile.objects.values_list("object_size", flat=True))


def test_an_archive_holds_files_of_every_cipher(bob: User, filled: str, put: Put, api: Api) -> None:
    Collection.objects.update(cipher="NONE")
    put(api(bob), filled, "plain", b"plain" * 100)
    assert unzipped(b"".join(api(bob).get(paths.archive(filled)))) == {**CONTENTS, "plain": b"plain" * 100}


def test_an_archive_of_many_takes_a_query_for_each_file_at_most(
    bob: User, november: str, put: Put, api: Api, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client = api(bob)
    for number in range(10):
        put(client, november, f"{number}", b"x")
    with django_assert_max_num_queries(10 + 15):
        assert len(unzipped(b"".join(client.get(paths.archive(november))))) == 10


def test_an_archive_of_too_many_files_is_400(
    bob: User, filled: str, api: Api, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(downloads, "MAX_ARCHIVE_FILES", 3)
    refused = problem(api(bob).get(paths.archive(filled)), 400, "invalid")
    assert list(refused["errors"]) == ["file"]
    chosen = urlencode({"file": list(CONTENTS)[:3]}, doseq=True)
    assert len(unzipped(b"".join(api(bob).get(f"{paths.archive(filled)}?{chosen}")))) == 3


# --- What happens while it is being read ---


def test_an_archive_whose_first_object_is_damaged_is_502(bob: User, filled: str, api: Api, vault: WatchedStore) -> None:
    path = vault.path_of("a.csv")
    path.write_bytes(bytes(path.stat().st_size))
    problem(api(bob).get(paths.archive(filled)), 502, "object_corrupt")
    assert audited("collection.archive", "file.corrupt") == [("file.corrupt", "bob")]


def test_an_archive_whose_later_object_is_not_what_it_was_ends_visibly_short(
    bob: User, filled: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    for damage in ["lost", "damaged"]:
        with case(damage):
            path = vault.path_of("名前.txt")
            path.unlink() if damage == "lost" else path.write_bytes(b"x" * path.stat().st_size)
            answer = api(bob).get(paths.archive(filled))
            assert len(until_it_breaks(answer)) < int(answer["Content-Length"])
            action = "file.missing" if damage == "lost" else "file.corrupt"
            assert audited("collection.archive", action) == [("collection.archive", "bob"), (action, "bob")]
            if damage == "lost":
                told = problem(api(bob).get(paths.archive(filled)), 502, "object_missing")
                assert "名前.txt" in told["detail"]  # nobody gets an archive with a hole in it and does not know
                chosen = urlencode({"file": ["a.csv", "b.bin"]}, doseq=True)
                assert set(unzipped(b"".join(api(bob).get(f"{paths.archive(filled)}?{chosen}")))) == {"a.csv", "b.bin"}


def replace(client: APIClient, slug: str) -> None:
    address = paths.content(slug, "名前.txt")
    assert client.put(address, b"y", content_type="text/plain", headers={"If-Match": "*"}).status_code == 200


def delete(client: APIClient, slug: str) -> None:
    assert client.delete(paths.file(slug, "名前.txt")).status_code == 204


def test_an_archive_whose_file_changes_meanwhile_ends_visibly_short(bob: User, filled: str, api: Api, case: Case) -> None:
    """Its length and its checksums are promised: another content, even of the same length, is not what was asked for."""
    for change in [replace, delete]:
        with case(change):
            client = api(bob)
            answer = client.get(paths.archive(filled))
            pieces = iter(answer)
            arrived = next(pieces)
            change(client, filled)
            arrived += until_it_breaks(pieces)
            assert len(arrived) < int(answer["Content-Length"])
            assert b"y" not in arrived[-20:]


def test_an_archive_does_not_mind_that_a_file_is_renamed_meanwhile(bob: User, filled: str, api: Api) -> None:
    client = api(bob)
    pieces = iter(client.get(paths.archive(filled)))
    arrived = next(pieces)
    client.patch(paths.file(filled, "名前.txt"), {"filename": "renamed.txt"})
    assert unzipped(arrived + b"".join(pieces)) == CONTENTS


def test_a_running_archive_ends_when_its_reader_may_read_no_more(
    alice: User, bob: User, filled: str, api: Api, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    for change in ["leaves", "is-deleted"]:
        with case(change):
            monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1.0)
            admin, pieces = api(alice), iter(api(bob).get(paths.archive(filled)))
            next(pieces)
            if change == "leaves":
                services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())
            else:
                admin.delete(paths.collection(filled))
            with pytest.raises(TransferEnded):
                next(pieces)


def test_who_goes_away_from_an_archive_leaves_nothing_open(
    bob: User, filled: str, vault: WatchedStore, serve: Callable[..., Any], case: Case
) -> None:
    for taken in [0, 1, 40]:
        with case(taken):
            answer = serve(bob, "GET", paths.archive(filled).encode())
            pieces = iter(answer)
            for _ in range(taken):
                next(pieces)
            answer.close()
            assert not vault.bodies


def test_an_archive_beyond_the_transfers_of_this_server_is_503(bob: User, filled: str, api: Api) -> None:
    for _ in range(current.FILES_MAX_TRANSFERS):
        SLOTS.take()
    problem(api(bob).get(paths.archive(filled)), 503, "transfers_full")
    assert api(bob).head(paths.archive(filled)).status_code == 200
    for _ in range(current.FILES_MAX_TRANSFERS):
        SLOTS.release()
    assert audited("collection.archive") == []


@pytest.mark.parametrize("examples", [3, pytest.param(15, marks=pytest.mark.long)])
def test_any_archive_has_the_length_that_it_announces(bob: User, november: str, put: Put, api: Api, examples: int) -> None:
    @settings(max_examples=examples)
    @given(files=st.dictionaries(st.text("abcäß名🙂 ._-", min_size=1, max_size=8), st.binary(max_size=400), max_size=5))
    def check(files: dict[str, bytes]) -> None:
        client, kept = api(bob), {}
        for name, content in files.items():
            if put(client, november, name, content).status_code == 201:
                kept[name] = content
        answer = client.get(paths.archive(november))
        content = b"".join(answer)
        assert answer["Content-Length"] == str(len(content))
        assert unzipped(content) == kept
        for name in kept:
            client.delete(paths.file(november, name))

    check()
