"""The store fails during API requests: a clear error, no leftovers, and full recovery (F-01, F-02, F-12, F-13)."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from rest_framework.test import APIClient

from files.models import StoredFile, Upload
from files.tasks import tick
from tenants.models import User
from tests import invariants, stores
from tests.api import paths
from tests.contents import random_bytes
from tests.contracts.test_s3_faults import COMPLETE, PART, PUT, failing, responding, response_lost
from vault import content_reader
from vault.stores.s3 import S3Store


Api = Callable[[User | None], APIClient]
MIB = 1024 * 1024
SMALL, BIG = random_bytes(300_000), random_bytes(11 * MIB)  # three parts
START, GET, LIST, DELETE = ("POST", "^uploads"), ("GET", "^$"), ("GET", "prefix="), ("POST", "^delete")


@pytest.fixture
def slug(faults: stores.Faults, api: Api, alice: User, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(S3Store, "part_bytes", 5 * MIB)  # the smallest part that S3 accepts
    return str(api(alice).post(paths.COLLECTIONS, {"display_name": "November"}).json()["id"])


def put(client: APIClient, slug: str, content: bytes, **headers: str) -> Any:
    return client.put(paths.content(slug, "a.bin"), content, content_type="application/octet-stream", headers=headers)


def read(client: APIClient, slug: str) -> bytes:
    response: Any = client.get(paths.content(slug, "a.bin"))
    assert response.status_code == 200
    return b"".join(response.streaming_content)


def refused(response: Any) -> bool:
    return (response.status_code, response.json()["code"]) == (503, "storage_unavailable") and "Retry-After" in response


@pytest.mark.parametrize(
    ("fault", "request_kind", "status"),
    [
        pytest.param(failing, PUT, 503, id="put"),
        pytest.param(failing, START, 503, id="start", marks=pytest.mark.long),
        pytest.param(failing, PART, 503, id="part"),
        pytest.param(failing, COMPLETE, 503, id="complete"),
        pytest.param(response_lost, PUT, 201, id="put-response-lost"),
        pytest.param(response_lost, START, 503, id="start-response-lost", marks=pytest.mark.long),
        pytest.param(response_lost, PART, 503, id="part-response-lost", marks=pytest.mark.long),
        pytest.param(response_lost, COMPLETE, 201, id="complete-response-lost"),
    ],
)
def test_upload_to_a_failing_store_is_complete_or_absent(
    faults: stores.Faults,
    api: Api,
    alice: User,
    slug: str,
    fault: Callable[..., Any],
    request_kind: tuple[str, str],
    status: int,
) -> None:
    content = SMALL if request_kind == PUT else BIG
    with faults.during(fault(*request_kind, times=10**6)):
        answer = put(api(alice), slug, content)
    assert refused(answer) if status == 503 else answer.status_code == status
    assert not Upload.objects.exists()
    assert StoredFile.objects.count() == (status == 201)
    assert {entry.key for _, entry in invariants.entries()} == set(StoredFile.objects.values_list("object_key", flat=True))
    invariants.check_all()
    if status == 503:
        assert put(api(alice), slug, content).status_code == 201
    assert read(api(alice), slug) == content


def test_brief_throttling_causes_no_error(faults: stores.Faults, api: Api, alice: User, slug: str) -> None:
    with faults.during(failing(*PART, times=2)):
        assert put(api(alice), slug, BIG).status_code == 201
    with faults.during(failing(*GET, times=3)):
        assert read(api(alice), slug) == BIG
    invariants.check_all()


def test_failed_replacement_keeps_the_old_content(faults: stores.Faults, api: Api, alice: User, slug: str) -> None:
    etag = put(api(alice), slug, SMALL).headers["ETag"]
    with faults.during(failing(*COMPLETE)):
        assert refused(put(api(alice), slug, BIG, if_match=etag))
    assert read(api(alice), slug) == SMALL
    assert len(invariants.entries()) == 1
    invariants.check_all()


def test_upload_that_cannot_be_aborted_is_removed_by_the_clean_up(
    faults: stores.Faults, api: Api, alice: User, slug: str
) -> None:
    """The store also fails during the abort: parts remain, and the upload's row refers to them."""
    left = iter(range(3))  # the start and two parts pass

    def gone(environ: Any, start: Any, application: Any) -> Any:
        return None if next(left, None) is not None else failing(environ["REQUEST_METHOD"], "")(environ, start, application)

    with faults.during(gone):
        assert refused(put(api(alice), slug, BIG))
        with time_machine.travel(timedelta(seconds=2 * Upload.STALLED_AFTER_SECONDS)):
            tick()  # fails without an exception
    assert len(invariants.entries()) == 1
    invariants.check_objects()
    with time_machine.travel(timedelta(hours=2)):
        tick()
    assert invariants.entries() == []
    assert not Upload.objects.exists()
    invariants.check_all()


