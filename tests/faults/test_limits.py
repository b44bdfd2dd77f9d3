"""A resource is exhausted: disk, descriptors, database connections or SQLite's lock (F-35, F-36, F-25).

Requests get 503 and leave no data, and the server recovers when the resource is available again.
"""

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.contents import random_bytes
from tests.faults.api_calls import Response, get, in_parallel, post_form, put
from tests.faults.conftest import Site
from tests.faults.test_database import REQUESTS
from tests.live.people import Person
from tests.live.server import Server
from tests.live.waiting import LIMIT, wait_for
from tests.needs import mark_dependents


MIB = 1024 * 1024
CONTENT = random_bytes(12 * MIB)
SMALL = CONTENT[:300_000]


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.server)
def server(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    """A server for this module only, which checks all objects; other modules damage objects of the shared server."""
    server = Server(tmp_path_factory.mktemp("limits") / "home")
    server.copy_home_from(first_home)
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture
def sqlite_member(server: Server, tmp_path: Path) -> Person:
    """A member of the server on SQLite and a local directory, with a file to read and a file to replace."""
    folder = tmp_path / "plain"
    folder.mkdir()
    member = Person(server, "member", folder)
    for filename in ("kept.bin", "replaced.bin"):
        member.upload(filename, SMALL)
    return member


# --- Disk ---


@contextmanager
def full_disk(process: psutil.Process, limit: int = 0) -> Iterator[None]:
    """Simulates a full disk: limits every file that the process writes to `limit` bytes."""
    _, maximum = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (limit, maximum))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, (maximum, maximum))


def test_uploads_and_downloads_on_s3_need_no_disk(site: Site, member: Person) -> None:
    """F-35: neither for temporary files nor for the log."""
    with full_disk(site.server.web_worker()):
        for send in (put, post_form):
            for size in (0, 300_000, len(CONTENT)):
                assert send(member, f"{send.__name__}-{size}.bin", CONTENT[:size]).status == 201
                assert get(member, f"{send.__name__}-{size}.bin").content == CONTENT[:size]
        assert in_parallel([partial(REQUESTS["collection"], member)] * 3)[0].status == 201


@pytest.mark.parametrize(
    ("send", "limit"),
    [
        pytest.param(put, 0, id="put-no-space"),
        pytest.param(post_form, 4 * MIB, id="form-no-space-for-object"),
        pytest.param(put, 4 * MIB, id="put-no-space-for-object", marks=pytest.mark.long),
        pytest.param(post_form, 0, id="form-no-space", marks=pytest.mark.long),
    ],
)
def test_upload_to_a_full_disk_is_503_and_leaves_no_data(
    server: Server, sqlite_member: Person, send: Callable[[Person, str, bytes], Response], limit: int
) -> None:
    """F-35: without space for a row, and with space for a row but not for the object."""
    before = server.stored_objects()
    with full_disk(server.web_worker(), limit):
        answer = send(sqlite_member, "a.bin", CONTENT)
        assert answer.is_retryable_503
        assert answer.code == ("storage_unavailable" if limit else "database_unavailable")
        assert server.request("GET", "/healthz")[0] == 200
        assert sqlite_member.filenames() == {"kept.bin", "replaced.bin"}
    wait_for(server.has_no_leftovers)
    assert server.stored_objects() == before
    server.check_consistency()
    assert send(sqlite_member, "a.bin", CONTENT).status == 201
    assert get(sqlite_member, "a.bin").content == CONTENT


def test_full_disk_with_sqlite_is_503_and_recovers(server: Server, sqlite_member: Person) -> None:
    """F-35: every request that writes a row gets 503, including downloads, which write an audit event."""
    with full_disk(server.web_worker()):
        answers = {name: request(sqlite_member) for name, request in REQUESTS.items()}
    is_write = answers.keys() - {"list", "link", "admin", "probe"}
    assert {name for name, answer in answers.items() if answer.is_retryable_503} == is_write
    assert {answer.code for name, answer in answers.items() if name in is_write} == {"database_unavailable"}
    for name, request in REQUESTS.items():
        assert request(sqlite_member).status < 500, name
    server.check_consistency()
    server.manage("verify_audit")


# --- SQLite's lock ---


