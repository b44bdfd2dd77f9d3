"""The connection between server and S3 fails during uploads: complete, or 503 without leftovers, for each kind of S3 request."""

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

# Content, the S3 request that gets the fault, and the number of its bytes that arrive.
REQUESTS = {
    "head": (SMALL, rb"^HEAD /[^/\s]+/\S+ HTTP", 50),
    "put": (SMALL, rb"^PUT /[^?\s]+ HTTP", 50_000),
    "start": (BIG, rb"^POST \S+\?uploads", 50),
    "part": (BIG, rb"^PUT \S+partNumber=", 4 * MIB),
    "complete": (BIG, rb"^POST \S+uploadId=", 50),
}
UPLOAD_METHODS: dict[str, Callable[[Person, Path], list[object]]] = {
    "raw": lambda member, source: ["-T", source, member.content("new.bin")],
    "chunked": lambda member, source: ["-T", source, "-H", "Transfer-Encoding: chunked", member.content("new.bin")],
    "form": lambda member, source: ["-F", f"file=@{source};filename=new.bin", f"{member.server.url}{member.files}"],
}


def cut(name: str, *, times: int) -> Fault:
    """The request does not arrive."""
    _, request, after = REQUESTS[name]
    return Fault(request=request, direction="request", after=after, then="reset", times=times)


def response_lost(name: str, *, times: int) -> Fault:
    """The store performs the request, and the final response (not `100 Continue`) does not arrive."""
    return Fault(request=REQUESTS[name][1], after_match=rb"^(?=HTTP/1\.1 [^1])", then="reset", times=times)


def send(member: Person, method: str, content: bytes, *arguments: str) -> tuple[int, str]:
    """Uploads a file with curl; returns the status and the code of a problem document."""
    source = member.folder / "source"
    source.write_bytes(content)
    got = member.curl("-w", "%{stderr}%{http_code}", *arguments, *UPLOAD_METHODS[method](member, source))
    assert got.returncode == 0, got
    return int(got.stderr), json.loads(got.stdout).get("code", "")


def restore_retry_quota(member: Person) -> None:
    """Makes successful requests, because botocore stops retrying after many failures, which other tests cause."""
    member.upload("tiny.bin", b"1")
    path = member.content("tiny.bin").removeprefix(member.server.url)
    with closing(http.client.HTTPConnection("127.0.0.1", member.server.port, timeout=LIMIT)) as connection:
        for _ in range(20):
            connection.request("GET", path, headers={"Authorization": f"Bearer {member.token}"})
            assert connection.getresponse().read() == b"1"


def case(method: str, name: str, fault: Callable[..., Fault], times: int, *, is_done: bool, is_slow: bool = False) -> Any:
    names = (method, name, fault.__name__, "once" if times == 1 else "always")
    return pytest.param(method, name, fault, times, is_done, id="-".join(names), marks=[pytest.mark.long] if is_slow else [])


ALWAYS = 10**6


@pytest.mark.parametrize(
    ("method", "name", "fault", "times", "is_done"),
    [
        *(case("raw", name, cut, ALWAYS, is_done=False, is_slow=name in {"head", "start"}) for name in REQUESTS),
        *(
            case("raw", name, response_lost, ALWAYS, is_done=name in {"put", "complete"}, is_slow=name in {"start", "part"})
            for name in REQUESTS
            if name != "head"
        ),
        *(case("raw", name, response_lost, 1, is_done=True, is_slow=name != "complete") for name in ("put", "start", "complete")),
        *(case("raw", name, cut, 1, is_done=True, is_slow=name != "part") for name in REQUESTS),
        *(case("chunked", name, cut, ALWAYS, is_done=False, is_slow=name != "part") for name in REQUESTS),
        *(case("form", name, cut, ALWAYS, is_done=False, is_slow=name != "part") for name in REQUESTS),
    ],
)
def test_upload_over_a_failing_connection_is_complete_or_absent(
    site: Site,
    member: Person,
    method: str,
    name: str,
    fault: Callable[..., Fault],
    times: int,
    is_done: bool,  # noqa: FBT001
) -> None:
    """F-01, F-02, F-12, F-13, INV-06: the fixture `site` checks for objects without a row and unfinished uploads."""
    content = REQUESTS[name][0]
    if times == 1:
        restore_retry_quota(member)
    before, others = site.keys(), member.filenames()
    with site.s3.during(fault(name, times=times)) as s3:
        answer = send(member, method, content)
        assert s3.triggered
    assert site.unfinished() == set()
    if is_done:
        assert answer == (201, "")
        assert len(site.keys() - before) == 1
    else:
        assert answer == (503, "storage_unavailable")
        assert (site.keys() - before, member.filenames()) == (set(), others)
        assert site.server.has_no_leftovers()
        assert send(member, method, content) == (201, "")
    assert member.curl(member.content("new.bin")).stdout == content


@pytest.mark.parametrize("name", ["put", "part"])
def test_upload_altered_in_transit_is_refused_by_the_store(site: Site, member: Person, name: str) -> None:
    """Without TLS, the store verifies the SHA-256 that the signature covers."""
    content, request, after = REQUESTS[name]
    with site.s3.during(Fault(request=request, direction="request", after=after, then="flip", times=1)) as s3:
        assert send(member, "raw", content) == (503, "storage_unavailable")
        assert s3.triggered == 1
    assert (site.unfinished(), member.filenames()) == (set(), set())


@pytest.mark.parametrize("name", ["put", "complete"])
def test_failed_replacement_keeps_the_old_content(site: Site, member: Person, name: str) -> None:
    member.upload("new.bin", b"old")
    before = site.keys()
    with site.s3.during(cut(name, times=10**6)):
        assert send(member, "raw", REQUESTS[name][0], "-H", "If-Match: *") == (503, "storage_unavailable")
    assert site.keys() == before
    assert member.curl(member.content("new.bin")).stdout == b"old"


@pytest.mark.quiet
@pytest.mark.parametrize(("name", "status"), [("put", 201), ("part", 503), ("complete", 201)])
def test_upload_to_a_silent_store_is_answered_in_time(site: Site, member: Person, name: str, status: int) -> None:
    """F-04: two attempts with a timeout of 15 seconds each, then a check of the outcome."""
    content, request, _ = REQUESTS[name]
    started = time.monotonic()
    with site.s3.during(Fault(request=request, after_match=rb"^(?=HTTP/1\.1 [^1])", then="hang")):
        assert send(member, "raw", content)[0] == status
        assert time.monotonic() - started < 45
        assert site.unfinished() == set()


@within(10)
def test_upload_whose_store_goes_down_is_503_and_cleaned_up_later(site: Site, member: Person, seconds: float) -> None:
    """F-14: the uploaded parts stay until the store is back."""
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
            started = time.monotonic()
            connection.send(BIG + BIG)
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)["code"]) == (503, "storage_unavailable")
            assert time.monotonic() - started < seconds
    assert len(site.unfinished()) == 1
    server.sql("UPDATE files_upload SET heartbeat_at = ?", datetime(2020, 1, 1, tzinfo=UTC))
    wait_for(lambda: not site.unfinished())
    assert member.filenames() == set()
