"""Workers of egress are killed with SIGKILL between each pair of steps: another one ends it with one package, and nothing beside.

INV-11, INV-13; F-27. A step is what others see of it: a commit, or something that the store was asked for. Every query is in
services/test_egress_faults.py.
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
from egress.package.build import MOST_ATTEMPTS
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

ASKED: Final[tuple[tuple[type, str], ...]] = (
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
    """Counts the steps of this process, and kills it behind the last that it may take."""

    def __init__(self, last: int) -> None:
        self.left = last

    def taken(self) -> None:
        self.left -= 1
        if self.left == 0:
            die()

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            self.taken()
            return result

        return counting

    def query(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        result = execute(sql, params, many, context)
        if sql.startswith(WRITES) and not context["connection"].in_atomic_block:
            self.taken()  # it was committed by itself
        return result

    def count_all(self) -> None:
        for kind, name in ASKED:
            setattr(kind, name, self.counted(getattr(kind, name)))
        BaseDatabaseWrapper.commit = self.counted(BaseDatabaseWrapper.commit)  # type: ignore[method-assign]
        connections["default"].execute_wrappers.append(self.query)


def close_connections() -> None:
    """Which a child must not share: those that a pool keeps open, too."""
    connections.close_all()
    if isinstance(connection := connections["default"], PostgreSQL):
        connection.close_pool()


def in_worker(prepare: Callable[[], object], work: Callable[[], object]) -> int:
    """What becomes of a process of its own that does this: 0, or the number of the signal, negative."""
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
    return jobs.work(now=timezone.now(), until=float("inf"))


def build() -> object:
    return jobs.build_packages(now=timezone.now())


PHASES: Final = {"staging": (stage, 12), "packaging": (build, 15), "wiping": (stage, 6)}


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.mark.parametrize("phase", PHASES)
def test_worker_that_is_killed_half_way_is_followed_by_another(api: Api, bob: User, people: dict[str, User], phase: str) -> None:
    """F-27."""
    _, least = PHASES[phase]
    assert ended_by_another(phase, api, bob, people, last=least // 2) == KILLED


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_worker_that_is_killed_behind_any_step_is_followed_by_another(
    api: Api, bob: User, people: dict[str, User], phase: str
) -> None:
    """F-27."""
    _, least = PHASES[phase]
    assert next(last for last in count(1) if ended_by_another(phase, api, bob, people, last=last) == 0) > least


def ended_by_another(phase: str, api: Api, bob: User, people: dict[str, User], *, last: int) -> int:
    """What became of the worker that may take so many steps."""
    work, _ = PHASES[phase]
    request = ready_for(phase, api, bob, people, f"Number {last}")
    ended = in_worker(Steps(last).count_all, work)
    assert ended in {0, KILLED}
    assert_nothing_early(request, phase)
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


def assert_nothing_early(request: Any, phase: str) -> None:
    """What a dead worker leaves says no more than it has done."""
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
    """One release, one package with the digests that were approved, and nothing that a dead worker left."""
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


def test_request_that_kills_each_of_its_workers_is_given_up(api: Api, bob: User, people: dict[str, User]) -> None:
    """F-27: as one does that the kernel ends for the memory that it takes. It fails after a few attempts, with nothing left."""
    request = approved(api, bob, people, fill(api(bob)))
    for attempt in range(MOST_ATTEMPTS):
        now = timezone.now() + timedelta(minutes=6 * attempt)
        assert in_worker(Steps(12).count_all, partial(jobs.build_packages, now=now)) == KILLED
        assert row(request).status == "approved"
    assert Upload.objects.count() == MOST_ATTEMPTS
    go_on(6 * MOST_ATTEMPTS)
    go_on(6 * MOST_ATTEMPTS + 16)  # by when the last upload is taken for dead, too
    assert row(request).status == "failed"
    assert "could not be built in 5 attempts" in row(request).problem
    assert in_bucket("release") == []
    assert not Upload.objects.exists()
