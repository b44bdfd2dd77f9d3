"""Properties of the local store only: folders, file modes, a full disk, files that change during a download."""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vault.stores import ObjectChanged, StoreEntry, StoreRefused, StoreUnavailable
from vault.stores.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(location=tmp_path)


def put(store: LocalStore, key: str, content: bytes) -> None:
    writer = store.create(key, size=None)
    try:
        writer.write(content)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def test_objects_are_accessible_to_the_owner_only(store: LocalStore) -> None:
    before = os.umask(0)
    try:
        put(store, "a/b/c", b"1")
    finally:
        os.umask(before)
    assert (store.root / "a/b/c").stat().st_mode & 0o777 == 0o600
    assert (store.root / "a").stat().st_mode & 0o777 == 0o700
    assert (store.root / "a/b").stat().st_mode & 0o777 == 0o700


def test_erase_and_abort_leave_no_folder_behind(store: LocalStore) -> None:
    """Folder names contain ids of collections, of which no trace may remain after a purge."""
    put(store, "a/b/c", b"1")
    writer = store.create("a/d/e", size=None)
    assert store.erase(store.entries("a/b/")) == []
    assert [path.name for path in (store.root / "a").iterdir()] == ["d"]
    writer.abort()
    assert list(store.root.iterdir()) == []


def test_objects_are_created_while_other_threads_remove_the_folder(store: LocalStore) -> None:
    """Each thread sometimes erases the last object of a folder in which another thread creates an object."""

    def create_and_erase(name: str) -> None:
        for _ in range(100):
            put(store, f"a/b/c/{name}", b"1")
            assert store.erase(store.entries(f"a/b/c/{name}")) == []

    with ThreadPoolExecutor() as pool:
        list(pool.map(create_and_erase, "defg"))
    assert list(store.root.iterdir()) == []


def test_erase_returns_failures_with_reasons(store: LocalStore) -> None:
    for key in "ac":
        put(store, key, b"1")
    (store.root / "b").mkdir()
    doomed = [StoreEntry("object", key, "", 1, datetime.now(UTC)) for key in "abc"]
    (failure,) = store.erase(doomed)
    assert failure.entry == doomed[1]
    assert failure.reason
    assert list(store.entries("")) == []


def test_commit_is_on_the_disk_before_it_returns(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs new folders, the content under a temporary name, and the final name, so that objects survive a power failure."""
    root, synced = str(store.root), []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(root), (store.root / "a/b/c").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(store, "a/b/c", b"1")
    folders, content, name = synced[:2], synced[2], synced[3]
    assert folders == [("", False), ("/a", False)]
    assert content[0].endswith(".unfinished")
    assert not content[1]
    assert name == ("/a/b", True)
    put(store, "a/b/d", b"1")
    synced.clear()
    assert store.erase([entry for entry in store.entries("a/b/") if entry.key.endswith("d")]) == []
    assert synced == [("/a/b", True)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_upload_of_a_killed_process_is_found_and_erased(store: LocalStore) -> None:
    """F-14: a process killed by SIGKILL does not abort its upload."""
    child = os.fork()
    if child == 0:
        store.create("a/b", size=None).write(b"123")
        os._exit(0)
    os.waitpid(child, 0)
    (entry,) = store.entries("a/")
    assert (entry.kind, entry.key, entry.size) == ("upload", "a/b", 3)
    assert store.erase([entry]) == []
    assert list(store.root.iterdir()) == []


def test_key_that_looks_like_an_upload_is_refused(store: LocalStore) -> None:
    with pytest.raises(ValueError, match="a key"):
        store.create("a." + "0" * 32 + ".unfinished", size=None)


def test_object_truncated_during_a_read_is_unavailable(store: LocalStore) -> None:
    put(store, "a", b"0123456789")
    stat, body = store.open("a", start=0, length=10, etag=None)
    assert body.read(5) == b"01234"
    os.truncate(store.root / "a", 7)
    with pytest.raises(StoreUnavailable):
        body.read(5)
    body.close()
    with pytest.raises(ObjectChanged):
        store.open("a", start=0, length=10, etag=stat.etag)


def test_overwritten_object_has_changed(store: LocalStore) -> None:
    put(store, "a", b"0123456789")
    before = store.stat("a")
    (store.root / "a").write_bytes(b"9876543210")
    with pytest.raises(ObjectChanged):
        store.open("a", start=0, length=10, etag=before.etag)


def test_restored_directory_holds_the_same_objects(store: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A backup that preserves modification times preserves ETags; the inode has no effect."""
    put(store, "a", b"0123456789")
    restored = LocalStore(location=tmp_path_factory.mktemp("restored"))
    original = store.root / "a"
    (restored.root / "a").write_bytes(original.read_bytes())
    os.utime(restored.root / "a", ns=(0, original.stat().st_mtime_ns))
    assert restored.stat("a") == store.stat("a")


def test_symbolic_link_is_not_followed(store: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    (store.root / "a").symlink_to(secret)
    with pytest.raises((StoreUnavailable, StoreRefused)):
        store.open("a", start=0, length=6, etag=None)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_unavailable_and_leaves_no_data(store: LocalStore) -> None:
    """F-35. Like a full disk, a limit on the file size makes a write fail midway."""
    with file_size_limit(100_000), pytest.raises(StoreUnavailable):
        put(store, "a/b", bytes(200_000))
    assert list(store.root.iterdir()) == []
    put(store, "a/b", bytes(200_000))
    with file_size_limit(100_000), pytest.raises(StoreUnavailable):
        store.copy("a/b", "a/c", source=store)
    assert [entry.key for entry in store.entries("")] == ["a/b"]
