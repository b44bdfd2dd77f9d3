"""A pytest plugin: an interrupted run tears down its fixtures, and its worker processes end with it."""

import os
import signal
import sys
from typing import Any

from config.processes import die_with_parent


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        die_with_parent()
        if os.getppid() == 1:  # the parent ended before the line above
            sys.exit(1)
    else:
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, _: Any) -> None:
    """Handles only the first signal: Ctrl-C reaches both pytest and `bin/test`, and `bin/test` then sends SIGTERM.

    Without `bin/test`, a second Ctrl-C interrupts the teardown.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
    raise KeyboardInterrupt
