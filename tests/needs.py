"""A pytest plugin for the optional programs and servers that tests need. Only this module looks for them.

    @pytest.mark.needs("curl", "ceph")            on a test, in a module's `pytestmark`, or on one parameter
    @mark_dependents(pytest.mark.needs("ceph"))   below @pytest.fixture: on every test that uses the fixture

A test whose needs are missing is skipped; with CI=true it fails. A test that needs a server of `SERVERS` or a browser gets the
marker `external`.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest


PROGRAMS = {  # program: Debian package
    "7z": "p7zip-full",
    "aria2c": "aria2",
    "chromium": "chromium",
    "curl": "curl",
    "openssl": "openssl",
    "pg_dump": "postgresql-client",
    "strace": "strace",
    "unzip": "unzip",
    "wget": "wget",
}
SERVERS = {  # server: the environment variable with its address, and how to get one; `tests.servers` finds the running ones
    "ceph": ("S3_TEST_ENDPOINT_URL", "start one with .ci/ceph up"),
    "postgresql": ("TEST_POSTGRESQL_URL", "apt-get install postgresql, name it with TEST_DATABASE_URL"),
    "redis": ("TEST_REDIS_URL", "apt-get install redis-server, name it with TEST_REDIS_URL"),
}
EXTERNAL = {*SERVERS, "chromium"}
KINDS = ("both_databases", "external", "long", "quiet", "server")  # the markers that decide in which pass a test runs

Function = TypeVar("Function", bound=Callable[..., object])
_marks_of_fixtures: dict[Callable[..., object], tuple[pytest.MarkDecorator, ...]] = {}


def mark_dependents(*marks: pytest.MarkDecorator) -> Callable[[Function], Function]:
    """Returns a decorator for the function of a fixture: every test that uses the fixture gets these marks."""

    def decorate(function: Function) -> Function:
        _marks_of_fixtures[function] = marks
        return function

    return decorate


def is_present(name: str) -> bool:
    if name in SERVERS:
        return bool(os.environ.get(SERVERS[name][0]))
    return shutil.which(name) is not None


def install_hint(name: str) -> str:
    """Returns one line that says what to install or start."""
    return f"needs {name} ({SERVERS[name][1] if name in SERVERS else f'apt-get install {PROGRAMS[name]}'})"


def address(server: str) -> str:
    """Returns the address of a server that the running test has declared."""
    variable, _ = SERVERS[server]
    assert variable in os.environ, (
        f"a test that uses {server} is marked with needs({server!r}), or its fixture with mark_dependents"
    )
    return os.environ[variable]


def needs_of(item: pytest.Item) -> set[str]:
    return {str(name) for mark in item.iter_markers("needs") for name in mark.args}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds the marks. Runs first, because the expression of `-m` selects by them."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        for definitions in fixtures.name2fixturedefs.values() if fixtures else ():
            for mark in _marks_of_fixtures.get(definitions[-1].func, ()):
                item.add_marker(mark)
        needs = needs_of(item)
        if unknown := needs - PROGRAMS.keys() - SERVERS.keys():
            raise pytest.UsageError(f"{item.nodeid}: add {', '.join(sorted(unknown))} to tests/needs.py")
        if needs & EXTERNAL:
            item.add_marker("external")
        if item.get_closest_marker("quiet"):
            item.add_marker("long")
    if path := os.environ.get("TEST_KINDS"):
        kinds = {(str(item.path), *sorted({*KINDS} & {mark.name for mark in item.iter_markers()})) for item in items}
        Path(path).write_text(json.dumps(sorted(kinds)))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collects only the modules that bin/test lists for the pass: collecting a module takes longer than most tests."""
    files = os.environ.get("TEST_FILES")
    return True if files and collection_path.is_file() and str(collection_path) not in files.split("\n") else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = "; ".join(install_hint(name) for name in sorted(needs_of(item)) if not is_present(name))
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(missing)


# --- Detection of tests that start an optional program without declaring it ---

_running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


class CheckedPopen(subprocess.Popen[Any]):
    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        words = str(args if isinstance(args, (str, bytes)) else " ".join(map(str, args))).split()
        undeclared = PROGRAMS.keys() & set(words) - needs_of(_running[-1]) if _running else set()
        assert not undeclared, f"mark the test with needs({', '.join(map(repr, sorted(undeclared)))})"
        super().__init__(args, *rest, **options)


@pytest.fixture(scope="session", autouse=True)
def programs_are_declared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", CheckedPopen)
        yield
