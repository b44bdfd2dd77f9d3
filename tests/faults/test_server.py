"""Tests of a real gunicorn with our worker class: F-39, F-44, F-46, F-47."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.faults.worker_app import MIB, ShortTimeoutWorker
from tests.live.child_process import killed_with_parent
from tests.live.waiting import LIMIT, has_ended, wait_for, within
from tests.needs import mark_dependents


ROOT = Path(__file__).resolve().parents[2]
IDLE_TIMEOUT = ShortTimeoutWorker.idle_timeout
PROMPT = 2  # seconds; a delayed client would wait for `head_timeout`, 3 seconds
KEEPALIVE = 5  # seconds, as in config/gunicorn.conf.py
QUIET = pytest.mark.quiet
GIB = 1024 * MIB


class Server:
    def __init__(self, log: Path, threads: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.log = log
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "--threads", str(threads)]
        gunicorn += ["-k", "tests.faults.worker_app.ShortTimeoutWorker", "--bind", f"fd://{listener.fileno()}"]
        gunicorn += ["tests.faults.worker_app:application"]
        with log.open("wb") as stderr, listener:
            self.process = subprocess.Popen(
                killed_with_parent(*gunicorn),
                cwd=ROOT,
                env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
                stderr=stderr,
                pass_fds=[listener.fileno()],
            )
        self.get("/hello")

    def connect(self, data: bytes = b"", *, buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(LIMIT)
        client.connect(self.address)
        client.sendall(data)
        return client

    @contextlib.contextmanager
    def crowd(self, *kinds: bytes) -> Iterator[list[socket.socket]]:
        """Opens 200 connections that each send one of these byte strings and stay open."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.connect(data)) for data in islice(cycle(kinds), 200)]

    def exchange(self, data: bytes) -> bytes:
        """Sends the data and returns everything that the server sends until it closes the connection."""
        with self.connect(data) as client:
            return read_all(client)

    def get(self, path: str) -> bytes:
        head, _, body = self.exchange(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()).partition(
            b"\r\n\r\n"
        )
        assert head.startswith(b"HTTP/1.1 200 ")
        return body

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = json.loads(self.get("/stats"))
        return stats

    def wait_for_stats(self, **expected: int) -> None:
        """Waits until the application's counters have these values."""
        wait_for(lambda: expected.items() <= self.stats().items(), self.stats)

    def responds_promptly(self, *, is_quiet: bool) -> bool:
        """Returns whether healthy requests get prompt responses: all of them, or half of them on a machine that may be busy."""
        took = []
        for _ in range(20):
            started = time.monotonic()
            assert self.get("/hello") == b"hello"
            took.append(time.monotonic() - started)
        return sorted(took)[-1 if is_quiet else 10] < PROMPT

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT)
        finally:
            self.process.kill()


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return bytes(received)


def curl(*arguments: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-sS", "--max-time", str(LIMIT), *arguments], capture_output=True, check=False, stdin=stdin)


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.server)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log", threads=8)
    yield server
    server.stop()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.wait_for_stats(connections=1)
    return shared


@pytest.fixture
@mark_dependents(pytest.mark.server)
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "log", threads=8)
    yield server
    server.stop()


@pytest.fixture
def huge_file(tmp_path: Path) -> Path:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(2 * GIB)
    return path


# --- Slow connections do not delay other clients ---


IS_QUIET = pytest.mark.parametrize("is_quiet", [False, pytest.param(True, marks=QUIET)])


@IS_QUIET
def test_connections_that_clients_do_not_close_delay_no_other_client(server: Server, *, is_quiet: bool) -> None:
    request = b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with server.crowd(request):
        assert server.responds_promptly(is_quiet=is_quiet)


INCOMPLETE_REQUESTS = {
    "nothing": b"",
    "half-a-head": b"GET /hello HTTP/1.1\r\nX-Slow: ",
    "half-a-body": b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
    "expects-continue": b"POST /read HTTP/1.1\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
    "refused": b"POST /refuse HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
    "half-a-second-head": b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HT",
}


@pytest.mark.parametrize(
    "kinds", [[*INCOMPLETE_REQUESTS], *(pytest.param([kind], id=kind, marks=QUIET) for kind in INCOMPLETE_REQUESTS)]
)
def test_200_stalled_clients_delay_no_other_client(server: Server, kinds: list[str]) -> None:
    with server.crowd(*(INCOMPLETE_REQUESTS[kind] for kind in kinds)):
        assert server.responds_promptly(is_quiet=len(kinds) == 1)
        server.wait_for_stats(connections=1)  # the server closes the stalled connections


