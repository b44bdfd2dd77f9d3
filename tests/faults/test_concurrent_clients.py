"""Concurrent clients see no error and no wrong byte during key rotation, simultaneous uploads of one name, and replacements."""

import base64
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from operator import lt
from pathlib import Path

import pytest

from tests.contents import random_bytes
from tests.faults.api_calls import call_api, get, path_of, post, put
from tests.faults.conftest import Site, started_site
from tests.live.child_process import killed_with_parent
from tests.live.people import Person
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for


MIB = 1024 * 1024
OLD, NEW = (random_bytes(6 * MIB, seed=seed) for seed in (1, 2))
CLIENTS = 10
PARTIAL_FILE = 18  # curl: the transfer ended before the announced length


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, ready_server: Callable[..., Server]) -> Iterator[Server]:
    """A separate server on either kind of infrastructure: the test changes its keyring and restarts it."""
    if request.param == "real":
        with started_site(tmp_path / "home") as site:
            yield site.server
        return
    yield ready_server().start()


# --- Keys ---


def add_master_key(server: Server, name: str) -> None:
    """Appends a master key. The last line of the keyring is the active key."""
    with keyring_of(server).open("a") as keyring:
        keyring.write(f"{name} {base64.b64encode(secrets.token_bytes(32)).decode()}\n")


def keyring_of(server: Server) -> Path:
    return server.home / "secrets" / "keyring"


def restart(server: Server) -> None:
    assert server.stop() == 0
    server.start()


def rotation(server: Server) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        killed_with_parent(sys.executable, "manage.py", "rotate_keys"),
        cwd=ROOT,
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wrapped_by(server: Server, name: str) -> int:
    """Returns the number of data keys that the master key wraps."""
    return int(server.sql("SELECT count(*) FROM vault_key WHERE kek_id = ?", name)[0][0])


class Client:
    """Creates collections, uploads, replaces and reads files and ranges, one request after the other, until it is stopped."""

    def __init__(self, server: Server, number: int, folder: Path) -> None:
        folder.mkdir()
        self.member = Person(server, "member", folder)
        self.random = random.Random(number)
        self.number, self.rounds, self.contents = number, 0, dict[tuple[str, str], bytes]()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.round()
            self.rounds += 1

    def round(self) -> None:
        if self.rounds % 5 == 4:  # creates a data key while others are rewrapped
            name = f"client {self.number} round {self.rounds}"
            made = post(self.member, "/api/v1/collections/", {"tenant": "demo", "display_name": name})
            assert made.status == 201, made
            self.member.collection = made.json["id"]
        filename, content = f"{self.rounds % 3}.bin", self.random.randbytes(self.random.choice([0, 1, 200_000, 600_000]))
        key = (self.member.collection, filename)
        if key in self.contents:
            etag = call_api(self.member, "GET", f"{self.member.files}{filename}/").headers["ETag"]
            assert put(self.member, filename, content, If_Match=etag).status == 200
        else:
            assert put(self.member, filename, content).status == 201
        self.contents[key] = content
        self.read(*self.random.choice(list(self.contents)))

    def read(self, collection: str, filename: str) -> None:
        content, path = self.contents[collection, filename], f"/api/v1/collections/{collection}/content/{filename}"
        whole = call_api(self.member, "GET", path)
        assert (whole.status, whole.content == content) == (200, True)
        if content:
            first, last = sorted(self.random.randrange(len(content)) for _ in range(2))
            part = call_api(self.member, "GET", path, Range=f"bytes={first}-{last}")
            assert (part.status, part.content == content[first : last + 1]) == (206, True)


