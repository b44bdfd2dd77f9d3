"""A released package in the hands of the clients that people have: counted, cut off, resumed, found again by a new server."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contents import random_bytes
from tests.journeys.test_curl import cut
from tests.journeys.test_cuts import begun, read_slowly
from tests.live.people import Person, sha256
from tests.live.server import Server
from tests.live.waiting import wait_for
from tests.needs import mark_dependents


MIB = 1024 * 1024
CONTENT = random_bytes(30 * MIB)
REASON = "It is what the protocol allows."
EGRESS = "/api/v1/egress/requests/"


class Asked:
    """A request of the member's, about a collection of their own."""

    def __init__(self, server: Server, folder: Path) -> None:
        folder.mkdir()
        self.member = Person(server, "member", folder)
        self.member.upload("big.bin", CONTENT)
        self.member.upload("Größe.csv", b"a,1\n")
        asked = {"collection": self.member.collection, "justification": REASON}
        sent = self.member.curl("--fail-with-body", "--json", json.dumps(asked), f"{server.url}{EGRESS}")
        assert sent.returncode == 0, sent.stdout
        self.path = f"{EGRESS}{json.loads(sent.stdout)['id']}/"
        self.package = f"{server.url}{self.path}package.zip"

    def see(self) -> Any:
        status, request = self.member.api("GET", self.path)
        assert status == 200, request
        return request

    def is_at(self, status: str) -> bool:
        return bool(self.see()["status"] == status)

    def is_whole(self, package: Path) -> bool:
        """By the digest that was announced, and by what everybody opens it with."""
        tested = subprocess.run(["unzip", "-t", package], capture_output=True, check=False)
        return sha256(package) == self.see()["package_sha256"] and tested.returncode == 0


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.server)
def server(tmp_path_factory: pytest.TempPathFactory, first_home: Path) -> Iterator[Server]:
    """Of its own: it is killed on the way."""
    server = Server(tmp_path_factory.mktemp("egress") / "home")
    server.copy_home_from(first_home)
    try:
        yield server.start()
    finally:
        server.kill()


def decide(server: Server, role: str, asked: Asked) -> None:
    head = f"Authorization: Bearer {server.token(role)}"
    said = json.dumps({"verdict": "approve", "reason": REASON})
    command = ["curl", "-sS", "-K", "-", "--fail-with-body", "--json", said, f"{server.url}{asked.path}decisions/"]
    sent = subprocess.run(command, input=f'header = "{head}"'.encode(), capture_output=True, check=False)
    assert sent.returncode == 0, sent.stdout


@pytest.fixture(scope="module")
@mark_dependents(pytest.mark.needs("curl", "unzip"))
def released(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Two that may be fetched once, and one that may be fetched twice. All at once: ticks come every five seconds."""
    folder = tmp_path_factory.mktemp("members")
    made = [Asked(server, folder / "first"), Asked(server, folder / "second")]
    policy = "/api/v1/tenants/demo/egress-policy/"
    assert server.request("PUT", policy, token=server.token("admin"), body={"max_downloads": 2})[0] == 200
    made.append(Asked(server, folder / "third"))
    for role in ("information_governance", "research_it"):
        wait_for(lambda: all(asked.is_at("in_review") for asked in made))
        for asked in made:
            decide(server, role, asked)
    wait_for(lambda: all(asked.is_at("released") for asked in made))
    return made


def test_requester_fetches_the_zip_that_two_have_approved_and_an_auditor_sees_it(
    server: Server, released: list[Asked], tmp_path: Path
) -> None:
    asked = released[0]
    auditor = server.token("auditor")
    assert server.request("GET", f"{asked.path}package.zip", token=auditor)[0] == 403
    assert asked.member.curl("--fail", "-OJ", asked.package, cwd=tmp_path).returncode == 0
    (package,) = tmp_path.iterdir()
    assert package.name == f"egress-{asked.see()['id']}.zip"
    assert asked.is_whole(package)
    subprocess.run(["unzip", "-q", package, "-d", tmp_path / "opened"], check=True)
    assert (tmp_path / "opened" / "big.bin").read_bytes() == CONTENT
    assert (tmp_path / "opened" / "Größe.csv").read_bytes() == b"a,1\n"
    refused = asked.member.curl(asked.package, "-w", "%{stderr}%{http_code}")
    assert (refused.stderr, json.loads(refused.stdout)["code"]) == (b"409", "downloads_used")
    status, seen = server.request("GET", asked.path, token=auditor)
    assert (status, seen["allowed_actions"]) == (200, [])
    (download,) = seen["downloads"]
    assert (download["by"], download["bytes_taken"], download["is_complete"]) == ("member", seen["package_length"], True)


@pytest.mark.needs("aria2c")
def test_eight_connections_share_one_download(released: list[Asked], tmp_path: Path) -> None:
    asked = released[2]
    header = f"--header=Authorization: Bearer {asked.member.token}"
    options = ["-x8", "-s8", "-k1M", "--max-tries=1", "--no-conf", "--file-allocation=none"]
    command = ["aria2c", *options, header, "-d", str(tmp_path), "-o", "package.zip", asked.package]
    fetched = subprocess.run(command, capture_output=True, check=False)
    assert fetched.returncode == 0, fetched.stdout
    assert asked.is_whole(tmp_path / "package.zip")
    assert asked.see()["download_count"] == 1


def test_revocation_ends_a_running_download_within_seconds(server: Server, released: list[Asked], tmp_path: Path) -> None:
    """INV-16."""
    asked = released[2]
    answer = begun(asked.member, asked.package)
    read_slowly([answer], seconds=1)
    assert not answer.isclosed()

    reviewer = server.token("information_governance")
    assert server.request("POST", f"{asked.path}revoke/", token=reviewer, body={"reason": REASON})[0] == 200

    read_slowly([answer], seconds=10)
    assert answer.isclosed()
    assert answer.length  # short of what was announced
    assert asked.member.curl("-o", "/dev/null", "-r", "0-9", "-w", "%{http_code}", asked.package).stdout == b"409"
    (*_, download) = asked.see()["downloads"]
    assert 0 < download["bytes_taken"] < len(CONTENT)
    assert not download["is_complete"]


def test_transfer_that_was_cut_goes_on_behind_a_server_that_was_killed(
    server: Server, released: list[Asked], tmp_path: Path
) -> None:
    """F-05: at 3 %, at 99 %, and in the middle with no word from the server, of a package that is to be had once."""
    asked = released[1]
    target, length = tmp_path / "package.zip", asked.see()["package_length"]
    cut(asked.member, asked.package, target, length * 3 // 100)
    with target.open("ab") as more:
        more.write(asked.member.curl("-r", f"{target.stat().st_size}-{length // 2}", asked.package).stdout)
    answer = begun(asked.member, asked.package, target.stat().st_size)
    with target.open("ab") as more:
        more.write(answer.read(MIB))
        server.kill()
        with suppress(ConnectionResetError):
            while piece := answer.read1(64 * 1024):
                more.write(piece)
    assert target.stat().st_size < length * 9 // 10
    server.start()

    with target.open("ab") as more:
        more.write(asked.member.curl("-r", f"{target.stat().st_size}-{length * 99 // 100}", asked.package).stdout)
    assert asked.member.curl("--fail", "-C", "-", "-o", target, asked.package).returncode == 0
    assert asked.is_whole(target)
    seen = asked.see()
    assert (seen["download_count"], len(seen["downloads"])) == (1, 1)
