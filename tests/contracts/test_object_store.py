"""The contract of every object store: the same tests run on a local directory, on moto and on a real S3 server."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import psutil
import pytest
from pytest_django import Settings

from tests.contents import random_bytes
from tests.stores import CEPH
from vault.stores import ObjectChanged, ObjectStore, Stat, StoreError, StoreRefused
from vault.stores.local import LocalStore
from vault.stores.s3 import S3Store


MIB = 1024**2
BIG = 2 * 8 * MIB + 12345  # two full parts and a partial one
CONTENT = random_bytes(BIG)
LONG = pytest.mark.long


def put(store: ObjectStore, key: str, content: bytes, *, size: int | None = None) -> Stat:
    writer = store.create(key, size=size)
    for start in range(0, len(content), 700_001):
        writer.write(content[start : start + 700_001])
    return writer.commit()


def read(
    store: ObjectStore, key: str, *, start: int = 0, length: int = 2 * BIG, etag: str | None = None, step: int = MIB
) -> bytes:
    _, body = store.open(key, start=start, length=length, etag=etag)
    try:
        return b"".join(iter(lambda: body.read(step), b""))
    finally:
        body.close()


def descriptors_return_to(count: int) -> bool:
    """Waits until at most `count` descriptors are open. moto runs in this process and closes its connections with a delay."""
    deadline = time.monotonic() + 10
    while psutil.Process().num_fds() > count and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(psutil.Process().num_fds() <= count)


def kinds(store: ObjectStore, prefix: str) -> list[tuple[str, str]]:
    return sorted((entry.kind, entry.key) for entry in store.entries(prefix))


# --- Writing ---


def round_trips(vault: ObjectStore, key: str, size: int, *, is_size_known: bool) -> bool:
    stat = put(vault, key, CONTENT[:size], size=size if is_size_known else None)
    return stat == vault.stat(key) and stat.size == size and (not size or read(vault, key) == CONTENT[:size])


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, *(pytest.param(size, marks=LONG) for size in (8 * MIB - 1, BIG))])
def test_commit_stores_exactly_the_written_bytes(vault: ObjectStore, prefix: str, size: int) -> None:
    assert round_trips(vault, prefix + "a", size, is_size_known=False)


@pytest.mark.parametrize("size", [0, BIG, *(pytest.param(size, marks=LONG) for size in (1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1))])
def test_commit_with_known_size_stores_exactly_the_written_bytes(vault: ObjectStore, prefix: str, size: int) -> None:
    assert round_trips(vault, prefix + "a", size, is_size_known=True)


def test_write_accepts_any_buffer_and_keeps_no_reference(vault: ObjectStore, prefix: str) -> None:
    writer = vault.create(prefix + "a", size=None)
    reused = bytearray(b"one ")
    writer.write(reused)
    reused[:] = b"two "
    writer.write(memoryview(reused))
    reused[:] = b"----"
    writer.write(b"")
    writer.write(b"three")
    assert writer.commit().size == 13
    assert read(vault, prefix + "a") == b"one two three"


def test_object_is_invisible_before_commit(vault: ObjectStore, prefix: str) -> None:
    writer = vault.create(prefix + "a", size=None)
    writer.write(CONTENT)
    with pytest.raises(FileNotFoundError):
        vault.stat(prefix + "a")
    assert kinds(vault, prefix) == [("upload", prefix + "a")]
    assert 0 < writer.bytes_stored <= BIG
    writer.commit()
    assert writer.bytes_stored == BIG
    assert kinds(vault, prefix) == [("object", prefix + "a")]


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, BIG])
def test_abort_leaves_no_data(vault: ObjectStore, prefix: str, size: int) -> None:
    writer = vault.create(prefix + "a", size=None)
    writer.write(CONTENT[:size])
    writer.abort()
    writer.abort()
    assert kinds(vault, prefix) == []


def test_abort_after_commit_has_no_effect(vault: ObjectStore, prefix: str) -> None:
    writer = vault.create(prefix + "a", size=1)
    writer.write(b"1")
    writer.commit()
    writer.abort()
    assert read(vault, prefix + "a") == b"1"


@pytest.mark.parametrize("size", [1, BIG])
def test_commit_refuses_an_existing_key(vault: ObjectStore, prefix: str, size: int) -> None:
    first, second = vault.create(prefix + "a", size=None), vault.create(prefix + "a", size=None)
    first.write(b"first")
    second.write(CONTENT[:size])
    first.commit()
    with pytest.raises(FileExistsError):
        second.commit()
    second.abort()
    assert read(vault, prefix + "a") == b"first"
    assert kinds(vault, prefix) == [("object", prefix + "a")]


def test_commit_of_many_parallel_writers(vault: ObjectStore, prefix: str) -> None:
    contents = [CONTENT[number : 9 * MIB + number] for number in range(12)]  # more writers than threads for parts
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda number: put(vault, f"{prefix}{number}", contents[number]), range(12)))
    for number, content in enumerate(contents):
        assert read(vault, f"{prefix}{number}") == content


KEYS_REFUSED = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\u202eb",
    "k" * 1025,
    "ü" * 513,
]


def test_every_operation_refuses_an_invalid_key(vault: ObjectStore, subtests: pytest.Subtests) -> None:
    for key in KEYS_REFUSED:
        with subtests.test(key=key):
            with pytest.raises(ValueError, match="a key"):
                vault.create(key, size=None)
            with pytest.raises(ValueError, match="a key"):
                vault.open(key, start=0, length=1, etag=None)
            with pytest.raises(ValueError, match="a key"):
                vault.stat(key)
            with pytest.raises(ValueError, match="a key"):
                vault.copy("a", key, source=vault)
            with pytest.raises(ValueError, match="a key"):
                vault.copy(key, "a", source=vault)


def test_create_accepts_a_key_of_1024_bytes(vault: ObjectStore, prefix: str) -> None:
    key = (prefix + "/".join(["k" * 100] * 10))[:1024].rstrip("/")
    key += "k" * (1024 - len(key))
    put(vault, key, b"1")
    assert read(vault, key) == b"1"


# --- Reading ---


def test_open_reads_exactly_the_range(vault: ObjectStore, prefix: str, subtests: pytest.Subtests) -> None:
    kept = put(vault, prefix + "a", CONTENT[:100])
    ranges = [(0, 1), (0, 100), (0, 101), (0, 10**15), (1, 98), (50, 1), (99, 1), (99, 5000)]
    for (start, length), step in product(ranges, [1, 7, 1000]):
        with subtests.test(start=start, length=length, step=step):
            stat, body = vault.open(prefix + "a", start=start, length=length, etag=None)
            pieces = []
            while piece := body.read(step):
                pieces.append(piece)
            body.close()
            assert stat == kept
            assert b"".join(pieces) == CONTENT[:100][start : start + length]
            assert all(len(piece) == step for piece in pieces[:-1])
    assert kept == vault.stat(prefix + "a")


def test_open_after_the_end_raises_object_changed(vault: ObjectStore, prefix: str) -> None:
    put(vault, prefix + "a", b"12345")
    with pytest.raises(ObjectChanged):
        vault.open(prefix + "a", start=5, length=1, etag=None)


def test_open_of_a_replaced_object_raises_object_changed(vault: ObjectStore, prefix: str) -> None:
    before = put(vault, prefix + "a", b"12345")
    assert read(vault, prefix + "a", etag=before.etag) == b"12345"
    assert vault.erase(vault.entries(prefix)) == []
    put(vault, prefix + "a", b"54321")
    with pytest.raises(ObjectChanged):
        vault.open(prefix + "a", start=0, length=1, etag=before.etag)


def test_missing_object_raises_file_not_found(vault: ObjectStore, staging: ObjectStore, prefix: str) -> None:
    put(vault, prefix + "folder/a", b"1")
    for key in (prefix + "b", prefix + "folder", prefix + "folder/b", prefix + "folder/a/b"):
        with pytest.raises(FileNotFoundError):
            vault.stat(key)
        with pytest.raises(FileNotFoundError):
            vault.open(key, start=0, length=1, etag=None)
        with pytest.raises(FileNotFoundError):
            staging.copy(key, key, source=vault)
    assert kinds(staging, prefix) == []


@pytest.fixture
def few_connections(settings: Settings) -> int:
    """The size of the connection pool. The tests open one body more, which fails if a body has not returned its connection."""
    settings.S3_MAX_CONNECTIONS = 3
    return 3


def test_closed_bodies_return_their_connection(few_connections: int, vault: ObjectStore, prefix: str) -> None:
    put(vault, prefix + "a", CONTENT)
    closed = []

    def use(how_much: int) -> None:
        _, body = vault.open(prefix + "a", start=0, length=BIG, etag=None)
        body.read(how_much)
        body.close()
        body.close()
        closed.append(body)

    use(1)
    before = psutil.Process().num_fds()
    for _ in range(few_connections + 1):
        use(1)
    use(BIG)
    assert descriptors_return_to(before + 4)


def test_unclosed_bodies_return_their_connection(few_connections: int, vault: ObjectStore, prefix: str) -> None:
    put(vault, prefix + "a", CONTENT)
    before = psutil.Process().num_fds()
    for _ in range(few_connections + 1):
        vault.open(prefix + "a", start=0, length=BIG, etag=None)
        gc.collect(0)
    assert descriptors_return_to(before + 4)


# --- Copying ---


@pytest.mark.parametrize("size", [0, 1, BIG])
def test_copy_is_the_same_object_in_another_bucket(vault: ObjectStore, staging: ObjectStore, prefix: str, size: int) -> None:
    put(vault, prefix + "a", CONTENT[:size])
    stat = staging.copy(prefix + "a", prefix + "b", source=vault)
    assert stat == staging.stat(prefix + "b")
    assert stat.size == size
    if size:
        assert read(staging, prefix + "b") == CONTENT[:size]
    assert kinds(vault, prefix) == [("object", prefix + "a")]
    assert vault.erase(vault.entries(prefix)) == []
    assert kinds(staging, prefix) == [("object", prefix + "b")]


def test_copy_refuses_an_existing_key(vault: ObjectStore, staging: ObjectStore, prefix: str) -> None:
    put(vault, prefix + "a", b"new")
    put(staging, prefix + "a", b"old")
    with pytest.raises(FileExistsError):
        staging.copy(prefix + "a", prefix + "a", source=vault)
    assert read(staging, prefix + "a") == b"old"
    assert kinds(staging, prefix) == [("object", prefix + "a")]


def test_copy_from_another_service_is_refused(vault: ObjectStore, prefix: str, tmp_path: object) -> None:
    stranger: ObjectStore = S3Store(bucket_name="b", endpoint_url="http://127.0.0.1:1", access_key="a", secret_key="b")
    with pytest.raises(TypeError):
        vault.copy(prefix + "a", prefix + "b", source=stranger)


# --- Listing and erasing ---


def test_entries_are_exactly_those_under_the_prefix(vault: ObjectStore, prefix: str) -> None:
    for key in ("aa/1", "ab/1", "ab/2/3", "ab2", "b"):
        put(vault, prefix + key, b"123")
    unfinished = vault.create(prefix + "ab/4", size=None)
    unfinished.write(CONTENT)
    other = vault.create(prefix + "b4", size=None)
    other.write(CONTENT)
    ab = [("object", prefix + "ab/1"), ("object", prefix + "ab/2/3")]
    assert kinds(vault, prefix + "ab/") == [*ab, ("upload", prefix + "ab/4")]
    assert kinds(vault, prefix + "ab") == [*ab, ("object", prefix + "ab2"), ("upload", prefix + "ab/4")]
    assert kinds(vault, prefix + "ab/2") == [("object", prefix + "ab/2/3")]
    assert len(kinds(vault, prefix)) == 7
    assert kinds(vault, prefix + "c/") == []
    (entry,) = vault.entries(prefix + "ab/1")
    assert entry.size == 3
    assert abs(entry.modified - datetime.now(UTC)) < timedelta(minutes=2)
    unfinished.abort()
    other.abort()


def test_erase_destroys_exactly_the_listed_entries(vault: ObjectStore, prefix: str) -> None:
    for key in ("a/1", "a/2", "b/1"):
        put(vault, prefix + key, b"1")
    unfinished = vault.create(prefix + "a/3", size=None)
    unfinished.write(CONTENT)
    listed = list(vault.entries(prefix + "a/"))
    put(vault, prefix + "a/4", b"1")
    assert vault.erase(listed) == []
    assert kinds(vault, prefix) == [("object", prefix + "a/4"), ("object", prefix + "b/1")]
    assert vault.erase(listed) == []  # erasing missing entries succeeds
    unfinished.abort()


def test_erase_of_an_active_upload_makes_it_fail(vault: ObjectStore, prefix: str) -> None:
    writer = vault.create(prefix + "a", size=None)
    writer.write(CONTENT)
    assert vault.erase(vault.entries(prefix)) == []
    with pytest.raises(StoreError):
        writer.commit()
    writer.abort()
    assert kinds(vault, prefix) == []


@pytest.mark.parametrize("pair", ["local", pytest.param("moto", marks=LONG), CEPH], indirect=True)  # listings in moto are slow
def test_entries_and_erase_handle_more_than_a_thousand(vault: ObjectStore, prefix: str) -> None:
    wanted = {f"{prefix}{number:04}" for number in range(1003)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: put(vault, key, b"1"), wanted))
    assert {entry.key for entry in vault.entries(prefix)} == wanted
    assert vault.erase(vault.entries(prefix)) == []  # while it is still listing
    assert kinds(vault, prefix) == []


# --- Other operations ---


def missing(store: ObjectStore, tmp_path: object) -> ObjectStore:
    """Returns a store of the same kind for a bucket that does not exist."""
    if isinstance(store, LocalStore):
        return LocalStore(location=f"{tmp_path}/none")
    assert isinstance(store, S3Store)
    return S3Store(
        bucket_name="test-none",
        **{
            name: getattr(store, name) for name in ("endpoint_url", "access_key", "secret_key", "region_name", "addressing_style")
        },
    )


def test_missing_bucket_differs_from_missing_objects(vault: ObjectStore, tmp_path: object) -> None:
    nowhere = missing(vault, tmp_path)
    with pytest.raises(StoreRefused):
        nowhere.stat("a")
    with pytest.raises(StoreRefused):
        nowhere.open("a", start=0, length=1, etag=None)
    with pytest.raises(StoreRefused):
        list(nowhere.entries(""))
    with pytest.raises(StoreRefused):
        nowhere.check()
    with pytest.raises(StoreRefused):
        put(nowhere, "a", b"1")
    with pytest.raises(StoreRefused):
        put(nowhere, "a", CONTENT)


def test_check_of_an_available_bucket(vault: ObjectStore) -> None:
    vault.check()
    vault.prepare(create=False)
    vault.prepare(create=True)


def test_clock_is_that_of_the_store(vault: ObjectStore) -> None:
    """F-65: an independent clock. A local directory has none."""
    time_of_store = vault.clock()
    if isinstance(vault, LocalStore):
        assert time_of_store is None
    else:
        assert time_of_store is not None
        assert abs(datetime.now(UTC) - time_of_store) < timedelta(seconds=10)


def test_django_storage_api_is_disabled(vault: ObjectStore, prefix: str) -> None:
    assert isinstance(vault, LocalStore | S3Store)
    put(vault, prefix + "a", b"1")
    for refused in (lambda: vault.save(prefix + "b", None), lambda: vault.url(prefix + "a"), lambda: vault.delete(prefix + "a")):
        with pytest.raises(NotImplementedError):
            refused()
    django_open: Any = vault.open
    with pytest.raises(TypeError):
        django_open(prefix + "a", "wb")
    assert kinds(vault, prefix) == [("object", prefix + "a")]
