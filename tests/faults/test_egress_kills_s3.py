"""Packaging is killed with SIGKILL during its upload to the real S3 server: one package in the end, and no leftover parts.

INV-13; F-14, F-27, F-56. Kills between other steps are in test_egress_kills.py.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest
from django.utils import timezone
from pytest_django import Settings

from tenants.models import Tenant, User
from tests import stores
from tests.contents import random_bytes
from tests.faults.test_egress_kills import KILLED, assert_released_once, build, die, run_in_child
from tests.needs import mark_dependents
from tests.services.egress import Api, approved, fill, go_on_given, make_reviewers, row
from tests.services.egress_world import undone
from vault import keys
from vault.models import Key
from vault.stores import get_store
from vault.stores.s3 import S3Store


if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
MIB: Final = 1024**2
PART: Final = 5 * MIB  # the smallest part that S3 accepts
FILES: Final = {"a.csv": b"a,1\n" * 100, "large.bin": random_bytes(12 * MIB)}  # a package of three parts
BEFORE, AFTER = "before-send", "response-received"  # botocore's events


class ReleaseBucket:
    """The release bucket, accessed without our own store."""

    def __init__(self, name: str) -> None:
        self.client: S3Client = stores.ceph().client
        self.name = name

    def uploads(self) -> list[int]:
        """Returns the number of parts of each unfinished upload."""
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        places: list[Any] = [{"Bucket": self.name, "Key": upload["Key"], "UploadId": upload["UploadId"]} for upload in found]
        return [len(self.client.list_parts(**place).get("Parts", [])) for place in places]

    def objects(self) -> list[str]:
        found = self.client.list_object_versions(Bucket=self.name)
        assert "DeleteMarkers" not in found
        return [version["Key"] for version in found.get("Versions", [])]

    def empty(self) -> None:
        for key in self.objects():
            self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture
@mark_dependents(pytest.mark.needs("ceph"))
def release(db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseBucket]:
    monkeypatch.setattr(S3Store, "part_bytes", PART)
    with stores.use_new_buckets(stores.ceph(), settings) as by_alias:
        yield ReleaseBucket(by_alias["release"])


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    # Otherwise the first build creates the key, and the builds differ.
    keys.ensure_signing_key(Key.Purpose.EGRESS, now=timezone.now())
    return make_reviewers(acme)


class KillingBody:
    """The body of a request that kills this process after its first pieces."""

    def __init__(self, body: Any) -> None:
        self._body, self._left = body, 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, size: int = -1) -> Any:
        self._left -= 1
        if self._left < 0:
            die()
        return self._body.read(size)


def killed_at(event: str, operation: str, number: int, *, is_inside: bool = False) -> Callable[[], None]:
    """Returns a function that prepares a kill of this process at request `number` of the operation.

    With `is_inside`, the kill happens while the process sends the body.
    """
    earlier = iter(range(number - 1))

    def on_event(request: Any = None, **_: Any) -> None:
        if next(earlier, None) is not None:
            return
        if not is_inside:
            die()
        request.body = KillingBody(request.body)

    def prepare() -> None:
        store = get_store("release")
        assert isinstance(store, S3Store)
        store.shared_client.client.meta.events.register(".".join(filter(None, (event, "s3", operation))), on_event)

    return prepare


def digest_without_kill(release: ReleaseBucket, request: Any) -> str:
    """Returns the digest of the request's package without a kill. Undoes the build afterwards."""
    with undone():
        assert build()
        digest = row(request).package_sha256
    release.empty()
    assert len(digest) == 64
    return digest


def assert_completes_with_digest(release: ReleaseBucket, request: Any, digest: str, api: Api, bob: User) -> None:
    go_on_given(16)
    assert_released_once(request, api(bob), FILES)
    assert row(request).package_sha256 == digest
    assert release.uploads() == []
    assert len(release.objects()) == len(set(release.objects()))


MOMENTS = {
    # The function that prepares the kill, the number of parts of each unfinished upload, and the number of objects left.
    "before-start": (killed_at(BEFORE, "CreateMultipartUpload", 1), [], 0),
    "after-start": (killed_at(AFTER, "CreateMultipartUpload", 1), [0], 0),
    "between-two-parts": (killed_at(BEFORE, "UploadPart", 2), [1], 0),
    "within-a-part": (killed_at(BEFORE, "UploadPart", 2, is_inside=True), [1], 0),
    "before-complete": (killed_at(BEFORE, "CompleteMultipartUpload", 1), [3], 0),
    "after-complete": (killed_at(AFTER, "CompleteMultipartUpload", 1), [], 1),
    "before-the-release": (killed_at(AFTER, "HeadObject", 2), [], 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_package_upload_killed_is_repeated_with_the_same_digest(
    release: ReleaseBucket, api: Api, bob: User, people: dict[str, User], moment: str
) -> None:
    """F-14, F-56."""
    prepare, uploads, objects = MOMENTS[moment]
    request = approved(api, bob, people, fill(api(bob), files=FILES))
    digest = digest_without_kill(release, request)
    assert run_in_child(prepare, build) == KILLED
    assert (release.uploads(), len(release.objects())) == (uploads, objects)
    assert row(request).status == "approved"
    assert_completes_with_digest(release, request, digest, api, bob)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("event", [BEFORE, AFTER])
def test_packaging_killed_at_any_request_to_the_store_is_completed_by_another_worker(
    release: ReleaseBucket, api: Api, bob: User, people: dict[str, User], event: str
) -> None:
    """F-27, F-56."""
    slug = fill(api(bob), files=FILES)
    for number in count(1):
        request = approved(api, bob, people, slug)
        ended = run_in_child(killed_at(event, "", number), build)
        assert ended in {0, KILLED}
        go_on_given(16)
        assert_released_once(request, api(bob), FILES)
        assert (release.uploads(), len(release.objects())) == ([], number)
        if ended == 0:
            break
    assert number > 10
