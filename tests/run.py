"""Runs the tests: `bin/test [--long] [--bare | --external] [pytest arguments]`.

Passes 1 and 2 need only Python: they run on SQLite and hide every optional server. Passes 3 and 4 run the tests that need
PostgreSQL, Redis, a real S3 server or a browser, and repeat some tests on PostgreSQL. Tests that start servers run in separate
passes, so that other tests do not take their CPU time. With --long, a last pass runs the tests that need a quiet machine, one
after the other, on SQLite, with the available servers. The pytest arguments apply to every pass.

The addresses are TEST_DATABASE_URL for PostgreSQL, TEST_REDIS_URL for Redis and S3_TEST_ENDPOINT_URL for the S3 server. Without
them, bin/test uses local servers and the S3 server that `.ci/ceph up` started. With CI=true, every server must answer and every
optional program must be installed.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from tests import needs, servers
from tests.live.child_process import killed_with_parent


NO_TESTS, INTERRUPTED = 5, 2  # pytest's exit codes
PR_SET_CHILD_SUBREAPER = 36
STOP_TIMEOUT = 30.0  # seconds that an interrupted pytest has for its teardown
GIB = 1024**3


@dataclass(frozen=True)
class Pass:
    name: str
    environment: dict[str, str]
    markers: tuple[str, ...] = ()  # the pass has tests with any of these markers; without markers, all but "external" tests
    has_servers: bool = False
    is_quiet: bool = False  # a quiet pass ignores `has_servers`

    @property
    def selection(self) -> str:
        chosen = f"({' or '.join(self.markers)})" if self.markers else "not external"
        kind = "quiet" if self.is_quiet else f"{'' if self.has_servers else 'not '}server and not quiet"
        return f"{chosen} and {kind}"

    def has(self, kind: set[str]) -> bool:
        """Returns whether a test with these markers belongs to this pass."""
        is_chosen = bool(kind & {*self.markers}) if self.markers else "external" not in kind
        is_wanted = self.is_quiet or self.has_servers == ("server" in kind)
        return is_chosen and is_wanted and self.is_quiet == ("quiet" in kind)


class Runner:
    """Runs pytest processes one after the other and forwards interrupting signals to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.interrupted_by = 0
        self._deadline = 0.0
        _adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        is_repeated, self.interrupted_by = bool(self.interrupted_by), number
        self._deadline = time.monotonic() + STOP_TIMEOUT
        if self._process:
            self._process.send_signal(signal.SIGKILL if is_repeated else signal.SIGTERM)

    def run(self, arguments: list[str], environment: dict[str, str]) -> int:
        if self.interrupted_by:
            return INTERRUPTED
        environment = environment | {"TMPDIR": str(self._folder), "TEST_RUN_FOLDER": str(self._folder)}
        command = killed_with_parent(sys.executable, "-m", "pytest", f"--basetemp={self._folder / 'pytest'}", *arguments)
        self._process = subprocess.Popen(command, env=environment)
        while True:
            try:
                return self._process.wait(1)
            except subprocess.TimeoutExpired:
                if self.interrupted_by and time.monotonic() > self._deadline:
                    self._process.kill()
            finally:
                if self._process.returncode is not None:
                    _kill_children()


