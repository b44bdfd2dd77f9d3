"""The database is down, hangs or rejects transactions: 503 in time, never 500, and no loss, duplicates or lasting damage.

F-22 to F-25. Kills of the server are in test_kills.py.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial

import psycopg
import pytest
from psycopg import errors

from tests.contents import random_bytes
from tests.faults.api_calls import Response, call_api, get, in_parallel, path_of, post, post_form, put
from tests.faults.conftest import Site
from tests.live.child_process import killed_with_parent
from tests.live.people import Person
from tests.live.ports import hold_port
from tests.live.proxy import Fault
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for


MIB = 1024 * 1024
CONTENT = random_bytes(12 * MIB)
SMALL = CONTENT[:300_000]
IN_TIME = 25  # seconds: several times DATABASE_TIMEOUT, because one request may query the database several times
QUIET = pytest.mark.quiet

HANGS = Fault(then="hang")

REQUESTS: dict[str, Callable[[Person], Response]] = {
    "sign-in": lambda member: post(member, "/api/v1/auth/token/", member.server.demo["users"]["member"]),
    "list": lambda member: call_api(member, "GET", member.files),
    "collection": lambda member: post(member, "/api/v1/collections/", {"tenant": "demo", "display_name": f"{time.time_ns()}"}),
    "put": lambda member: put(member, f"{time.time_ns()}.bin", SMALL),
    "form": lambda member: post_form(member, f"{time.time_ns()}.bin", SMALL),
    "replace": lambda member: put(member, "replaced.bin", SMALL, If_Match="*"),
    "rename": lambda member: call_api(
        member, "PATCH", f"{member.files}kept.bin/", b'{"notes": "%d"}' % time.time_ns(), Content_Type="application/json"
    ),
    "delete": lambda member: call_api(member, "DELETE", f"{member.files}replaced.bin/"),
    "download": lambda member: get(member, "kept.bin"),
    "mint": lambda member: post(member, f"{member.files}kept.bin/download/", {}),
    "link": lambda member: call_api(member, "GET", "/downloads/unknown"),
    "archive": lambda member: call_api(member, "GET", f"/api/v1/collections/{member.collection}/archive.zip?file=kept.bin"),
    "probe": lambda member: call_api(member, "GET", "/readyz"),
    "admin": lambda member: call_api(member, "GET", "/admin/", Cookie="sessionid=abcdefghijklmnopqrstuvwxyz012345"),
}


@pytest.fixture
def member_with_files(member: Person) -> Person:
    """A member with a file to read and a file to replace."""
    for filename in ("kept.bin", "replaced.bin"):
        member.upload(filename, SMALL)
    return member


@contextmanager
def down(site: Site) -> Iterator[None]:
    with site.database.down():
        yield


@contextmanager
def hanging(site: Site) -> Iterator[None]:
    with site.database.during(HANGS):
        yield


@pytest.mark.parametrize(
    ("fail", "seconds"),
    [
        pytest.param(hanging, LIMIT, id="hanging"),
        pytest.param(hanging, IN_TIME, id="hanging-quiet", marks=QUIET),
        pytest.param(down, IN_TIME, id="down-quiet", marks=QUIET),
    ],
)
def test_request_without_database_is_503_in_time_and_works_afterwards(
    site: Site, member_with_files: Person, fail: Callable[[Site], AbstractContextManager[None]], seconds: int
) -> None:
    before = site.server.log
    with fail(site):
        started = time.monotonic()
        answers = dict(
            zip(REQUESTS, in_parallel(partial(request, member_with_files) for request in REQUESTS.values()), strict=True)
        )
        assert time.monotonic() - started < seconds
        assert site.server.request("GET", "/healthz")[0] == 200
        time.sleep(max(0, started + 9 - time.monotonic()))  # until the pool tries to connect only rarely
    assert answers.pop("probe").status == 503
    assert {name: (answer.status, answer.is_retryable_503) for name, answer in answers.items()} == dict.fromkeys(
        answers, (503, True)
    )
    assert {answer.code for answer in answers.values()} == {"database_unavailable"}
    assert "request failed" not in site.server.log[len(before) :]

    assert get(member_with_files, "kept.bin").content == SMALL
    for name, request in REQUESTS.items():
        assert request(member_with_files).status < 500, name
    assert site.server.request("GET", "/readyz")[0] == 200
    site.server.expire_leases()  # of uploads that could not clean up


def test_broken_idle_connections_cause_no_error(site: Site, member_with_files: Person) -> None:
    """As after a restart of PostgreSQL: for many requests, and for one whose pool has only broken connections."""
    crowd = [partial(REQUESTS["collection"], member_with_files)] * 16
    for _ in range(2):
        wait_for(lambda: in_parallel(crowd) and site.database.connections >= 8)
        site.database.reset()
        assert get(member_with_files, "kept.bin").content == SMALL
    site.database.reset()
    assert {
        answer.status < 500 for answer in in_parallel(partial(request, member_with_files) for request in REQUESTS.values())
    } == {True}


def count_lock_waits(site: Site) -> int:
    """Returns the number of the site's transactions that wait for a lock."""
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = ? AND wait_event_type = 'Lock'"
    return int(site.server.sql(statement, site.server.database.rpartition("/")[2])[0][0])


