"""Clients that are slow, that stall and that hang up: nobody else notices, nothing stays (F-46, F-47)."""

import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.contents import random_bytes
from tests.faults.conftest import Site, started_site
from tests.live.child import dying_with_us
from tests.live.people import Person
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for
from tests.needs import mark_users
from tests.worlds import Databases


log = logging.getLogger(__name__)

MIB = 1024 * 1024
KIB = 1024
CONTENT = random_bytes(16 * MIB)
CUT_OFF = 125  # seconds: twice the 60 over which the server judges a client's pace, and a few
# Seconds that `me/` may take, at a quantile: who is slowed down shows in the first, who is starved in the others. Where other
# tests run beside it, half of the answers may take nearly as long as the short forms last: whoever is starved waits to their end.
PATIENCE, PATIENCE_SHORT, PATIENCE_WHEN_BUSY = (0.99, 0.1), (0.5, 0.5), (0.5, 4.0)
QUIET = pytest.mark.quiet


class Asked:
    """Seconds that `me/` took, asked again and again by somebody who behaves."""

    def __init__(self, member: Person) -> None:
        self.seconds: list[float] = []
        self._member = member
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.1):
            began = time.monotonic()
            status, _ = self._member.api("GET", "/api/v1/me/")
            self.seconds.append(time.monotonic() - began if status == http.HTTPStatus.OK else float("inf"))

    def end(self) -> None:
        self._is_over.set()

    def quantile(self, part: float) -> float:
        return sorted(self.seconds)[int(part * len(self.seconds))]

    def check(self, timeout: tuple[float, float]) -> None:
        part, seconds = timeout
        assert self.quantile(part) < seconds


@contextmanager
def asked(member: Person) -> Iterator[Asked]:
    asked = Asked(member)
    thread = threading.Thread(target=asked.run)
    thread.start()
    try:
        yield asked
    finally:
        asked.end()
        thread.join()
    figures = [1000 * asked.quantile(part) for part in (0.5, 0.9, 0.99)]
    log.info("me/: p50 %.1f ms, p90 %.1f ms, p99 %.1f ms; asked %d times", *figures, len(asked.seconds))


@pytest.fixture(scope="module")
@mark_users(pytest.mark.server, pytest.mark.needs("ceph", "postgresql"))
def busy_site(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Site]:
    """With a process for each of two cores, and threads for a thousand transfers."""
    home = tmp_path_factory.mktemp("busy") / "home"
    with started_site(home, template=databases.migrated, is_timed=True, WEB_WORKERS="2", WEB_THREADS="1200") as site:
        yield site


@pytest.fixture
def member(busy_site: Site, tmp_path: Path) -> Person:
    """With a file, and a token that lasts."""
    person = Person(busy_site.server, "member", tmp_path)
    person.token = json.loads(busy_site.server.manage("createusertoken", "member", "--lifetime", "1h"))["access"]
    person.upload("a.bin", CONTENT)
    return person