@contextmanager
def locked(server: Server) -> Iterator[None]:
    with closing(sqlite3.connect(server.home / "strongroom.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_sqlite_briefly_locked_causes_no_error(server: Server, sqlite_member: Person) -> None:
    names = REQUESTS.keys() - {"delete", "admin"}
    with ThreadPoolExecutor(len(names)) as pool:
        with locked(server):
            answers = {name: pool.submit(REQUESTS[name], sqlite_member) for name in names}
            wait_for(answers["list"].done)
            time.sleep(2)
            assert not answers["put"].done()
        assert {name for name, answer in answers.items() if answer.result().status >= 300} == {"link"}
    server.check_consistency()


@pytest.mark.quiet
def test_sqlite_permanently_locked_is_503_in_time(server: Server, sqlite_member: Person) -> None:
    """F-25: writers wait for the `timeout` in settings.DATABASES; readers do not wait."""
    with locked(server):
        started = time.monotonic()
        answers = dict(zip(REQUESTS, in_parallel(partial(request, sqlite_member) for request in REQUESTS.values()), strict=True))
        assert 20 < time.monotonic() - started < 55
    assert {name for name, answer in answers.items() if not answer.is_retryable_503} == {"list", "link", "admin", "probe"}
    for name, request in REQUESTS.items():
        assert request(sqlite_member).status < 500, name
    server.expire_leases()
    wait_for(server.has_no_leftovers)
    server.check_consistency()


# --- Descriptors ---


@contextmanager
def descriptor_limit(process: psutil.Process, count: int) -> Iterator[None]:
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


def test_server_without_descriptors_recovers(site: Site, member: Person) -> None:
    """F-36: a hundred clients exhaust 64 descriptors. A running download continues; other requests wait or get 503."""
    member.upload("a.bin", CONTENT)
    request = f"GET {member.content('a.bin').removeprefix(member.server.url)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    request += f"Authorization: Bearer {member.token}\r\nConnection: close\r\n\r\n"
    with (
        descriptor_limit(site.server.web_worker(), 64),
        ThreadPoolExecutor() as pool,
        socket.create_connection(("127.0.0.1", site.server.port), timeout=LIMIT) as reader,
        ExitStack() as crowd,
    ):
        reader.sendall(request.encode())
        received = reader.recv(1000)
        for _ in range(100):
            crowd.enter_context(socket.create_connection(("127.0.0.1", site.server.port), timeout=LIMIT))
        wait_for(lambda: site.server.descriptors() >= 60)
        answers = [pool.submit(REQUESTS[name], member) for name in ("list", "put", "form")]
        while data := reader.recv(MIB):
            received += data
        assert received.endswith(CONTENT[-100_000:])
        crowd.close()
        assert all(answer.result().status < 300 or answer.result().is_retryable_503 for answer in answers)
        assert put(member, "b.bin", CONTENT).status == 201
    assert get(member, "b.bin").content == CONTENT


@pytest.mark.parametrize("spare", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_request_that_runs_out_of_descriptors_is_503(site: Site, member: Person, spare: int) -> None:
    """F-36: after the descriptor for the client, none remains for the database, or none for the connection to S3."""
    member.upload("a.bin", SMALL)
    site.s3.reset()
    site.database.reset()
    gunicorn = site.server.web_worker()
    with descriptor_limit(gunicorn, highest_descriptor(gunicorn) + 1 + spare):
        for request in (partial(get, member, "a.bin"), partial(put, member, "b.bin", SMALL), partial(REQUESTS["list"], member)):
            answer = request()
            assert answer.status < 300 or answer.is_retryable_503
    assert get(member, "a.bin").content == SMALL
    site.server.expire_leases()


def highest_descriptor(process: psutil.Process) -> int:
    return max(int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir())


# --- Database connections ---


def test_database_that_refuses_connections_is_503_and_recovers(site: Site, member: Person) -> None:
    """F-36: requests succeed as long as open connections remain."""
    member.upload("kept.bin", SMALL)
    address, _, name = site.server.database.rpartition("/")
    with psycopg.connect(f"{address}/postgres", autocommit=True) as other:
        other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            answers = in_parallel([partial(get, member, "kept.bin")] * 20)
            assert {answer.status for answer in answers} == {200}
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            answers = in_parallel([partial(get, member, "kept.bin")] * 20)
            assert all(answer.is_retryable_503 and answer.code == "database_unavailable" for answer in answers)
        finally:
            other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert get(member, "kept.bin").content == SMALL