# --- Uploads ---


class SlowUpload:
    """A PUT that sends its last byte only in `finish`."""

    def __init__(self, member: Person, filename: str, content: bytes) -> None:
        head = f"PUT {path_of(member, filename)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n"
        self.client = socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT)
        self.last = content[-1:]
        self.client.sendall(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content[:-1])
        wait_for(lambda: member.server.sql("SELECT count(*) FROM files_upload")[0][0])

    def finish(self) -> int:
        """Sends the last byte and returns the status of the response."""
        with self.client:
            self.client.sendall(self.last)
            received = b""
            while data := self.client.recv(65536):
                received += data
        return int(received.split()[1])


@pytest.mark.parametrize(
    "content", [pytest.param(SMALL, marks=pytest.mark.long, id="small"), pytest.param(CONTENT, id="multipart")]
)
def test_upload_with_database_down_before_its_commit(site: Site, member: Person, content: bytes) -> None:
    """F-22: a database that is back in time causes no error. Otherwise: 503, no file, and the object is deleted."""
    upload = SlowUpload(member, "a.bin", content)
    with site.database.down():
        pass
    assert upload.finish() == 201

    upload = SlowUpload(member, "b.bin", content)
    with site.database.down():
        assert upload.finish() == 503
    assert member.filenames() == {"a.bin"}
    site.server.expire_leases()
    wait_for(site.server.has_no_leftovers)
    assert put(member, "b.bin", content).status == 201
    assert get(member, "b.bin").content == content


@pytest.mark.parametrize(
    ("direction", "then", "status", "is_kept"),
    [
        pytest.param("request", "reset", 503, False, id="never-arrives"),
        pytest.param("response", "reset", 201, True, id="response-lost"),
        pytest.param("response", "hang", 201, True, id="no-response", marks=pytest.mark.long),
    ],
)
def test_upload_with_connection_lost_at_commit_reports_the_real_outcome(
    site: Site, member: Person, direction: str, then: str, status: int, *, is_kept: bool
) -> None:
    """F-24."""
    with site.database.during(Fault(request=rb"COMMIT", direction=direction, then=then, times=1)):  # type: ignore[arg-type]
        answer = put(member, "a.bin", SMALL)
        assert site.database.matched == 1
    assert answer.status == status
    assert is_kept or (answer.code, answer.is_retryable_503) == ("outcome_unknown", True)
    assert member.filenames() == ({"a.bin"} if is_kept else set())
    site.server.expire_leases()
    wait_for(site.server.has_no_leftovers)
    assert put(member, "a.bin", SMALL).status == (428 if is_kept else 201)
    assert get(member, "a.bin").content == SMALL


@pytest.mark.long
def test_upload_with_lost_commit_response_and_database_down_has_unknown_outcome(site: Site, member: Person) -> None:
    """F-24: the file exists once the database is back; it is neither lost nor duplicated."""
    with ThreadPoolExecutor() as pool, site.database.during(Fault(request=rb"COMMIT", then="hang", times=1)):
        answering = pool.submit(put, member, "unheard.bin", CONTENT)
        committed = "SELECT 1 FROM files_storedfile WHERE filename = 'unheard.bin'"
        wait_for(lambda: site.server.sql(committed))
        with site.database.down():
            answer = answering.result()
    assert (answer.code, answer.is_retryable_503) == ("outcome_unknown", True)
    assert member.filenames() == {"unheard.bin"}
    assert put(member, "unheard.bin", CONTENT).status == 428
    assert get(member, "unheard.bin").content == CONTENT