@contextmanager
def clients(count: int, request: bytes, member: Person, *, arriving: int = 50) -> Iterator[list[socket.socket]]:
    """So many that arrive, some a second, send this and stay."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            time.sleep(1 / arriving)
            client = stack.enter_context(socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT))
            client.sendall(request)
            made.append(client)
        yield made


def head(method: str, member: Person, filename: str, *lines: str) -> bytes:
    path = member.content(filename).removeprefix(member.server.url)
    return "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {member.token}", *lines, "", ""]
    ).encode()


def sockets(site: Site) -> tuple[int, int]:
    """Connections that clients made, and those to store and database."""
    found = [connection for worker in site.server.workers() for connection in worker.net_connections("tcp") if connection.raddr]
    inbound = sum(1 for connection in found if connection.laddr.port == site.server.port)
    return inbound, len(found) - inbound


def descriptors(site: Site) -> int:
    """Clients included, but for the connections that the pools to database and store may keep."""
    return site.server.descriptors() - sockets(site)[1]


def is_settled(site: Site, before: int) -> bool:
    """INV-19."""
    return site.server.is_tidy() and descriptors(site) <= before and not site.unfinished()


def cpu_of(server: Server) -> float:
    """Seconds of its web processes so far."""
    return sum(sum(worker.cpu_times()[:2]) for worker in server.workers())


@pytest.mark.parametrize(
    ("count", "seconds", "pace", "timeout"),
    [
        pytest.param(100, 4, 0.1, PATIENCE_WHEN_BUSY, id="short"),
        pytest.param(100, 5, 0.5, PATIENCE_SHORT, id="short-quiet", marks=QUIET),
        pytest.param(1000, 180, 0.5, PATIENCE, id="long", marks=QUIET),
    ],
)
def test_slow_readers_delay_nobody(
    busy_site: Site, member: Person, count: int, seconds: int, pace: float, timeout: tuple[float, float]
) -> None:
    """T-5: 16 KiB/s each. The figures: `--log-cli-level=info`."""
    server, s3 = busy_site.server, busy_site.s3
    before, memory = descriptors(busy_site), server.memory()
    command = [sys.executable, "-m", "tests.live.crowd", member.content("a.bin"), str(member.folder / "upload")]
    command += ["--count", str(count), "--seconds", str(seconds)]
    most_s3 = most_memory = 0
    cpu = cpu_of(server)
    began = time.monotonic()
    with (
        subprocess.Popen(dying_with_us(*command), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd,
        asked(member) as others,
    ):
        assert crowd.stdin
        assert crowd.stdout
        crowd.stdin.write(f"Bearer {member.token}\n".encode())
        crowd.stdin.close()
        while crowd.poll() is None:
            most_s3, most_memory = max(most_s3, s3.connections), max(most_memory, server.memory())
            time.sleep(0.5)
        answer = json.loads(crowd.stdout.read())
    busy = (cpu_of(server) - cpu) / (time.monotonic() - began)
    log.info("%s; %d S3 connections, %d MiB more memory, %.2f cores", answer, most_s3, (most_memory - memory) / MIB, busy)
    assert answer["outcomes"] == {"reading": count}
    assert answer["slowest"] > pace * seconds * 16 * KIB  # a busy machine reads more slowly, too
    others.check(timeout)
    assert most_s3 <= 64
    wait_for(lambda: is_settled(busy_site, before))


@pytest.mark.parametrize(
    "timeout",
    [pytest.param(PATIENCE_WHEN_BUSY, id="short"), pytest.param(PATIENCE_SHORT, id="short-quiet", marks=QUIET)],
)
def test_clients_that_ask_to_close_and_stay_delay_nobody(busy_site: Site, member: Person, timeout: tuple[float, float]) -> None:
    """T-12."""
    before = descriptors(busy_site)
    request = f"GET /api/v1/me/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {member.token}\r\nConnection: close\r\n\r\n".encode()
    with asked(member) as others, clients(5, request, member) as stayed:
        time.sleep(4)
        assert all(client.recv(65536) for client in stayed)
    others.check(timeout)
    wait_for(lambda: is_settled(busy_site, before))


@pytest.mark.parametrize(
    ("seconds", "arriving", "timeout"),
    [
        pytest.param(5, 200, PATIENCE_WHEN_BUSY, id="short"),
        pytest.param(5, 50, PATIENCE_SHORT, id="short-quiet", marks=QUIET),
        pytest.param(CUT_OFF, 50, PATIENCE, id="long", marks=QUIET),
    ],
)
@pytest.mark.parametrize("kind", ["stalled readers", pytest.param("trickling uploads", marks=pytest.mark.long)])
def test_clients_without_pace_are_cut_off_and_delay_nobody(
    busy_site: Site, member: Person, kind: str, seconds: int, arriving: int, timeout: tuple[float, float]
) -> None:
    """In the short form they lose patience first."""
    before = descriptors(busy_site)
    request = (
        head("GET", member, "a.bin") if kind == "stalled readers" else head("PUT", member, "b.bin", "Content-Length: 999999")
    )
    with asked(member) as others, clients(200, request, member, arriving=arriving) as slow:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(1)
            if kind == "trickling uploads":
                for client in slow:
                    with suppress(OSError):  # cut off
                        client.send(b"x")
        if seconds == CUT_OFF:
            assert sockets(busy_site)[0] <= 2  # who asks for `me/`
            assert busy_site.server.is_tidy()
    others.check(timeout)
    wait_for(lambda: is_settled(busy_site, before))
    assert member.filenames() == {"a.bin"}


@pytest.mark.parametrize("kind", ["downloads", pytest.param("uploads", marks=pytest.mark.long)])
def test_200_clients_that_hang_up_in_mid_stream_leave_nothing(busy_site: Site, member: Person, kind: str) -> None:
    """Round after round."""
    before, memory = descriptors(busy_site), []
    request = head("GET", member, "a.bin")
    if kind == "uploads":
        request = head("PUT", member, "b.bin", f"Content-Length: {len(CONTENT)}") + CONTENT[: 300 * KIB]
    for _ in range(3):
        with clients(200, request, member, arriving=1000) as leaving:
            if kind == "downloads":
                assert all(client.recv(65536) for client in leaving)
        wait_for(lambda: is_settled(busy_site, before))
        memory.append(busy_site.server.memory())
    log.info("MiB after each round: %s", [size // MIB for size in memory])
    # What leaks does so in every round; what a busy machine holds a little longer does not.
    assert min(later - earlier for earlier, later in pairwise(memory)) < 24 * MIB
    assert member.filenames() == {"a.bin"}
