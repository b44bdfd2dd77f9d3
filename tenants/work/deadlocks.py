"""Transactions that the database ended for the sake of others: done again, a few times (F-25)."""

import random
import time
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Final, ParamSpec, TypeVar

from django.db import OperationalError, connection


RETRIES: Final = 3
SACRIFICED: Final = {"40001", "40P01"}  # PostgreSQL: serialization failure, deadlock

Given = ParamSpec("Given")
Result = TypeVar("Result")


def pause(attempt: int) -> None:
    """Up to 0.1 s behind the first attempt (0), thrice as long each time. Random, so that two who met do not meet again."""
    time.sleep(random.uniform(0.5, 1) * 0.1 * 3**attempt)  # noqa: S311  jitter is no secret


def retry_on_deadlock(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """For a function that does all its work in one transaction of its own. The caller's transaction is the caller's to repeat.

    SQLite needs none of this: it waits for the lock before the transaction begins.
    """

    @wraps(work)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        for attempt in count():
            try:
                return work(*args, **kwargs)
            except OperationalError as error:
                is_sacrificed = getattr(error.__cause__, "sqlstate", None) in SACRIFICED
                if not is_sacrificed or attempt == RETRIES or connection.in_atomic_block:
                    raise
            pause(attempt)
        raise AssertionError("unreachable")

    return call