# --- Downloads ---


def begin_download(member: Person, filename: str) -> socket.socket:
    """Starts a download with a small receive buffer, so that the kernel reads little ahead of the client."""
    head = f"GET {path_of(member, filename)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n"
    client = socket.socket()
    # Smaller buffers slow loopback down, whose segments have 64 KiB.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    client.settimeout(60)
    client.connect(("127.0.0.1", member.server.port))
    client.sendall(f"{head}Connection: close\r\n\r\n".encode())
    return client


@pytest.mark.parametrize(
    ("fail", "seconds", "is_whole"),
    [
        pytest.param(down, 4, True, id="down"),
        pytest.param(hanging, 4, True, id="hanging", marks=pytest.mark.long),
        pytest.param(down, 75, False, id="for-too-long", marks=pytest.mark.long),
    ],
)
def test_download_continues_while_the_database_is_briefly_unavailable(
    site: Site, member: Person, fail: Callable[[Site], AbstractContextManager[None]], seconds: int, *, is_whole: bool
) -> None:
    """F-23: a stream checks access every three seconds, and tolerates a minute of failed checks."""
    content = CONTENT[: 3 * MIB] if is_whole else CONTENT  # the kernel may read megabytes ahead of the client
    member.upload("a.bin", content)
    with begin_download(member, "a.bin") as client:
        received = client.recv(1000)
        with fail(site):
            until = time.monotonic() + seconds
            while time.monotonic() < until:  # fast enough that the web server does not consider the client stalled
                received += client.recv(1000)
                time.sleep(0.05)
            while data := client.recv(MIB):
                received += data
    body = received.partition(b"\r\n\r\n")[2]
    assert content.startswith(body)
    assert (len(body) == len(content)) == is_whole


def test_downloads_hold_no_database_connection(site: Site, member_with_files: Person) -> None:
    """With more downloads than the pool has connections, other requests succeed."""
    member_with_files.upload("a.bin", CONTENT)
    with ExitStack() as running:
        clients = [running.enter_context(begin_download(member_with_files, "a.bin")) for _ in range(24)]
        for client in clients:
            assert client.recv(20).startswith(b"HTTP/1.1 200")
        name = site.server.database.rpartition("/")[2]
        busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = ? AND state <> 'idle' AND pid <> pg_backend_pid()"
        wait_for(lambda: site.server.sql(busy, name) == [(0,)])
        assert get(member_with_files, "kept.bin").content == SMALL


# --- Starting ---


