"""The wire between server and S3 fails while files come in: whole or 503 with nothing left, for each kind of request."""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.contents import random_bytes
from tests.faults.conftest import Site
from tests.live.people import Person
from tests.live.proxy import Fault
from tests.live.waiting import LIMIT, wait_for, within


pytestmark = pytest.mark.needs("curl")
MIB = 1024 * 1024
BIG = random_bytes(9 * MIB, seed=2)  # two parts
SMALL = BIG[:100_000]  # one PutObject

# What is uploaded, the request that a fault befalls, and how many bytes of it still arrive.
REQUESTS = {
    "head": (SMALL, rb"^HEAD /[^/\s]+/\S+ HTTP", 50),
    "put": (SMALL, rb"^PUT /[^?\s]+ HTTP", 50_000),
    "start": (BIG, rb"^POST \S+\?uploads", 50),
    "part": (BIG, rb"^PUT \S+partNumber=", 4 * MIB),
    "complete": (BIG, rb"^POST \S+uploadId=", 50),
}
WAYS_IN: dict[str, Callable[[Person, Path], list[object]]] = {
    "raw": lambda member, source: ["-T", source, member.content("new.bin")],
    "chunked": lambda member, source: ["-T", source, "-H", "Transfer-Encoding: chunked", member.content("new.bin")],
    "form": lambda member, source: ["-F", f"file=@{source};filename=new.bin", f"{member.server.url}{member.files}"],
}


def cut(name: str, *, times: int) -> Fault:
    """The request does not arrive."""
    _, request, after = REQUESTS[name]
    return Fault(request=request, direction="request", after=after, then="reset", times=times)


def unheard(name: str, *, times: int) -> Fault:
    """The request is done, and its answer does not arrive; `100 Continue` is none."""
    return Fault(request=REQUESTS[name][1], after_match=rb"^(?=HTTP/1\.1 [^1])", then="reset", times=times)


def send(member: Person, way_in: str, content: bytes, *arguments: str) -> tuple[int, str]:
    """Status, and the code of a problem."""
    source = member.folder / "source"
    source.write_bytes(content)
    got = member.curl("-w", "%{stderr}%{http_code}", *arguments, *WAYS_IN[way_in](member, source))
    assert got.returncode == 0, got
    return int(got.stderr), json.loads(got.stdout).get("code", "")


def let_it_try_again(member: Person) -> None:
    """Botocore stops repeating requests when many have failed (here: in other tests), until enough of them worked at once."""
    member.upload("tiny.bin", b"1")
    path = member.content("tiny.bin").removeprefix(member.server.url)
    with closing(http.client.HTTPConnection("127.0.0.1", member.server.port, timeout=LIMIT)) as connection:
        for _ in range(20):
            connection.request("GET", path, headers={"Authorization": f"Bearer {member.token}"})
            assert connection.getresponse().read() == b"1"


def case(way_in: str, name: str, fault: Callable[..., Fault], times: int, *, is_done: bool, is_slow: bool = False) -> Any:
    names = (way_in, name, fault.__name__, "once" if times == 1 else "always")
    return pytest.param(way_in, name, fault, times, is_done, id="-".join(names), marks=[pytest.mark.long] if is_slow else [])


ALWAYS = 10**6


