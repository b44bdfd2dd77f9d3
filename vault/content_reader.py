"""Reads the plaintext of an object: on demand, segment by segment, each one verified before it is returned.

The store is read no further ahead than the client has shown that it takes (T-5). A stream starts *buffered*: a window of a few
segments is fetched whole, and the store's connection is returned before the first byte of it is yielded, because a blocked
`yield` cannot return it. A client that has proved fast gets one of a few *open* bodies, which are read while they are sent
(ADR 0007).
"""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from tenants.work.deadlocks import pause
from vault.crypto import CorruptObject, Decryptor
from vault.stores import ObjectBody, ObjectStore, StoreUnavailable


MIB: Final = 1024 * 1024
BUFFERED_BYTES: Final = MIB  # ciphertext of one stream in memory, at most
FAST_AFTER: Final = 2 * MIB  # the kernel's buffers take the first bytes of any client, however slow
FAST_RATE: Final = 4 * MIB  # bytes per second
OPEN_WINDOWS: Final = (4 * MIB, 64 * MIB)  # the first range read from an open body, and the largest; each is twice the one before
OPEN_BODIES: Final = threading.BoundedSemaphore(32)
STALL_SECONDS: Final = 0.25  # a yield that takes longer releases the open body
MAX_ATTEMPTS: Final = 4
RETRY_SECONDS: Final = 20  # no attempt begins later than this: the store's client has its own timeouts and retries (F-04)


@dataclass(frozen=True)
class Content:
    """One object and how to decrypt it. Holds no row, so that a stream may outlive the transaction that authorised it."""

    store: ObjectStore
    key: str  # of the object
    etag: str
    decryptor: Decryptor

    def read(self, start: int, stop: int, *, is_internal: bool = False) -> Generator[bytes, None, None]:
        """Plaintext bytes [start, stop), in pieces of at most one segment; at least one piece, which may be empty.

        `is_internal`: the reader is a worker and not a client, so that it gets a whole window from the start. Errors are raised
        in place of a piece.

        Raises: FileNotFoundError, ObjectChanged, StoreUnavailable, StoreRefused, CorruptObject.
        """
        layout = self.decryptor.layout
        index, end = layout.index_of(start), layout.index_of(max(start, stop - 1)) + 1
        pace = _Pace(layout.segment_size, is_internal=is_internal)
        while index < end:
            if pace.is_fast and end - index > pace.window and OPEN_BODIES.acquire(blocking=False):
                try:
                    with closing(_read_open(self, index, end)) as pieces:
                        for piece in pieces:
                            yield from pace.timed(_cut(piece, layout.offset_of(index), start, stop))
                            index += 1
                            if pace.stalled:
                                break
                finally:
                    OPEN_BODIES.release()
            else:
                until = min(end, index + pace.window)
                data = _fetch(self, index, until)
                first = layout.object_range(index, index)[0]
                for _ in range(index, until):
                    low, high = layout.object_range(index, index + 1)
                    piece = self.decryptor.decrypt(index, data[low - first : high - first])
                    if index == until - 1:
                        del data  # a slow client's yield may last for minutes
                    yield from pace.timed(_cut(piece, layout.offset_of(index), start, stop))
                    index += 1
                pace.grow()


def _cut(piece: bytes, offset: int, start: int, stop: int) -> bytes:
    """The part of a segment's plaintext that is in [start, stop). Most segments are in it as a whole and are not copied."""
    if offset >= start and offset + len(piece) <= stop:
        return piece
    return piece[max(0, start - offset) : max(0, stop - offset)]


class _Pace:
    """How fast the client takes what it gets, and how far ahead to read for it."""

    def __init__(self, segment_size: int, *, is_internal: bool) -> None:
        self._most = max(1, BUFFERED_BYTES // segment_size)
        self.window = self._most if is_internal else 1  # segments of the next buffered read
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
        """Bytes per second that the client has taken in the last window or second, the time for reading the store included."""
        return self._sent_since / max(1e-6, time.monotonic() - self._since)

    @property
    def is_fast(self) -> bool:
        return self._sent >= FAST_AFTER and not self.stalled and self.rate > FAST_RATE

    def grow(self) -> None:
        """The next window is what the client takes in a second, and at most twice the last window."""
        self.window = min(self.window * 2, self._most, max(1, int(self.rate) // self._segment_size))
        if time.monotonic() - self._since > 1:
            self._since, self._sent_since = time.monotonic(), 0


def _fetch(content: Content, index: int, until: int) -> memoryview:
    """The ciphertext of segments [index, until). The connection is back in the pool when this returns."""
    low, high = content.decryptor.layout.object_range(index, until)
    if low == high:  # an empty NONE content: no range of it exists
        _check_size(content, content.store.stat(content.key).size)
        return memoryview(b"")
    began = time.monotonic()
    for attempt in range(MAX_ATTEMPTS):
        try:
            body = _body(content, low, high)
            try:
                return memoryview(_read_exactly(body, high - low))
            finally:
                body.close()
        except StoreUnavailable as error:
            _pause_or_raise(attempt, began, error)
    raise AssertionError("unreachable: the last attempt raises")


def _read_open(content: Content, index: int, end: int) -> Generator[bytes, None, None]:
    """The plaintext of segments [index, end), from open bodies of growing ranges. Continues after a storage error."""
    layout, window = content.decryptor.layout, OPEN_WINDOWS[0]
    attempt, began = 0, time.monotonic()
    while index < end:
        until = min(end, index + max(1, window // layout.segment_size))
        body: ObjectBody | None = None
        try:
            body = _body(content, *layout.object_range(index, until))
            while index < until:
                low, high = layout.object_range(index, index + 1)
                piece = content.decryptor.decrypt(index, memoryview(_read_exactly(body, high - low)))
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


def _body(content: Content, low: int, high: int) -> ObjectBody:
    stat, body = content.store.open(content.key, start=low, length=high - low, etag=content.etag or None)
    try:
        _check_size(content, stat.size)
    except BaseException:
        body.close()
        raise
    return body


def _check_size(content: Content, size: int) -> None:
    """A range without the last segment does not show by its tags that the object is cut or longer (C-3)."""
    if size != content.decryptor.layout.object_size:
        raise CorruptObject(f"the object has {size} bytes instead of {content.decryptor.layout.object_size}")


def _read_exactly(body: ObjectBody, size: int) -> bytes:
    piece = body.read(size)
    if len(piece) == size:  # nearly always, and without a second copy
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
    """Waits a little longer after each attempt; raises the last attempt's error."""
    if attempt >= MAX_ATTEMPTS - 1 or time.monotonic() - began > RETRY_SECONDS:
        raise error
    pause(attempt)