@IS_QUIET
def test_200_clients_stalled_at_their_second_request_delay_no_other_client(server: Server, *, is_quiet: bool) -> None:
    with server.crowd(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n") as clients:
        for client in clients:
            while not client.recv(1000).endswith(b"hello"):
                pass
            client.sendall(b"GET /hello HT")
        assert server.responds_promptly(is_quiet=is_quiet)


PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_liveness_is_answered_while_all_threads_are_busy(server: Server) -> None:
    """The accept loop answers: 200 requests for 8 threads are ahead of it in the queue."""
    with server.crowd(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf") as clients:
        head, _, body = server.exchange(PROBE).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == {"status": "ok"}
        clients[-1].settimeout(0)
        with pytest.raises(BlockingIOError):
            clients[-1].recv(1)


def test_liveness_by_head_has_no_body(server: Server) -> None:
    answer = server.exchange(b"HEAD /healthz?x HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"Content-Length: 16\r\n\r\n")


def test_incomplete_requests_are_bounded_in_bytes_by_network(server: Server) -> None:
    """One network may fill a quarter. The others are answered, and the bytes are released with the connections."""
    padding = b"X-Padding: " + b"x" * 60_000
    flood = [b"GET /hello HTTP/1.1\r\n" + padding] * (ShortTimeoutWorker.max_parked // 4 // len(padding) + 1)
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect(data)) for data in flood]
            answers = [read_all(client) for client in clients[-1:]]
            assert answers[0].startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 5\r\n" in answers[0]
        server.wait_for_stats(connections=1)
    assert server.get("/hello") == b"hello"


@within(3 * ShortTimeoutWorker.body_timeout)
def test_body_that_is_no_transfer_has_a_deadline(server: Server, seconds: float) -> None:
    """At a rate that a transfer may have for hours."""
    started = time.monotonic()
    with server.connect(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n") as client:
        client.settimeout(0.01)
        while time.monotonic() < started + seconds:
            with contextlib.suppress(TimeoutError):
                client.sendall(b"x" * 10_000)
                if answer := client.recv(1000):
                    assert answer.startswith(b"HTTP/1.1 408 ")
                    return
    pytest.fail("the body was read without a deadline")


@QUIET  # it takes most of the time of the body
def test_deadline_of_the_body_does_not_limit_the_response(server: Server) -> None:
    head = b"POST /read-and-stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n"
    with server.connect(head, buffer=65536) as client:
        for pause in (0.8, 0.8, 0.1):  # of two idle timeouts
            time.sleep(pause * IDLE_TIMEOUT)
            client.sendall(b"x" * (20_000 if pause > 0.1 else 60_000))
        client.recv(1000)
        time.sleep(0.8 * IDLE_TIMEOUT)  # more than the body had left
        assert len(read_all(client)) > 63 * MIB


def test_incomplete_requests_after_the_first_are_bounded_too(server: Server) -> None:
    """Bytes that arrive together with a complete request, and belong to the next one."""
    first = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
    begun = b"GET /hello HTTP/1.1\r\nX-Padding: " + b"x" * 15_000
    count = ShortTimeoutWorker.max_parked // 4 // len(begun) + 2
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(server.connect(first + begun))
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"x")
        assert b"HTTP/1.1 503 " in read_all(client)


@QUIET  # a busy machine may send more slowly than the minimum rate
def test_transfer_has_no_deadline(server: Server) -> None:
    pieces = int(ShortTimeoutWorker.body_timeout / 0.05) * 2
    with server.connect(f"POST /transfer HTTP/1.1\r\nHost: x\r\nContent-Length: {pieces * 10_000}\r\n\r\n".encode()) as client:
        for _ in range(pieces):
            client.sendall(b"x" * 10_000)
            time.sleep(0.05)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@within(3 * ShortTimeoutWorker.head_timeout)
def test_stalled_head_is_closed_without_a_response(server: Server, seconds: float) -> None:
    started = time.monotonic()
    assert server.exchange(b"GET /hello HTTP/1.1\r\nX-Slow: ") == b""
    assert time.monotonic() - started < seconds


@pytest.mark.needs("curl")
def test_failed_streams_decrement_the_connection_count_once(server: Server) -> None:
    for _ in range(10):
        assert curl(f"{server.url}/raises").returncode == 18
    server.wait_for_stats(connections=1)


# --- Stalled and slow clients ---


def test_stalled_reader_is_disconnected(server: Server) -> None:
    closed = server.stats()["closed"]
    with server.connect(b"GET /small-pieces HTTP/1.1\r\nHost: x\r\n\r\n", buffer=4096) as client:
        client.recv(1000)
        server.wait_for_stats(closed=closed + 1)
        assert len(read_all(client)) < 8 * MIB


@QUIET  # on a busy machine the reader may stall
def test_slow_reader_is_served(server: Server) -> None:
    with server.connect(b"GET /large-pieces HTTP/1.1\r\nHost: x\r\n\r\n", buffer=4096) as client:
        deadline = time.monotonic() + 4 * IDLE_TIMEOUT
        while time.monotonic() < deadline:
            assert client.recv(4096)
            time.sleep(0.02)
        client.settimeout(LIMIT)
        assert client.recv(4096)


def test_kernel_buffers_little_ahead_of_a_slow_reader(server: Server) -> None:
    produced = server.stats()["produced"]
    with server.connect(b"GET /small-pieces HTTP/1.1\r\nHost: x\r\n\r\n", buffer=4096) as client:
        client.recv(1000)
        time.sleep(IDLE_TIMEOUT / 2)
        assert server.stats()["produced"] - produced <= MIB


@within(10 * IDLE_TIMEOUT)
def test_stalled_body_is_408(server: Server, seconds: float) -> None:
    started = time.monotonic()
    answer = server.exchange(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nsome")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert IDLE_TIMEOUT * 0.9 < time.monotonic() - started < seconds


@within(6 * IDLE_TIMEOUT)
@pytest.mark.parametrize("framing", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"])
def test_trickling_body_is_408(server: Server, framing: bytes, seconds: float) -> None:
    with server.connect(b"POST /read HTTP/1.1\r\nHost: x\r\n" + framing) as client:
        client.settimeout(0.05)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
                return
    pytest.fail("the server did not end a body that arrives at 20 bytes per second")


# --- Expect: 100-continue ---


TIMES = pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.long)])


@TIMES
@pytest.mark.needs("curl")
def test_refused_upload_sends_no_body(server: Server, huge_file: Path, times: int) -> None:
    for _ in range(times):
        result = curl("-T", str(huge_file), "-w", "%{http_code} %{size_upload}", f"{server.url}/refuse")
        assert result.stdout == b"no403 0"


@TIMES
@pytest.mark.needs("curl")
def test_refused_upload_without_expect_gets_the_response(server: Server, huge_file: Path, times: int) -> None:
    for _ in range(times):
        result = curl("-T", str(huge_file), "-H", "Expect:", "-w", "%{http_code}", f"{server.url}/refuse")
        assert result.stdout == b"no403"


def test_refusal_of_an_unread_body_closes_the_connection(server: Server) -> None:
    answer = server.exchange(b"PUT /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in answer


def test_accepted_body_gets_100_continue_once(server: Server) -> None:
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    for body in (b"x" * 5, b"x" * 300_000):
        with server.connect(head % len(body)) as client:
            assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode())


def test_body_sent_early_gets_no_100_continue(server: Server) -> None:
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    assert b"100 Continue" not in server.exchange(head + b"12345")


@pytest.mark.needs("curl")
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_arrives_complete(server: Server, tmp_path: Path, framing: str) -> None:
    file = tmp_path / "body"
    for size in (0, 1, 65_536, 65_537, 3_000_000):
        body = os.urandom(size)
        file.write_bytes(body)
        with file.open("rb") as stdin:
            result = curl("-X", "POST", "-T", "-" if framing == "chunked" else str(file), f"{server.url}/read", stdin=stdin)
        assert result.stdout == f"{size} {hashlib.sha256(body).hexdigest()}".encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"5\r\nhello\r\n", id="no-last-chunk"),
        pytest.param(b"5\r\nhel", id="cut-chunk"),
        pytest.param(b"5\r\nhelloXX0\r\n\r\n", id="no-chunk-end"),
        pytest.param(b"-5\r\nhello\r\n0\r\n\r\n", id="bad-size"),
    ],
)
def test_broken_chunks_are_400(server: Server, body: bytes) -> None:
    with server.connect(b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 400 ")


# --- A response is complete or ends visibly short ---


@within(0.9, when_busy=KEEPALIVE - 1)  # without a close, the client would wait for KEEPALIVE
@pytest.mark.needs("curl")
@pytest.mark.parametrize("path", ["/raises", "/ends-early"])
def test_response_that_fails_ends_short_immediately(server: Server, path: str, seconds: float) -> None:
    took = []
    for _ in range(3):
        started = time.monotonic()
        result = curl("-o", os.devnull, f"{server.url}{path}")
        took.append(time.monotonic() - started)
        assert result.returncode == 18  # "transfer closed with outstanding read data remaining"
    assert min(took) < seconds


@pytest.mark.needs("curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
def test_response_without_length_that_fails_is_an_error_to_the_client(server: Server, version: str) -> None:
    assert curl(version, f"{server.url}/raises-without-length").returncode in {18, 56}


def test_head_produces_no_body(server: Server) -> None:
    before = server.stats()
    answer = server.exchange(b"HEAD /small-pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert f"\r\nContent-Length: {64 * MIB}\r\n".encode() in answer
    after = server.stats()
    assert (after["produced"], after["closed"]) == (before["produced"], before["closed"] + 1)


def test_reader_that_disconnects_closes_the_body(server: Server) -> None:
    closed = server.stats()["closed"]
    with server.connect(b"GET /small-pieces HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        client.recv(100_000)
    server.wait_for_stats(closed=closed + 1, connections=1)


# --- Several requests on one connection ---


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    requests += b"GET /refuse HTTP/1.1\r\nHost: x\r\n\r\n"
    requests += b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert re.findall(rb"HTTP/1.1 (\d+)", server.exchange(requests)) == [b"200", b"403", b"200"]


def test_refused_small_body_leaves_the_connection_usable(server: Server) -> None:
    body = b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n"
    requests = b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    requests += b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert re.findall(rb"HTTP/1.1 (\d+)", server.exchange(requests)) == [b"403", b"200"]


# --- Requests that never reach the application ---


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, id="long-target"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, id="long-header"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431, id="endless-header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n", 431, id="1000-headers"),
        pytest.param(b"GET / HTTP/1.1\r\nX : a\r\n\r\n", 400, id="space-in-name"),
        pytest.param(b"GET / HTTP/1.1\n\n", 400, id="bare-newlines"),
        pytest.param(b"rubbish\r\n\r\n", 400, id="rubbish"),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="two-framings"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, id="two-lengths"),
        pytest.param(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, id="negative-length"),
        pytest.param(b"GET / HTTP/1.1\r\nTransfer-Encoding: brotli\r\n\r\n", 501, id="unknown-coding"),
        pytest.param(b"GET / HTTP/1.1\r\nExpect: miracles\r\n\r\n", 417, id="unknown-expectation"),
        pytest.param(b"GET /fail HTTP/1.1\r\n\r\n", 500, id="exception"),
    ],
)
def test_request_that_the_server_refuses_gets_a_problem_document(server: Server, request_: bytes, status: int) -> None:
    head, _, body = server.exchange(request_).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json" in head
    problem: dict[str, Any] = json.loads(body)
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status


