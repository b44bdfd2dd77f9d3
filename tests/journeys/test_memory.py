"""One stream takes the same memory whatever its size: at most 64 MiB more over all processes of the server (INV-19)."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.people import Person
from tests.live.server import Server
from tests.live.waiting import wait_for
from tests.needs import mark_dependents


log = logging.getLogger(__name__)

MIB = 1024 * 1024
GIB = 1024 * MIB
BOUND = 64 * MIB


class Watch:
    """The most that the processes of a server held together since it was started, in bytes more than then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._most = server.memory()
        self._is_over = threading.Event()

    @property
    def growth(self) -> int:
        return self._most - self._before

    def run(self) -> None:
        while not self._is_over.wait(0.05):
            self._most = max(self._most, self._server.memory())

    def end(self) -> None:
        self._is_over.set()


@contextmanager
def watched(server: Server) -> Iterator[Watch]:
    watch = Watch(server)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


@pytest.fixture
@mark_dependents(pytest.mark.needs("curl"))
def warm(each_server: Server, tmp_path: Path) -> Person:
    """Somebody on a server that has done all of it before, on a small file."""
    member = Person(each_server, "member", tmp_path)
    for _ in range(3):
        member.upload("small.bin", bytes(4 * MIB))
        member.curl("-F", f"file=@{tmp_path / 'upload'};filename=form.bin", f"{member.server.url}{member.files}")
        member.curl("-o", "/dev/null", member.content("small.bin"))
        for filename in ("small.bin", "form.bin"):
            assert member.api("DELETE", f"{member.files}{filename}/")[0] == 204
    wait_for(member.server.has_no_leftovers)  # the worker, too, makes its first connection to the store
    return member


@pytest.mark.parametrize("size", [128 * MIB, *(pytest.param(size, marks=pytest.mark.long) for size in (256 * MIB, 2 * GIB))])
def test_one_stream_takes_little_memory_in_each_direction(warm: Person, tmp_path: Path, size: int) -> None:
    """The figures: `--log-cli-level=info`."""
    source = tmp_path / "big.bin"
    with source.open("wb") as file:
        file.truncate(size)
    address = f"{warm.server.url}{warm.files}"
    commands: dict[str, list[object]] = {
        "put": ["-T", source, warm.content("big.bin")],
        "get": [warm.content("big.bin")],
        "range": ["-r", "1-", warm.content("big.bin")],
        "archive": [f"{address.removesuffix('files/')}archive.zip"],
        "delete": ["-X", "DELETE", f"{address}big.bin/"],
        "form": ["-F", f"file=@{source}", address],
        "delete again": ["-X", "DELETE", f"{address}big.bin/"],
    }
    growth = {}
    for name, command in commands.items():
        with watched(warm.server) as watch:
            assert warm.curl("--fail", "-o", "/dev/null", *command).returncode == 0
        growth[name] = round(watch.growth / MIB, 1)
    log.info("%d MiB; growth in MiB: %s", size // MIB, growth)
    assert max(growth.values()) <= BOUND / MIB, growth
