"""Tests that ask the same of many inputs: one test with a case for each, named by pytest's subtests if it fails."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import cycle, product
from typing import Any

import pytest


Case = Callable[..., AbstractContextManager[None]]
Combine = Callable[[Iterable[Any], Iterable[Any]], Iterable[tuple[Any, Any]]]


def in_turn(inputs: Iterable[Any], ways: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """Every input once, and every way."""
    return zip(inputs, cycle(ways), strict=False)


# For a test with an argument `combine`.
EACH_IN_TURN = pytest.mark.parametrize(
    "combine", [in_turn, pytest.param(product, marks=pytest.mark.long)], ids=["in-turn", "each-with-each"]
)
