"""Egress workers are killed with SIGKILL after any step; another worker completes the request with one package, no leftovers.

INV-11, INV-13; F-27. A step is a change or call that other processes can observe: a commit or a call to the store. Faults at
single queries are in services/test_egress_faults.py.
"""

import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Final, NoReturn

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQL
from django.utils import timezone
from rest_framework.test import APIClient

from config.processes import die_with_parent
from egress import jobs
from egress.models import EgressRequest, StagedFile
from egress.package.build import MAX_ATTEMPTS
from files.models import Collection, Upload
from tenants.models import Tenant, User
from tests import invariants
from tests.services.conftest import own_buckets  # noqa: F401  a fixture
from tests.services.egress import (
    FILES,
    Api,
    approved,
    assert_wiped,
    body,
    decide,
    fill,
    go_on,
    in_bucket,
    make_reviewers,
    path,
    row,
    see,
    submit,
)
from vault.stores.local import LocalBody, LocalStore, LocalWriter


pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("own_buckets"),
    pytest.mark.timeout(600),
    pytest.mark.both_databases,
]

STORE_CALLS: Final[tuple[tuple[type, str], ...]] = (
    (LocalStore, "copy"),
    (LocalStore, "open"),
    (LocalStore, "create"),
    (LocalStore, "entries"),
    (LocalStore, "erase"),
    (LocalBody, "read"),
    (LocalWriter, "write"),
    (LocalWriter, "commit"),
)
WRITES: Final = ("INSERT", "UPDATE", "DELETE")
KILLED: Final = -signal.SIGKILL


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Steps:
    """Counts the steps of this process, and kills it after step number `last`."""

    def __init__(self, last: int) -> None:
        self.remaining = last

    def count(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            die()

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            self.count()
            return result

        return counting

    def query(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        result = execute(sql, params, many, context)
        if sql.startswith(WRITES) and not context["connection"].in_atomic_block:
            self.count()  # autocommit
        return result

    def count_all(self) -> None:
        for kind, name in STORE_CALLS:
            setattr(kind, name, self.counted(getattr(kind, name)))
        BaseDatabaseWrapper.commit = self.counted(BaseDatabaseWrapper.commit)  # type: ignore[method-assign]
        connections["default"].execute_wrappers.append(self.query)


def close_connections() -> None:
    """Closes all database connections, including pooled ones, because a forked child must not share them."""
    connections.close_all()
    if isinstance(connection := connections["default"], PostgreSQL):
        connection.close_pool()


def run_in_child(prepare: Callable[[], object], work: Callable[[], object]) -> int:
    """Runs the functions in a forked process. Returns its exit code: 0, or the negative number of a signal."""
    close_connections()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    die_with_parent()
    try:
        prepare()
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def stage() -> object:
    return jobs.process_copies(now=timezone.now(), until=float("inf"))


def build() -> object:
    return jobs.build_package(now=timezone.now())


PHASES: Final = {"staging": (stage, 12), "packaging": (build, 15), "wiping": (stage, 6)}


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.mark.parametrize("phase", PHASES)
def test_work_of_a_worker_killed_midway_is_completed_by_another(api: Api, bob: User, people: dict[str, User], phase: str) -> None:
    """F-27."""
    _, min_steps = PHASES[phase]
    assert kill_and_complete(phase, api, bob, people, last=min_steps // 2) == KILLED


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_work_of_a_worker_killed_after_any_step_is_completed_by_another(
    api: Api, bob: User, people: dict[str, User], phase: str
) -> None:
    """F-27."""
    _, min_steps = PHASES[phase]
    assert next(last for last in count(1) if kill_and_complete(phase, api, bob, people, last=last) == 0) > min_steps


def kill_and_complete(phase: str, api: Api, bob: User, people: dict[str, User], *, last: int) -> int:
    """Kills a worker after step `last`, completes the request in this process, and returns the worker's exit code."""
    work, _ = PHASES[phase]
    request = ready_for(phase, api, bob, people, f"Number {last}")
    ended = run_in_child(Steps(last).count_all, work)
    assert ended in {0, KILLED}
    assert_status_is_backed_by_work(request, phase)
    go_on(16)
    if phase == "staging":
        for name in ("grace", "ruth"):
            assert decide(api(people[name]), request).status_code == 201
        go_on(32)
    assert_released_once(request, api(bob))
    return ended


def ready_for(phase: str, api: Api, bob: User, people: dict[str, User], display_name: str) -> Any:
    slug = fill(api(bob), display_name)
    request = submit(api(bob), slug) if phase == "staging" else approved(api, bob, people, slug)
    if phase == "wiping":
        build()
    return request


def assert_status_is_backed_by_work(request: Any, phase: str) -> None:
    """Asserts that the statuses after a kill claim no work that the killed worker has not done."""
    request = row(request)
    if request.status == "in_review":
        assert not request.items.exclude(status=StagedFile.Status.STAGED).exists()
    if request.status == "released":
        assert request.package_collection is not None
        assert request.package_collection.files.count() == 1
    for item in request.items.filter(status=StagedFile.Status.WIPED):
        assert item.object_key not in in_bucket("staging")
    assert request.status in {"staging": ("submitted", "in_review"), "packaging": ("approved", "released")}.get(
        phase, ("released",)
    )


def assert_released_once(request: Any, client: APIClient, files: dict[str, bytes] = FILES) -> None:
    """Asserts one release, one package with the approved digests, and no leftovers of a killed worker."""
    assert row(request).status == "released", row(request).problem
    content = body(client.get(path(request, "package.zip")))
    assert hashlib.sha256(content).hexdigest() == row(request).package_sha256
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        assert {name: package.read(name) for name in files} == files
    assert [step["status"] for step in see(client, request)["timeline"]].count("released") == 1
    assert_wiped(request)
    requests = EgressRequest.objects.count()
    assert len(in_bucket("release")) == Collection.objects.filter(kind=Collection.Kind.RELEASE).count() == requests
    assert not Upload.objects.exists()
    invariants.check_all()


def test_request_fails_after_repeated_kills_of_its_workers(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-27: for example, when packaging exhausts memory each time. After a few attempts it fails and leaves no data."""
    request = approved(api, bob, people, fill(api(bob)))
    for attempt in range(MAX_ATTEMPTS):
        now = timezone.now() + timedelta(minutes=6 * attempt)
        assert run_in_child(Steps(12).count_all, partial(jobs.build_package, now=now)) == KILLED
        assert row(request).status == "approved"
    assert Upload.objects.count() == MAX_ATTEMPTS
    go_on(6 * MAX_ATTEMPTS)
    go_on(6 * MAX_ATTEMPTS + 16)  # after the heartbeat timeout of the last upload
    assert row(request).status == "failed"
    assert "could not be built in 5 attempts" in row(request).problem
    assert in_bucket("release") == []
    assert not Upload.objects.exists()
