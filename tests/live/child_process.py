"""Processes that die with the one that starts them, however it ends: an interrupted run leaves no server behind.

`python -m tests.live.child_process PARENT COMMAND...` becomes COMMAND, as such a child of the process PARENT.
"""

import os
import sys

from config.processes import die_with_parent


def killed_with_parent(*command: object) -> list[str]:
    """The command line that starts `command` so, from the top of the checkout. The thread that starts it must live as long."""
    return [sys.executable, "-m", "tests.live.child_process", str(os.getpid()), *map(str, command)]


def main() -> None:
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):  # it ended before the line above
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  no shell is the point


if __name__ == "__main__":
    main()
