"""Properties of the S3 store only: versions, retention, policies, multipart copies, credentials. On moto and on a real server."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pytest_django import Settings

from tests import stores
from tests.contents import random_bytes
from vault import stores as port
from vault.stores import NotEncrypted, Stat, StoreRefused, StoreUnavailable
from vault.stores.s3 import S3Store
from vault.stores.s3_client import PARTS_IN_FLIGHT
from vault.stores.s3_writer import MAX_PARTS, part_size


MIB = 1024**2
CONTENT = random_bytes(12 * MIB + 345)


def put(store: S3Store, key: str, content: bytes, *, encrypt: bool = False) -> Stat:
    writer = store.create(key, size=None, encrypt=encrypt)
    writer.write(content)
    return writer.commit()


def read(store: S3Store, key: str) -> bytes:
    _, body = store.open(key, start=0, length=len(CONTENT), etag=None)
    try:
        return b"".join(iter(lambda: body.read(MIB), b""))
    finally:
        body.close()


def kinds(store: S3Store, prefix: str) -> list[str]:
    return sorted(entry.kind for entry in store.entries(prefix))


# --- Versions, delete markers and uploads ---


@pytest.fixture
def versioned(endpoint: stores.Endpoint, s3: S3Store) -> S3Store:
    endpoint.client.put_bucket_versioning(Bucket=s3.bucket_name, VersioningConfiguration={"Status": "Enabled"})
    return s3


def fill(endpoint: stores.Endpoint, store: S3Store) -> None:
    """Creates versions with delete markers and an unfinished upload under a/, and one object under b/."""
    client, bucket = endpoint.client, store.bucket_name
    client.put_object(Bucket=bucket, Key="a/1", Body=b"old")
    client.delete_object(Bucket=bucket, Key="a/1")
    client.put_object(Bucket=bucket, Key="a/1", Body=b"newer")
    client.put_object(Bucket=bucket, Key="a/2", Body=b"2")
    client.delete_object(Bucket=bucket, Key="a/2")
    client.put_object(Bucket=bucket, Key="b/1", Body=b"1")
    upload = client.create_multipart_upload(Bucket=bucket, Key="a/3")["UploadId"]
    client.upload_part(Bucket=bucket, Key="a/3", UploadId=upload, PartNumber=1, Body=b"1")


def test_entries_include_versions_markers_and_uploads(endpoint: stores.Endpoint, versioned: S3Store) -> None:
    fill(endpoint, versioned)
    assert sorted((entry.kind, entry.key, entry.size) for entry in versioned.entries("a/")) == [
        ("marker", "a/1", 0), ("marker", "a/2", 0), ("object", "a/1", 5), ("upload", "a/3", 0), ("version", "a/1", 3),
        ("version", "a/2", 1),
    ]  # fmt: skip


def test_erase_leaves_no_version(endpoint: stores.Endpoint, versioned: S3Store) -> None:
    fill(endpoint, versioned)
    assert versioned.erase(versioned.entries("a/")) == []
    assert kinds(versioned, "a/") == []
    assert kinds(versioned, "b/") == ["object"]


@pytest.mark.needs("ceph")
def test_erase_in_a_bucket_with_suspended_versioning() -> None:
    endpoint = stores.ceph()  # moto fails to delete here
    with stores.buckets(endpoint, 1) as (name,):
        store = endpoint.store(name)
        for status in ("Enabled", "Suspended"):
            endpoint.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
            fill(endpoint, store)
        assert store.erase(store.entries("a/")) == []
        assert kinds(store, "a/") == []


@pytest.mark.parametrize("endpoint", [stores.CEPH], indirect=True)  # moto returns all uploads on one page
@pytest.mark.parametrize("uploads", [20, pytest.param(1001, marks=pytest.mark.long)])
def test_entries_and_erase_handle_more_than_a_thousand_of_each_kind(
    endpoint: stores.Endpoint, versioned: S3Store, uploads: int
) -> None:
    client, bucket, count = endpoint.client, versioned.bucket_name, 350

    def occupy(number: int) -> None:
        client.put_object(Bucket=bucket, Key=f"a/{number}", Body=b"1")
        client.put_object(Bucket=bucket, Key=f"a/{number}", Body=b"22")
        client.delete_object(Bucket=bucket, Key=f"a/{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(occupy, range(count)))
        list(threads.map(lambda number: client.create_multipart_upload(Bucket=bucket, Key=f"a/{number}"), range(uploads)))
    found = kinds(versioned, "a/")
    assert {kind: found.count(kind) for kind in set(found)} == {"version": 2 * count, "marker": count, "upload": uploads}
    assert versioned.erase(versioned.entries("a/")) == []
    assert kinds(versioned, "") == []


# --- Refusals of S3 ---


@pytest.fixture
def locked(endpoint: stores.Endpoint) -> Iterator[S3Store]:
    with stores.buckets(endpoint, 1, ObjectLockEnabledForBucket=True) as (name,):
        yield endpoint.store(name)


def test_erase_returns_objects_under_retention(endpoint: stores.Endpoint, locked: S3Store) -> None:
    for number in range(3):
        endpoint.client.put_object(Bucket=locked.bucket_name, Key=f"a/{number}", Body=b"1")
    endpoint.client.put_object(
        Bucket=locked.bucket_name,
        Key="a/locked",
        Body=b"1",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(hours=1),
    )
    (failure,) = locked.erase(locked.entries("a/"))
    assert (failure.entry.kind, failure.entry.key) == ("object", "a/locked")
    assert "AccessDenied" in failure.reason
    assert [entry.key for entry in locked.entries("a/")] == ["a/locked"]


def deny(endpoint: stores.Endpoint, bucket: str, key: str, *actions: str) -> None:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": [f"s3:{action}" for action in actions],
        "Resource": [f"arn:aws:s3:::{bucket}/{key}"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    endpoint.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


def test_erase_returns_objects_that_a_policy_protects(endpoint: stores.Endpoint, s3: S3Store) -> None:
    for number in range(3):
        put(s3, f"a/{number}", b"1")
    deny(endpoint, s3.bucket_name, "a/1", "DeleteObject", "DeleteObjectVersion")
    (failure,) = s3.erase(s3.entries("a/"))
    assert failure.entry.key == "a/1"
    assert "AccessDenied" in failure.reason
    assert [entry.key for entry in s3.entries("a/")] == ["a/1"]


@pytest.mark.needs("ceph")
def test_reading_and_writing_without_permission_is_refused() -> None:
    endpoint = stores.ceph()  # moto applies policies to GET and DELETE only
    with stores.buckets(endpoint, 1) as (name,):
        store = endpoint.store(name)
        put(store, "a/1", b"1")
        deny(endpoint, name, "*", "GetObject", "PutObject")
        with pytest.raises(StoreRefused):
            store.open("a/1", start=0, length=1, etag=None)
        with pytest.raises(StoreRefused):
            store.stat("a/1")
        with pytest.raises(StoreRefused):
            put(store, "a/2", b"1")
        with pytest.raises(StoreRefused):
            put(store, "a/2", CONTENT)


@pytest.mark.needs("ceph")
@pytest.mark.parametrize(("access_key", "secret_key"), [("nobody", "wrong"), (None, "wrong")], ids=["unknown", "wrong"])
def test_wrong_credentials_are_refused(access_key: str | None, secret_key: str) -> None:
    endpoint = stores.ceph()  # moto accepts any
    with stores.buckets(endpoint, 1) as (name,):
        store = S3Store(**endpoint.options(name) | {"access_key": access_key or endpoint.access_key, "secret_key": secret_key})
        with pytest.raises(StoreRefused):
            store.check()
        with pytest.raises(StoreRefused):
            store.open("a", start=0, length=1, etag=None)
        with pytest.raises(StoreRefused):
            list(store.entries(""))
        with pytest.raises(StoreRefused):
            put(store, "a", b"1")
        with pytest.raises(StoreRefused):
            put(store, "a", CONTENT)


def test_missing_credentials_are_refused(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    # Another region, so that the store does not share the cached client of other tests.
    anonymous = S3Store(bucket_name=s3.bucket_name, endpoint_url=s3.endpoint_url, region_name="eu-west-1")
    with pytest.raises(StoreRefused, match="NoCredentialsError"):
        anonymous.check()


# --- Writing and copying ---


def test_part_without_a_thread_fails_and_blocks_no_later_part(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-36."""
    none = ThreadPoolExecutor(1)
    none.shutdown()
    with monkeypatch.context() as patch:
        patch.setattr(s3.shared_client, "threads", none)
        s3.part_bytes = MIB
        for _ in range(2 * PARTS_IN_FLIGHT):  # more uploads than parts may be in flight
            writer = s3.create("a", size=None)
            with pytest.raises(StoreUnavailable, match="UploadPart"):
                writer.write(CONTENT)
            writer.abort()
    s3.part_bytes = 5 * MIB
    put(s3, "a", CONTENT)
    assert read(s3, "a") == CONTENT


