"""The wire between server and S3 fails: downloads end with the exact bytes or visibly short, uploads are whole or nothing."""

import http.client
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.contents import random_bytes
from tests.faults.conftest import Site, started_site
from tests.live.people import Person
from tests.live.proxy import Effect, Fault, Proxy
from tests.live.waiting import LIMIT, wait_for
from tests.needs import mark_dependents
from vault.crypto import Layout


pytestmark = pytest.mark.needs("curl")
MIB = 1024 * 1024
SEGMENT = 128 * 1024
CONTENT = random_bytes(20 * MIB + 12345)
SMALL = CONTENT[:100_000]  # one segment, so that one GET brings all of it
GET = rb"^GET /[^?\s]+ HTTP"  # of an object, not a listing
HEAD_OF_ANSWER = rb"^HTTP/1\.1 2(?s:.)*?\r\n\r\n"
CUT_SHORT = {18, 56}  # curl: the transfer ended before its announced length, or by a reset

Trouble = Callable[[Proxy], AbstractContextManager[Proxy]]


@pytest.fixture(scope="module")
def stored(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A collection whose two files no test here changes."""
    owner = Person(shared_site.server, "member", tmp_path_factory.mktemp("stored"))
    owner.upload("small.bin", SMALL)
    owner.upload("big.bin", CONTENT)
    return owner.collection


@pytest.fixture
def reader(site: Site, stored: str, tmp_path: Path) -> Person:
    reader = Person(site.server, "member", tmp_path)
    reader.collection = stored
    return reader


def last_segment(size: int) -> int:
    """Bytes of the object that a reader of its end is answered with."""
    layout = Layout(size, SEGMENT)
    return layout.object_size - layout.object_range(layout.segments - 1, layout.segments)[0]


def archive(reader: Person) -> str:
    return f"{reader.server.url}/api/v1/collections/{reader.collection}/archive.zip"


def big_one_of(archive: bytes) -> bytes:
    with zipfile.ZipFile(BytesIO(archive)) as files:
        return files.read("big.bin")


WAYS_OUT: dict[str, Callable[[Person], list[object]]] = {
    "whole": lambda reader: [reader.content("big.bin")],
    "range": lambda reader: ["-r", "1-", reader.content("big.bin")],
    "link": lambda reader: [reader.link("big.bin")],
    "archive": lambda reader: [archive(reader)],
}

GATE_AND_LONG = ["range", "archive", pytest.param("whole", marks=pytest.mark.long), pytest.param("link", marks=pytest.mark.long)]


# --- Downloads ---


@pytest.mark.parametrize(
    ("way", "then"),
    [
        ("whole", "reset"),
        ("range", "half-close"),
        pytest.param("whole", "end", marks=pytest.mark.long),
        pytest.param("whole", "half-close", marks=pytest.mark.long),
        pytest.param("range", "reset", marks=pytest.mark.long),
        pytest.param("range", "end", marks=pytest.mark.long),
    ],
)
def test_download_goes_on_behind_a_cut_anywhere_in_an_answer(site: Site, reader: Person, way: str, then: Effect) -> None:
    """F-05: before the answer and in its head, and at 0 %, in the middle and before the last byte of the body."""
    arguments, filename, expected = ([], "small.bin", SMALL) if way == "whole" else (["-r", "-5000"], "big.bin", CONTENT[-5000:])
    size = last_segment(len(SMALL if way == "whole" else CONTENT))
    for behind, after in ((b"", 0), (b"", 100), (HEAD_OF_ANSWER, 0), (HEAD_OF_ANSWER, size // 2), (HEAD_OF_ANSWER, size - 1)):
        with site.s3.during(Fault(request=GET, after_match=behind, after=after, then=then, times=1)) as s3:
            got = reader.curl(*arguments, reader.content(filename))
            assert s3.triggered == 1
        assert (got.returncode, got.stdout == expected) == (0, True)


@pytest.mark.parametrize("way_out", GATE_AND_LONG)
def test_big_download_goes_on_behind_resets(site: Site, reader: Person, way_out: str) -> None:
    """F-05: in the large windows of a client that is fast."""
    arguments = WAYS_OUT[way_out](reader)
    with site.s3.during(Fault(request=GET, after_match=HEAD_OF_ANSWER, after=3 * MIB, then="reset", times=3)) as s3:
        got = reader.curl(*arguments)
        assert s3.triggered == 3
    assert got.returncode == 0
    received = big_one_of(got.stdout) if way_out == "archive" else got.stdout
    assert received == (CONTENT[1:] if way_out == "range" else CONTENT)


def test_download_on_a_slow_wire_is_exact(site: Site, reader: Person) -> None:
    with site.s3.during(Fault(request=GET, pause=0.002, rate=32 * MIB)):
        got = reader.curl(reader.content("big.bin"))
    assert (got.returncode, got.stdout == CONTENT) == (0, True)


@pytest.mark.parametrize(("after", "status"), [(50_000, b"502"), (MIB, b"200")])
def test_download_that_the_wire_alters_shows_no_wrong_byte(site: Site, reader: Person, after: int, status: bytes) -> None:
    """INV-02, INV-03: without TLS a bit that flips on its way looks like one that flipped in the bucket."""
    with site.s3.during(Fault(request=GET, after_match=HEAD_OF_ANSWER, after=after, then="flip", times=1)) as s3:
        got = reader.curl("-w", "%{stderr}%{http_code}", reader.content("big.bin"))
        assert s3.triggered == 1
    assert got.stderr.endswith(status)
    if status == b"200":
        assert got.returncode in CUT_SHORT
        assert CONTENT.startswith(got.stdout)
    else:
        assert json.loads(got.stdout)["code"] == "object_corrupt"


@pytest.mark.parametrize("way_out", GATE_AND_LONG)
@pytest.mark.parametrize(
    ("trouble", "seconds"),
    [
        pytest.param(Proxy.down, LIMIT, id="down"),
        pytest.param(Proxy.down, 10, id="down-quiet", marks=pytest.mark.quiet),
        # One answer that does not go on, and one request that is not answered, twice.
        pytest.param(lambda s3: s3.during(Fault(then="hang")), 60, id="silent", marks=pytest.mark.quiet),
    ],
)
def test_download_from_a_store_that_dies_for_good_ends_visibly_short(
    site: Site, reader: Person, way_out: str, trouble: Trouble, seconds: float
) -> None:
    *headers, url = WAYS_OUT[way_out](reader)
    address = urlsplit(str(url))
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=LIMIT)) as connection:
        wanted = {"Range": "bytes=1-"} if headers else {}
        connection.request("GET", address.path, headers={"Authorization": f"Bearer {reader.token}"} | wanted)
        response = connection.getresponse()
        received = response.read(MIB)
        with trouble(site.s3):
            began = time.monotonic()
            received += read_until_it_breaks(response)
            assert time.monotonic() - began < seconds
    if way_out != "archive":
        assert CONTENT[bool(headers) :].startswith(received)
    assert reader.curl("-o", "/dev/null", reader.content("big.bin")).returncode == 0


def read_until_it_breaks(response: http.client.HTTPResponse) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while piece := response.read(MIB):
            received += piece
    assert response.length, "the body ended as if it were whole"
    return received


# --- A store that is not there ---


READY = dict.fromkeys(("database", "guards", "storage", "keyring"), "ok")


@pytest.mark.parametrize(
    ("trouble", "seconds", "is_quiet"),
    [
        pytest.param(Proxy.down, LIMIT, False, id="refused"),
        pytest.param(Proxy.down, 10, True, id="refused-quiet", marks=pytest.mark.quiet),
        pytest.param(lambda s3: s3.during(Fault(then="reset")), 10, True, id="reset", marks=pytest.mark.quiet),
        pytest.param(lambda s3: s3.during(Fault(then="half-close")), 10, True, id="half-close", marks=pytest.mark.quiet),
        # Asked twice, with 15 seconds for each answer (F-04); readiness says it as late.
        pytest.param(lambda s3: s3.during(Fault(then="hang")), 45, True, id="silent", marks=pytest.mark.quiet),
    ],
)
def test_store_that_is_away_is_503_in_time_and_nothing_else_suffers(
    site: Site, reader: Person, trouble: Trouble, seconds: float, tmp_path: Path, *, is_quiet: bool
) -> None:
    """F-03: a small download, upload and form. The link that was not served stays good."""
    source = tmp_path / "new.bin"
    source.write_bytes(SMALL)
    link = reader.link("small.bin")
    requests: list[list[object]] = [
        [reader.content("small.bin")],
        ["-r", "5-", reader.content("big.bin")],
        [link],
        ["-T", source, reader.content("new.bin")],
        ["-F", f"file=@{source}", f"{site.server.url}{reader.files}"],
    ]

    def timed(arguments: list[object]) -> tuple[float, Any]:
        began = time.monotonic()
        got = reader.curl("-D", "-", *arguments)
        return time.monotonic() - began, got.stdout.rpartition(b"\r\n\r\n")

    with trouble(site.s3), ThreadPoolExecutor() as pool:
        readiness = pool.submit(reader.curl, f"{site.server.url}/readyz")
        asked = [pool.submit(timed, arguments) for arguments in requests]
        others = list[float]()
        while not others or not all(answer.done() for answer in asked):
            began = time.monotonic()
            assert reader.api("GET", "/api/v1/me/")[0] == 200
            others.append(time.monotonic() - began)
        if is_quiet:
            assert max(others) < 2
        for took, (head, _, body) in (answer.result() for answer in asked):
            assert json.loads(body)["code"] == "storage_unavailable"
            assert b"\r\nretry-after:" in head.lower()
            assert took < seconds
        assert json.loads(readiness.result().stdout)["checks"] == READY | {"storage": "failed"}
        assert site.server.has_no_leftovers()

    assert site.server.request("GET", "/readyz")[1]["checks"] == READY
    assert reader.filenames() == {"small.bin", "big.bin"}
    if seconds < 30:  # or the link has expired
        assert reader.curl(link).stdout == SMALL
    assert reader.curl("-r", "5-", reader.content("big.bin")).stdout == CONTENT[5:]


# --- What a broken transfer gives back ---


@pytest.fixture
@mark_dependents(pytest.mark.server, pytest.mark.needs("ceph", "postgresql"))
def narrow(tmp_path: Path) -> Iterator[Site]:
    """Room for one transfer and two connections to S3: whoever keeps one is missed by the next."""
    with started_site(tmp_path / "home", FILES_MAX_TRANSFERS="1", S3_MAX_CONNECTIONS="2", WEB_THREADS="8") as site:
        yield site


@pytest.mark.long  # only because of its server
def test_transfers_that_broke_give_everything_back(narrow: Site, tmp_path: Path) -> None:
    """INV-19: slot, connection and thread, whatever broke and however often."""
    member = Person(narrow.server, "member", tmp_path)
    member.upload("a.bin", CONTENT)
    source = tmp_path / "upload"

    def served(*arguments: object) -> bool:
        """It may come a moment before the last one's slot does."""
        got = member.curl("-o", "/dev/null", "-w", "%{http_code}", *arguments)
        assert got.returncode == 0
        assert got.stdout in {b"200", b"503"}
        return got.stdout == b"200"

    wait_for(lambda: served(member.content("a.bin")))
    download, upload = [member.content("a.bin")], ["-T", source, member.content("b.bin")]
    for arguments, fault in (
        (download, Fault(request=GET, then="reset")),
        (download, Fault(request=GET, after=MIB, then="reset")),
        (upload, Fault(request=rb"^PUT ", direction="request", after=MIB, then="reset")),
        (upload, Fault(request=rb"^HEAD ", direction="request", then="reset")),
    ):
        with narrow.s3.during(fault) as s3:
            member.curl("-o", "/dev/null", *arguments)
            assert s3.triggered
        wait_for(lambda: served(*download))
    assert narrow.server.web_worker().num_threads() <= 8 + 8 + 8  # for requests, for parts, and a few for itself
    assert narrow.s3.connections <= 2 + 2  # of the server and of the worker
    assert member.filenames() == {"a.bin"}
    wait_for(narrow.server.has_no_leftovers)
    assert narrow.unfinished() == set()
