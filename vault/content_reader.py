"""Reads the plaintext of an object: on demand, segment by segment, each one verified before it is returned.

The reader reads ahead only as far as the client has proved that it can receive (T-5). A stream starts *buffered*: the reader
fetches a window of a few segments and returns the store's connection before it yields the first byte, because a blocked `yield`
could not return it. A client that has proved fast gets one of a few *open* bodies, which are read while they are sent (ADR 0007).
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
BUFFERED_BYTES: Final = MIB  # maximum of ciphertext in memory for one stream
FAST_AFTER: Final = 2 * MIB  # the kernel buffers the first bytes even for a slow client
FAST_RATE: Final = 4 * MIB  # bytes per second
OPEN_WINDOWS: Final = (4 * MIB, 64 * MIB)  # the first and the largest range of an open body; each range doubles the previous one
OPEN_BODIES: Final = threading.BoundedSemaphore(32)
STALL_SECONDS: Final = 0.25  # a yield that takes longer releases the open body
MAX_ATTEMPTS: Final = 4
RETRY_SECONDS: Final = 20  # no attempt starts later than this; the store's client has its own timeouts and retries (F-04)


@dataclass(frozen=True)
class Content:
    """One object and its decryptor. It holds no row, so that a stream can outlive the transaction that authorised it."""

    store: ObjectStore
    key: str  # of the object
    etag: str
    decryptor: Decryptor

    def read(self, start: int, stop: int, *, is_internal: bool = False) -> Generator[bytes, None, None]:
        """Yields plaintext bytes [start, stop) in pieces of at most one segment; at least one piece, which may be empty.

        `is_internal`: the reader is a worker, so it starts with the largest window. Errors are raised in place of a piece.

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
                        del data  # the yield to a slow client can last for minutes
                    yield from pace.timed(_cut(piece, layout.offset_of(index), start, stop))
                    index += 1
                pace.grow()


def _cut(piece: bytes, offset: int, start: int, stop: int) -> bytes:
    """Returns the part of a segment's plaintext that is in [start, stop). A segment that is entirely in it is not copied."""
    if offset >= start and offset + len(piece) <= stop:
        return piece
    return piece[max(0, start - offset) : max(0, stop - offset)]


class _Pace:
    """Measures how fast the client receives data, and decides how far to read ahead."""

    def __init__(self, segment_size: int, *, is_internal: bool) -> None:
        self._max_window = max(1, BUFFERED_BYTES // segment_size)
        self.window = self._max_window if is_internal else 1  # segments of the next buffered read
        self.stalled = False
        self._segment_size = segment_size
        self._sent = 0
        self._since, self._sent_since = time.monotonic(), 0

    def timed(self, piece: bytes) -> Iterator[bytes]:
        started = time.monotonic()
        yield piece
        self.stalled = time.monotonic() - started > STALL_SECONDS
        self._sent += len(piece)
        self._sent_since += len(piece)

    @property
    def rate(self) -> float:
        """Bytes per second that the client has received in the last window or second. The time for reading the store counts."""
        return self._sent_since / max(1e-6, time.monotonic() - self._since)

    @property
    def is_fast(self) -> bool:
        return self._sent >= FAST_AFTER and not self.stalled and self.rate > FAST_RATE

    def grow(self) -> None:
        """Sets the next window to what the client receives in a second, but to at most twice the last window."""
        self.window = min(self.window * 2, self._max_window, max(1, int(self.rate) // self._segment_size))
        if time.monotonic() - self._since > 1:
            self._since, self._sent_since = time.monotonic(), 0


def _fetch(content: Content, index: int, until: int) -> memoryview:
    """Returns the ciphertext of segments [index, until), after it has returned the connection to the pool."""
    low, high = content.decryptor.layout.object_range(index, until)
    if low == high:  # an empty NONE content has no range to request
        _check_size(content, content.store.stat(content.key).size)
        return memoryview(b"")
    started = time.monotonic()
    for attempt in range(MAX_ATTEMPTS):
        try:
            body = _body(content, low, high)
            try:
                return memoryview(_read_exactly(body, high - low))
            finally:
                body.close()
        except StoreUnavailable as error:
            _pause_or_raise(attempt, started, error)
    raise AssertionError("unreachable: the last attempt raises")


def _read_open(content: Content, index: int, end: int) -> Generator[bytes, None, None]:
    """Yields the plaintext of segments [index, end) from open bodies with growing ranges. Continues after a storage error."""
    layout, window = content.decryptor.layout, OPEN_WINDOWS[0]
    attempt, started = 0, time.monotonic()
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
                attempt, started = 0, time.monotonic()
        except StoreUnavailable as error:
            _pause_or_raise(attempt, started, error)
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
    """Without the last segment, the tags of a range do not show that the object was truncated or extended (C-3)."""
    if size != content.decryptor.layout.object_size:
        raise CorruptObject(f"the object has {size} bytes instead of {content.decryptor.layout.object_size}")


def _read_exactly(body: ObjectBody, size: int) -> bytes:
    piece = body.read(size)
    if len(piece) == size:  # the usual case, without a second copy
        return piece
    pieces, left = [piece], size - len(piece)
    while left > 0:
        if not piece:
            raise StoreUnavailable("the storage ended the response early")
        piece = body.read(left)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _pause_or_raise(attempt: int, started: float, error: StoreUnavailable) -> None:
    """Waits longer after each attempt. Raises the error of the last attempt."""
    if attempt >= MAX_ATTEMPTS - 1 or time.monotonic() - started > RETRY_SECONDS:
        raise error
    pause(attempt)