@pytest.mark.parametrize(
    ("way_in", "name", "fault", "times", "is_done"),
    [
        *(case("raw", name, cut, ALWAYS, is_done=False, is_slow=name in {"head", "start"}) for name in REQUESTS),
        *(
            case("raw", name, unheard, ALWAYS, is_done=name in {"put", "complete"}, is_slow=name in {"start", "part"})
            for name in REQUESTS
            if name != "head"
        ),
        *(case("raw", name, unheard, 1, is_done=True, is_slow=name != "complete") for name in ("put", "start", "complete")),
        *(case("raw", name, cut, 1, is_done=True, is_slow=name != "part") for name in REQUESTS),
        *(case("chunked", name, cut, ALWAYS, is_done=False, is_slow=name != "part") for name in REQUESTS),
        *(case("form", name, cut, ALWAYS, is_done=False, is_slow=name != "part") for name in REQUESTS),
    ],
)
def test_upload_over_a_failing_wire_is_whole_or_leaves_nothing(
    site: Site,
    member: Person,
    way_in: str,
    name: str,
    fault: Callable[..., Fault],
    times: int,
    is_done: bool,  # noqa: FBT001
) -> None:
    """F-01, F-02, F-12, F-13, INV-06: `site` finds no object without a row, and no upload."""
    content = REQUESTS[name][0]
    if times == 1:
        let_it_try_again(member)
    before, others = site.keys(), member.filenames()
    with site.s3.during(fault(name, times=times)) as s3:
        answer = send(member, way_in, content)
        assert s3.triggered
    assert site.unfinished() == set()
    if is_done:
        assert answer == (201, "")
        assert len(site.keys() - before) == 1
    else:
        assert answer == (503, "storage_unavailable")
        assert (site.keys() - before, member.filenames()) == (set(), others)
        assert site.server.has_no_leftovers()
        assert send(member, way_in, content) == (201, "")
    assert member.curl(member.content("new.bin")).stdout == content


@pytest.mark.parametrize("name", ["put", "part"])
def test_upload_that_the_wire_alters_is_refused_by_the_store(site: Site, member: Person, name: str) -> None:
    """Without TLS the store compares the SHA-256 that the signature covers."""
    content, request, after = REQUESTS[name]
    with site.s3.during(Fault(request=request, direction="request", after=after, then="flip", times=1)) as s3:
        assert send(member, "raw", content) == (503, "storage_unavailable")
        assert s3.triggered == 1
    assert (site.unfinished(), member.filenames()) == (set(), set())


@pytest.mark.parametrize("name", ["put", "complete"])
def test_replacement_that_fails_leaves_the_old_content(site: Site, member: Person, name: str) -> None:
    member.upload("new.bin", b"old")
    before = site.keys()
    with site.s3.during(cut(name, times=10**6)):
        assert send(member, "raw", REQUESTS[name][0], "-H", "If-Match: *") == (503, "storage_unavailable")
    assert site.keys() == before
    assert member.curl(member.content("new.bin")).stdout == b"old"


@pytest.mark.quiet
@pytest.mark.parametrize(("name", "status"), [("put", 201), ("part", 503), ("complete", 201)])
def test_upload_to_a_store_that_falls_silent_is_answered_in_time(site: Site, member: Person, name: str, status: int) -> None:
    """F-04: asked twice, with 15 seconds for each answer, and then looked what became of it."""
    content, request, _ = REQUESTS[name]
    began = time.monotonic()
    with site.s3.during(Fault(request=request, after_match=rb"^(?=HTTP/1\.1 [^1])", then="hang")):
        assert send(member, "raw", content)[0] == status
        assert time.monotonic() - began < 45
        assert site.unfinished() == set()


@within(10)
def test_upload_whose_store_dies_under_it_is_503_and_cleared_away_later(site: Site, member: Person, seconds: float) -> None:
    """F-14: parts of it are there, and nobody can take them away until the store is back."""
    server = site.server
    path = member.content("new.bin").removeprefix(server.url)
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)) as connection:
        connection.putrequest("PUT", path)
        connection.putheader("Authorization", f"Bearer {member.token}")
        connection.putheader("Content-Length", str(3 * len(BIG)))
        connection.endheaders()
        connection.send(BIG)
        wait_for(site.unfinished)
        with site.s3.down():
            began = time.monotonic()
            connection.send(BIG + BIG)
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["code"]) == (503, "storage_unavailable")
            assert time.monotonic() - began < seconds
    assert len(site.unfinished()) == 1
    server.sql("UPDATE files_upload SET heartbeat_at = ?", datetime(2020, 1, 1, tzinfo=UTC))
    wait_for(lambda: not site.unfinished())
    assert member.filenames() == set()
