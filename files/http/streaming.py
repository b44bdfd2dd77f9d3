"""The body of one streamed response, with a transfer slot, repeated access checks and a byte budget."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final, Protocol

from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection
from rest_framework.exceptions import APIException

from files.errors import TransfersFull


log = logging.getLogger(__name__)

CHECK_INTERVAL_SECONDS: Final = 3.0
MAX_UNCHECKED_SECONDS: Final = 60.0  # how long a stream continues while the database is unavailable for access checks


def return_connection() -> None:
    """Returns the database connection of this thread to the pool, unless it is in a transaction. On SQLite it stays open."""
    if not connection.in_atomic_block:
        close_old_connections()


class TransferEnded(Exception):
    """Ends a response early. The server closes the connection, so that the client sees an incomplete response."""


class Slots:
    """Limits the number of simultaneous transfers in this process, so that threads remain for other API requests."""

    def __init__(self, size: int) -> None:
        self._free = threading.BoundedSemaphore(size)

    def take(self) -> None:
        """Takes a slot without waiting.

        Raises: TransfersFull.
        """
        if not self._free.acquire(blocking=False):
            raise TransfersFull

    def release(self) -> None:
        self._free.release()


SLOTS: Final = Slots(settings.FILES_MAX_TRANSFERS)


class Meter(Protocol):
    """A byte budget for transfers."""

    def reserve(self, count: int, *, left: int) -> None:
        """Reserves the next `count` of the `left` remaining bytes of a transfer. Raises TransferEnded if the budget is used."""

    def refund(self) -> None:
        """Returns bytes to the budget that were reserved and not sent."""


class Transfer:
    """An iterator over the pieces of a response body. `length` is its size in bytes, or None if it is not known in advance.

    Calls `still_allowed` every few seconds (INV-16). Reserves each piece in the `meter` before it is sent, and refunds the rest
    at the end. `close` releases all resources once, however the response ends.
    """

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        *,
        length: int | None,
        still_allowed: Callable[[], bool],
        slots: Slots,
        meter: Meter | None = None,
    ) -> None:
        self.length = length
        self._pieces, self._still_allowed, self._meter = pieces, still_allowed, meter
        self._slots: Slots | None = slots
        self._sent = 0
        self._checked = self._answered = time.monotonic()
        slots.take()
        try:
            # Fetch and verify the first piece before the response starts, so that a failure can still be reported as an error.
            self._first: bytes | None = next(pieces, b"")
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if time.monotonic() - self._checked > CHECK_INTERVAL_SECONDS:
            self._check()
        piece, self._first = (self._first, None) if self._first is not None else (self._next(), None)
        if self._meter:
            try:
                self._meter.reserve(len(piece), left=len(piece) if self.length is None else self.length - self._sent)
            except (OperationalError, InterfaceError):
                raise TransferEnded("the database is unavailable, so no bytes could be reserved") from None
        self._sent += len(piece)
        return piece

    def _next(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            if self.length not in {None, self._sent}:
                raise TransferEnded("the content ended early") from None
            raise
        except TransferEnded:
            raise
        except Exception as error:
            log.error("a transfer failed", extra={"error": type(error).__name__, "sent": self._sent, "length": self.length})
            raise TransferEnded(type(error).__name__) from error

    def _check(self) -> None:
        asked = time.monotonic()
        try:
            allowed = self._still_allowed()
        except APIException:
            allowed = False
        except (OperationalError, InterfaceError):
            if asked - self._answered > MAX_UNCHECKED_SECONDS:
                raise TransferEnded("the database is unavailable, so access could not be checked") from None
            return
        finally:
            return_connection()
            self._checked = time.monotonic()  # not `asked`: after a slow check, each piece would cause another one
        self._answered = asked
        if not allowed:
            raise TransferEnded("the reader no longer has access")

    def close(self) -> None:
        slots, self._slots = self._slots, None
        if slots is None:
            return
        try:
            self._pieces.close()
            if self._meter:
                self._meter.refund()
        except (OperationalError, InterfaceError):
            # Budgets have an allowance for this case, as for a killed process.
            log.warning("a transfer could not refund its reserved bytes")
        finally:
            slots.release()
            return_connection()
