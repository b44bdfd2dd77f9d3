"""Processes whose life is tied to that of their parent."""

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess


PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


def die_with_parent() -> None:
    """SIGKILL when the parent ends, however it ends, so that nothing is left behind that nobody supervises.

    Everything here converges after a kill, so there is nothing to say goodbye for.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def fork(name: str, run: Callable[[], object], *, closed: Sequence[int] = ()) -> BaseProcess:
    """Starts a child that calls `run`, with these descriptors closed. It has all that this process has imported.

    It is terminated when this process exits. This process must have one thread, and no connection to a database or a store,
    because the child would use the same connection.
    """
    arguments = (os.getpid(), name, run, closed)
    child = multiprocessing.get_context("fork").Process(target=_begin, name=name, args=arguments, daemon=True)
    child.start()
    return child


def _begin(parent: int, name: str, run: Callable[[], object], closed: Sequence[int]) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())  # what ps and top show: the command line is the parent's
    for descriptor in closed:
        os.close(descriptor)
    # A terminal sends Ctrl-C to every process of the group. Only the parent acts on it, so that there is one way to stop.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    run()


def run_module(module: str, *arguments: str) -> None:
    """As `python -m MODULE ARGUMENTS` does, in this process."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
