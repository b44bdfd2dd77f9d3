"""What `bin/run` promises: set up once, kept for ever, stopped as a whole (DESIGN 1)."""

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import redis

from tests import needs
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, has_ended, wait_for, within


NewServer = Callable[..., Server]
ROLES = {"superuser", "admin", "member", "member2", "information_governance", "research_it", "auditor"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_people_of_demo_json_have_their_roles(server: Server) -> None:
    for role in sorted(ROLES):
        status, me = server.request("GET", "/api/v1/me/", token=server.token(role))
        assert status == 200
        assert me["is_superuser"] == (role == "superuser")
        tenants = {tenant["slug"]: tenant["roles"] for tenant in me["tenants"]}
        assert tenants == ({} if role == "superuser" else {server.demo["tenant"]: [role.rstrip("2")]})


@pytest.mark.needs("curl")
def test_printed_lines_work_word_for_word(server: Server, tmp_path: Path) -> None:
    (lines,) = re.findall(r"^API=.*?\n\n", server.output, re.DOTALL | re.MULTILINE)
    shell = subprocess.run(["sh", "-eu"], input=lines.encode(), cwd=tmp_path, capture_output=True, check=False)
    assert shell.returncode == 0, shell.stderr.decode()
    assert shell.stderr == b""
    content = (tmp_path / "hello.txt").read_text()
    uploaded, listed, same, *once = shell.stdout.decode().splitlines()
    assert json.loads(uploaded)["filename"] == "hello.txt"
    assert json.loads(listed)["results"][0]["filename"] == "hello.txt"
    assert same == "the same bytes"
    assert once[0] == content.strip()
    assert json.loads(once[1])["status"] == 404


def assert_installed(home: Path) -> None:
    demo = json.loads((home / "demo.json").read_text())
    assert demo.keys() == {"url", "tenant", "users"}
    assert demo["users"].keys() == ROLES
    assert len({user["password"] for user in demo["users"].values()}) == len(ROLES)
    assert mode(home) == 0o700
    private = [home / "demo.json", *(home / "secrets").iterdir()]
    assert [mode(path) for path in private] == [0o600] * 4


def test_first_start_creates_keys_and_people_and_a_second_finds_them(first_home: Path, server: Server) -> None:
    assert_installed(first_home)
    assert server.demo == json.loads((first_home / "demo.json").read_text())
    assert server.token()


@pytest.mark.long
@within(20)
def test_second_start_keeps_what_the_first_made_and_is_quick(new_server: NewServer, seconds: float) -> None:
    server = new_server().start()
    demo = server.demo
    assert demo["url"] == server.url
    assert_installed(server.home)
    status, collection = server.request(
        "POST", "/api/v1/collections/", token=server.token(), body={"tenant": "demo", "display_name": "Kept"}
    )
    assert status == 201

    assert server.stop() == 0
    started = time.monotonic()
    server.start()
    assert time.monotonic() - started < seconds
    assert server.demo == demo
    assert server.request("GET", f"/api/v1/collections/{collection['id']}/", token=server.token())[0] == 200


def test_commands_work_beside_the_running_server(server: Server) -> None:
    pair = json.loads(server.manage("createusertoken", "member"))
    assert server.request("GET", "/api/v1/me/", token=pair["access"])[1]["username"] == "member"


def test_port_is_the_web_servers_and_home_is_the_supervisors(server: Server) -> None:
    """What the others inherited would outlive those."""
    assert server.process
    listening, holding = set(), set()
    for process in server.processes():
        if any(each.status == psutil.CONN_LISTEN for each in process.net_connections("tcp")):
            listening.add(process.name())
        if server.home in [descriptor.resolve() for descriptor in Path(f"/proc/{process.pid}/fd").iterdir()]:
            holding.add(process.pid)
    assert listening == {"gunicorn"}
    assert holding == {server.process.pid}


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.killpg, signal.SIGINT, id="ctrl-c"),
        pytest.param(os.kill, signal.SIGTERM, id="terminate", marks=pytest.mark.long),
    ],
)
def test_signal_stops_everything_cleanly(ready_server: NewServer, send: Callable[[int, int], None], number: int) -> None:
    server = ready_server().start()
    processes = server.processes()
    assert len(processes) >= 5  # supervisor, gunicorn and its worker, Celery worker, beat
    assert server.process
    send(server.process.pid, number)
    assert server.process.wait(LIMIT) == 0
    assert all(map(has_ended, processes))
    assert not any("exception" in json.loads(line) for line in server.log.splitlines() if line.startswith("{"))


