"""Transfers that are cut, on either side and in the middle: seen by who waits for them, and nothing left behind (F-05, F-47)."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.contents import random_bytes
from tests.live.people import Person
from tests.live.server import Server
from tests.live.waiting import LIMIT, has_ended, wait_for, within


MIB = 1024 * 1024
CONTENT = random_bytes(12 * MIB)
PARTIAL_FILE = 18  # curl: the transfer ended before the announced length


@pytest.fixture
def clean(server: Server) -> Iterator[None]:
    """After the test the server has no more objects, rows and descriptors than before (INV-19)."""
    wait_for(server.has_no_leftovers)
    before = (len(server.object_files()), server.descriptors())
    yield

    def after() -> tuple[int, int]:
        return len(server.object_files()), server.descriptors()

    wait_for(server.has_no_leftovers)
    wait_for(lambda: after()[0] == before[0] and after()[1] <= before[1])
    assert server.sql("SELECT count(*) FROM files_storedfile WHERE filename = 'cut.bin'") == [(0,)]


# --- Uploads that the client cuts ---


def put_head(member: Person, framing: str) -> bytes:
    path = member.content("cut.bin").removeprefix(member.server.url)
    return f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n{framing}\r\n\r\n".encode()


def with_length(member: Person) -> bytes:
    return put_head(member, f"Content-Length: {len(CONTENT)}") + CONTENT


def chunked(member: Person) -> bytes:
    chunks = [CONTENT[start : start + 500_000] for start in range(0, len(CONTENT), 500_000)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return put_head(member, "Transfer-Encoding: chunked") + body + b"0\r\n\r\n"


def as_form(member: Person) -> bytes:
    body = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="cut.bin"\r\n\r\n' + CONTENT + b"\r\n--cut--\r\n"
    head = f"POST {member.files} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n"
    head += f"Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def nothing_of_the_body(whole: bytes) -> int:
    return whole.index(b"\r\n\r\n") + 4


def half(whole: bytes) -> int:
    return len(whole) // 2


def all_but_the_last_byte(whole: bytes) -> int:
    return len(whole) - 1


@pytest.mark.parametrize(
    ("request_of", "sent_of"),
    [
        (with_length, all_but_the_last_byte),
        (chunked, half),
        (as_form, nothing_of_the_body),
        *(
            pytest.param(request_of, sent_of, marks=pytest.mark.long)
            for request_of, sent_of in [
                (with_length, nothing_of_the_body),
                (with_length, half),
                (chunked, nothing_of_the_body),
                (chunked, all_but_the_last_byte),
                (as_form, half),
                (as_form, all_but_the_last_byte),
            ]
        ),
    ],
)
def test_upload_that_its_client_cuts_leaves_nothing(
    clean: None, member: Person, request_of: Callable[[Person], bytes], sent_of: Callable[[bytes], int]
) -> None:
    whole = request_of(member)
    clients = []
    for _ in range(5):
        clients.append(socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT))
        clients[-1].sendall(whole[: sent_of(whole)])
    if sent_of(whole) > MIB:
        wait_for(lambda: member.server.sql("SELECT count(*) FROM files_upload")[0][0] == 5)
    for client in clients:
        client.close()
    wait_for(lambda: not member.server.sql("SELECT * FROM files_upload"))
    assert member.filenames() == set()


def test_upload_that_is_not_cut_is_a_file(member: Person) -> None:
    """What the tests above would otherwise not tell from a server that keeps nothing."""
    for request_of in (with_length, chunked, as_form):
        with socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT) as client:
            client.sendall(request_of(member))
            assert client.recv(20).startswith(b"HTTP/1.1 201")
        assert member.filenames() == {"cut.bin"}
        assert member.api("DELETE", f"{member.files}cut.bin/")[0] == 204


@pytest.mark.needs("curl")
def test_upload_with_another_digest_leaves_nothing(clean: None, member: Person, tmp_path: Path) -> None:
    source = tmp_path / "cut.bin"
    source.write_bytes(CONTENT)
    digest = "Content-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"
    refused = member.curl("-T", source, "-H", digest, "-w", "%{stderr}%{http_code}", member.content())
    assert (refused.stderr, json.loads(refused.stdout)["code"]) == (b"400", "digest_mismatch")
    assert member.filenames() == set()


# --- Downloads that the client cuts ---


@pytest.mark.parametrize(
    ("taken", "times"),
    [(1, 5), (5 * MIB, 5), *(pytest.param(taken, 10, marks=pytest.mark.long) for taken in (0, 1, 5 * MIB, len(CONTENT) - 1))],
)
def test_download_that_its_client_cuts_gives_everything_back(member: Person, taken: int, times: int) -> None:
    member.upload("a.bin", CONTENT)
    before = member.server.descriptors()
    path = member.content("a.bin").removeprefix(member.server.url)
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n\r\n".encode())
            if taken:
                head, _, body = read_until(client, b"\r\n\r\n").partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                while len(body) < taken:
                    body += client.recv(taken - len(body))
    wait_for(lambda: member.server.descriptors() <= before)


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        received += client.recv(1)
    return received


# --- Objects that are damaged under their readers ---


def object_of(server: Server, member: Person, filename: str) -> Path:
    ((key,),) = server.sql(
        "SELECT object_key FROM files_storedfile WHERE filename = ? AND "
        "collection_id = (SELECT id FROM files_collection WHERE slug = ?)",
        filename,
        member.collection,
    )
    return server.home / "objects" / "vault" / str(key)


@contextmanager
def altered(path: Path, change: Callable[[bytearray], None]) -> Iterator[None]:
    """As a disk does it that nobody told: the object's time stays. Mended afterwards: others look at all of its objects."""
    status, whole = path.stat(), path.read_bytes()
    ciphertext = bytearray(whole)
    change(ciphertext)

    def write(content: bytes | bytearray) -> None:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    write(ciphertext)
    try:
        yield
    finally:
        write(whole)


