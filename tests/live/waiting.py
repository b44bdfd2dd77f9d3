"""Waits for conditions of other processes and threads.

On a busy machine everything takes many times as long, so the limit is generous: it only ends the wait for a condition that never
becomes true. A test that measures a duration needs the mark `quiet`.
"""

import time
from collections.abc import Callable
from typing import Final

import psutil
import pytest


LIMIT: Final = 240  # seconds; less than pytest's `timeout`, so that the traceback shows the code that waits


def wait_for(condition: Callable[[], object], explanation: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {LIMIT} seconds {explanation()}"
        time.sleep(0.05)


def within(seconds: float, *, when_busy: float = LIMIT) -> pytest.MarkDecorator:
    """Parametrizes `seconds`, the permitted duration of an operation: on a quiet machine, and on one that may be busy."""
    return pytest.mark.parametrize("seconds", [when_busy, pytest.param(seconds, marks=pytest.mark.quiet)])


def has_ended(process: psutil.Process) -> bool:
    """Returns whether the process no longer exists or is a zombie. An init process that does not reap leaves zombies."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # the process ended between the two calls
        return True