def test_download_is_not_retried_after_the_time_limit(
    faults: stores.Faults, api: Api, alice: User, slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-04: a client waits 30 seconds for a silent store. Retries must not multiply that time."""
    put(api(alice), slug, SMALL)
    with faults.during(failing(*GET)) as tries:
        assert refused(api(alice).get(paths.content(slug, "a.bin")))
    monkeypatch.setattr(content_reader, "RETRY_SECONDS", 0)
    with faults.during(failing(*GET)) as single:
        assert refused(api(alice).get(paths.content(slug, "a.bin")))
    assert len(tries) == content_reader.MAX_ATTEMPTS * len(single)


def test_small_upload_that_never_reached_the_store_causes_no_further_request(
    faults: stores.Faults, api: Api, alice: User, slug: str
) -> None:
    """F-03: an unavailable store gets no further request, and no row remains."""
    with faults.during(failing("HEAD", "")) as seen:
        assert refused(put(api(alice), slug, SMALL))
    assert {environ["REQUEST_METHOD"] for environ in seen} == {"HEAD"}
    assert not Upload.objects.exists()


@pytest.mark.parametrize("request_kind", [LIST, DELETE], ids=["listing", "delete"])
def test_erasure_against_a_failing_store_is_retried(
    faults: stores.Faults, api: Api, alice: User, slug: str, request_kind: tuple[str, str]
) -> None:
    """F-17, F-19."""
    put(api(alice), slug, SMALL)
    assert api(alice).delete(paths.file(slug, "a.bin")).status_code == 204
    with faults.during(failing(*request_kind)):
        tick()
    assert len(invariants.entries()) == 1
    invariants.check_all()
    with time_machine.travel(timedelta(minutes=6)):
        tick()
    assert invariants.entries() == []


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        pytest.param(failing(*GET), 503, "storage_unavailable", id="down"),
        pytest.param(failing(*GET, status="403 Forbidden", code="AccessDenied"), 503, "storage_unavailable", id="forbidden"),
        pytest.param(failing(*GET, status="404 Not Found", code="NoSuchKey"), 502, "object_missing", id="no-such-key"),
        pytest.param(failing(*GET, status="404 Not Found", code="NoSuchBucket"), 503, "storage_unavailable", id="no-such-bucket"),
        pytest.param(responding(*GET, "200 OK", b"<html>hello</html>"), 503, "storage_unavailable", id="error-page-with-200"),
    ],
)
def test_download_from_a_failing_store_fails_before_the_first_byte(
    faults: stores.Faults, api: Api, alice: User, slug: str, fault: Callable[..., Any], status: int, code: str
) -> None:
    """F-06, F-10, F-11: an unavailable store or a missing bucket does not mark the file as missing."""
    put(api(alice), slug, SMALL)
    with faults.during(fault):
        answer = api(alice).get(paths.content(slug, "a.bin"))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert StoredFile.objects.get().status == ("missing" if code == "object_missing" else "ready")
    assert read(api(alice), slug) == SMALL
    invariants.check_all()
