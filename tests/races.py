"""Runs callables in parallel: in threads that start together and have their own database connections."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
from django.db import connections


Result = TypeVar("Result")


def attempts(number: int) -> pytest.MarkDecorator:
    """Repeats a test, because the winner of a race is random: `number` times with --long, once in the gate."""
    return pytest.mark.parametrize("attempt", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, number))])


def race(contenders: Iterable[Callable[[], Result]]) -> list[Result]:
    """Returns the results in the order of the contenders, or raises the first exception. Requires transaction=True."""
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