@pytest.mark.parametrize(
    ("server", "count", "keys", "seconds"),
    [
        pytest.param("simple", 4, 0, 0, id="sqlite-local", marks=pytest.mark.long),
        pytest.param("simple", 10, 500, 20, id="sqlite-local-long", marks=pytest.mark.long),
        pytest.param(
            "real", 10, 500, 20, id="postgresql-ceph", marks=[pytest.mark.long, pytest.mark.needs("ceph", "postgresql")]
        ),
    ],
    indirect=["server"],
)
def test_key_rotation_is_invisible_to_concurrent_clients(
    server: Server, tmp_path: Path, count: int, keys: int, seconds: int
) -> None:
    """F-59: a rotation killed midway, then two in parallel. Afterwards all files are readable without the old master key."""
    make_collections(server, keys)
    before = keyring_of(server).read_text().split()[0]
    clients = [Client(server, number, tmp_path / f"{number}") for number in range(count)]
    for client in clients:
        client.round()
    add_master_key(server, "next")
    restart(server)
    assert wrapped_by(server, before) == keys + count + 1  # plus the key that signs records in the vault
    stop = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(client.run, stop) for client in clients]
        try:
            wait_for(lambda: has_failed(runs) or all(client.rounds for client in clients))
            if keys:
                with rotation(server) as killed:
                    wait_for(lambda: wrapped_by(server, "next") >= 200)
                    killed.kill()
                assert wrapped_by(server, before)
            rotations = [rotation(server), rotation(server)]
            for process in rotations:
                _, complaint = process.communicate(timeout=LIMIT)
                assert process.returncode == 0, complaint.decode()
            time.sleep(seconds)
            rounds = [client.rounds for client in clients]
            wait_for(lambda: has_failed(runs) or all(map(lt, rounds, (client.rounds for client in clients))))
        finally:
            stop.set()
        for client_run in runs:
            client_run.result()
    assert wrapped_by(server, before) == 0

    lines = keyring_of(server).read_text().splitlines()
    keyring_of(server).write_text("\n".join(line for line in lines if not line.startswith(f"{before} ")) + "\n")
    restart(server)
    for client in clients:
        client.member.token = server.token()
        for collection, filename in client.contents:
            client.read(collection, filename)
    server.check_consistency()
    assert "500" not in {line.split('"status": ')[1][:3] for line in server.log.splitlines() if '"status": ' in line}
    server.manage("verify_audit")


def has_failed(runs: "list[Future[None]]") -> bool:
    """Returns whether a client has stopped, which means that it saw an error."""
    return any(client_run.done() for client_run in runs)


def make_collections(server: Server, count: int) -> None:
    """Creates collections in bulk, enough for several batches of a rotation."""
    server.manage(
        "shell",
        "--verbosity",
        "0",
        "-c",
        f"""
from django.utils import timezone
from files.services import create_collection
from tenants.models import Tenant, User
by, tenant = User.objects.get(username="member"), Tenant.objects.get()
for number in range({count}):
    create_collection(
        tenant=tenant, display_name=f"full {{number}}", by=by, now=timezone.now(), cipher="AES-GCM", purge_at=None
    )
""",
    )


# --- One name ---


def finish(client: socket.socket, last: bytes) -> int:
    """Sends the last byte of an upload, and returns the status of the response."""
    client.sendall(last)
    received = b""
    while data := client.recv(65536):
        received += data
    return int(received.split()[1])


def upload_in_parallel(member: Person, contents: list[bytes], condition: str = "") -> list[int]:
    """Uploads all contents under one name, and returns the statuses. All uploads start before the first one ends."""
    head = f"PUT {path_of(member, 'one.bin')} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n{condition}"
    head += f"Connection: close\r\nContent-Length: {len(contents[0])}\r\n\r\n"
    with ExitStack() as uploads, ThreadPoolExecutor(len(contents)) as pool:
        clients = []
        for content in contents:
            clients.append(socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT))
            uploads.enter_context(clients[-1])
            clients[-1].sendall(head.encode() + content[:-1])
        wait_for(lambda: member.server.sql("SELECT count(*) FROM files_upload") == [(len(contents),)])
        return list(pool.map(finish, clients, [content[-1:] for content in contents]))


