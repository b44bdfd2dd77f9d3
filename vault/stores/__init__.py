"""Where objects lie: the port that uploads, downloads, purge and sweep are written against. Ciphertext only passes here.

Aliases are Django `STORAGES`. `tests/contracts/test_object_store.py` is the contract, and runs on every implementation.
A missing object is FileNotFoundError; everything else that a store does to us is a StoreError.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol, runtime_checkable

from django.conf import settings
from django.core.files.storage import storages


MAX_KEY_BYTES: Final = 1024  # S3's limit; moto takes longer ones, so it is enforced here


class StoreError(Exception):
    """The store did not do what it was asked. The text names the operation and the store's code, never a credential."""


class StoreUnavailable(StoreError):
    """It may work later: no connection, a timeout, throttling, a 5xx, a body that broke off."""


class StoreRefused(StoreError):
    """It will not work by itself: bad credentials, no permission, no such bucket. Repeating it helps nobody (F-11)."""


class NotEncrypted(StoreRefused):
    """It takes no object that it is to encrypt by itself, or does not say that it does."""


class ObjectChanged(StoreError):
    """The object is not the one that was asked for: another ETag, or it ends before the first byte of the range."""


@dataclass(frozen=True, slots=True)
class Stat:
    """Size of the whole object in bytes, and its ETag without quotes."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that occupies a prefix. `version` is the version id of an object, version or marker, the id of an upload."""

    kind: Literal["object", "version", "marker", "upload"]
    key: str
    version: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Failure:
    entry: Entry
    reason: str
    may_pass: bool = False  # the store was busy or in trouble, and did not refuse


class Writer(Protocol):
    """One object that is being written. It exists for nobody before `commit` returned."""

    @property
    def bytes_stored(self) -> int:
        """Bytes that the store has acknowledged: it grows while an upload is alive."""

    @property
    def has_begun(self) -> bool:
        """Whether the store may hold anything of it. Until then there is nothing to clear away."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes any number of bytes, and keeps no reference to them."""

    def commit(self) -> Stat:
        """The object exists from here on. FileExistsError if its key is taken: objects are written once.

        StoreRefused if somebody erased the unfinished upload. After any error `abort` is still due.
        """

    def abort(self) -> None:
        """Nothing of an uncommitted object remains. Does nothing after `commit`, or the second time.

        Never raises a StoreError: callers have a better one in hand, and the sweep finds what a dead store kept.
        """


class Body(Protocol):
    """Bytes of one object. It occupies one of the process's few connections until it is closed."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the range, then b"". StoreUnavailable if the rest is missing."""

    def close(self) -> None: ...


@runtime_checkable
class ObjectStore(Protocol):
    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> Writer:
        """A writer for a new object of `size` bytes, None if nobody knows yet.

        `encrypt`: nobody has encrypted it, so that the store has to. NotEncrypted, before a byte of it leaves, unless it does.
        """

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, Body]:
        """Bytes [start, start + length) as far as the object goes, in one request. ObjectChanged unless it has this etag."""

    def stat(self, key: str) -> Stat: ...

    def copy(self, source_key: str, key: str, *, source: "ObjectStore") -> Stat:
        """Copies within the store's service, byte for byte, without passing this process."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Everything under a prefix, old versions and unfinished uploads included. Raises rather than leave any out (F-19)."""

    def erase(self, entries: Iterable[Entry]) -> list[Failure]:
        """Destroys exactly these entries and returns those that remain, with the store's reason. Gone already is success."""

    def warm_up(self) -> None:
        """Makes what the first request would otherwise wait for. Talks to nobody."""

    def check(self) -> None:
        """Raises StoreError unless the bucket answers."""

    def clock(self) -> datetime | None:
        """What time it is for the store, to the second; None if it does not say. StoreUnavailable if it does not answer."""

    def prepare(self, *, create: bool) -> None:
        """As `check`, and creates a missing bucket if it may."""


def get_store(alias: str) -> ObjectStore:
    store = storages[alias]
    if not isinstance(store, ObjectStore):
        raise TypeError(f"STORAGES[{alias!r}] keeps no objects")
    return store


def check() -> None:
    """Raises StoreError unless the vault answers: the readiness of this process."""
    get_store("vault").check()


def ensure_buckets() -> None:
    """Every bucket answers, or StoreError. Missing ones are created if S3_CREATE_BUCKETS allows it."""
    for alias in settings.BUCKETS:
        get_store(alias).prepare(create=settings.S3_CREATE_BUCKETS)


def check_key(key: str) -> str:
    """The key, or ValueError. Ours are uuids; this keeps a bug from becoming a path out of the directory or a 500."""
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"a key has at most {MAX_KEY_BYTES} bytes")
    if "\\" in key or not key.isprintable() or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError("a key is a relative path of printable characters, without empty parts, dots and backslashes")
    return key


class ThroughPort:
    """Refuses Django's own way to a storage: it reads whole files, publishes half-written ones and signs links (T-3)."""

    def save(self, *args: object, **kwargs: object) -> str:
        raise NotImplementedError("objects are written through create()")

    def delete(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("objects are destroyed through erase(), which also reaches their versions")

    def url(self, *args: object, **kwargs: object) -> str:
        raise NotImplementedError("objects have no links: every download passes this process")