def test_copy_in_parts_is_the_same_object(endpoint: stores.Endpoint, s3: S3Store) -> None:
    put(s3, "a", CONTENT)
    s3.copy_bytes = 5 * MIB  # the smallest part that S3 accepts
    stat = s3.copy("a", "b", source=s3)
    assert stat == s3.stat("b")
    assert stat.etag.endswith("-3")
    assert read(s3, "b") == CONTENT


def test_object_metadata_reveals_nothing_about_the_content(endpoint: stores.Endpoint, s3: S3Store) -> None:
    put(s3, "small", b"<html>")
    put(s3, "big", CONTENT)
    s3.copy_bytes = 5 * MIB
    s3.copy("big", "copy", source=s3)
    for key in ("small", "big", "copy"):
        found = endpoint.client.head_object(Bucket=s3.bucket_name, Key=key)
        assert found["ContentType"] == "application/octet-stream"
        assert found["Metadata"] == {}
        assert "ContentEncoding" not in found


@pytest.mark.parametrize("endpoint", ["moto"], indirect=True)  # the real server has no key management service
@pytest.mark.parametrize("content", [b"1", CONTENT], ids=["small", "big"])
def test_store_encrypts_on_request_only(endpoint: stores.Endpoint, s3: S3Store, content: bytes) -> None:
    for key, encrypt in (("asked", True), ("not-asked", False)):
        assert put(s3, key, content, encrypt=encrypt) == s3.stat(key)
        assert read(s3, key) == content
        found = endpoint.client.head_object(Bucket=s3.bucket_name, Key=key)
        assert found.get("ServerSideEncryption") == ("AES256" if encrypt else None)
    assert kinds(s3, "") == ["object", "object"]


