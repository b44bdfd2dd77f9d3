"""What only a bucket has, in the way of a purge: versions, markers, unfinished uploads, locks, and more keys than a page takes.

INV-07; F-17, F-18. On moto and on a real server.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from files.models import Collection
from purge import jobs
from tenants.models import User
from tests import stores
from tests.live.waiting import wait_for
from tests.services.purging import Api, assert_gone, end, fill, under, work_on
from vault.models import Key
from vault.stores import StoreEntry


pytestmark = pytest.mark.django_db(transaction=True)


class Vault:
    """alice's collection in a bucket of some server, and whoever else has to do with that bucket."""

    def __init__(self, endpoint: stores.Endpoint, bucket: str, collection: Collection) -> None:
        self.client, self.bucket, self.collection = endpoint.client, bucket, collection

    def set_versioning(self, status: Any) -> None:
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})

    def write(self, key: str) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=b"noise")

    def hide(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def assert_empty(self) -> None:
        """Of this collection, as the server itself says."""
        page = self.client.list_object_versions(Bucket=self.bucket, Prefix=self.collection.prefix)
        assert not page.get("Versions")
        assert not page.get("DeleteMarkers")
        assert not self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads")


@pytest.fixture(params=stores.SERVER_PARAMS)
def endpoint(request: pytest.FixtureRequest) -> stores.Endpoint:
    return stores.SERVERS[request.param]()


@pytest.fixture
def vault(endpoint: stores.Endpoint, settings: Settings, api: Api, alice: User, bob: User) -> Iterator[Vault]:
    with stores.use_new_buckets(endpoint, settings) as by_alias:
        yield Vault(endpoint, by_alias["vault"], fill(api(alice)))


# moto deletes other versions than it is asked for where versioning is suspended, and fails at markers.
STATUSES = [
    ("moto", "Enabled"),
    ("moto", "never"),
    *(pytest.param("ceph", status, marks=pytest.mark.needs("ceph")) for status in ("Enabled", "Suspended", "never")),
]


@pytest.mark.parametrize(("endpoint", "status"), STATUSES, indirect=["endpoint"])
def test_no_version_of_it_is_left_in_a_bucket(vault: Vault, status: str) -> None:
    """On a bucket with versions, on one whose versioning was suspended in between, and on one that never had any."""
    if status != "never":
        vault.set_versioning("Enabled")
    for key in [entry.key for entry in under(vault.collection)][:2]:  # somebody hid one, and wrote over it
        vault.hide(key)
        vault.write(key)
        if status == "Suspended":
            vault.set_versioning("Suspended")
            vault.hide(key)
            vault.write(key)
    vault.client.create_multipart_upload(Bucket=vault.bucket, Key=f"{vault.collection.prefix}unfinished")
    neighbour = f"{vault.collection.prefix[:-2]}/neighbour"
    vault.write(neighbour)

    end(vault.collection)

    assert_gone(vault.collection)
    vault.assert_empty()
    assert vault.client.head_object(Bucket=vault.bucket, Key=neighbour)["ContentLength"] == 5


@pytest.mark.long  # that a listing has more than one page is a contract of the stores
@pytest.mark.parametrize("is_versioned", [True, False])
def test_more_keys_than_a_page_and_a_request_take(vault: Vault, *, is_versioned: bool) -> None:
    """F-17: as deletions that failed, or somebody with a key to the bucket, may have left behind. No row knows of them."""
    count, each = 1001, [vault.write]
    if is_versioned:
        vault.set_versioning("Enabled")
        count, each = 401, [vault.write, vault.hide, vault.write]

    def occupy(number: int) -> None:
        for step in each:
            step(f"{vault.collection.prefix}{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(occupy, range(count)))

    destruction = end(vault.collection)

    assert_gone(vault.collection)
    vault.assert_empty()
    assert sum(destruction.shards.values_list("erased", flat=True)) == 3 + count * len(each)


# --- What is locked ---

Lift = Callable[[], None]


def keep_for_governance(vault: Vault, locked: StoreEntry) -> Lift:
    """Until somebody who may take it back does."""
    retain(vault, locked, "GOVERNANCE", timezone.now() + timedelta(hours=1))

    def lift() -> None:
        soon = timezone.now() + timedelta(seconds=1)
        retain(vault, locked, "GOVERNANCE", soon)
        wait_for(lambda: timezone.now() > soon + timedelta(seconds=1))

    return lift


def keep_for_compliance(vault: Vault, locked: StoreEntry) -> Lift:
    """Until the time is over, and nobody takes it back."""
    until = timezone.now() + timedelta(seconds=10)
    retain(vault, locked, "COMPLIANCE", until)
    return lambda: wait_for(lambda: timezone.now() > until + timedelta(seconds=1))


def retain(vault: Vault, locked: StoreEntry, mode: str, until: datetime) -> None:
    place: Any = {"Bucket": vault.bucket, "Key": locked.key, "VersionId": locked.version}
    lock: Any = {"Mode": mode, "RetainUntilDate": until}
    vault.client.put_object_retention(**place, Retention=lock, BypassGovernanceRetention=mode == "GOVERNANCE")


def hold(vault: Vault, locked: StoreEntry) -> Lift:
    """Until whoever placed it lifts it."""

    def say(status: Any) -> None:
        vault.client.put_object_legal_hold(
            Bucket=vault.bucket, Key=locked.key, VersionId=locked.version, LegalHold={"Status": status}
        )

    say("ON")
    return lambda: say("OFF")


@pytest.mark.parametrize(
    "lock", [hold, *(pytest.param(each, marks=pytest.mark.long) for each in (keep_for_governance, keep_for_compliance))]
)
def test_object_lock_blocks_and_is_said_so(
    endpoint: stores.Endpoint, settings: Settings, api: Api, alice: User, bob: User, lock: Callable[[Vault, StoreEntry], Lift]
) -> None:
    """Never called purged: what is locked is there, if only as noise."""
    with stores.buckets(endpoint, 1, ObjectLockEnabledForBucket=True) as (bucket,), stores.use_new_buckets(endpoint, settings):
        settings.STORAGES = settings.STORAGES | {
            "vault": {"BACKEND": "vault.stores.s3.S3Store", "OPTIONS": endpoint.options(bucket)}
        }
        november = fill(api(alice))
        locked = under(november)[0]
        lift = lock(Vault(endpoint, bucket, november), locked)

        destruction = end(november)

        assert destruction.status == "blocked"
        assert "AccessDenied" in destruction.blocked_by
        assert [entry.key for entry in under(november)] == [locked.key]
        assert Key.objects.get(pk=november.key_id).wrapped is None
        jobs.purge_expired(now=timezone.now())  # the next day changes nothing
        work_on()
        destruction.refresh_from_db()
        assert (destruction.status, destruction.certificate) == ("blocked", "")

        lift()
        jobs.purge_expired(now=timezone.now())
        work_on()
        assert_gone(november)
