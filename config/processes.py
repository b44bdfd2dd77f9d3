"""Child processes that end with their parent."""

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
    """Has the kernel kill this process when its parent ends for any reason, so that no unsupervised process remains.

    A kill is safe, because all work converges after one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def fork(name: str, run: Callable[[], object], *, closed: Sequence[int] = ()) -> BaseProcess:
    """Starts a child that closes these descriptors and calls `run`. The child shares the imported modules of this process.

    The child is terminated when this process exits. This process must have one thread, and no connection to a database or a
    store, because the child would use the same connection.
    """
    arguments = (os.getpid(), name, run, closed)
    child = multiprocessing.get_context("fork").Process(target=_begin, name=name, args=arguments, daemon=True)
    child.start()
    return child


def _begin(parent: int, name: str, run: Callable[[], object], closed: Sequence[int]) -> None:
    die_with_parent()
    if os.getppid() != parent:  # the parent ended before the line above
        sys.exit(1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())  # shown by ps and top
    for descriptor in closed:
        os.close(descriptor)
    # A terminal sends Ctrl-C to all processes of the group. Only the parent handles it, and stops the children.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    run()


def run_module(module: str, *arguments: str) -> None:
    """Runs `python -m MODULE ARGUMENTS` in this process."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