def _adopt_orphans() -> None:
    """Makes the orphans of killed descendants children of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _kill_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=10)


@contextmanager
def run_folder(min_bytes: int) -> Iterator[Path]:
    """Creates the folder for everything that a run writes, in memory if possible, and deletes it in any case."""
    parent = None if "TMPDIR" in os.environ else memory_folder(min_bytes)
    folder = Path(tempfile.mkdtemp(prefix="strongroom-test-", dir=parent))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 10
        while folder.exists() and time.monotonic() < deadline:  # dying processes may still write
            shutil.rmtree(folder, ignore_errors=True)


def memory_folder(min_bytes: int) -> str | None:
    """Returns a file system in memory with enough free bytes that allows execution, or None."""
    path = "/dev/shm"  # noqa: S108  the run creates a private folder in it
    if not os.access(path, os.W_OK):
        return None
    status = os.statvfs(path)
    return path if status.f_bavail * status.f_frsize >= min_bytes and not status.f_flag & os.ST_NOEXEC else None


def passes(found: dict[str, str], present: list[str], *, is_bare: bool, is_external: bool, is_long: bool) -> Iterator[Pass]:
    """Yields the passes of a run.

    `found` holds the environment variables of the available servers, `present` the names of these servers and of the browser.
    """
    hidden = {"TEST_DATABASE_URL", "TEST_POSTGRESQL_URL", "TEST_REDIS_URL", "S3_TEST_ENDPOINT_URL"}
    bare = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("AWS_")}
    if not is_external:
        yield Pass("SQLite", bare)
        yield Pass("SQLite, with servers", bare, has_servers=True)
    if is_bare:
        if is_long:
            yield Pass("quiet", bare, is_quiet=True)
        return

    for name in sorted(needs.EXTERNAL - {*present}):
        print(f"== {needs.install_hint(name)}", flush=True)
    if present:
        chosen = ("external", "both_databases") if "postgresql" in present else ("external",)
        others = bare | found | {"TEST_DATABASE_URL": found.get("TEST_POSTGRESQL_URL", "")}
        name = ", ".join(present)
        yield Pass(name, others, chosen)
        yield Pass(f"{name}, with servers", others, chosen, has_servers=True)
    if is_long:
        yield Pass("quiet", bare | found, ("external",) if is_external else ("quiet",), is_quiet=True)


def check_all_present() -> None:
    os.environ |= servers.find()
    if missing := [needs.install_hint(name) for name in sorted({*needs.PROGRAMS, *needs.SERVERS}) if not needs.is_present(name)]:
        sys.exit(
            "bin/test: CI=true requires all optional programs and servers\n" + "\n".join(f"bin/test: {line}" for line in missing)
        )


def files_of(chosen: Pass, kinds: list[list[str]], *, is_long: bool) -> list[str]:
    """Returns the files with a test of this pass. Each item of `kinds` is a file, followed by the markers of one of its tests."""
    return sorted({file for file, *kind in kinds if chosen.has({*kind}) and (is_long or "long" not in kind)})


def main() -> int:
    parser = argparse.ArgumentParser(
        "bin/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.usage = "bin/test [--long] [--bare | --external] [pytest arguments]"
    parser.add_argument("--long", action="store_true", help="run all tests instead of the gate")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bare", action="store_true", help="run only tests that need no server or browser")
    which.add_argument("--external", action="store_true", help="run only the tests that --bare leaves out")
    options, arguments = parser.parse_known_args()
    if os.environ.get("CI") == "true" and not options.bare:
        check_all_present()
    # All tests of a module run on one worker, so that their shared fixtures are set up once.
    workers = ["-n", str(len(os.sched_getaffinity(0))), "--dist", "loadscope"]
    common = ["-p", "tests.module_durations"] if options.long else []
    pace = "" if options.long else "not long and "
    found = {} if options.bare else servers.find()
    os.environ |= found
    present = [name for name in sorted(needs.EXTERNAL) if not options.bare and needs.is_present(name)]
    results, times = [], []
    with run_folder(16 * GIB if options.long else 2 * GIB) as folder:
        runner, kinds = Runner(folder), folder / "kinds"
        for each in passes(found, present, is_bare=options.bare, is_external=options.external, is_long=options.long):
            environment = each.environment | {"TEST_KINDS": str(kinds)}
            if kinds.exists():  # written by the first pass, which collects all tests
                files = files_of(each, json.loads(kinds.read_text()), is_long=options.long)
                if not files:
                    continue
                environment = each.environment | {"TEST_FILES": "\n".join(files)}
            print(f"== {each.name}", flush=True)
            started = time.monotonic()
            selected = ["-m", pace + each.selection]
            last = [*arguments, "-n", "0"] if each.is_quiet else [*workers, *arguments]
            results.append(runner.run([*common, *selected, *last], environment))
            times.append((time.monotonic() - started, each.name))
            if runner.interrupted_by or results[-1] == INTERRUPTED:
                break
    for seconds, name in times:
        print(f"== {seconds:6.0f} s  {name}")
    if runner.interrupted_by:
        return 128 + runner.interrupted_by
    failed = [result for result in results if result not in {0, NO_TESTS}]
    return failed[0] if failed else min(results, default=NO_TESTS)


if __name__ == "__main__":
    sys.exit(main())
