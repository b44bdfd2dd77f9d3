"""Retries of transactions that the database aborted to resolve a deadlock or a serialization failure (F-25)."""

import random
import time
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Final, ParamSpec, TypeVar

from django.db import OperationalError, connection


MAX_RETRIES: Final = 3
RETRYABLE_SQLSTATES: Final = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock

Params = ParamSpec("Params")
Result = TypeVar("Result")


def pause(attempt: int) -> None:
    """Sleeps up to 0.1 s after the first attempt (0), and three times as long after each further one.

    The duration is random, so that two transactions do not collide again.
    """
    time.sleep(random.uniform(0.5, 1) * 0.1 * 3**attempt)  # noqa: S311  not used for security


def retry_on_deadlock(work: Callable[Params, Result]) -> Callable[Params, Result]:
    """Retries a function that does all its work in one transaction.

    Inside a transaction of the caller it does not retry, because the caller must repeat that transaction as a whole. SQLite
    raises no such error: it waits for its lock when a transaction begins.
    """

    @wraps(work)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        for attempt in count():
            try:
                return work(*args, **kwargs)
            except OperationalError as error:
                is_retryable = getattr(error.__cause__, "sqlstate", None) in RETRYABLE_SQLSTATES
                if not is_retryable or attempt == MAX_RETRIES or connection.in_atomic_block:
                    raise
            pause(attempt)
        raise AssertionError("unreachable")

    return call
