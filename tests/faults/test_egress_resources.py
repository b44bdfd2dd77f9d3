"""The resources of packaging: little memory regardless of the package's size, no disk, and recovery from a lack of memory.

INV-13, INV-19; F-27, F-35. On the real S3 server, with the part size of production.
"""

import ctypes
import hashlib
import json
import logging
import mmap
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from django.db import close_old_connections, connection
from django.utils import timezone
from pytest_django import Settings

from egress import jobs
from egress.models import EgressRequest
from egress.package.build import MAX_ATTEMPTS
from files.models import Upload
from tenants.models import Tenant, User
from tests import stores
from tests.contents import random_bytes
from tests.faults.test_egress_kills import assert_released_once, build, run_in_child
from tests.needs import mark_dependents
from tests.services.egress import (
    Api,
    approved,
    decide,
    fill,
    go_on_given,
    in_bucket,
    make_reviewers,
    path,
    row,
    submit,
)
from vault import identity
from vault.stores import get_store
from vault.stores.s3 import S3Store


pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("buckets"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
log = logging.getLogger(__name__)

KIB: Final = 1024
MIB: Final = 1024**2
MAX_WRITTEN: Final = MIB  # by SQLite, in addition to the rows of each file
MAX_ROWS_SIZE: Final = 2 * KIB  # of the rows of one file


@pytest.fixture
@mark_dependents(pytest.mark.needs("ceph"))
def buckets(settings: Settings) -> Iterator[dict[str, str]]:
    with stores.use_new_buckets(stores.ceph(), settings) as by_alias:
        yield by_alias


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


# --- Large packages ---


def proc_value(file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path("/proc/self", file).read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def write_no_file() -> None:
    if connection.vendor == "postgresql":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def measure(work: Callable[[], object]) -> dict[str, int]:
    """Returns the growth of this process's memory during `work` and the amount written to files, in bytes.

    Releases free heap memory first: a forked process may inherit as much as the test looks for.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    memory, written = proc_value("status", "VmHWM"), proc_value("io", "wchar")
    work()
    return {
        "growth": (proc_value("status", "VmHWM") - memory) * KIB,
        "written": proc_value("io", "wchar") - written,
    }


def contents(files: int, mib: int) -> dict[str, bytes]:
    content = random_bytes(mib * MIB // files)
    return {f"{number:05}.csv": content for number in range(files)}


def fill_with_new_tokens(api: Api, owner: User, display_name: str, files: dict[str, bytes]) -> str:
    """Like `fill`, but with a new token for each file, because one token may expire before the last upload."""
    slug = fill(api(owner), display_name, {})
    for name, content in files.items():
        put = api(owner).put(f"/api/v1/collections/{slug}/content/{name}", content, content_type="text/csv")
        assert put.status_code == 201, put.content
    return slug


def empty_vault() -> None:
    """Deletes the files' objects, which the test no longer needs and the server holds in memory."""
    vault = get_store("vault")
    assert vault.erase([entry for entry in vault.entries("") if not entry.key.startswith(identity.SYSTEM_PREFIX)]) == []


@pytest.mark.parametrize(
    ("files", "mib", "bound"),
    [(200, 128, 48), pytest.param(2_000, 2_048, 96, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
def test_large_package_takes_little_memory_and_no_disk(
    api: Api, bob: User, people: dict[str, User], files: int, mib: int, bound: int
) -> None:
    """INV-19, F-35. With SQLite only the rows are written to disk; with PostgreSQL the worker may write no file at all."""
    wishes = {"First": contents(3, 24), "Many": contents(files, mib)}
    requests = [submit(api(bob), fill_with_new_tokens(api, bob, name, given)) for name, given in wishes.items()]
    go_on_given(0)
    empty_vault()
    for request in requests:
        for name in ("grace", "ruth"):
            assert decide(api(people[name]), request).status_code == 201
    first, request = requests
    reader, writer = os.pipe()

    def prepare() -> None:
        write_no_file()
        build()  # the first package, so that one-time initialisation is not measured

    def work() -> None:
        os.write(writer, json.dumps(measure(build)).encode())

    ended = run_in_child(prepare, work)
    os.close(writer)
    assert (ended, row(first).status, row(request).status) == (0, "released", "released"), row(request).problem
    with os.fdopen(reader) as results:
        taken = json.load(results)
    log.info("%d MiB in %d files; bytes: %s", mib, files, taken)
    assert taken["growth"] < bound * MIB
    assert taken["written"] < MAX_WRITTEN + files * MAX_ROWS_SIZE

    answer: Any = api(bob).get(path(request, "package.zip"))
    digest, length = hashlib.sha256(), 0
    for piece in answer.streaming_content:
        digest.update(piece)
        length += len(piece)
    assert digest.hexdigest() == row(request).package_sha256
    assert length > mib * MIB - files


# --- Lack of memory ---

LARGE: Final = {"a.csv": b"a,1\n" * 100, "large.bin": random_bytes(20 * MIB, seed=2)}
HOARD: Final[list[bytearray]] = []


def starve(left: int) -> None:
    """Limits the memory that this process can still allocate to `left` bytes, including its free heap memory."""
    EgressRequest.objects.exists()  # connects to the database before the limit applies
    spare = mmap.mmap(-1, left) if left else None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE, resource.RLIM_INFINITY))
    for size in (2**power for power in range(26, 11, -1)):
        try:
            while True:
                HOARD.append(bytearray(size))
        except MemoryError:
            continue
    if spare:
        spare.close()


def starve_while_reading(left: int) -> None:
    """Like `starve`, but when this process has claimed a request and reads the first of its files."""
    store, sizes = get_store("staging"), iter([left])
    assert isinstance(store, S3Store)

    def on_event(**_: Any) -> None:
        for size in sizes:
            starve(size)

    store.shared_client.client.meta.events.register("before-send.s3.GetObject", on_event)


def release_memory() -> None:
    HOARD.clear()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def attempts(request: Any) -> int:
    """Returns the number of attempts to build the request's package."""
    return row(request).attempts - row(request).attempts_before


@pytest.mark.timeout(600)
def test_packaging_without_memory_is_completed_by_another_worker(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-27: whatever the worker was doing when memory ran out, and whether or not it could report the error."""
    slug = fill(api(bob), files=LARGE)
    for left in count(0, 4):
        request = approved(api, bob, people, slug)
        ended = run_in_child(partial(starve, left * MIB), build)
        log.info("with %d MiB: %d, %s, %s", left, ended, row(request).status, row(request).problem)
        is_built = row(request).status == "released"
        go_on_given(16)
        assert_released_once(request, api(bob), LARGE)
        if is_built:
            break
    assert left > 0  # the required amount depends on the free heap memory of this process


def test_worker_builds_the_package_when_it_has_memory_again(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-27: the same worker may make the next attempt."""
    request = approved(api, bob, people, fill(api(bob), files=LARGE))

    def work() -> None:
        with suppress(Exception):  # a starved worker fails at different places
            build()
        release_memory()
        close_old_connections()  # like Celery after each task
        assert (row(request).status, attempts(request)) == ("approved", 1)
        assert jobs.build_package(now=timezone.now() + timedelta(minutes=6))

    assert run_in_child(partial(starve_while_reading, 4 * MIB), work) == 0
    go_on_given(22)
    assert_released_once(request, api(bob), LARGE)


def test_request_fails_if_no_worker_has_the_memory(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-27: it fails after a few attempts and leaves no data."""
    request = approved(api, bob, people, fill(api(bob), files=LARGE))
    for attempt in range(MAX_ATTEMPTS):
        now = timezone.now() + timedelta(minutes=6 * attempt)
        run_in_child(partial(starve_while_reading, 4 * MIB), partial(jobs.build_package, now=now))
        assert (row(request).status, attempts(request)) == ("approved", attempt + 1)
    go_on_given(6 * MAX_ATTEMPTS)
    go_on_given(6 * MAX_ATTEMPTS + 16)
    assert row(request).status == "failed"
    assert "could not be built in 5 attempts" in row(request).problem
    assert in_bucket("release") == []
    assert not Upload.objects.exists()
