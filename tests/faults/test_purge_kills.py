"""Purges are killed at any moment, run in parallel, and race with uploads and deletions: each due collection is purged once.

INV-07, INV-08; F-26, F-31, F-32, F-33. Faults at each query and each store request are in services/test_purge_broken.py.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from uuid import UUID

import pytest

from tests.faults.api_calls import call_api, get, put
from tests.faults.conftest import Site
from tests.live.child_process import killed_with_parent
from tests.live.people import Person
from tests.live.proxy import Fault
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DELAYS = (0, 0.01, 0.03, 0.1, 0.3)


def make(server: Server, folder: Path, *, files: int) -> Person:
    """Returns a member with a collection of small files, whose number is `files`."""
    folder.mkdir()
    person = Person(server, "member", folder)
    parts = [
        f'--cut\r\nContent-Disposition: form-data; name="file"; filename="{number}.bin"\r\n\r\n{number}\r\n'
        for number in range(files)
    ]
    form = "".join([*parts, "--cut--\r\n"]).encode()
    answer = call_api(person, "POST", person.files, form, Content_Type="multipart/form-data; boundary=cut")
    assert answer.status in {200, 201}, answer
    assert person.api("GET", f"/api/v1/collections/{person.collection}/")[1]["file_count"] == files
    return person


def expire(*people: Person) -> None:
    for person in people:
        person.server.sql("UPDATE files_collection SET purge_at = ? WHERE slug = ?", LONG_AGO, person.collection)


@contextmanager
def purge(server: Server) -> Iterator["subprocess.Popen[str]"]:
    """Runs `manage.py purge`, and kills it at the end of the block."""
    with subprocess.Popen(
        killed_with_parent(sys.executable, "manage.py", "purge"),
        cwd=ROOT,
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def count_attempts(server: Server) -> int:
    """Returns a number that grows with each new destruction and each attempt at one of its shards."""
    attempts = "SELECT count(*) + coalesce(sum(attempts), 0) FROM "
    return sum(int(server.sql(attempts + table)[0][0]) for table in ("purge_destruction", "purge_shard"))


def start_and_kill_purge(server: Server, delay: float) -> None:
    """Starts a purge and kills it `delay` seconds after its first attempt."""
    before = count_attempts(server)
    with purge(server) as process:
        wait_for(lambda: count_attempts(server) > before or process.poll() is not None)
        time.sleep(delay)


def destroyed(server: Server) -> list[str]:
    """Returns the former ids of the destroyed collections."""
    return sorted(slug for (slug,) in server.sql("SELECT slug FROM purge_destruction WHERE status = 'done'"))


def assert_gone(server: Server, *people: Person) -> None:
    """INV-07; asserts that exactly these collections are destroyed, each once, whichever workers took part."""
    certified = server.sql("SELECT slug, certificate, collection_uuid FROM purge_destruction WHERE status = 'done'")
    assert sorted(slug for slug, _, _ in certified) == sorted(person.collection for person in people)
    assert all(certificate for _, certificate, _ in certified)
    uuids = {str(UUID(str(uuid))) for _, _, uuid in certified}
    assert [key for key in everything(server) for uuid in uuids if uuid in key] == []
    for action in ("collection.shred", "collection.purge"):
        events = server.sql("SELECT target_id FROM tenants_auditevent WHERE action = ?", action)
        assert sorted(target for (target,) in events) == sorted(uuids)
    assert server.sql("SELECT count(*) FROM purge_shard WHERE verified_at IS NULL") == [(0,)]
    server.manage("verify_audit")
    server.check_consistency()


def everything(server: Server) -> list[str]:
    return [str(path) for path in server.object_files()] + list(server.stored_objects())


def assert_untouched(person: Person, *, files: int) -> None:
    for number in range(files):
        assert get(person, f"{number}.bin").content == f"{number}".encode()


class Uploader:
    """Uploads small files, one after the other, until it is stopped."""

    def __init__(self, person: Person) -> None:
        self.person, self.statuses = person, list[int]()

    def upload(self, stop: Event) -> None:
        while not stop.is_set():
            self.statuses.append(put(self.person, f"late-{len(self.statuses)}", b"late").status)
            time.sleep(0.05)


@pytest.mark.long
def test_purge_killed_and_run_in_parallel_completes_once(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """F-26, F-31, F-33: for a collection after five killed attempts, one that expires now, and one that its owner deletes."""
    server = ready_server(DELETE_GRACE="1").start()
    november = make(server, tmp_path / "november", files=300)
    october, december, kept = (make(server, tmp_path / name, files=50) for name in ("october", "december", "kept"))
    assert server.stop() == 0

    expire(november)
    kills = 0
    for delay in DELAYS:
        start_and_kill_purge(server, delay)
        kills += november.collection not in destroyed(server)
        server.expire_leases()
    assert kills > 0

    server.start()
    expire(october)
    stop = Event()
    uploaders = [Uploader(person) for person in (october, december, kept)]
    with ThreadPoolExecutor(3) as pool, purge(server) as first, purge(server) as second:
        uploads = [pool.submit(each.upload, stop) for each in uploaders]
        try:
            assert call_api(november, "DELETE", f"/api/v1/collections/{november.collection}/").status == 404
            assert call_api(december, "DELETE", f"/api/v1/collections/{december.collection}/").status == 202
            for process in (first, second):
                _, complaint = process.communicate(timeout=LIMIT)
                assert process.returncode == 0, complaint
            wait_for(lambda: len(destroyed(server)) == 3)
        finally:
            stop.set()
    for upload in uploads:
        upload.result()

    wait_for(server.has_no_leftovers)
    assert_gone(server, november, october, december)
    assert [{*each.statuses} - {201, 404, 409} for each in uploaders[:2]] == [set(), set()]
    assert set(uploaders[2].statuses) == {201}
    assert_untouched(kept, files=50)


# --- Two beats and two workers ---


@contextmanager
def additional_process(server: Server, *arguments: str) -> Iterator[None]:
    """Runs an additional beat or worker, as on a second host."""
    command = killed_with_parent(sys.executable, "-m", "celery", "--app", "config.celery", "--quiet", *arguments)
    with (server.home / "another").open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, (server.home / "another").read_text()
    finally:
        process.kill()
        process.wait()


def test_two_beats_and_two_workers_purge_each_collection_once(ready_server: Callable[..., Server], tmp_path: Path) -> None:
    """F-31, F-32: the daily task is delivered ten more times."""
    server = ready_server(DELETE_GRACE="1").start()
    people = [make(server, tmp_path / f"{number}", files=20) for number in range(6)]
    *due, kept = people
    second = ("worker", "--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat")
    with (
        additional_process(server, *second),
        additional_process(server, "beat", "--schedule", str(server.home / "second-schedule"), "--pidfile="),
    ):
        expire(*due[:3])
        for person in due[3:]:
            assert call_api(person, "DELETE", f"/api/v1/collections/{person.collection}/").status == 202
        send = "from config.celery import app\nfor _ in range(10):\n    app.send_task('purge.tasks.purge_expired')"
        subprocess.run([sys.executable, "-c", send], cwd=ROOT, env=server.environment, check=True)
        wait_for(lambda: len(destroyed(server)) == len(due))
        time.sleep(6)  # one more tick of each
    assert_gone(server, *due)
    assert_untouched(kept, files=20)


# --- Kills at chosen moments, on PostgreSQL and a real S3 server ---

S3, DATABASE = "s3", "database"
MOMENTS = [
    pytest.param(DATABASE, rb'INSERT INTO "purge_destruction"', "request", id="before-start", marks=pytest.mark.long),
    pytest.param(DATABASE, rb'UPDATE "vault_key" SET "wrapped"', "response", id="key-not-committed", marks=pytest.mark.long),
    pytest.param(DATABASE, rb'UPDATE "purge_shard"', "request", id="before-claim", marks=pytest.mark.long),
    pytest.param(S3, rb"^GET \S+versions", "request", id="before-list", marks=pytest.mark.long),
    pytest.param(S3, rb"^POST \S+\?delete", "request", id="before-delete", marks=pytest.mark.long),
    pytest.param(S3, rb"^POST \S+\?delete", "response", id="after-delete"),
    pytest.param(DATABASE, rb'DELETE FROM "files_storedfile"', "request", id="before-row-delete", marks=pytest.mark.long),
    pytest.param(DATABASE, rb'DELETE FROM "files_storedfile"', "response", id="after-row-delete", marks=pytest.mark.long),
    pytest.param(DATABASE, rb'DELETE FROM "files_collection"', "request", id="before-certificate", marks=pytest.mark.long),
    pytest.param(DATABASE, rb'DELETE FROM "vault_key"', "response", id="certificate-not-committed", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("where", "held", "direction"), MOMENTS)
def test_purge_killed_is_completed_by_the_next(site: Site, tmp_path: Path, where: str, held: bytes, direction: str) -> None:
    """F-26: the command or the worker, whichever gets there first; both are killed, as in a power failure."""
    server, proxy = site.server, site.s3 if where == S3 else site.database
    before = destroyed(server)
    november, kept = (make(server, tmp_path / name, files=10) for name in ("november", "kept"))
    expire(november)
    with proxy.during(Fault(request=held, direction=direction, then="hang")):  # type: ignore[arg-type]
        with purge(server):
            wait_for(lambda: proxy.triggered)
        server.kill()
    assert destroyed(server) == before
    begun = server.sql("SELECT count(*) FROM purge_destruction WHERE status = 'running'") == [(1,)]
    wrapped = "SELECT wrapped IS NOT NULL FROM vault_key JOIN files_collection ON key_id = vault_key.id WHERE slug = ?"
    assert server.sql(wrapped, november.collection) == [(not begun,)]

    server.start()
    server.expire_leases()
    answer = get(november, "1.bin")
    assert (answer.status, answer.content == b"1") == ((404, False) if begun else (200, True))
    server.manage("purge")
    assert sorted({*destroyed(server)} - {*before}) == [november.collection]
    assert [key for key in sorted(site.keys()) if key.split("/")[2] == prefix_of(server, november)] == []
    server.manage("verify_audit")
    assert_untouched(kept, files=10)


def prefix_of(server: Server, person: Person) -> str:
    ((uuid,),) = server.sql("SELECT collection_uuid FROM purge_destruction WHERE slug = ?", person.collection)
    return str(uuid)
