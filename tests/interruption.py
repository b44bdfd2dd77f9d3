"""pytest plugin: a run that is interrupted tears its fixtures down, and its worker processes do not outlive it."""

import os
import signal
import sys
from typing import Any

from config.processes import die_with_parent


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        die_with_parent()
        if os.getppid() == 1:  # it ended before the line above
            sys.exit(1)
    else:
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, _: Any) -> None:
    """Once: Ctrl-C in a terminal reaches pytest and `bin/test`, which sends SIGTERM. By itself it can be pressed again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
    raise KeyboardInterrupt
