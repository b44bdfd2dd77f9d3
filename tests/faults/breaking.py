"""A fuse between this process and its store and database: the n-th thing asked of either fails, or is the last one.

The objects, the rows and all of our code are real. What is killed is dead: no `finally` of it reaches the store or the database.
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
# What happens, and whether the thing that was asked for is done nevertheless.
KINDS: Final = {"refused": (False, False), "unheard": (False, True), "killed": (True, False), "killed-behind": (True, True)}


class Killed(BaseException):
    """The process is gone."""


class Here:
    """Does in this thread what a pool would do in others, which on SQLite would wait for each other."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, do: Callable[..., Any], *given: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(do(*given))
        except Exception as error:
            done.set_exception(error)
        return done


class Fuse:
    def __init__(self) -> None:
        self.opened = 0  # bodies that nobody has closed yet
        self.disarm()

    def disarm(self) -> None:
        self.left, self.kind = 0, ""
        self.is_blown = self.is_dead = False

    @contextmanager
    def armed(self, left: int, kind: str) -> Iterator[None]:
        """The `left`-th thing asked for inside the block goes wrong; `is_blown` tells afterwards whether there were so many."""
        self.disarm()
        self.left, self.kind = left, kind
        try:
            with connection.execute_wrapper(self._query):
                yield
        except Killed:
            pass
        finally:
            self.left, self.is_dead = 0, False

    def ask(self, call: Callable[[], Result], error: Exception, *, is_heard: bool = False) -> Result:
        """`is_heard`: what fails has not been done, as when nothing of it leaves the process."""
        if self.is_dead:
            raise Killed
        self.left -= 1
        if self.left:
            return call()
        is_deadly, is_done = KINDS[self.kind]
        self.is_blown, self.is_dead = True, is_deadly
        if is_done and (is_deadly or not is_heard):
            call()
        raise Killed if is_deadly else error

    def _query(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001  Django's
        if sql.startswith(("SAVEPOINT", "ROLLBACK", "RELEASE", "BEGIN")):  # transactions of who is gone end by themselves
            return execute(sql, params, many, context)
        return self.ask(lambda: execute(sql, params, many, context), OperationalError("the database went away"))


FUSE: Final = Fuse()


def ask_store(call: Callable[[], Result]) -> Result:
    return FUSE.ask(call, StoreUnavailable("the fuse blew"))


class Body:
    def __init__(self, body: Any) -> None:
        self._body, self._is_open = body, True
        FUSE.opened += 1

    def read(self, size: int) -> bytes:
        return ask_store(lambda: bytes(self._body.read(size)))

    def close(self) -> None:
        FUSE.opened -= self._is_open
        self._is_open = False
        self._body.close()


class Writer:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        ask_store(lambda: self._writer.write(data))

    def commit(self) -> Stat:
        stat: Stat = ask_store(self._writer.commit)
        return stat

    def abort(self) -> None:
        try:
            ask_store(self._writer.abort)
        except StoreUnavailable:
            return  # as the port says: what a dead store kept, the clean-up finds


class Breaking:
    """Mixed into a store, asks the fuse first."""

    def create(self, key: str, **options: Any) -> Any:
        error = StoreUnavailable("the fuse blew")
        return Writer(FUSE.ask(lambda: super(Breaking, self).create(key, **options), error, is_heard=True))  # type: ignore[misc]

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> Any:
        stat, body = ask_store(lambda: super(Breaking, self).open(key, start=start, length=length, etag=etag))  # type: ignore[misc]
        return stat, Body(body)

    def stat(self, key: str) -> Stat:
        return ask_store(lambda: super(Breaking, self).stat(key))  # type: ignore[misc,no-any-return]

    def entries(self, prefix: str) -> Iterator[StoreEntry]:
        return iter(ask_store(lambda: list(super(Breaking, self).entries(prefix))))  # type: ignore[misc]

    def erase(self, entries: Any) -> list[EraseFailure]:
        return ask_store(lambda: super(Breaking, self).erase(entries))  # type: ignore[misc]


class BreakingLocal(Breaking, LocalStore):  # type: ignore[misc]
    pass


class BreakingS3(Breaking, S3Store):
    pass
