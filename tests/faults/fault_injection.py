"""Fault injection between this process and its store and database: one chosen call fails, or kills the simulated process.

The objects, the rows and the application code are real. After a simulated kill every further call raises `Killed`, so that no
`finally` block reaches the store or the database.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from django.db import OperationalError, connection

from vault.stores import EraseFailure, Stat, StoreEntry, StoreUnavailable
from vault.stores.local import LocalStore
from vault.stores.s3 import S3Store


Result = TypeVar("Result")
# Kind of fault -> (whether it kills the process, whether the call takes effect nevertheless).
FAULT_KINDS: Final = {
    "refused": (False, False),
    "response-lost": (False, True),
    "killed": (True, False),
    "killed-after": (True, True),
}


class Killed(BaseException):
    """The simulated process has ended."""


class InlineExecutor:
    """A thread pool that runs its calls in the calling thread. On SQLite, real threads would wait for each other's locks."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class FaultInjector:
    def __init__(self) -> None:
        self.open_bodies = 0  # bodies of the store that no code has closed yet
        self.reset()

    def reset(self) -> None:
        self.remaining, self.kind = 0, ""
        self.has_fired = self.is_killed = False

    @contextmanager
    def injecting(self, number: int, kind: str) -> Iterator[None]:
        """Makes call `number` (from 1) to the store or the database fail inside the block; 0 injects nothing.

        Afterwards `has_fired` tells whether the block made that many calls.
        """
        self.reset()
        self.remaining, self.kind = number, kind
        try:
            with connection.execute_wrapper(self._query):
                yield
        except Killed:
            pass
        finally:
            self.remaining, self.is_killed = 0, False

    def call(self, call: Callable[[], Result], error: Exception, *, fails_before_sending: bool = False) -> Result:
        """Makes the call, or injects the fault: raises `error` or `Killed`.

        With `fails_before_sending`, a call that fails without a kill never takes effect: no part of it leaves the process.
        """
        if self.is_killed:
            raise Killed
        self.remaining -= 1
        if self.remaining:
            return call()
        kills, takes_effect = FAULT_KINDS[self.kind]
        self.has_fired, self.is_killed = True, kills
        if takes_effect and (kills or not fails_before_sending):
            call()
        raise Killed if kills else error

    def _query(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        # The server ends the transaction of a killed client, so transaction control always passes.
        if sql.startswith(("SAVEPOINT", "ROLLBACK", "RELEASE", "BEGIN")):
            return execute(sql, params, many, context)
        return self.call(lambda: execute(sql, params, many, context), OperationalError("injected database failure"))


INJECTOR: Final = FaultInjector()


def call_store(call: Callable[[], Result], *, fails_before_sending: bool = False) -> Result:
    return INJECTOR.call(call, StoreUnavailable("injected store failure"), fails_before_sending=fails_before_sending)


class FaultyBody:
    def __init__(self, body: Any) -> None:
        self._body, self._is_open = body, True
        INJECTOR.open_bodies += 1

    def read(self, size: int) -> bytes:
        return call_store(lambda: bytes(self._body.read(size)))

    def close(self) -> None:
        INJECTOR.open_bodies -= self._is_open
        self._is_open = False
        self._body.close()


class FaultyWriter:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        call_store(lambda: self._writer.write(data))

    def commit(self) -> Stat:
        stat: Stat = call_store(self._writer.commit)
        return stat

    def abort(self) -> None:
        try:
            call_store(self._writer.abort)
        except StoreUnavailable:
            return  # the contract of `abort`: it raises nothing, and the clean-up removes what a failing store kept


class FaultyStore:
    """A mixin for stores: passes every call through the injector."""

    def create(self, key: str, **options: Any) -> Any:
        create: Callable[..., Any] = super().create  # type: ignore[misc]
        return FaultyWriter(call_store(lambda: create(key, **options), fails_before_sending=True))

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> Any:
        stat, body = call_store(lambda: super(FaultyStore, self).open(key, start=start, length=length, etag=etag))  # type: ignore[misc]
        return stat, FaultyBody(body)

    def stat(self, key: str) -> Stat:
        return call_store(lambda: super(FaultyStore, self).stat(key))  # type: ignore[misc,no-any-return]

    def entries(self, prefix: str) -> Iterator[StoreEntry]:
        return iter(call_store(lambda: list(super(FaultyStore, self).entries(prefix))))  # type: ignore[misc]

    def erase(self, entries: Any) -> list[EraseFailure]:
        return call_store(lambda: super(FaultyStore, self).erase(entries))  # type: ignore[misc]


class FaultyLocalStore(FaultyStore, LocalStore):  # type: ignore[misc]
    pass


class FaultyS3Store(FaultyStore, S3Store):
    pass
