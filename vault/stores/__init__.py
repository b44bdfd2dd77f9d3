"""The object store port: the interface through which uploads, downloads, purge and sweep access objects, as ciphertext.

Aliases are those of Django's `STORAGES`. The contract is `tests/contracts/test_object_store.py`, which runs on every
implementation. A missing object is FileNotFoundError; every other failure of a store is a StoreError.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol, runtime_checkable

from django.conf import settings
from django.core.files.storage import storages


MAX_KEY_BYTES: Final = 1024  # S3's limit; moto accepts longer keys, so it is enforced here (S-3)


class StoreError(Exception):
    """The store did not perform an operation. The text names the operation and the store's code, never a credential."""


class StoreUnavailable(StoreError):
    """A later attempt may succeed: no connection, a timeout, throttling, a 5xx, a truncated body."""


class StoreRefused(StoreError):
    """A retry does not help: wrong credentials, no permission, no such bucket (F-11)."""


class NotEncrypted(StoreRefused):
    """The store refuses to encrypt an object, or does not confirm the encryption."""


class ObjectChanged(StoreError):
    """The object is not the one that was requested: it has another ETag, or it ends before the first byte of the range."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The size of the whole object in bytes, and its ETag without quotes."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One thing that occupies a prefix. `version` is the version id of an object, version or marker, or the id of an upload."""

    kind: Literal["object", "version", "marker", "upload"]
    key: str
    version: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class EraseFailure:
    """An entry that remains, and the store's reason."""

    entry: StoreEntry
    reason: str
    is_transient: bool = False  # the store did not refuse: it was busy or had an internal error


class ObjectWriter(Protocol):
    """Writes one object, which does not exist before `commit` has returned."""

    @property
    def bytes_stored(self) -> int:
        """Bytes that the store has acknowledged. It grows while an upload makes progress."""

    @property
    def has_begun(self) -> bool:
        """Whether the store may contain any part of the object. If not, nothing has to be removed."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes any number of bytes. Keeps no reference to them.

        Raises: StoreUnavailable, StoreRefused, NotEncrypted.
        """

    def commit(self) -> Stat:
        """Creates the object. FileExistsError means that its key is taken: objects are written once. StoreRefused can mean that
        another process has removed the unfinished upload. After any error, call `abort`.

        Raises: FileExistsError, StoreUnavailable, StoreRefused, NotEncrypted.
        """

    def abort(self) -> None:
        """Removes all of an uncommitted object. Does nothing after `commit`, or the second time.

        Never raises a StoreError: the caller is handling another error, and the sweep finds what a failed store has kept.
        """


class ObjectBody(Protocol):
    """Bytes of one object. Until it is closed, it occupies one of the few connections of the process."""

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes; fewer at the end of the range, then b"". StoreUnavailable: the rest is missing.

        Raises: StoreUnavailable.
        """

    def close(self) -> None: ...


@runtime_checkable
class ObjectStore(Protocol):
    """A bucket, or a store with the same guarantees."""

    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> ObjectWriter:
        """Returns a writer for a new object of `size` bytes; None if the size is unknown.

        `encrypt`: the bytes are plaintext, which the store must encrypt. Unless the store confirms this, the writer raises
        NotEncrypted before any byte leaves the process.

        Raises: ValueError, StoreUnavailable, StoreRefused.
        """

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, ObjectBody]:
        """Requests bytes [start, start + length), or up to the object's end. ObjectChanged: the object has another ETag.

        Raises: FileNotFoundError, ObjectChanged, StoreUnavailable, StoreRefused.
        """

    def stat(self, key: str) -> Stat:
        """Returns the size and the ETag of an object.

        Raises: FileNotFoundError, StoreUnavailable, StoreRefused.
        """

    def copy(self, source_key: str, key: str, *, source: "ObjectStore") -> Stat:
        """Copies an object byte for byte inside the storage service, not through this process.

        Raises: FileNotFoundError, FileExistsError, ObjectChanged, StoreUnavailable, StoreRefused.
        """

    def entries(self, prefix: str) -> Iterator[StoreEntry]:
        """Yields everything under a prefix, including old versions and unfinished uploads. Never omits an entry silently (F-19).

        Raises: StoreUnavailable, StoreRefused.
        """

    def erase(self, entries: Iterable[StoreEntry]) -> list[EraseFailure]:
        """Deletes exactly these entries, and returns those that remain. An entry that no longer exists counts as deleted.

        Raises: StoreUnavailable.
        """

    def warm_up(self) -> None:
        """Creates the client, for which the first request would otherwise wait. Sends no request."""

    def check(self) -> None:
        """Checks that the bucket is available.

        Raises: StoreUnavailable, StoreRefused.
        """

    def clock(self) -> datetime | None:
        """The store's current time, to the second; None if the store does not state it.

        Raises: StoreUnavailable.
        """

    def prepare(self, *, create: bool) -> None:
        """Like `check`, but first creates a missing bucket if `create` is set.

        Raises: StoreUnavailable, StoreRefused.
        """


def get_store(alias: str) -> ObjectStore:
    """Returns the object store of a STORAGES alias.

    Raises: TypeError.
    """
    store = storages[alias]
    if not isinstance(store, ObjectStore):
        raise TypeError(f"STORAGES[{alias!r}] is not an object store")
    return store


def check() -> None:
    """Checks that the vault's bucket is available, which is a condition for readiness.

    Raises: StoreUnavailable, StoreRefused.
    """
    get_store("vault").check()


def ensure_buckets() -> None:
    """Checks that every bucket is available. Creates missing ones if S3_CREATE_BUCKETS is set.

    Raises: StoreUnavailable, StoreRefused.
    """
    for alias in settings.BUCKETS:
        get_store(alias).prepare(create=settings.S3_CREATE_BUCKETS)


def check_key(key: str) -> str:
    """Returns the key if it is valid. Our keys consist of UUIDs; the check keeps a bug from becoming a path traversal.

    Raises: ValueError.
    """
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"a key must have at most {MAX_KEY_BYTES} bytes")
    if "\\" in key or not key.isprintable() or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError("a key must be a relative path of printable characters, without '.', '..', empty parts and backslashes")
    return key


class PortOnly:
    """Disables Django's storage API, which reads whole files, publishes truncated ones and presigns links (T-3)."""

    def save(self, *args: object, **kwargs: object) -> str:
        raise NotImplementedError("objects are written through create()")

    def delete(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("objects are deleted through erase(), which also deletes their versions")

    def url(self, *args: object, **kwargs: object) -> str:
        raise NotImplementedError("objects have no URLs: every download passes through this process")