@pytest.mark.parametrize("endpoint", [stores.CEPH], indirect=True)
@pytest.mark.parametrize("content", [b"1", CONTENT], ids=["small", "big"])
def test_store_without_encryption_refuses(s3: S3Store, content: bytes) -> None:
    with pytest.raises(NotEncrypted):
        put(s3, "asked", content, encrypt=True)
    assert kinds(s3, "") == []


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_both_checksum_settings_work(s3: S3Store, settings: Settings, checksums: str) -> None:
    """F-21: servers differ in the checksums that they accept."""
    settings.S3_CHECKSUMS = checksums
    s3.copy_bytes = 5 * MIB
    put(s3, "a/small", b"1")
    put(s3, "a/big", CONTENT)
    assert s3.copy("a/big", "a/copy", source=s3).size == len(CONTENT)
    assert read(s3, "a/small") == b"1"
    assert read(s3, "a/copy") == CONTENT
    assert s3.erase(s3.entries("a/")) == []
    assert kinds(s3, "") == []


def test_part_sizes_reach_every_object_size_within_ten_thousand_parts() -> None:
    """F-15."""
    eight = 8 * MIB
    sizes = [part_size(number, smallest=eight, expected=0) for number in range(1, MAX_PARTS + 1)]
    assert sizes[0] == sizes[2499] == eight
    assert (sizes[2500], sizes[5000], sizes[7500], sizes[-1]) == (2 * eight, 4 * eight, 8 * eight, 8 * eight)
    assert sum(sizes) > 290 * 1024**3
    five_tib = 5 * 1024**4
    assert sum(part_size(number, smallest=eight, expected=five_tib) for number in range(1, MAX_PARTS + 1)) >= five_tib
    assert part_size(1, smallest=eight, expected=2 * 1024**3) == eight
    with pytest.raises(StoreRefused):
        part_size(MAX_PARTS + 2, smallest=eight, expected=0)


