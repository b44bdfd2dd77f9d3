"""Objects in a local directory, with the guarantees of a bucket: complete or absent, written once, durable once committed."""

import errno
import os
import re
import stat as modes
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from django.core.files.storage import FileSystemStorage

from vault.stores import (
    EraseFailure,
    ObjectChanged,
    ObjectStore,
    PortOnly,
    Stat,
    StoreEntry,
    StoreRefused,
    StoreUnavailable,
    check_key,
)


# An unfinished object is next to its final place: on the same file system, and under the same prefix after a crash.
UNFINISHED: Final = re.compile(r"(?P<key>.+)\.(?P<upload>[0-9a-f]{32})\.unfinished")


class LocalStore(PortOnly, FileSystemStorage):
    """A directory as an ObjectStore. Keys are paths in it, so a key cannot be a prefix folder of another key."""

    @property
    def root(self) -> Path:
        return Path(self.location)

    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> "LocalWriter":
        """`encrypt` has no effect: whether the disk is encrypted is unknown."""
        return LocalWriter(self, check_key(key))

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, "LocalBody"]:  # type: ignore[override]
        with port_errors(), self.opened_object(key) as (descriptor, stat):
            if etag is not None and etag != stat.etag:
                raise ObjectChanged("open: the object has another ETag")
            if start >= stat.size:
                raise ObjectChanged("open: the object ends before the range")
            return stat, LocalBody(os.dup(descriptor), start=start, stop=min(stat.size, start + length))

    def stat(self, key: str) -> Stat:
        with port_errors(), self.opened_object(key) as (_, stat):
            return stat

    def copy(self, source_key: str, key: str, *, source: ObjectStore) -> Stat:
        if not isinstance(source, LocalStore):
            raise TypeError("objects are copied to a local directory only from another local directory")
        check_key(key)
        with port_errors(), source.opened_object(source_key) as (descriptor, stat):
            writer = self.create(key, size=stat.size)
            try:
                writer.fill(descriptor, stat.size)
                return writer.commit()
            except BaseException:
                writer.abort()
                raise

    def entries(self, prefix: str) -> Iterator[StoreEntry]:
        with port_errors():
            self.check()
            yield from self._walk(self.root / prefix.rpartition("/")[0], prefix)

    def erase(self, entries: Iterable[StoreEntry]) -> list[EraseFailure]:
        failures = []
        touched = set()
        for entry in entries:
            path = self._path(entry.key) if entry.kind == "object" else self._unfinished(entry.key, entry.version)
            try:
                touched.add(self._remove(path))
            except OSError as error:
                failures.append(EraseFailure(entry, error.strerror or type(error).__name__))
        with port_errors():
            for folder in touched:
                with suppress(FileNotFoundError):  # a later entry, or another process, has emptied and removed it
                    _sync_folder(folder)
        return failures

    def warm_up(self) -> None:
        """Does nothing: there is no client."""

    def check(self) -> None:
        if not self.root.is_dir():
            raise StoreRefused("check: the directory does not exist")
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreRefused("check: the directory cannot be written")

    def clock(self) -> None:
        """Returns None: the directory has no clock other than that of this host."""

    def prepare(self, *, create: bool) -> None:
        """Creates the directory even if `create` is not set: unlike a bucket, it cannot belong to another owner."""
        with port_errors():
            _make_folders(self.root)
        self.check()

    @contextmanager
    def opened_object(self, key: str) -> Iterator[tuple[int, Stat]]:
        """Opens an object: yields its descriptor, which is closed at the end of the block, and its Stat."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.check()  # a disk that is not mounted must not look like a missing object
            raise
        try:
            if not modes.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not an object, but a folder", key)
            yield descriptor, _stat(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def begin_upload(self, key: str) -> tuple[int, Path]:
        """Creates an unfinished file for a new object. Returns its descriptor and its path."""
        path = self._unfinished(key, uuid.uuid4().hex)
        self.check()
        while True:
            # A process that erases the last object of a folder also removes the folder, perhaps before our file is in it.
            with suppress(FileNotFoundError):
                _make_folders(path.parent)
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def publish(self, unfinished: Path, key: str) -> Stat:
        """Moves a finished file to its final name. Unlike rename(), link() never replaces an existing file."""
        path = self._path(key)
        os.link(unfinished, path)
        unfinished.unlink()
        _sync_folder(path.parent)
        return _stat(path.stat())

    def discard_upload(self, unfinished: Path) -> None:
        self._remove(unfinished)

    def _path(self, key: str) -> Path:
        if UNFINISHED.fullmatch(check_key(key)):
            raise ValueError("a key must not have the form of an unfinished object")
        return self.root / key

    def _unfinished(self, key: str, upload: str) -> Path:
        path = self._path(key)
        return path.with_name(f"{path.name}.{upload}.unfinished")

    def _walk(self, folder: Path, prefix: str) -> Iterator[StoreEntry]:
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:  # there is no object under this prefix, or the last one was erased meanwhile
            return
        for item in found:
            key = str(Path(item.path).relative_to(self.root))
            if item.is_dir(follow_symlinks=False):
                if f"{key}/".startswith(prefix):
                    yield from self._walk(Path(item.path), prefix)
                continue
            unfinished = UNFINISHED.fullmatch(key)
            if unfinished:
                key = unfinished["key"]
            if key.startswith(prefix):
                with suppress(FileNotFoundError):
                    size, at = item.stat(follow_symlinks=False).st_size, item.stat(follow_symlinks=False).st_mtime
                    modified = datetime.fromtimestamp(at, UTC)
                    if unfinished:
                        yield StoreEntry("upload", key, unfinished["upload"], size, modified)
                    else:
                        yield StoreEntry("object", key, "", size, modified)

    def _remove(self, path: Path) -> Path:
        """Removes a file and the folders that become empty; returns the innermost folder that remains."""
        path.unlink(missing_ok=True)
        folder = path.parent
        # The name of an empty folder would preserve the id of a purged collection.
        while folder != self.root:
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                break
            folder = folder.parent
        return folder


class LocalWriter:
    has_begun = True  # the unfinished file exists from the start

    def __init__(self, store: LocalStore, key: str) -> None:
        self.bytes_stored = 0
        self._store = store
        self._key = key
        with port_errors():
            self._descriptor, self._path = store.begin_upload(key)
        self._is_open = True  # the descriptor
        self._is_done = False  # committed or aborted

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        with port_errors():
            while rest:
                written = os.write(self._descriptor, rest)
                self.bytes_stored += written
                rest = rest[written:]

    def fill(self, source: int, size: int) -> None:
        """Copies `size` bytes from a descriptor inside the kernel."""
        with port_errors():
            while self.bytes_stored < size:
                sent = os.sendfile(self._descriptor, source, self.bytes_stored, size - self.bytes_stored)
                if sent == 0:
                    raise StoreUnavailable("copy: the source ended early")
                self.bytes_stored += sent

    def commit(self) -> Stat:
        with port_errors():
            os.fsync(self._descriptor)
            self._close()
            try:
                stat = self._store.publish(self._path, self._key)
            except FileNotFoundError:
                raise StoreRefused("commit: the unfinished upload was erased") from None
        self._is_done = True
        return stat

    def abort(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        with suppress(OSError):
            self._close()
            self._store.discard_upload(self._path)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)


class LocalBody:
    def __init__(self, descriptor: int, *, start: int, stop: int) -> None:
        self._descriptor = descriptor
        self._at = start
        self._stop = stop
        self._is_open = True

    def read(self, size: int) -> bytes:
        wanted = min(size, self._stop - self._at)
        with port_errors():
            data = os.pread(self._descriptor, wanted, self._at)
        if len(data) < wanted:
            raise StoreUnavailable("read: the object ended early")
        self._at += len(data)
        return data

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def __del__(self) -> None:
        self.close()  # for a generator that was not run to its end


@contextmanager
def port_errors() -> Iterator[None]:
    """Translates errors of the operating system into errors of the port."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", error.filename) from None
    except PermissionError as error:
        raise StoreRefused(f"local: {error.strerror}") from error
    except OSError as error:
        raise StoreUnavailable(f"local: {error.strerror}") from error


def _stat(status: os.stat_result) -> Stat:
    """The ETag consists of size and modification time, because no object is rewritten. A restored backup keeps both, but not the
    inode."""
    return Stat(status.st_size, f"{status.st_size:x}-{status.st_mtime_ns:x}")


def _make_folders(folder: Path) -> None:
    """Creates a folder and its parents, accessible to this user only, and syncs each new name to the disk."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
