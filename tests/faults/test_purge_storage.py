"""The store fails during a purge: the purge waits, reports it, continues later, and never takes a partial listing as complete.

INV-07; F-17, F-19. services/test_purge_broken.py also has refusals of the store.
"""

import re
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_django import Settings

from files.models import Collection
from purge import destruction as destroying
from tenants.models import User
from tests import stores
from tests.contracts.test_s3_faults import is_request, read_and_respond, respond, responding, s3_error
from tests.faults.test_storage import DELETE, LIST
from tests.faults.worlds import november
from tests.services.purging import (
    NAMES,
    Api,
    assert_destroyed,
    assert_gone,
    assert_waits,
    end,
    fill,
    of,
    under,
    work_later,
    work_on,
)
from tests.worlds import starts_from


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Fault = Callable[[WSGIEnvironment, StartResponse, WSGIApplication], Iterable[bytes] | None]

pytestmark = [pytest.mark.django_db(transaction=True), starts_from(november)]
LONG = pytest.mark.long
VERSIONS = ("GET", "versions")
EMPTY = b"<ListVersionsResult><IsTruncated>false</IsTruncated></ListVersionsResult>"
CUT = b"<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>"  # truncated, but without a next marker


@pytest.fixture
def filled(faults: stores.Faults, settings: Settings, built: str, buckets_of_world: Path) -> Collection:
    """The collection of the world, in buckets of moto."""
    for path in filter(Path.is_file, buckets_of_world.rglob("*")):
        alias, _, key = str(path.relative_to(buckets_of_world)).partition("/")
        bucket = settings.STORAGES[alias]["OPTIONS"]["bucket_name"]
        stores.moto().client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    collection = Collection.objects.get(slug=built)
    assert len(under(collection)) == len(NAMES)
    return collection


# --- Throttled ---


def throttled_from(number: int) -> "Fault":
    """Throttles all requests from `number` on, counted from 1. Earlier listings have two entries per page, as servers may do."""
    asked = count(1)

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        if next(asked) >= number:
            return read_and_respond(environ, start, "503 Slow Down", s3_error("SlowDown"))
        if is_request(environ, *LIST):
            environ["QUERY_STRING"] += "&max-keys=2"
        return None

    return fault


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=[LONG, pytest.mark.timeout(600)])])
def test_purge_waits_for_a_store_that_throttles_from_any_request_on(
    faults: stores.Faults, api: Api, alice: User, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """For example in the middle of a listing, between two batches of a deletion, or at the final check."""
    monkeypatch.setattr(destroying, "OBJECTS_PER_REQUEST", 2)
    for number in count(1, step):
        collection = fill(api(alice), f"Number {number}")
        with faults.during(throttled_from(number)) as seen:
            end(collection)
        if len(seen) < number:
            break
        assert_waits(collection)
        work_on()
        assert_waits(collection)  # the interrupted worker's lease has not expired
        work_later()
        assert_destroyed(collection)
    assert_destroyed(collection)
    assert number > 20


# --- Deletions ---


def failing_in_part(code: str, key: str, *, times: int) -> "Fault":
    """Makes the first `times` deletions fail for one key with this error code, and succeed for the others."""
    left = iter(range(times))

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, *DELETE) or next(left, None) is None:
            return None
        asked = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        rest = re.sub(rb"<Object><Key>%b</Key>.*?</Object>" % re.escape(key.encode()), b"", asked)
        assert rest != asked
        if b"<Object>" in rest:
            passed = environ | {"wsgi.input": BytesIO(rest), "CONTENT_LENGTH": str(len(rest))}
            b"".join(application(passed, lambda *_: lambda _: None))
        error = f"<Error><Key>{key}</Key><VersionId>null</VersionId><Code>{code}</Code><Message>a fault</Message></Error>"
        return respond(start, "200 OK", f"<DeleteResult>{error}</DeleteResult>".encode())

    return fault


