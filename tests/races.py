"""Callables that really run at once: threads with database connections of their own, released together."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from django.db import connections


Result = TypeVar("Result")


def attempts(number: int) -> pytest.MarkDecorator:
    """The test races so often, and once in the gate: who wins is chance."""
    return pytest.mark.parametrize("attempt", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, number))])


def race(contenders: Iterable[Callable[[], Result]]) -> list[Result]:
    """What each returned, in order; the first exception of any is raised. For tests with transaction=True."""
    calls = list(contenders)
    start = Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        try:
            start.wait(timeout=30)
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
