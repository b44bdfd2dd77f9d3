"""One response's bytes, and what holds while they flow: a slot, the right to go on, and a budget that is paid in advance."""

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
MAX_UNCHECKED_SECONDS: Final = 60.0  # so long a stream goes on while the database does not answer whether it may


def return_connection() -> None:
    """Gives this thread's database connection back to the pool, unless a transaction needs it. SQLite's stays open."""
    if not connection.in_atomic_block:
        close_old_connections()


class TransferEnded(Exception):
    """Raised into the server in place of the next piece: the response ends visibly short of its Content-Length."""


class Slots:
    """How many transfers this process carries at once; the rest of its threads answer the API."""

    def __init__(self, size: int) -> None:
        self._free = threading.BoundedSemaphore(size)

    def take(self) -> None:
        if not self._free.acquire(blocking=False):
            raise TransfersFull

    def release(self) -> None:
        self._free.release()


SLOTS: Final = Slots(settings.FILES_MAX_TRANSFERS)


class Meter(Protocol):
    def reserve(self, count: int, *, left: int) -> None:
        """Pays for the next `count` of the `left` bytes to come. Raises TransferEnded when the budget is used up."""

    def refund(self) -> None:
        """Takes back what was paid and not sent."""


class Transfer:
    """An iterator over the pieces of a body that has `length` bytes, None if nobody knows beforehand.

    `still_allowed` is asked every few seconds of the stream's life (INV-16). A `meter` is paid for every piece before it is sent
    and settled at the end. `close` gives everything back exactly once, however the response ended.
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
            # The first piece is fetched and verified before there is a response, so that what is wrong can still be said.
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
                raise TransferEnded("the database did not take the payment") from None
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
            log.error("a transfer broke", extra={"error": type(error).__name__, "sent": self._sent, "length": self.length})
            raise TransferEnded(type(error).__name__) from error

    def _check(self) -> None:
        asked = time.monotonic()
        try:
            allowed = self._still_allowed()
        except APIException:
            allowed = False
        except (OperationalError, InterfaceError):
            if asked - self._answered > MAX_UNCHECKED_SECONDS:
                raise TransferEnded("the database did not say whether the reader may go on") from None
            return
        finally:
            return_connection()
            self._checked = time.monotonic()  # after a wait for the database, or every piece would wait for it again
        self._answered = asked
        if not allowed:
            raise TransferEnded("the reader may not go on")

    def close(self) -> None:
        slots, self._slots = self._slots, None
        if slots is None:
            return
        try:
            self._pieces.close()
            if self._meter:
                self._meter.refund()
        except (OperationalError, InterfaceError):
            # Budgets allow for it, as for a process that was killed.
            log.warning("a transfer could not take back what it had paid")
        finally:
            slots.release()
            return_connection()