def flip_at(position: int) -> Callable[[bytearray], None]:
    def flip(ciphertext: bytearray) -> None:
        ciphertext[position] ^= 1

    return flip


def swap_segments(ciphertext: bytearray) -> None:
    size = 128 * 1024
    ciphertext[5 * size : 6 * size], ciphertext[6 * size : 7 * size] = (
        ciphertext[6 * size : 7 * size],
        ciphertext[5 * size : 6 * size],
    )


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(flip_at(200_000), id="second-segment", marks=pytest.mark.long),
        pytest.param(flip_at(6 * MIB), id="middle", marks=pytest.mark.long),
        pytest.param(flip_at(-1), id="last-byte"),
        pytest.param(swap_segments, id="segments-swapped"),
    ],
)
def test_object_that_is_damaged_in_the_middle_ends_visibly_short(
    member: Person, tmp_path: Path, change: Callable[[bytearray], None]
) -> None:
    """INV-02, INV-03: no wrong byte, and no client that takes it for the whole file."""
    member.upload("a.bin", CONTENT)
    archive = f"{member.server.url}/api/v1/collections/{member.collection}/archive.zip"
    with altered(object_of(member.server, member, "a.bin"), change):
        for url in (member.content("a.bin"), member.link("a.bin")):
            got = member.curl("-o", tmp_path / "a.bin", url)
            assert got.returncode == PARTIAL_FILE
            received = (tmp_path / "a.bin").read_bytes()
            assert 0 < len(received) < len(CONTENT)
            assert CONTENT.startswith(received)
        assert member.curl("-o", "/dev/null", archive).returncode == PARTIAL_FILE


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(flip_at(0), "object_corrupt", id="header", marks=pytest.mark.long),
        pytest.param(flip_at(100_000), "object_corrupt", id="first-segment"),
        pytest.param(lambda ciphertext: ciphertext.pop(), "object_corrupt", id="shorter"),
        pytest.param(lambda ciphertext: ciphertext.append(0), "object_corrupt", id="longer", marks=pytest.mark.long),
        pytest.param(bytearray.clear, "object_corrupt", id="empty", marks=pytest.mark.long),
    ],
)
def test_object_that_is_damaged_from_the_start_is_502(member: Person, change: Callable[[bytearray], Any], code: str) -> None:
    member.upload("a.bin", CONTENT)
    with altered(object_of(member.server, member, "a.bin"), change):
        got = member.curl(member.content("a.bin"), "-w", "%{stderr}%{http_code}")
    assert (got.stderr, json.loads(got.stdout)["code"]) == (b"502", code)


@pytest.mark.needs("curl")
def test_object_that_is_gone_is_502_and_the_row_says_so(member: Person) -> None:
    member.upload("a.bin", CONTENT)
    object_of(member.server, member, "a.bin").unlink()  # not looked for any more: the row says that it is missing
    got = member.curl(member.content("a.bin"), "-w", "%{stderr}%{http_code}")
    assert (got.stderr, json.loads(got.stdout)["code"]) == (b"502", "object_missing")
    assert member.api("GET", f"{member.files}a.bin/")[1]["status"] == "missing"


# --- Streams that may not go on ---


MEMBER = "(SELECT id FROM tenants_user WHERE username = 'member')"


def deactivated(member: Person) -> None:
    member.server.sql("UPDATE tenants_user SET is_active = 0 WHERE username = 'member'")


def expelled(member: Person) -> None:
    member.server.sql(f"UPDATE tenants_membership SET user_id = -user_id WHERE user_id = {MEMBER}")  # noqa: S608


def ungranted(member: Person) -> None:
    admin, grants = member.server.token("admin"), f"/api/v1/collections/{member.collection}/grants/"
    for grant in member.server.request("GET", grants, token=admin)[1]["results"]:
        assert member.server.request("DELETE", f"{grants}{grant['id']}/", token=admin)[0] == 204


