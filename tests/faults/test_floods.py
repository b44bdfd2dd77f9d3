"""Floods of requests without credentials do not stop a server of the smallest size (`bin/run`): no Ceph, no PostgreSQL."""

import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest

from tests.live.server import Server
from tests.live.waiting import LIMIT
from tests.needs import mark_dependents


MIB = 1024 * 1024
TOKEN = "/api/v1/auth/token/"
ME = "/api/v1/me/"
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.server)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("floods") / "home", BEHIND_PROXY="1")
    yield server.start()
    server.kill()


@contextmanager
def connections(server: Server, count: int, head: str) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT))
            client.sendall(head.replace("\n", "\r\n").encode())
            made.append(client)
        yield made


def post(headers: str, path: str = TOKEN) -> str:
    return f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\n{headers}\n\n"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (TOKEN, "Content-Length: 70000", 413),
        (TOKEN, "Content-Length: 16385", 413),
        (TOKEN, "Transfer-Encoding: chunked", 411),
        ("/api/v1/auth/password/reset/", "Content-Length: 70000", 413),
        ("/api/v1/auth/invitations/accept/", "Content-Length: 70000", 413),
        ("/admin/login/", "Content-Length: 70000", 413),
        ("/api/v1/collections/", "Content-Length: 70000", 401),
        ("/api/v1/collections/", "Content-Length: 70000\nAuthorization: Bearer x.y.z", 401),
    ],
)
def test_body_of_a_stranger_is_refused_before_it_is_sent(server: Server, path: str, headers: str, status: int) -> None:
    with connections(server, 1, post(headers, path)) as clients:
        answer = http.client.HTTPResponse(clients[0])
        answer.begin()
        assert answer.status == status


@pytest.mark.parametrize("count", [128, pytest.param(1280, marks=pytest.mark.long)])
def test_announced_bodies_that_never_come_do_not_stop_the_server(server: Server, count: int) -> None:
    with connections(server, count, post("Content-Length: 70000")):
        assert server.request("GET", "/healthz")[0] == 200
        assert server.request("GET", ME, token=server.token())[0] == 200


@pytest.mark.parametrize("count", [128, pytest.param(3200, marks=pytest.mark.long)])
def test_small_bodies_that_never_come_do_not_stop_the_server(server: Server, count: int) -> None:
    with connections(server, count, post("Content-Length: 10000") + "{"):
        assert server.request("GET", "/healthz")[0] == 200
        assert server.request("GET", ME, token=server.token())[0] == 200


@pytest.mark.parametrize("count", [40, pytest.param(800, marks=[pytest.mark.long, pytest.mark.quiet])])
def test_parallel_sign_ins_with_random_names_take_little_memory(server: Server, count: int) -> None:
    """From as many addresses, so that no other limit than that on parallel hashes applies."""
    token = server.token()
    server.request("GET", ME, token=token)
    before = server.memory()

    with ThreadPoolExecutor(min(count, 80)) as pool:
        answers = [pool.submit(sign_in, server, number) for number in range(count)]
        seconds = []
        while not all(answer.done() for answer in answers):
            started = time.monotonic()
            assert server.request("GET", ME, token=token)[0] == 200
            seconds.append(time.monotonic() - started)
    assert {answer.result() for answer in answers} <= {401, 503}
    growth = server.memory() - before
    p99 = sorted(seconds)[int(0.99 * len(seconds))]
    log.info("%d sign-ins: %d MiB more memory; me/: p99 %.0f ms", count, growth // MIB, 1000 * p99)
    assert growth < 300 * MIB
    if count > 100:
        assert p99 < 0.5


def sign_in(server: Server, number: int) -> int:
    body = json.dumps({"username": f"name-{number}", "password": "wrong password"})
    headers = {"Content-Type": "application/json", "X-Forwarded-For": f"192.0.{number // 250}.{number % 250}"}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)) as connection:
        connection.request("POST", TOKEN, body, headers)
        return connection.getresponse().status