def test_start_without_database_exits_with_the_reason(new_server: Callable[..., Server]) -> None:
    port = hold_port(new_server)
    server = new_server(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{port}/nothing", DATABASE_TIMEOUT="2")
    assert server.launch().wait(LIMIT) == 1
    assert "couldn't get a connection" in server.log


@pytest.mark.long
def test_web_process_started_before_its_database_becomes_ready(site: Site) -> None:
    server = Server(site.server.home)
    server.environment = site.server.environment | {"PORT": str(server.port)}
    command = [sys.executable, "-m", "gunicorn", "--config", "config/gunicorn.conf.py", "config.wsgi"]

    def status(path: str) -> int:
        try:
            return server.request("GET", path)[0]
        except OSError:
            return 0

    with (
        site.database.down(),
        subprocess.Popen(killed_with_parent(*command), cwd=ROOT, env=server.environment, stderr=subprocess.DEVNULL) as web,
    ):
        try:
            wait_for(lambda: status("/healthz") == 200)
            assert status("/readyz") == 503
            site.database.up()
            wait_for(lambda: status("/readyz") == 200)
        finally:
            web.kill()


# --- Rejected transactions ---


@contextmanager
def rejected_transactions(site: Site, sqlstate: str, count: int) -> Iterator[Callable[[], int]]:
    """Makes the next `count` transactions fail when they write their audit event. Yields a function that counts attempts."""
    site.server.sql("CREATE SEQUENCE refusals")
    site.server.sql(f"""
        CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN
            IF nextval('refusals') <= {count} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW;
        END $$ LANGUAGE plpgsql
    """)
    site.server.sql("CREATE TRIGGER refuse BEFORE INSERT ON tenants_auditevent FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        yield lambda: int(site.server.sql("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refusals")[0][0])
    finally:
        site.server.sql("DROP TRIGGER refuse ON tenants_auditevent")
        site.server.sql("DROP FUNCTION refuse")
        site.server.sql("DROP SEQUENCE refusals")


AUDITED = ["sign-in", "collection", "put", "form", "replace", "rename", "download", "mint", "archive", "delete"]


@pytest.mark.parametrize("sqlstate", [pytest.param("40001", marks=pytest.mark.long), "40P01"])
def test_transaction_with_serialization_failure_or_deadlock_is_retried(
    site: Site, member_with_files: Person, sqlstate: str
) -> None:
    """F-25."""
    for name in AUDITED:
        with rejected_transactions(site, sqlstate, 1) as tried:
            assert REQUESTS[name](member_with_files).status < 300, name
            assert tried() == 2


@pytest.mark.parametrize(
    ("sqlstate", "tries"),
    [
        pytest.param("40001", 4, id="serialization-failure", marks=pytest.mark.long),
        pytest.param("40P01", 4, id="deadlock"),
        pytest.param("57014", 1, id="statement-cancelled", marks=pytest.mark.long),
        pytest.param("55P03", 1, id="lock-not-available", marks=pytest.mark.long),
        pytest.param("53100", 1, id="disk-full"),
        pytest.param("25006", 1, id="read-only", marks=pytest.mark.long),
    ],
)
def test_transaction_that_always_fails_is_503(site: Site, member_with_files: Person, sqlstate: str, tries: int) -> None:
    for name in ("put", "rename", "download"):
        with rejected_transactions(site, sqlstate, 1000) as tried:
            answer = REQUESTS[name](member_with_files)
            assert (answer.status, answer.is_retryable_503, answer.code) == (503, True, "database_unavailable"), name
            assert tried() == tries
    assert site.server.has_no_leftovers()
    assert member_with_files.filenames() == {"kept.bin", "replaced.bin"}


@contextmanager
def other_client(site: Site) -> Iterator["psycopg.Connection[tuple[int]]"]:
    with closing(psycopg.connect(site.server.database)) as connection:
        yield connection


def test_deadlock_with_another_client_causes_no_error(site: Site, member_with_files: Person) -> None:
    """F-25: the server locks the collection, then the head of the audit chain; the other client in the opposite order."""
    for _ in range(5):
        with other_client(site) as other, ThreadPoolExecutor() as pool:
            other.execute("SELECT * FROM tenants_audithead FOR UPDATE")
            answer = pool.submit(REQUESTS["replace"], member_with_files)
            wait_for(lambda: count_lock_waits(site) == 1)
            try:
                other.execute("SELECT * FROM files_collection WHERE slug = %s FOR UPDATE", [member_with_files.collection])
                is_server_aborted = True  # this client got the lock, so PostgreSQL aborted the server's transaction
            except errors.DeadlockDetected:  # PostgreSQL aborts the transaction that first waits for a second
                is_server_aborted = False
            other.rollback()
            assert answer.result().status == 200
        if is_server_aborted:
            return
    pytest.fail("PostgreSQL never aborted the server's transaction")


@QUIET
def test_requests_that_wait_for_a_lock_are_503_in_time(site: Site, member_with_files: Person) -> None:
    """With more requests than the pool has connections, read-only requests wait for a connection and are answered (F-36)."""
    with other_client(site) as other:
        other.execute("SELECT * FROM tenants_audithead FOR UPDATE")
        started = time.monotonic()
        writers = [partial(REQUESTS["rename"], member_with_files)] * 24
        answers = in_parallel([*writers, *[partial(REQUESTS["list"], member_with_files)] * 8])
        assert time.monotonic() - started < IN_TIME
        assert count_lock_waits(site) == 0  # the server's transactions are no longer waiting in PostgreSQL either
    assert all(answer.is_retryable_503 for answer in answers[:24])
    assert {answer.status for answer in answers[24:]} <= {200, 503}
    assert all(answer.status == 200 or answer.is_retryable_503 for answer in answers[24:])
    assert REQUESTS["rename"](member_with_files).status == 200
