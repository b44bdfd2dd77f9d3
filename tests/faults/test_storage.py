"""The store fails under the API: a clear answer, nothing kept, and all works again once it does (F-01, F-02, F-12, F-13)."""

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
from tests.contracts.test_s3_faults import COMPLETE, PART, PUT, answering, failing, unheard
from vault import content_reader
from vault.stores.s3 import S3Store


Api = Callable[[User | None], APIClient]
MIB = 1024 * 1024
SMALL, BIG = random_bytes(300_000), random_bytes(11 * MIB)  # three parts
START, GET, LIST, DELETE = ("POST", "^uploads"), ("GET", "^$"), ("GET", "prefix="), ("POST", "^delete")


@pytest.fixture
def slug(faults: stores.Faults, api: Api, alice: User, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(S3Store, "part_bytes", 5 * MIB)  # S3 takes no smaller ones
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
        pytest.param(unheard, PUT, 201, id="put-done-but-unheard"),
        pytest.param(unheard, START, 503, id="start-done-but-unheard", marks=pytest.mark.long),
        pytest.param(unheard, PART, 503, id="part-done-but-unheard", marks=pytest.mark.long),
        pytest.param(unheard, COMPLETE, 201, id="complete-done-but-unheard"),
    ],
)
def test_upload_against_a_failing_store_is_refused_or_done_and_leaves_nothing_else(
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


def test_throttling_that_passes_is_not_noticed(faults: stores.Faults, api: Api, alice: User, slug: str) -> None:
    with faults.during(failing(*PART, times=2)):
        assert put(api(alice), slug, BIG).status_code == 201
    with faults.during(failing(*GET, times=3)):
        assert read(api(alice), slug) == BIG
    invariants.check_all()


def test_failed_replacement_leaves_the_old_content(faults: stores.Faults, api: Api, alice: User, slug: str) -> None:
    etag = put(api(alice), slug, SMALL).headers["ETag"]
    with faults.during(failing(*COMPLETE)):
        assert refused(put(api(alice), slug, BIG, if_match=etag))
    assert read(api(alice), slug) == SMALL
    assert len(invariants.entries()) == 1
    invariants.check_all()


def test_upload_that_cannot_even_be_cleared_away_is_left_to_the_clean_up(
    faults: stores.Faults, api: Api, alice: User, slug: str
) -> None:
    """The store is gone for all of it: parts remain, and the row that knows of them."""
    left = iter(range(3))  # the start and two parts pass

    def gone(environ: Any, start: Any, application: Any) -> Any:
        return None if next(left, None) is not None else failing(environ["REQUEST_METHOD"], "")(environ, start, application)

    with faults.during(gone):
        assert refused(put(api(alice), slug, BIG))
        with time_machine.travel(timedelta(seconds=2 * Upload.DEAD_AFTER_SECONDS)):
            tick()  # in vain, and without an exception
    assert len(invariants.entries()) == 1
    invariants.check_objects()
    with time_machine.travel(timedelta(hours=2)):
        tick()
    assert invariants.entries() == []
    assert not Upload.objects.exists()
    invariants.check_all()


def test_download_is_not_begun_again_once_patience_is_over(
    faults: stores.Faults, api: Api, alice: User, slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-04: a silent store takes its client 30 seconds, which must not become four times as many."""
    put(api(alice), slug, SMALL)
    with faults.during(failing(*GET)) as tries:
        assert refused(api(alice).get(paths.content(slug, "a.bin")))
    monkeypatch.setattr(content_reader, "RETRY_SECONDS", 0)
    with faults.during(failing(*GET)) as impatient:
        assert refused(api(alice).get(paths.content(slug, "a.bin")))
    assert len(tries) == content_reader.MAX_ATTEMPTS * len(impatient)


def test_small_upload_that_never_reached_the_store_is_not_looked_for_there(
    faults: stores.Faults, api: Api, alice: User, slug: str
) -> None:
    """F-03: a store that is away is asked for nothing more, and no row waits for it."""
    with faults.during(failing("HEAD", "")) as seen:
        assert refused(put(api(alice), slug, SMALL))
    assert {environ["REQUEST_METHOD"] for environ in seen} == {"HEAD"}
    assert not Upload.objects.exists()


@pytest.mark.parametrize("request_kind", [LIST, DELETE], ids=["listing", "delete"])
def test_erasure_against_a_failing_store_is_tried_again(
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
        pytest.param(answering(*GET, "200 OK", b"<html>hello</html>"), 503, "storage_unavailable", id="error-page-with-200"),
    ],
)
def test_download_from_a_failing_store_is_told_before_the_first_byte(
    faults: stores.Faults, api: Api, alice: User, slug: str, fault: Callable[..., Any], status: int, code: str
) -> None:
    """F-06, F-10, F-11: and a store that is down, or the wrong one, makes no file a lost one."""
    put(api(alice), slug, SMALL)
    with faults.during(fault):
        answer = api(alice).get(paths.content(slug, "a.bin"))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert StoredFile.objects.get().status == ("missing" if code == "object_missing" else "ready")
    assert read(api(alice), slug) == SMALL
    invariants.check_all()
