"""Ciphertext out of the store, plaintext out of here: demand-driven, segment by segment, each one verified before it leaves.

The store is read no further ahead than the client has shown that it takes (T-5). A stream starts *buffered*: a window of a few
segments is fetched whole and the store's connection given back before the first byte of it is yielded, because a blocked `yield`
could not do so. A client that has proved fast gets one of a few *open* bodies, which are read while they are sent.
"""

import io
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Protocol

from django.core.files import File
from django.utils import timezone

from tenants.retries import pause
from vault import crypto, identity, keys
from vault.crypto import CorruptObject, Opener
from vault.errors import KeyUnavailable
from vault.models import Cipher, Key
from vault.stores import Body, ObjectStore, StoreUnavailable, get_store


MIB: Final = 1024 * 1024
BUFFERED_BYTES: Final = MIB  # at most so much ciphertext of one stream lies in memory
FAST_AFTER: Final = 2 * MIB  # the kernel's buffers take the first bytes of any client, however slow
FAST_RATE: Final = 4 * MIB  # bytes per second
OPEN_WINDOWS: Final = (4 * MIB, 64 * MIB)  # the first range read from an open body, and the largest; they double
OPEN_BODIES: Final = threading.BoundedSemaphore(32)
STALL_SECONDS: Final = 0.25  # a yield that takes longer gives the open body back
ATTEMPTS: Final = 4
PATIENCE: Final = 20  # seconds, after which nothing is tried again: the store's client has been patient already (F-04)


@dataclass(frozen=True)
class Content:
    """One object and how to open it. Holds no row, so that a stream may outlive the transaction it was authorised in."""

    store: ObjectStore
    key: str
    etag: str
    opener: Opener

    def read(self, start: int, stop: int, *, is_for_us: bool = False) -> Generator[bytes, None, None]:
        """Plaintext bytes [start, stop), in pieces of at most one segment; at least one piece, if only an empty one.

        With `is_for_us` it goes to no client, but to a worker, which need not show first that it takes a whole window.
        Raises FileNotFoundError, ObjectChanged or StoreUnavailable of the store, or CorruptObject, in place of a piece.
        """
        return _read(self, start, stop, is_for_us=is_for_us)


class ContentRow(Protocol):
    """What a row says of how its content is encrypted. Without its salt, the object is noise."""

    cipher: str
    segment_size: int  # ciphertext bytes of a full segment
    length: int  # plaintext bytes
    header: bytes | memoryview
    key_salt: bytes | memoryview
    key_commitment: bytes | memoryview

    @property
    def data_key(self) -> Key:
        """The key that this content's own is derived from."""

    @property
    def binding(self) -> crypto.Binding:
        """What the object is bound to: it opens for no other row."""


class StoredRow(ContentRow, Protocol):
    """A row that also says where its object is."""

    store: str  # STORAGES alias
    object_key: str
    object_etag: str


def associated_data(row: ContentRow) -> bytes:
    return crypto.associated_data(**row.binding._asdict(), cipher=row.cipher, segment_size=row.segment_size)


def encryptor_for(row: ContentRow) -> crypto.Sealer:
    """What a new content is written with; leaves salt, commitment and header on the row to be. Raises KeyUnavailable."""
    salt = row.key_salt = crypto.new_salt()
    aad = associated_data(row)
    key = crypto.derive_file_key(_open_data_key(row), key_salt=salt, aad=aad)
    row.key_commitment = key.commitment
    sealer: crypto.Sealer = crypto.PlainWriter()
    if row.cipher != Cipher.NONE:
        sealer = crypto.Encryptor(key.material, aad=aad, segment_size=row.segment_size)
    row.header = sealer.header
    return sealer


def decryptor_for(row: ContentRow) -> crypto.Opener:
    """What a content is read with. Raises KeyUnavailable; WrongKey if the row commits to another key, or to another cipher."""
    aad = associated_data(row)
    key = crypto.open_file_key(_open_data_key(row), key_salt=bytes(row.key_salt), aad=aad, commitment=bytes(row.key_commitment))
    layout = crypto.layout_of(row.cipher, length=row.length, segment_size=row.segment_size)
    if row.cipher == Cipher.NONE:  # and it always was: the commitment binds it
        return crypto.PlainReader(layout)
    return crypto.Decryptor(key.material, aad=aad, header=bytes(row.header), layout=layout)


def _open_data_key(row: ContentRow) -> bytes:
    try:
        return keys.open_key(row.data_key)
    except crypto.WrongKey as error:
        raise KeyUnavailable from error


def stored_content(row: StoredRow) -> Content:
    """The bytes of a row's object and the key to them. Raises KeyUnavailable; WrongKey if the row commits to another key; and
    what `identity.check` raises: a restored database shows nothing that may have been destroyed since."""
    return copied_content(row, store=row.store, key=row.object_key, etag=row.object_etag)


def copied_content(row: ContentRow, *, store: str, key: str, etag: str) -> Content:
    """As `stored_content`, of a copy of the object under another key or in another store. The row does not know of the copy."""
    identity.check(now=timezone.now())
    return Content(get_store(store), key, etag, decryptor_for(row))


class PlaintextFile(File):  # type: ignore[type-arg]  # outside the stubs, File takes no type argument
    """For code in this process: see `StoredFile.open`."""

    def __init__(self, content: Content, *, name: str) -> None:
        super().__init__(io.BufferedReader(_Raw(content)), name)
        self.size = content.opener.layout.length


