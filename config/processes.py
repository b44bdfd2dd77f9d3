"""Ties the life of a process to that of its parent.

`python -m config.processes PARENT MODULE ...` becomes `python -m MODULE ...` as such a child of the process PARENT.
"""

import ctypes
import os
import signal
import sys


PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """SIGKILL when the parent ends, however it ends, so that nothing is left behind that nobody supervises.

    Everything here converges after a kill, so there is nothing to say goodbye for.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    parent, *arguments = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):  # it ended before the line above
        sys.exit(1)
    # A terminal sends Ctrl-C to every process of the group. Only the parent acts on it, so that there is one way to stop.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    os.execv(sys.executable, [sys.executable, "-m", *arguments])  # noqa: S606  no shell is the point


if __name__ == "__main__":
    main()
