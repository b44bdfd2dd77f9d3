"""Processes are killed at critical moments and restarted: files are complete or absent, and no leftovers remain.

A proxy that stops forwarding holds the process at the chosen moment. tests/journeys also has kills in the middle of a body.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.contents import random_bytes
from tests.faults.api_calls import Response, get, path_of, post_form, put
from tests.faults.conftest import Site
from tests.live.child_process import killed_with_parent
from tests.live.people import Person
from tests.live.proxy import Fault
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, has_ended, wait_for


MIB = 1024 * 1024
CONTENT = random_bytes(20 * MIB + 12345)
SMALL = CONTENT[:300_000]
PARTIAL_FILE = 18  # curl: the transfer ended before the announced length
# Slows a download down. A slow client would not, because its kernel can buffer all of it.
SLOW_STORE = Fault(request=rb"^GET ", rate=2 * MIB)


def kill_worker(server: Server) -> None:
    killed = server.web_worker()
    killed.kill()
    wait_for(lambda: has_ended(killed))


def kill_all(server: Server) -> None:
    """Simulates a power failure."""
    server.kill()


def revive(server: Server) -> None:
    """Restarts the server after a power failure, and waits for it. gunicorn replaces a killed worker automatically."""
    if not server.processes():
        server.start()
    wait_for(lambda: is_serving(server))


def is_serving(server: Server) -> bool:
    try:
        return server.request("GET", "/readyz")[0] == 200
    except (OSError, ValueError):
        return False


def outcome(answering: "Future[Response]") -> int | None:
    """Returns the status, or None if the connection ended without a response."""
    try:
        return answering.result().status
    except (OSError, EOFError, ValueError):
        return None
    except Exception as error:  # any exception of http.client
        assert type(error).__module__ == "http.client", error  # noqa: PT017
        return None


S3, DATABASE = "s3", "database"
MOMENTS = [
    # The proxy, the request and direction that it holds, the uploaded content, and whether the file exists afterwards.
    pytest.param(S3, rb"^POST \S+\?uploads", "response", CONTENT, False, id="after-multipart-start", marks=pytest.mark.long),
    pytest.param(S3, rb"partNumber=2", "request", CONTENT, False, id="second-part", marks=pytest.mark.long),
    pytest.param(S3, rb"^POST \S+\?uploadId", "request", CONTENT, False, id="before-complete", marks=pytest.mark.long),
    pytest.param(S3, rb"^POST \S+\?uploadId", "response", CONTENT, False, id="after-complete", marks=pytest.mark.long),
    pytest.param(S3, rb"^PUT ", "request", SMALL, False, id="before-put", marks=pytest.mark.long),
    pytest.param(S3, rb"^PUT ", "response", SMALL, False, id="after-put"),
    pytest.param(DATABASE, rb"COMMIT", "request", CONTENT, False, id="before-commit"),
    pytest.param(DATABASE, rb"COMMIT", "response", SMALL, True, id="after-commit"),
]


@pytest.mark.parametrize("send", [put, pytest.param(post_form, marks=pytest.mark.long)])
@pytest.mark.parametrize("kill", [kill_worker, pytest.param(kill_all, marks=pytest.mark.long)])
@pytest.mark.parametrize(("where", "held_request", "direction", "content", "is_kept"), MOMENTS)
def test_upload_with_server_killed_is_complete_or_absent(
    site: Site,
    member: Person,
    send: Callable[[Person, str, bytes], Response],
    kill: Callable[[Server], None],
    where: str,
    held_request: bytes,
    direction: str,
    content: bytes,
    *,
    is_kept: bool,
) -> None:
    """F-14, F-22."""
    proxy = site.s3 if where == S3 else site.database
    held = Fault(request=held_request, direction=direction, then="hang")  # type: ignore[arg-type]
    with ThreadPoolExecutor() as pool, proxy.during(held):
        answering = pool.submit(send, member, "a.bin", content)
        wait_for(lambda: proxy.triggered)
        kill(site.server)
        assert outcome(answering) is None
    revive(site.server)
    assert member.filenames() == ({"a.bin"} if is_kept else set())
    site.server.expire_leases()
    wait_for(site.server.has_no_leftovers)
    site.server.check_consistency()
    assert site.unfinished() == set()
    if not is_kept:
        assert put(member, "a.bin", content).status == 201
    assert get(member, "a.bin").content == content


@contextmanager
def download(member: Person, target: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = killed_with_parent(*member.command(*arguments, "-o", target, member.content("a.bin")))
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as stream:
        wait_for(lambda: target.exists() and target.stat().st_size)
        yield stream
        stream.kill()


@pytest.mark.needs("curl")
@pytest.mark.parametrize("kill", [kill_worker, pytest.param(kill_all, marks=pytest.mark.long)])
def test_download_with_server_killed_ends_short_and_can_be_resumed(
    site: Site, member: Person, tmp_path: Path, kill: Callable[[Server], None]
) -> None:
    member.upload("a.bin", CONTENT)
    part = tmp_path / "part"
    with site.s3.during(SLOW_STORE), download(member, part) as stream:
        kill(site.server)
        assert stream.wait(LIMIT) not in {0, None}
    revive(site.server)
    received = part.read_bytes()
    assert 0 < len(received) < len(CONTENT)
    assert CONTENT.startswith(received)
    assert member.curl("-C", "-", "-o", part, member.content("a.bin")).returncode == 0
    assert part.read_bytes() == CONTENT


def begin_upload(member: Person, filename: str, sent: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT)
    head = f"PUT {path_of(member, filename)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n"
    client.sendall(f"{head}Content-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:sent])
    return client


@pytest.mark.needs("curl")
@pytest.mark.long
def test_stop_drains_short_transfers_and_cuts_long_ones(site: Site, member: Person, tmp_path: Path) -> None:
    """F-28: `bin/run` waits for five seconds; WEB_DRAIN_SECONDS sets the time in production."""
    server = site.server
    member.upload("a.bin", CONTENT)
    soon, late = tmp_path / "soon", tmp_path / "late"
    with (
        site.s3.during(SLOW_STORE),
        download(member, soon, "-r", f"0-{4 * MIB - 1}") as short_download,
        download(member, late) as long_download,
        begin_upload(member, "soon.bin", MIB) as last_bytes,
        begin_upload(member, "late.bin", MIB) as stalled,
        ThreadPoolExecutor() as pool,
    ):
        wait_for(lambda: server.sql("SELECT count(*) FROM files_upload") == [(2,)])
        before = len(server.log)
        stopping = pool.submit(server.stop)
        wait_for(lambda: "Handling signal: term" in server.log[before:])
        last_bytes.sendall(CONTENT[MIB:])
        assert last_bytes.recv(20).startswith(b"HTTP/1.1 201")
        assert short_download.wait(LIMIT) == 0
        assert long_download.wait(LIMIT) == PARTIAL_FILE
        with suppress(ConnectionResetError):
            assert stalled.recv(20) in {b"", b"HTTP/1.1 400 Bad Req"}
        assert stopping.result() == 0
    server.start()
    assert soon.read_bytes() == CONTENT[: 4 * MIB]
    assert CONTENT.startswith(late.read_bytes())
    assert member.filenames() == {"a.bin", "soon.bin"}
    assert get(member, "soon.bin").content == CONTENT
    server.expire_leases()
    wait_for(server.has_no_leftovers)


ERASURE_MOMENTS = [
    pytest.param(S3, rb"^GET \S+versions", "request", id="before-listing"),
    pytest.param(S3, rb"^POST \S+\?delete", "request", id="before-delete"),
    pytest.param(S3, rb"^POST \S+\?delete", "response", id="after-delete"),
    pytest.param(DATABASE, rb'DELETE FROM "files_pendingdeletion"', "request", id="before-row-delete"),
]


@pytest.mark.long
@pytest.mark.parametrize(("where", "held_request", "direction"), ERASURE_MOMENTS)
def test_erasure_with_worker_killed_is_completed_by_the_next(
    site: Site, member: Person, where: str, held_request: bytes, direction: str
) -> None:
    """F-26: a kill between the claim and the end. When the Celery worker dies, `bin/run` stops all its processes."""
    server, proxy = site.server, site.s3 if where == S3 else site.database
    member.upload("kept.bin", SMALL)
    member.upload("a.bin", SMALL)
    (key,) = server.sql("SELECT object_key FROM files_storedfile WHERE filename = 'a.bin' ORDER BY id DESC LIMIT 1")[0]
    with proxy.during(Fault(request=held_request, direction=direction, then="hang")):  # type: ignore[arg-type]
        assert member.api("DELETE", f"{member.files}a.bin/")[0] == 204
        wait_for(lambda: proxy.triggered)
        assert server.sql("SELECT attempts FROM files_pendingdeletion WHERE object_key = ?", key) == [(1,)]
        assert server.process
        (worker,) = [child for child in psutil.Process(server.process.pid).children() if child.name() == "celery worker"]
        worker.kill()
        assert server.process.wait(LIMIT) == 1
    assert server.processes() == []
    server.check_consistency()
    server.start()
    # The row stays until its lease expires.
    assert server.sql("SELECT count(*) FROM files_pendingdeletion WHERE object_key = ?", key) == [(1,)]
    server.expire_leases()
    wait_for(server.has_no_leftovers)
    assert key not in server.stored_objects()
    assert get(member, "kept.bin").content == SMALL
