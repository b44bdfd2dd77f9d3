"""An interrupted run leaves no process and no folder behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.live.child_process import killed_with_parent
from tests.live.server import ROOT
from tests.live.waiting import has_ended, wait_for


pytestmark = [pytest.mark.server, pytest.mark.timeout(500)]


@pytest.fixture
def run(first_home: Path, tmp_path: Path) -> Iterator[psutil.Process]:
    """A run of `bin/test` whose test has started a server, in its own process group as in a terminal."""
    started, folder = tmp_path / "started", tmp_path / "run"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TEST_"))}
    environment |= {"TMPDIR": str(folder), "STARTED": str(started), "FIRST_HOME": str(first_home)}
    arguments = ("--bare", "tests/meta/never_ending.py", "-n", "1", "-p", "no:cacheprovider")
    command = killed_with_parent(sys.executable, "-m", "tests.run", *arguments)
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, process_group=0)
    try:
        wait_for(lambda: started.exists() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def pytest_of(run: psutil.Process) -> psutil.Process:
    (process,) = run.children()
    return process


def worker_of(run: psutil.Process) -> psutil.Process:
    return next(child for child in pytest_of(run).children() if "exec" in " ".join(child.cmdline()))


def press_ctrl_c(run: psutil.Process) -> None:
    os.killpg(run.pid, signal.SIGINT)


@pytest.mark.parametrize(
    "interrupt",
    [
        pytest.param(press_ctrl_c, id="ctrl-c", marks=pytest.mark.long),
        pytest.param(lambda run: run.terminate(), id="terminate", marks=pytest.mark.long),
        pytest.param(lambda run: pytest_of(run).terminate(), id="terminate-pytest"),
        pytest.param(lambda run: pytest_of(run).kill(), id="kill-pytest", marks=pytest.mark.long),
        pytest.param(lambda run: worker_of(run).kill(), id="kill-worker", marks=pytest.mark.long),
    ],
)
def test_interrupted_run_leaves_no_process_and_no_folder(
    run: psutil.Process, tmp_path: Path, interrupt: Callable[[psutil.Process], None]
) -> None:
    started = run.children(recursive=True)
    assert any("serve" in process.cmdline() for process in started)
    interrupt(run)
    wait_for(lambda: has_ended(run))
    assert not [process for process in started if not has_ended(process)]
    assert list((tmp_path / "run").iterdir()) == []


def test_killed_run_ends_its_processes(run: psutil.Process) -> None:
    started = run.children(recursive=True)
    run.kill()
    wait_for(lambda: all(map(has_ended, started)))