def test_kill_of_the_supervisor_leaves_nothing_behind(ready_server: NewServer) -> None:
    server = ready_server().start()
    processes = server.processes()
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: all(map(has_ended, processes)))


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("gunicorn", "the web server"),
        pytest.param("celery worker", "the Celery worker", marks=pytest.mark.long),
        pytest.param("celery beat", "Celery beat", marks=pytest.mark.long),
    ],
)
def test_child_that_dies_brings_all_down(ready_server: NewServer, program: str, name: str) -> None:
    server = ready_server().start()
    assert server.process
    (child,) = [child for child in psutil.Process(server.process.pid).children() if child.name() == program]
    child.kill()
    assert server.process.wait(LIMIT) == 1
    assert f"strongroom: {name} ended with status -9" in server.log
    assert server.processes() == []


def test_taken_port_is_said_clearly(new_server: NewServer) -> None:
    server = new_server()
    with socket.create_server(("127.0.0.1", server.port)):
        assert server.launch().wait(LIMIT) == 1
    assert f"port {server.port}" in server.log
    assert "Traceback" not in server.log


def test_second_server_on_one_home_is_refused(server: Server, new_server: NewServer) -> None:
    second = new_server(server.home)
    result = subprocess.run(
        [sys.executable, "manage.py", "serve"], cwd=ROOT, env=second.environment, capture_output=True, check=False, timeout=LIMIT
    )
    assert result.returncode == 1
    assert b"Another bin/run" in result.stderr


def test_lost_secrets_are_not_replaced(ready_server: NewServer) -> None:
    server = ready_server()
    (server.home / "secrets").rename(server.home / "elsewhere")
    with pytest.raises(AssertionError, match="from a backup"):
        server.manage("-m", "config.install")


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.4, 1.1, 1.8, 2.5])
def test_first_start_that_was_killed_is_made_up_for(new_server: NewServer, seconds: float) -> None:
    server = new_server()
    server.launch()
    time.sleep(seconds)
    server.kill()
    server.start()
    for role in ROLES:
        server.token(role)


@pytest.fixture(
    params=[pytest.param("filesystem", marks=pytest.mark.long), pytest.param("redis", marks=pytest.mark.needs("redis"))]
)
def broker(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of a broker, which is left as it was found."""
    if request.param == "filesystem":
        yield {}
        return
    url = needs.address("redis")
    with closing(redis.Redis.from_url(url)) as client:
        before = set(client.scan_iter())
        yield {"BROKER_URL": url}
        if left := set(client.scan_iter()) - before:
            client.delete(*left)


def test_upload_that_a_kill_cut_off_is_cleaned_up(ready_server: NewServer, broker: dict[str, str]) -> None:
    server = ready_server(**broker).start()
    token = server.token()
    _, collection = server.request("POST", "/api/v1/collections/", token=token, body={"tenant": "demo", "display_name": "Cut"})
    head = f"PUT /api/v1/collections/{collection['id']}/content/cut.bin HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Authorization: Bearer {token}\r\nContent-Length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + bytes(20 * 1024 * 1024))
        wait_for(server.object_files)
        server.kill()
    with closing(sqlite3.connect(server.home / "strongroom.sqlite3")) as database, database:
        assert database.execute("UPDATE files_upload SET heartbeat_at = '2020-01-01 00:00:00'").rowcount == 1
    assert server.object_files()
    server.start()
    wait_for(lambda: not server.object_files())
    assert server.request("GET", f"/api/v1/collections/{collection['id']}/files/", token=server.token())[1]["results"] == []
    server.stop()