@pytest.fixture
def restored(server: Server) -> Iterator[None]:
    users = server.sql("SELECT id, is_active FROM tenants_user")
    memberships = server.sql("SELECT id, user_id FROM tenants_membership")
    yield
    for pk, is_active in users:
        server.sql("UPDATE tenants_user SET is_active = ? WHERE id = ?", is_active, pk)
    for pk, user in memberships:
        server.sql("UPDATE tenants_membership SET user_id = ? WHERE id = ?", user, pk)


@within(15)
@pytest.mark.parametrize(
    "revoke", [pytest.param(deactivated, marks=pytest.mark.long), pytest.param(expelled, marks=pytest.mark.long), ungranted]
)
def test_running_streams_end_within_seconds_of_the_right_to_them(
    restored: None, member: Person, revoke: Callable[[Person], None], seconds: float
) -> None:
    """INV-16: by token and by link, one file and an archive. tests/services/test_streams.py has the other ways to lose it."""
    member.upload("a.bin", 4 * CONTENT)
    archive = f"{member.server.url}/api/v1/collections/{member.collection}/archive.zip"
    with ExitStack() as running:
        urls = [member.content("a.bin"), member.link("a.bin"), archive]
        answers = [running.enter_context(begun(member, url)) for url in urls]
        read_slowly(answers, seconds=1)
        assert not any(answer.isclosed() for answer in answers)

        revoke(member)

        began = time.monotonic()
        read_slowly(answers, seconds=15)
        assert time.monotonic() - began < seconds
        assert all(answer.isclosed() and answer.length for answer in answers)  # short of the announced length


@within(15)
def test_running_streams_end_within_seconds_of_the_end_of_their_key(member: Person, seconds: float) -> None:
    """INV-16: by key, and by a link that it minted; what its owner runs without it goes on."""
    member.upload("a.bin", 8 * CONTENT)
    with ExitStack() as running:
        own = running.enter_context(begun(member, member.content("a.bin")))
        key = member.server.manage("createapikey", "demo", "member", "--name=nightly", "--scope=read").strip()
        member.token = key
        urls = [member.content("a.bin"), member.link("a.bin")]
        answers = [running.enter_context(begun(member, url)) for url in urls]
        read_slowly([own, *answers], seconds=1)
        assert not any(answer.isclosed() for answer in answers)

        member.server.manage("revokeapikey", key.partition(".")[0])

        began = time.monotonic()
        read_slowly([own, *answers], seconds=15, of=answers)
        assert time.monotonic() - began < seconds
        assert all(answer.isclosed() and answer.length for answer in answers)
        assert not own.isclosed()


def begun(member: Person, url: str, first: int = 0) -> HTTPResponse:
    """An answer from that byte on. The client's kernel takes no more ahead than a few buffers; curl's would take many MiB."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    line.settimeout(LIMIT)
    line.connect(("127.0.0.1", member.server.port))
    connection = HTTPConnection("127.0.0.1")
    connection.sock = line
    headers = {"Authorization": f"Bearer {member.token}", "Connection": "close"}
    if first:
        headers["Range"] = f"bytes={first}-"
    connection.request("GET", url.removeprefix(member.server.url), headers=headers)
    return connection.getresponse()


def read_slowly(answers: list[HTTPResponse], *, seconds: int, of: list[HTTPResponse] | None = None) -> None:
    """2 MiB for each of so many seconds, or longer where the machine is busy, of each that has not ended; until these have."""
    for _ in range(32 * seconds):
        if all(answer.isclosed() for answer in of or answers):
            return
        for answer in answers:
            if not answer.isclosed() and not answer.read1(64 * 1024):
                answer.close()
        time.sleep(1 / 32)


def test_running_stream_outlives_its_access_token(member: Person) -> None:
    """Only the right to the file counts, and that is asked for every few seconds."""
    member.upload("a.bin", CONTENT)
    own, member.token = member.token, json.loads(member.server.manage("createusertoken", "member", "--lifetime", "6s"))["access"]
    with begun(member, member.content("a.bin")) as answer:
        assert answer.status == 200
        received = answer.read(1)
        wait_for(lambda: member.api("GET", "/api/v1/me/")[0] == 401)
        received += answer.read()
    assert received == CONTENT
    member.token = own


# --- A server that is killed ---


def test_uploads_that_a_killed_server_process_cut_are_cleared_away(clean: None, member: Person) -> None:
    """F-14: gunicorn starts another; what the dead one had begun has no heartbeat any more."""
    server = member.server
    whole = with_length(member)
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as client:
        client.sendall(whole[: 6 * MIB])
        wait_for(lambda: server.sql("SELECT * FROM files_upload"))
        killed = server.web_worker()
        killed.kill()
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""
    wait_for(lambda: has_ended(killed))
    assert len(server.sql("SELECT * FROM files_upload")) == 1
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S")
    server.sql("UPDATE files_upload SET heartbeat_at = ?", long_ago)
    wait_for(server.has_no_leftovers)
    assert member.filenames() == set()
    member.upload("a.bin", b"again")
    assert member.api("DELETE", f"{member.files}a.bin/")[0] == 204
    wait_for(server.has_no_leftovers)