def test_server_log_is_json_without_request_data(server: Server) -> None:
    server.exchange(b"GET /secret-plan.txt\x1b HTTP/1.1\r\n\r\n")
    server.exchange(b"GET /fail?token=hunter2 HTTP/1.1\r\n\r\n")
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any(line.get("exception") == "builtins.RuntimeError" for line in lines)
    assert not re.search("secret-plan|hunter2|/fail", server.log.read_text())


# --- Stopping ---


@within(10)
def test_stopping_server_completes_a_stream(own_server: Server, seconds: float) -> None:
    silent, idle = own_server.connect(), own_server.connect(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
    with own_server.connect(b"GET /small-pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as client, silent, idle:
        received = len(client.recv(1000))
        own_server.process.terminate()
        wait_for(lambda: "Handling signal: term" in own_server.log.read_text())
        received += len(read_all(client))
        assert received > 64 * MIB
        assert own_server.process.wait(seconds) == 0


def test_worker_exits_after_its_master_is_killed(own_server: Server) -> None:
    (child,) = psutil.Process(own_server.process.pid).children()
    with own_server.connect(b"GET /small-pieces HTTP/1.1\r\nHost: x\r\n\r\n"):
        own_server.process.send_signal(signal.SIGKILL)
        own_server.process.wait()
        wait_for(lambda: has_ended(child))
