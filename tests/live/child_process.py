"""Child processes that the kernel kills when their parent ends, so that an interrupted run leaves no server behind.

`python -m tests.live.child_process PARENT COMMAND...` replaces itself with COMMAND, tied to the parent process with pid PARENT.
"""

import os
import sys

from config.processes import die_with_parent


def killed_with_parent(*command: object) -> list[str]:
    """Returns the command line that ties `command` to this process. Run it in the root folder of the checkout.

    The kernel ties the child to the thread that starts it, so that thread must live as long as the child.
    """
    return [sys.executable, "-m", "tests.live.child_process", str(os.getpid()), *map(str, command)]


def main() -> None:
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):  # the parent ended before the line above
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  no shell needed


if __name__ == "__main__":
    main()
