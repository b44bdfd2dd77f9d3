"""Objects in a local directory, with the guarantees of a bucket: whole or absent, written once, on the disk when committed."""

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

from vault.stores import Entry, Failure, ObjectChanged, ObjectStore, Stat, StoreRefused, StoreUnavailable, ThroughPort, check_key


# An unfinished object lies beside the place where it will be: same file system, found under the same prefix after a crash.
UNFINISHED: Final = re.compile(r"(?P<key>.+)\.(?P<upload>[0-9a-f]{32})\.unfinished")


class LocalStore(ThroughPort, FileSystemStorage):
    """A directory as an ObjectStore. Keys are paths in it, so that no key can be the folder of another."""

    @property
    def root(self) -> Path:
        return Path(self.location)

    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> "LocalWriter":
        """`encrypt` asks for nothing here: whether its disk is encrypted is not a directory's to say."""
        return LocalWriter(self, check_key(key))

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, "LocalBody"]:  # type: ignore[override]
        with translated(), self.opened(key) as (descriptor, stat):
            if etag is not None and etag != stat.etag:
                raise ObjectChanged("open: another etag")
            if start >= stat.size:
                raise ObjectChanged("open: it ends before the range")
            return stat, LocalBody(os.dup(descriptor), start=start, stop=min(stat.size, start + length))

    def stat(self, key: str) -> Stat:
        with translated(), self.opened(key) as (_, stat):
            return stat

    def copy(self, source_key: str, key: str, *, source: ObjectStore) -> Stat:
        if not isinstance(source, LocalStore):
            raise TypeError("only a local directory is copied into a local directory")
        check_key(key)
        with translated(), source.opened(source_key) as (descriptor, stat):
            writer = self.create(key, size=stat.size)
            try:
                writer.fill(descriptor, stat.size)
                return writer.commit()
            except BaseException:
                writer.abort()
                raise

    def entries(self, prefix: str) -> Iterator[Entry]:
        with translated():
            self.check()
            yield from self._walk(self.root / prefix.rpartition("/")[0], prefix)

    def erase(self, entries: Iterable[Entry]) -> list[Failure]:
        failures = []
        touched = set()
        for entry in entries:
            path = self._path(entry.key) if entry.kind == "object" else self._unfinished(entry.key, entry.version)
            try:
                touched.add(self._remove(path))
            except OSError as error:
                failures.append(Failure(entry, error.strerror or type(error).__name__))
        with translated():
            for folder in touched:
                with suppress(FileNotFoundError):  # emptied after all, by a later entry or by another process
                    sync_folder(folder)
        return failures

    def warm_up(self) -> None:
        """There is nothing to make."""

    def check(self) -> None:
        if not self.root.is_dir():
            raise StoreRefused("check: the directory does not exist")
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreRefused("check: the directory cannot be written")

    def clock(self) -> None:
        """It is this host's, which is asked already."""

    def prepare(self, *, create: bool) -> None:
        """A local directory is always created: nobody else can have meant another one."""
        with translated():
            make_folders(self.root)
        self.check()

    @contextmanager
    def opened(self, key: str) -> Iterator[tuple[int, Stat]]:
        """A descriptor of an object, and its Stat."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.check()  # a disk that is not mounted must not pass for a lost object
            raise
        try:
            if not modes.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(errno.ENOENT, "no object, but a folder", key)
            yield descriptor, stat_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def begin(self, key: str) -> tuple[int, Path]:
        """A new, unfinished file for an object."""
        path = self._unfinished(key, uuid.uuid4().hex)
        self.check()
        while True:
            # Whoever erases the last object of a folder removes it, perhaps before there is something of ours in it.
            with suppress(FileNotFoundError):
                make_folders(path.parent)
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def publish(self, unfinished: Path, key: str) -> Stat:
        """Gives a finished file its name. Unlike rename(), link() never replaces what is there."""
        path = self._path(key)
        os.link(unfinished, path)
        unfinished.unlink()
        sync_folder(path.parent)
        return stat_of(path.stat())

    def discard(self, unfinished: Path) -> None:
        self._remove(unfinished)

    def _path(self, key: str) -> Path:
        if UNFINISHED.fullmatch(check_key(key)):
            raise ValueError("a key does not look like an unfinished object")
        return self.root / key

    def _unfinished(self, key: str, upload: str) -> Path:
        path = self._path(key)
        return path.with_name(f"{path.name}.{upload}.unfinished")

    def _walk(self, folder: Path, prefix: str) -> Iterator[Entry]:
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:  # its last object went while we walked, or nothing was ever under this prefix
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
                        yield Entry("upload", key, unfinished["upload"], size, modified)
                    else:
                        yield Entry("object", key, "", size, modified)

    def _remove(self, path: Path) -> Path:
        """Removes a file and the folders that this emptied; returns the folder that is left."""
        path.unlink(missing_ok=True)
        folder = path.parent
        # Empty folders would keep the ids of what was purged, and there is one per collection.
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
    has_begun = True  # its file is there from the start

    def __init__(self, store: LocalStore, key: str) -> None:
        self.bytes_stored = 0
        self._store = store
        self._key = key
        with translated():
            self._descriptor, self._path = store.begin(key)
        self._is_open = True  # the descriptor
        self._is_settled = False  # committed or aborted

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        with translated():
            while rest:
                written = os.write(self._descriptor, rest)
                self.bytes_stored += written
                rest = rest[written:]

    def fill(self, source: int, size: int) -> None:
        """Takes `size` bytes from a descriptor inside the kernel."""
        with translated():
            while self.bytes_stored < size:
                sent = os.sendfile(self._descriptor, source, self.bytes_stored, size - self.bytes_stored)
                if sent == 0:
                    raise StoreUnavailable("copy: the source ended early")
                self.bytes_stored += sent

    def commit(self) -> Stat:
        with translated():
            os.fsync(self._descriptor)
            self._close()
            try:
                stat = self._store.publish(self._path, self._key)
            except FileNotFoundError:
                raise StoreRefused("commit: somebody erased the upload") from None
        self._is_settled = True
        return stat

    def abort(self) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        with suppress(OSError):
            self._close()
            self._store.discard(self._path)

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
        with translated():
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
        self.close()  # a generator that nobody finished leaves its descriptor to us


@contextmanager
def translated() -> Iterator[None]:
    """What the kernel says, as what the port says."""
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


def stat_of(status: os.stat_result) -> Stat:
    """Content is never rewritten, so size and time tell. No inode: a directory restored with its times is the same one."""
    return Stat(status.st_size, f"{status.st_size:x}-{status.st_mtime_ns:x}")


def make_folders(folder: Path) -> None:
    """Creates a folder and its parents for this user alone, and puts each new name on the disk."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