@pytest.mark.parametrize("size", [100_000, pytest.param(9 * MIB, marks=pytest.mark.long)])
def test_simultaneous_uploads_of_one_name_make_one_file(member: Person, site: Site, size: int) -> None:
    """F-58: one upload gets 201, the others 409; one replacement gets 200, the others 412. A later upload gets 428."""
    contents = [random_bytes(size, seed=number) for number in range(20)]
    statuses = upload_in_parallel(member, contents)
    assert Counter(statuses) == {201: 1, 409: 19}
    kept = get(member, "one.bin")
    assert kept.content == contents[statuses.index(201)]
    assert site.server.has_no_leftovers()
    (key,) = objects_of(member)
    assert [stored for stored in site.server.stored_objects() if stored.startswith(key.rpartition("/")[0])] == [key]

    statuses = upload_in_parallel(member, contents[::-1], f"If-Match: {kept.headers['ETag']}\r\n")
    assert Counter(statuses) == {200: 1, 412: 19}
    assert get(member, "one.bin").content == contents[::-1][statuses.index(200)]
    assert put(member, "one.bin", b"late").status == 428
    site.server.check_consistency()


def objects_of(member: Person) -> list[str]:
    """Returns the object keys in the rows of the member's collection."""
    named = """
        SELECT object_key FROM files_storedfile
        WHERE collection_id = (SELECT id FROM files_collection WHERE slug = ?)
    """
    found = member.server.sql(named, member.collection)
    return [key for (key,) in found]


# --- One file ---


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    ("mib", "rate", "is_erased_early"),
    [
        (6, "2M", False),
        pytest.param(48, "16M", False, marks=pytest.mark.long),
        # For a slow reader the server keeps no S3 response open, which would outlive the object.
        pytest.param(72, "2M", True, marks=pytest.mark.long),
    ],
)
def test_replacement_during_downloads_keeps_the_old_content_readable(
    site: Site, member: Person, tmp_path: Path, mib: int, rate: str, *, is_erased_early: bool
) -> None:
    """INV-02: running downloads get the old content. If its object is erased first (after an hour), they end visibly short."""
    old, new = OLD * (mib // 6), NEW * (mib // 6)
    member.upload("a.bin", old)
    (before,) = objects_of(member)
    targets = [tmp_path / f"{number}" for number in range(CLIENTS)]
    readers = []
    with ExitStack() as running:
        for target in targets:
            command = killed_with_parent(*member.command("--limit-rate", rate, "-o", target, member.content("a.bin")))
            readers.append(running.enter_context(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)))
            running.callback(readers[-1].kill)
        wait_for(lambda: all(target.exists() and target.stat().st_size for target in targets))
        etag = get(member, "a.bin", Range="bytes=0-0").headers["ETag"]
        assert put(member, "a.bin", new, If_Match=etag).status == 200
        if is_erased_early:
            end_grace_period(site, before)
        assert get(member, "a.bin").content == new
        ended = [reader.wait(LIMIT) for reader in readers]
    for target, code in zip(targets, ended, strict=True):
        received = target.read_bytes()
        assert (code, received == old) == (0, True) or (code == PARTIAL_FILE and len(received) < len(old))
        assert old.startswith(received)
    assert (PARTIAL_FILE in ended) == is_erased_early
    if not is_erased_early:
        member.upload("other.bin", b"")
        assert member.api("DELETE", f"{member.files}other.bin/")[0] == 204
        wait_for(site.server.has_no_leftovers)  # a tick has run since
        assert before in site.server.stored_objects()
    end_grace_period(site, before)
    assert get(member, "a.bin").content == new


def end_grace_period(site: Site, key: str) -> None:
    site.server.sql("UPDATE files_pendingdeletion SET due_at = ? WHERE object_key = ?", datetime(2020, 1, 1, tzinfo=UTC), key)
    wait_for(lambda: key not in site.server.stored_objects())