# --- The shared client ---


def test_stores_of_an_endpoint_share_one_client_in_all_threads(endpoint: stores.Endpoint, bucket: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        services = set(threads.map(lambda _: id(endpoint.store(bucket).shared_client), range(16)))
    assert len(services) == 1
    other = S3Store(**endpoint.options(bucket) | {"secret_key": "other"})
    assert id(other.shared_client) not in services


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process_has_its_own_client(endpoint: stores.Endpoint, s3: S3Store) -> None:
    """Two processes that share a connection would read each other's responses."""
    put(s3, "a", CONTENT)  # starts threads for the parts, which the child does not inherit
    parent = s3.shared_client
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            put(s3, "b", CONTENT)
            os._exit(0 if s3.shared_client is not parent and read(s3, "b") == CONTENT else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert s3.shared_client is parent
    assert read(s3, "b") == CONTENT


def test_repr_contains_no_secret(endpoint: stores.Endpoint, bucket: str) -> None:
    secret = "do-not-show-this"
    store = S3Store(**endpoint.options(bucket) | {"secret_key": secret})
    assert secret not in repr(store.shared_client) + repr(store)


def test_django_storages_api_is_disabled(s3: S3Store) -> None:
    """It opens one connection per thread, and reads whole objects (T-3, T-13)."""
    put(s3, "a", b"1")
    for reach in (s3.exists, s3.listdir, s3.size, s3.get_modified_time, s3._open):
        with pytest.raises(NotImplementedError):
            reach("a")


# --- Django settings ---


def test_aliases_in_settings_are_s3_stores(endpoint: stores.Endpoint, settings: Settings) -> None:
    with stores.use_new_buckets(endpoint, settings) as buckets:
        port.check()
        port.ensure_buckets()
        for alias, name in buckets.items():
            store = port.get_store(alias)
            assert isinstance(store, S3Store)
            assert store.bucket_name == name
        vault, staging = port.get_store("vault"), port.get_store("staging")
        writer = vault.create("a", size=1)
        writer.write(b"1")
        writer.commit()
        assert staging.copy("a", "a", source=vault).size == 1


def test_ensure_buckets_creates_buckets_only_if_permitted(endpoint: stores.Endpoint, bucket: str, settings: Settings) -> None:
    with ExitStack() as stack:
        endpoint.client.delete_bucket(Bucket=bucket)
        settings.STORAGES = settings.STORAGES | {
            alias: {"BACKEND": "vault.stores.s3.S3Store", "OPTIONS": endpoint.options(bucket)} for alias in stores.ALIASES
        }
        stack.callback(endpoint.client.create_bucket, Bucket=bucket)  # for the fixture, which deletes it
        settings.S3_CREATE_BUCKETS = False
        with pytest.raises(StoreRefused, match="no such bucket"):
            port.ensure_buckets()
        with pytest.raises(StoreRefused, match="no such bucket"):
            port.check()
        settings.S3_CREATE_BUCKETS = True
        port.ensure_buckets()
        port.ensure_buckets()
        port.check()


def test_storage_that_is_no_object_store_is_refused(settings: Settings) -> None:
    backends: Any = {"BACKEND": "django.core.files.storage.InMemoryStorage"}
    settings.STORAGES = settings.STORAGES | {"other": backends}
    with pytest.raises(TypeError):
        port.get_store("other")