@pytest.mark.parametrize(
    ("code", "times"),
    [
        ("InternalError", 2),
        ("SlowDown", 10**6),
        ("AccessDenied", 10**6),
        pytest.param("InternalError", 10**6, marks=LONG),
        pytest.param("SlowDown", 2, marks=LONG),
        pytest.param("AccessDenied", 2, marks=LONG),
    ],
)
def test_deletion_that_fails_in_part_is_repeated_for_the_rest(
    filled: Collection, faults: stores.Faults, code: str, times: int
) -> None:
    """Temporary errors make the purge wait, only a refusal blocks it. No existing object counts as erased."""
    kept = under(filled)[1].key
    with faults.during(failing_in_part(code, kept, times=times)) as seen:
        destruction = end(filled)
    asked = sum(is_request(environ, *DELETE) for environ in seen)
    if code == "AccessDenied":
        assert (destruction.status, destruction.blocked_by, asked) == ("blocked", "AccessDenied: a fault", 1)
        assert destroying.retry_blocked(destruction, by=None, now=destruction.started_at)
    elif times > 2:
        assert asked == 4
        assert_waits(filled)
    if destruction.status != "done":
        assert [entry.key for entry in under(filled)] == [kept]
        assert sum(destruction.shards.values_list("erased", flat=True)) == len(NAMES) - 1
        work_later()
    assert_gone(filled)
    assert sum(of(filled).shards.values_list("erased", flat=True)) == len(NAMES)


@pytest.mark.parametrize("code", ["", "NoSuchKey", "NoSuchVersion"])
def test_key_deleted_by_another_client_counts_as_erased(filled: Collection, faults: stores.Faults, code: str) -> None:
    """The other client deletes between listing and deletion. Servers differ in their response to that."""
    client = stores.moto().client
    keys = [entry.key for entry in under(filled)]

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, *DELETE):
            return None
        for key in keys:
            client.delete_object(Bucket=environ["PATH_INFO"].strip("/"), Key=key)
        errors = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code></Error>" for key in keys)
        return read_and_respond(environ, start, "200 OK", f"<DeleteResult>{errors}</DeleteResult>".encode()) if code else None

    with faults.during(fault):
        end(filled)
    assert_gone(filled)


# --- Listings ---


@pytest.mark.parametrize(
    "page",
    [
        CUT,
        pytest.param(b"<ListVersionsResult/>", marks=LONG),
        pytest.param(b"<html>not S3</html>", marks=LONG),
        b"",
    ],
)
def test_incomplete_listing_makes_the_purge_wait(filled: Collection, faults: stores.Faults, page: bytes) -> None:
    with faults.during(responding(*VERSIONS, "200 OK", page)):
        end(filled)
    assert len(under(filled)) == len(NAMES)
    assert_waits(filled)
    work_later()
    assert_gone(filled)


@pytest.mark.parametrize("stale", [1, pytest.param(2, marks=LONG), pytest.param(3, marks=LONG), 4])
def test_stale_empty_listing_is_checked_again(filled: Collection, faults: stores.Faults, stale: int) -> None:
    """One of the listings is wrongly empty; the next listing finds the objects."""
    asked = count(1)

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, *VERSIONS) or next(asked) != stale:
            return None
        return read_and_respond(environ, start, "200 OK", EMPTY)

    with faults.during(fault):
        end(filled)
    assert_gone(filled)


def test_lost_response_to_a_deletion_is_resolved_by_another_listing(filled: Collection, faults: stores.Faults) -> None:
    """The deletion succeeded and its response is lost: the erased objects are not counted, and none remains."""

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: Any) -> Iterable[bytes] | None:
        if not is_request(environ, *DELETE):
            return None
        b"".join(application(environ, lambda *_: lambda _: None))
        return respond(start, "500 Internal Server Error", s3_error("InternalError"))

    with faults.during(fault):
        end(filled)
    assert under(filled) == []
    assert_waits(filled)
    work_later()
    assert_gone(filled)
