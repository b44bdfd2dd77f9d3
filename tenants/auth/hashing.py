"""Password hashing with bounded memory: each process computes a few hashes in parallel, in turn for the requesting networks.

A flood of sign-ins from one network fills the queue of that network only. If all queues together are full, the last request in
the longest one is refused, so that requests of other networks are still accepted.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import hashers
from django.utils.functional import SimpleLazyObject

from tenants import request_context
from tenants.errors import HashingFull


MAX_WAITING: Final = 64  # in a process; each one occupies a thread
TIMEOUT: Final = 10.0  # seconds in the queue


class _Waiter:
    def __init__(self) -> None:
        self.has_answer = threading.Event()
        self.is_admitted = False


class FairQueue:
    """Admits `at_once` callers in parallel. Waiting callers are admitted in turn by network, and in order within a network."""

    def __init__(self, at_once: int, *, max_waiting: int = MAX_WAITING, timeout: float = TIMEOUT) -> None:
        self._at_once = at_once
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # ordered by whose turn is next

    @property
    def waiting(self) -> int:
        with self._lock:
            return self._count()

    @contextmanager
    def turn(self, network: str) -> Iterator[None]:
        """Waits for a turn, which lasts until the end of the `with` statement.

        Raises: HashingFull.
        """
        self._enter(network)
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._admit_next()

    def _enter(self, network: str) -> None:
        with self._lock:
            if self._running < self._at_once:
                self._running += 1
                return
            waiter = _Waiter()
            self._waiting.setdefault(network, deque()).append(waiter)
            if self._count() > self._max_waiting:
                self._refuse_one()
        waiter.has_answer.wait(self._timeout)
        with self._lock:
            if waiter.is_admitted:
                return
            if not waiter.has_answer.is_set():
                self._remove(network, waiter)
        raise HashingFull

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _admit_next(self) -> None:
        if not self._waiting:
            return
        network, waiters = next(iter(self._waiting.items()))
        waiter = waiters.popleft()
        self._waiting.move_to_end(network)
        if not waiters:
            del self._waiting[network]
        self._running += 1
        waiter.is_admitted = True
        waiter.has_answer.set()

    def _refuse_one(self) -> None:
        longest = max(self._waiting, key=lambda network: len(self._waiting[network]))
        waiter = self._waiting[longest][-1]
        self._remove(longest, waiter)
        waiter.has_answer.set()

    def _remove(self, network: str, waiter: _Waiter) -> None:
        self._waiting[network].remove(waiter)
        if not self._waiting[network]:
            del self._waiting[network]


_queue = SimpleLazyObject(lambda: FairQueue(settings.PASSWORD_HASHES_AT_ONCE))
# malloc keeps the memory of a hash for the thread that computed it: few threads, so that not every web thread holds 19 MiB.
_threads: Any = SimpleLazyObject(lambda: ThreadPoolExecutor(settings.PASSWORD_HASHES_AT_ONCE, thread_name_prefix="hash"))


class Argon2PasswordHasher(hashers.Argon2PasswordHasher):
    """Argon2id with the parameters of OWASP (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.

    A hash with other parameters is verified with its own, and replaced at the next sign-in.
    """

    time_cost = 2
    memory_cost = 19 * 1024  # KiB
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        """Raises: HashingFull."""
        with _queue.turn(request_context.network()):
            encoded: str = _threads.submit(super().encode, password, salt).result()
            return encoded

    def verify(self, password: str, encoded: str) -> bool:
        """Raises: HashingFull."""
        with _queue.turn(request_context.network()):
            is_right: bool = _threads.submit(super().verify, password, encoded).result()
            return is_right
