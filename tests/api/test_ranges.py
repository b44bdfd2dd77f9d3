"""Range and If-Range on contents, over HTTP (F-45, RFC 9110, 14)."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import Collection, StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import audited, digest, problem
from tests.api.cases import EACH_IN_TURN, Case, Combine
from tests.api.vault import WatchedStore
from tests.api.worlds import filling
from tests.api.worlds import put as upload
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
SIZE = 1000
CONTENT = random.Random(8).randbytes(SIZE)


def make_stored() -> None:
    with filling() as (clients, slug):
        upload(clients["bob"], slug, "a.bin", CONTENT)


@pytest.fixture
@provides_world(make_stored)
def stored(november: str) -> StoredFile:
    return StoredFile.objects.get()


def fetch(client: APIClient, slug: str, **headers: str) -> Any:
    return client.get(paths.content(slug, "a.bin"), headers={name.replace("_", "-"): value for name, value in headers.items()})


PARTS = {
    "bytes=0-": (0, 1000),
    "bytes=0-0": (0, 1),
    "bytes=-1": (999, 1000),
    "bytes=-1000": (0, 1000),
    "bytes=-1001": (0, 1000),
    "bytes=-99999999999999999999": (0, 1000),
    "bytes=999-": (999, 1000),
    "bytes=999-999": (999, 1000),
    "bytes=0-999": (0, 1000),
    "bytes=0-1000": (0, 1000),
    "bytes=500-99999999999999999999": (500, 1000),
    "bytes=71-72": (71, 73),
    "bytes=72-183": (72, 184),
    "bytes=00072-00183": (72, 184),
    "Bytes=1-2": (1, 3),
    "bytes=1-2 ": (1, 3),
}


@EACH_IN_TURN
def test_a_range_is_206_with_exactly_its_bytes(
    bob: User, november: str, stored: StoredFile, api: Api, case: Case, combine: Combine
) -> None:
    for (asked, part), address in combine(PARTS.items(), [paths.content, paths.preview]):
        with case(asked, part, address):
            start, stop = part
            answer = api(bob).get(address(november, "a.bin"), headers={"Range": asked})
            assert answer.status_code == 206
            assert answer["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
            assert answer["Content-Length"] == str(stop - start)
            assert (answer["ETag"], answer["Repr-Digest"]) == (stored.etag, digest(CONTENT))
            assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"
            assert b"".join(answer) == CONTENT[start:stop]


def test_a_range_outside_is_416_with_the_length(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case
) -> None:
    for asked in ["bytes=1000-", "bytes=1000-1000", "bytes=99999999999999999999-", "bytes=-0", "bytes=5000-6000"]:
        with case(asked):
            answer = fetch(api(bob), november, Range=asked)
            problem(answer, 416, "range_not_satisfiable")
            assert answer["Content-Range"] == f"bytes */{SIZE}"
            assert "ETag" not in answer
            assert vault.reads == []
            assert audited("file.download", "file.download_range") == []


IGNORED = [
    "bytes=5-2",
    "bytes=",
    "bytes=-",
    "bytes=--1",
    "bytes=a-b",
    "bytes=1.5-2",
    "bytes=0x1-2",
    "bytes=+1-2",
    "bytes=1-2-3",
    "bytes = 1-2",
    "bytes=1 - 2",
    "bytes=\u0661-\u0662",
    "bytes 1-2",
    "1-2",
    "",
    "items=0-1",
    "seconds=1-2",
    "bytes=0-0,2-2",
    "bytes=0-0, 0-0",
    "bytes=0-,0-,0-",
    "bytes=" + ",".join(f"{number}-{number}" for number in range(1000)),
    "bytes=0-" + "9" * 100_000,
    "bytes=" + "9" * 21 + "-",
]


def test_a_range_that_is_not_served_is_ignored(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    for asked in IGNORED:
        with case(asked):
            answer = fetch(api(bob), november, Range=asked)
            assert (answer.status_code, answer["Content-Length"]) == (200, str(SIZE))
            assert "Content-Range" not in answer
            assert b"".join(answer) == CONTENT


def test_head_takes_no_range(bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case) -> None:
    for asked in ["bytes=0-1", "bytes=5000-", "bytes=-0"]:
        with case(asked):
            answer = api(bob).head(paths.content(november, "a.bin"), headers={"Range": asked})
            assert (answer.status_code, answer["Content-Length"], answer["Accept-Ranges"]) == (200, str(SIZE), "bytes")
            assert "Content-Range" not in answer
            assert vault.reads == []


def test_a_range_from_the_start_of_nothing_is_416(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    for asked in ["bytes=0-", "bytes=0-0", "bytes=5-"]:
        with case(asked):
            put(api(bob), november, "a.bin", b"")
            answer = fetch(api(bob), november, Range=asked)
            problem(answer, 416, "range_not_satisfiable")
            assert answer["Content-Range"] == "bytes */0"


def test_the_end_of_nothing_is_nothing(bob: User, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "a.bin", b"")
    answer = fetch(api(bob), november, Range="bytes=-5")
    assert (answer.status_code, b"".join(answer)) == (200, b"")


# --- Conditions ---


def test_a_range_of_the_content_that_the_client_knows(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    for condition, status in [
        ("{etag}", 206),
        (" {etag} ", 206),
        ("W/{etag}", 200),
        ('"other"', 200),
        ("*", 200),
        ("{etag}, {etag}", 200),
        ("Tue, 01 Jan 2030 00:00:00 GMT", 200),
        ("garbage", 200),
        ("", 200),
    ]:
        with case(condition, status):
            answer = fetch(api(bob), november, Range="bytes=5-9", If_Range=condition.format(etag=stored.etag))
            assert answer.status_code == status
            assert b"".join(answer) == (CONTENT[5:10] if status == 206 else CONTENT)


def test_a_range_of_a_content_that_was_replaced_is_the_whole_new_one(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api
) -> None:
    put(api(bob), november, "a.bin", b"new content", if_match=stored.etag)
    answer = fetch(api(bob), november, Range="bytes=500-", If_Range=stored.etag)
    assert (answer.status_code, b"".join(answer)) == (200, b"new content")
    problem(fetch(api(bob), november, Range="bytes=5-", If_Match=stored.etag), 412, "precondition_failed")


def test_a_range_outside_of_another_content_is_the_whole_one(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    answer = fetch(api(bob), november, Range="bytes=5000-", If_Range='"other"')
    assert (answer.status_code, b"".join(answer)) == (200, CONTENT)


def test_other_conditions_come_before_the_range(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    problem(fetch(api(bob), november, Range="bytes=5000-", If_Match='"other"'), 412, "precondition_failed")
    assert fetch(api(bob), november, Range="bytes=5000-", If_None_Match=stored.etag).status_code == 304


# --- What a range costs ---


def test_a_range_fetches_its_own_segments_only(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case
) -> None:
    for asked, first, last in [
        ("0-0", 0, 0),
        ("71-71", 0, 0),
        ("71-72", 0, 1),
        ("72-183", 1, 1),
        ("184-184", 2, 2),
        ("500-700", 4, 6),
        ("999-", 9, 9),
    ]:
        with case(asked, first, last):
            answer = fetch(api(bob), november, Range=f"bytes={asked}")
            assert vault.reads == [(first * 128, min(128, stored.object_size - first * 128))]  # before there is an answer
            b"".join(answer)
            read = {position for start, length in vault.reads for position in range(start, start + length)}
            assert read == set(range(first * 128, min(stored.object_size, (last + 1) * 128)))
            assert sum(length for _, length in vault.reads) == len(read)
            assert vault.stats == 0


def test_pieces_of_any_order_make_the_whole(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    client, starts = api(bob), list(range(0, SIZE, 130))
    random.Random(9).shuffle(starts)
    pieces = {
        start: b"".join(fetch(client, november, Range=f"bytes={start}-{start + 129}", If_Range=stored.etag)) for start in starts
    }
    assert b"".join(pieces[start] for start in sorted(pieces)) == CONTENT


def test_ranges_of_one_file_by_one_person_are_on_record_once_a_quarter_of_an_hour(
    alice: User, bob: User, november: str, stored: StoredFile, put: Put, api: Api
) -> None:
    def recorded() -> list[tuple[str, str]]:
        return audited("file.download", "file.download_range")

    for start in range(0, SIZE, 100):
        b"".join(fetch(api(bob), november, Range=f"bytes={start}-{start + 99}"))
    assert recorded() == [("file.download_range", "bob")]
    b"".join(fetch(api(alice), november, Range="bytes=1-1"))
    assert recorded() == [("file.download_range", "bob"), ("file.download_range", "alice")]
    b"".join(fetch(api(bob), november, Range="bytes=0-"))
    assert recorded()[2:] == [("file.download", "bob")]
    with time_machine.travel(timezone.now() + timedelta(minutes=14)):
        b"".join(fetch(api(bob), november, Range="bytes=1-1"))
        assert len(recorded()) == 3
    with time_machine.travel(timezone.now() + timedelta(minutes=16)):
        b"".join(fetch(api(bob), november, Range="bytes=1-1"))
    assert recorded()[3:] == [("file.download_range", "bob")]


# --- Against an oracle ---


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, str, slice | None]:
    """A size, a Range, and the slice that it names; None for 416."""
    size = draw(st.sampled_from([1, 71, 72, 73, 184, 185, 300, 1000]) | st.integers(1, 1200))
    boundaries = st.sampled_from([0, 71, 72, 73, 183, 184, 185, size - 1, size, size + 1]).filter(lambda number: number >= 0)
    start = draw(boundaries | st.integers(0, size + 5))
    kind = draw(st.sampled_from(["from", "closed", "suffix"]))
    if kind == "from":
        return size, f"bytes={start}-", slice(start, size) if start < size else None
    if kind == "suffix":
        return size, f"bytes=-{start}", slice(max(0, size - start), size) if start else None
    last = draw(st.integers(start, start + size))
    return size, f"bytes={start}-{last}", slice(start, min(size, last + 1)) if start < size else None


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.long)])
def test_any_range_is_what_a_slice_is(bob: User, november: str, put: Put, api: Api, examples: int) -> None:
    @settings(max_examples=examples)
    @given(asked=ranges(), cipher=st.sampled_from(["AES-GCM", "NONE"]))
    @example(asked=(185, "bytes=184-184", slice(184, 185)), cipher="AES-GCM")
    def check(asked: tuple[int, str, slice | None], cipher: str) -> None:
        size, header, part = asked
        content = CONTENT[:size] + bytes(max(0, size - SIZE))
        Collection.objects.update(cipher=cipher)
        client = api(bob)
        put(client, november, "a.bin", content, **({"if_match": "*"} if StoredFile.objects.exists() else {}))
        answer = fetch(client, november, Range=header)
        if part is None:
            problem(answer, 416, "range_not_satisfiable")
            assert answer["Content-Range"] == f"bytes */{size}"
        else:
            assert answer.status_code == 206
            assert answer["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
            assert b"".join(answer) == content[part]

    check()
