"""What happens soon, but not at once.

A busy machine takes many times as long, which is no failure: waiting ends with what is waited for, and its limit is for what
never comes. Whoever wants to know that something is quick measures it in a test that is `quiet`.
"""

import time
from collections.abc import Callable
from typing import Final

import psutil
import pytest


LIMIT: Final = 240  # seconds; less than `timeout` of pytest, so that the traceback is of who waits


def wait_for(condition: Callable[[], object], explanation: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen {explanation()}"
        time.sleep(0.05)


def within(seconds: float, *, when_busy: float = LIMIT) -> pytest.MarkDecorator:
    """For a test with an argument `seconds`: how long something may take on a quiet machine, and on one that may be busy."""
    return pytest.mark.parametrize("seconds", [when_busy, pytest.param(seconds, marks=pytest.mark.quiet)])


def has_ended(process: psutil.Process) -> bool:
    """Gone, or a zombie, which an init that does not reap leaves."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it went between the two questions
        return True