class _Raw(io.RawIOBase):
    """Goes on from where the last read ended on one stream; a seek begins another."""

    def __init__(self, content: Content) -> None:
        self._content, self._length = content, content.opener.layout.length
        self._position = 0
        self._pieces: Generator[bytes, None, None] | None = None
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if position < 0:
            raise ValueError("a position is not negative")
        if position != self._position:
            self._drop()
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._length:
            return 0
        if self._pieces is None:
            self._pieces = self._content.read(self._position, self._length)
        while not self._left:
            self._left = memoryview(next(self._pieces))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self._position += count
        return count

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._pieces, self._left = None, memoryview(b"")


def _read(content: Content, start: int, stop: int, *, is_for_us: bool) -> Generator[bytes, None, None]:
    layout = content.opener.layout
    index, end = layout.index_of(start), layout.index_of(max(start, stop - 1)) + 1
    pace = _Pace(layout.segment_size, is_for_us=is_for_us)
    while index < end:
        if pace.is_fast and end - index > pace.window and OPEN_BODIES.acquire(blocking=False):
            try:
                with closing(_open(content, index, end)) as pieces:
                    for piece in pieces:
                        yield from pace.timed(_cut(piece, layout.offset_of(index), start, stop))
                        index += 1
                        if pace.stalled:
                            break
            finally:
                OPEN_BODIES.release()
        else:
            until = min(end, index + pace.window)
            data = _fetch(content, index, until)
            first = layout.object_range(index, index)[0]
            for _ in range(index, until):
                low, high = layout.object_range(index, index + 1)
                piece = content.opener.open(index, data[low - first : high - first])
                if index == until - 1:
                    del data  # a slow client's yield may last for minutes
                yield from pace.timed(_cut(piece, layout.offset_of(index), start, stop))
                index += 1
            pace.grow()


def _cut(piece: bytes, offset: int, start: int, stop: int) -> bytes:
    """The part of a segment's plaintext that lies in [start, stop); most lie in it whole and are not copied."""
    if offset >= start and offset + len(piece) <= stop:
        return piece
    return piece[max(0, start - offset) : max(0, stop - offset)]


class _Pace:
    """How fast the client takes what it is given, and what that allows."""

    def __init__(self, segment_size: int, *, is_for_us: bool) -> None:
        self._most = max(1, BUFFERED_BYTES // segment_size)
        self.window = self._most if is_for_us else 1  # segments of the next buffered read
        self.stalled = False
        self._segment_size = segment_size
        self._sent = 0
        self._since, self._sent_since = time.monotonic(), 0

    def timed(self, piece: bytes) -> Iterator[bytes]:
        began = time.monotonic()
        yield piece
        self.stalled = time.monotonic() - began > STALL_SECONDS
        self._sent += len(piece)
        self._sent_since += len(piece)

    @property
    def rate(self) -> float:
        """Bytes per second that the client has taken in the last window or the last second, store and all."""
        return self._sent_since / max(1e-6, time.monotonic() - self._since)

    @property
    def is_fast(self) -> bool:
        return self._sent >= FAST_AFTER and not self.stalled and self.rate > FAST_RATE

    def grow(self) -> None:
        """Next window: what the client takes in a second, and at most twice the last one."""
        self.window = min(self.window * 2, self._most, max(1, int(self.rate) // self._segment_size))
        if time.monotonic() - self._since > 1:
            self._since, self._sent_since = time.monotonic(), 0


def _fetch(content: Content, index: int, until: int) -> memoryview:
    """Segments [index, until) of the object, read whole; the connection is back in the pool when this returns."""
    low, high = content.opener.layout.object_range(index, until)
    if low == high:  # an empty NONE content: there is nothing to range over
        _check_size(content, content.store.stat(content.key).size)
        return memoryview(b"")
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            body = _body(content, low, high)
            try:
                return memoryview(_read_exactly(body, high - low))
            finally:
                body.close()
        except StoreUnavailable as error:
            _pause_or_raise(attempt, began, error)
    raise AssertionError("unreachable: the last attempt raises")


def _open(content: Content, index: int, end: int) -> Generator[bytes, None, None]:
    """Plaintext of segments [index, end) in turn from open bodies of growing ranges; goes on behind a storage error."""
    layout, window = content.opener.layout, OPEN_WINDOWS[0]
    attempt, began = 0, time.monotonic()
    while index < end:
        until = min(end, index + max(1, window // layout.segment_size))
        body: Body | None = None
        try:
            body = _body(content, *layout.object_range(index, until))
            while index < until:
                low, high = layout.object_range(index, index + 1)
                piece = content.opener.open(index, memoryview(_read_exactly(body, high - low)))
                index += 1
                yield piece
                attempt, began = 0, time.monotonic()
        except StoreUnavailable as error:
            _pause_or_raise(attempt, began, error)
            attempt += 1
        finally:
            if body is not None:
                body.close()
        window = min(2 * window, OPEN_WINDOWS[1])


def _body(content: Content, low: int, high: int) -> Body:
    stat, body = content.store.open(content.key, start=low, length=high - low, etag=content.etag or None)
    try:
        _check_size(content, stat.size)
    except BaseException:
        body.close()
        raise
    return body


def _check_size(content: Content, size: int) -> None:
    """A range that misses the last segment cannot see a cut or longer object by its tags (C-3)."""
    if size != content.opener.layout.object_size:
        raise CorruptObject(f"the object has {size} bytes instead of {content.opener.layout.object_size}")


def _read_exactly(body: Body, size: int) -> bytes:
    piece = body.read(size)
    if len(piece) == size:  # nearly always: no second copy
        return piece
    pieces, left = [piece], size - len(piece)
    while left > 0:
        if not piece:
            raise StoreUnavailable("the storage ended its answer early")
        piece = body.read(left)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _pause_or_raise(attempt: int, began: float, error: StoreUnavailable) -> None:
    """Waits a little longer each time; the last attempt's error stands."""
    if attempt >= ATTEMPTS - 1 or time.monotonic() - began > PATIENCE:
        raise error
    pause(attempt)
