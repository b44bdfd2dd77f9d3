"""Copying, packaging and wiping that are broken off anywhere: they are taken up again, and there is one package in the end.

INV-13; F-27, F-56.
"""

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings
from rest_framework.exceptions import APIException

from egress import jobs, staging
from egress.models import EgressRequest
from files.models import Upload
from tenants.models import Tenant, User
from tests import invariants
from tests.faults.fault_injection import FAULT_KINDS, INJECTOR, InlineExecutor
from tests.services import egress
from tests.services.egress import (
    FILES,
    Api,
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
    work_on,
)


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


@pytest.fixture
def people(acme: Tenant, root: User) -> dict[str, User]:
    return make_reviewers(acme)


@pytest.fixture
def breaking(own_buckets: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "ThreadPoolExecutor", InlineExecutor)
    monkeypatch.setattr("vault.content_reader.pause", lambda attempt: None)
    monkeypatch.setattr("files.uploads.time.sleep", lambda seconds: None)
    settings.STORAGES = settings.STORAGES | {
        alias: settings.STORAGES[alias] | {"BACKEND": "tests.faults.fault_injection.FaultyLocalStore"}
        for alias in settings.BUCKETS
    }


def break_off(point: int, kind: str, do: Callable[[], Any]) -> bool:
    """Whether there were fewer points than that."""
    with INJECTOR.injecting(point, kind), suppress(APIException, DatabaseError):
        do()
    is_over = not INJECTOR.has_fired
    INJECTOR.reset()
    return is_over


PHASES = ["staging", "packaging", "wiping"]
POINTS = {  # of the 17, 79 and 18 that there are
    "staging": [("killed", 4), ("response-lost", 11), ("killed-after", 15)],
    "packaging": [
        ("response-lost", 12), ("killed-after", 27), ("refused", 36), ("killed", 40), ("response-lost", 43), ("killed", 61),
    ],
    "wiping": [("killed-after", 4), ("killed", 9), ("refused", 16)],
}  # fmt: skip


def assert_taken_up_again(request: Any, api: Api, bob: User, people: dict[str, User], phase: str, kind: str, point: int) -> bool:
    """Whether there were fewer points than that."""
    if phase == "wiping":
        jobs.build_package(now=timezone.now())
    work = jobs.build_package if phase == "packaging" else partial(jobs.process_copies, until=0)
    is_over = break_off(point, kind, partial(work, now=timezone.now()))
    go_on(16)
    if phase == "staging":
        for name in ("grace", "ruth"):
            assert decide(api(people[name]), request).status_code == 201
        go_on(32)
    assert_ended(request, api(bob))
    return is_over


@pytest.mark.parametrize(("kind", "point"), POINTS["staging"])
@pytest.mark.usefixtures("breaking")
def test_copying_that_is_broken_off_is_taken_up_again(
    api: Api, bob: User, people: dict[str, User], results: str, kind: str, point: int
) -> None:
    """F-27, F-56: at a query or a request to the store. All points of it are tried with --long, below."""
    request = submit(api(bob), results)
    assert not assert_taken_up_again(request, api, bob, people, "staging", kind, point)


@pytest.mark.parametrize(("phase", "kind", "point"), [(phase, *point) for phase in PHASES[1:] for point in POINTS[phase]])
@pytest.mark.usefixtures("breaking")
def test_packaging_or_wiping_that_is_broken_off_is_taken_up_again(
    approved: Any, api: Api, bob: User, people: dict[str, User], phase: str, kind: str, point: int
) -> None:
    """F-27, F-56, INV-13: there is one package in the end, and nothing beside it."""
    assert not assert_taken_up_again(approved, api, bob, people, phase, kind, point)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FAULT_KINDS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.usefixtures("breaking")
def test_broken_off_at_any_point_it_is_taken_up_again(
    api: Api, bob: User, people: dict[str, User], phase: str, kind: str
) -> None:
    """F-27, F-56, INV-13: at every query and request to the store."""
    for point in count(1):
        slug = fill(api(bob), f"Number {point}")
        request = submit(api(bob), slug) if phase == "staging" else egress.approved(api, bob, people, slug)
        if assert_taken_up_again(request, api, bob, people, phase, kind, point):
            break
    assert point > 10


def assert_ended(request: Any, client: Any) -> None:
    """INV-13: one package with the right bytes, and nothing left of what led to it, where there are other requests."""
    assert row(request).status == "released", row(request).problem
    with zipfile.ZipFile(io.BytesIO(body(client.get(path(request, "package.zip"))))) as package:
        assert {name: package.read(name) for name in FILES} == FILES
    assert [step["status"] for step in see(client, request)["timeline"]].count("released") == 1
    assert_wiped(request)
    assert len(in_bucket("release")) == EgressRequest.objects.count()
    assert not Upload.objects.exists()
    assert INJECTOR.open_bodies == 0
    invariants.check_all()


@pytest.mark.parametrize(("kind", "point"), [("refused", 5), ("response-lost", 9), ("response-lost", 12), ("refused", 18)])
@pytest.mark.usefixtures("breaking")
def test_what_keeps_copies_from_being_wiped_is_told(
    api: Api, people: dict[str, User], in_review: Any, kind: str, point: int
) -> None:
    """No longer than that. All of the 18 points are tried with --long."""
    assert decide(api(people["grace"]), in_review, "reject").status_code == 201
    assert not break_off(point, kind, partial(jobs.process_copies, now=timezone.now(), until=float("inf")))
    go_on(6)
    assert_wiped(in_review)
    assert row(in_review).problem == ""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["refused", "response-lost"])
@pytest.mark.usefixtures("breaking")
def test_what_kept_copies_from_being_wiped_is_told_no_longer_than_that(
    api: Api, bob: User, people: dict[str, User], kind: str
) -> None:
    """Wherever it was: also behind the last copy, when there is nothing to be tried again."""
    for point in count(1):
        request = submit(api(bob), fill(api(bob), f"Number {point}", files={"a.csv": b"a"}))
        work_on()
        assert decide(api(people["grace"]), request, "reject").status_code == 201
        is_over = break_off(point, kind, partial(jobs.process_copies, now=timezone.now(), until=float("inf")))
        go_on(6)
        assert_wiped(request)
        assert row(request).problem == ""
        if is_over:
            break
    assert point > 10
