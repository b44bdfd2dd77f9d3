"""What people do with the clients they have: curl, wget, aria2c and tar against a real server, byte for byte."""

import hashlib
import http.client
import io
import json
import os
import select
import socket
import subprocess
import tarfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contents import random_bytes
from tests.live.child_process import killed_with_parent
from tests.live.people import Person, sha256
from tests.live.server import ROOT, Server
from tests.live.waiting import LIMIT, wait_for


MIB = 1024 * 1024
GIB = 1024 * MIB
CONTENT = random_bytes(20 * MIB + 12345)


@pytest.fixture
def uploaded(member: Person) -> str:
    """The address of a file that holds CONTENT."""
    member.upload("big.bin", CONTENT)
    return member.content("big.bin")


def cut(member: Person, url: str, into: Path, count: int) -> None:
    """Fetches the first `count` bytes and breaks off."""
    command = killed_with_parent(*member.command(url))
    with (
        into.open("wb") as target,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl,
    ):
        assert curl.stdout
        target.write(curl.stdout.read(count))
        curl.stdout.close()
        assert curl.wait() == 23  # nobody takes what it fetches


# --- Up and down ---


@pytest.mark.needs("curl")
def test_curl_puts_a_file_under_its_name_and_gets_it_back_under_it(member: Person, tmp_path: Path) -> None:
    back = tmp_path / "back"
    back.mkdir()
    for size in (0, 1, 131_016, 131_017, 8 * MIB, 20 * MIB + 1):
        source = tmp_path / f"report-{size}.csv"
        source.write_bytes(CONTENT[:size])
        sent = member.curl("-T", source, member.content(), "-w", "%{stderr}%{http_code}")
        assert sent.stderr == b"201"
        file = json.loads(sent.stdout)
        assert (file["filename"], file["length"]) == (source.name, size)
        assert file["sha256"] == sha256(source)

        assert member.curl("-OJ", file["links"]["content"], cwd=back).returncode == 0
        assert (back / source.name).read_bytes() == source.read_bytes()


@pytest.mark.needs("curl")
def test_directory_goes_through_tar_in_one_pipe(member: Person, tmp_path: Path) -> None:
    """T-14: a body whose length nobody knows beforehand."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_bytes(CONTENT[: number * 40_000])
    url = member.content("x.tar")
    sent = subprocess.run(
        ["sh", "-c", f"tar c . | curl -sS -K {tmp_path / 'bearer'} -T - {url}"], cwd=folder, capture_output=True, check=True
    )
    assert json.loads(sent.stdout)["length"] > 7_000_000

    with tarfile.open(fileobj=io.BytesIO(member.curl(url).stdout)) as archive:
        for number in range(20):
            member_file = archive.extractfile(f"./{number}.txt")
            assert member_file is not None
            assert member_file.read() == CONTENT[: number * 40_000]


@pytest.mark.needs("curl")
def test_curl_sends_several_files_as_a_form_and_gets_them_as_a_zip(member: Person, tmp_path: Path) -> None:
    for number, size in enumerate([0, 100, 9 * MIB]):
        (tmp_path / f"{number}.bin").write_bytes(CONTENT[:size])
    forms = [part for number in range(3) for part in ("-F", f"file=@{tmp_path}/{number}.bin")]
    sent = member.curl(*forms, "-F", "notes=all of them", f"{member.server.url}{member.files}")
    assert [result["status"] for result in json.loads(sent.stdout)["results"]] == [201] * 3

    archive = member.curl("--fail", f"{member.server.url}/api/v1/collections/{member.collection}/archive.zip")
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
        assert files.testzip() is None
        assert {name: files.read(name) for name in files.namelist()} == {
            f"{number}.bin": CONTENT[:size] for number, size in enumerate([0, 100, 9 * MIB])
        }


@pytest.mark.needs("curl")
def test_curl_replaces_what_it_has_seen_and_nothing_else(member: Person, tmp_path: Path) -> None:
    member.upload("a.txt", b"old")
    etag = member.api("GET", f"{member.files}a.txt/")[1]["etag"]
    new = tmp_path / "new"
    new.write_bytes(b"new")
    send = ["-T", new, member.content("a.txt"), "-o", tmp_path / "answer", "-w", "%{http_code}"]
    assert member.curl(*send).stdout == b"428"
    assert member.curl(*send, "-H", f"If-Match: {etag}").stdout == b"200"
    assert member.curl(*send, "-H", f"If-Match: {etag}").stdout == b"412"
    assert member.curl(member.content("a.txt")).stdout == b"new"


# --- In parts ---


@pytest.mark.needs("curl")
def test_curl_r_gets_exactly_these_bytes(member: Person, uploaded: str) -> None:
    for parts, expected in (
        ("0-99", slice(100)),
        ("5000000-12345678", slice(5_000_000, 12_345_679)),
        ("-500", slice(-500, None)),
        ("20971520-", slice(20_971_520, None)),
    ):
        got = member.curl("-r", parts, uploaded, "-w", "%{stderr}%{http_code}")
        assert got.stderr == b"206", parts
        assert got.stdout == CONTENT[expected], parts


@pytest.mark.needs("curl")
def test_curl_goes_on_after_a_cut(member: Person, uploaded: str, tmp_path: Path) -> None:
    target = tmp_path / "big.bin"
    cut(member, uploaded, target, 5_000_000)
    again = member.curl("-C", "-", "-o", target, uploaded, "-w", "%{http_code} %{size_download}")
    assert again.stdout == f"206 {len(CONTENT) - 5_000_000}".encode()
    assert target.read_bytes() == CONTENT


@pytest.mark.needs("curl", "wget")
def test_wget_goes_on_after_a_cut(member: Person, uploaded: str, tmp_path: Path) -> None:
    target = tmp_path / "big.bin"
    cut(member, uploaded, target, 5_000_000)
    header = f"--header=Authorization: Bearer {member.token}"
    fetched = subprocess.run(["wget", "-c", header, uploaded], cwd=tmp_path, capture_output=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    assert b"206 Partial Content" in fetched.stderr
    assert target.read_bytes() == CONTENT


@pytest.mark.needs("aria2c")
def test_aria2_puts_the_parts_of_eight_connections_together(member: Person, uploaded: str, tmp_path: Path) -> None:
    header = f"--header=Authorization: Bearer {member.token}"
    options = ["-x8", "-s8", "-k1M", "--max-tries=1", "--check-certificate=false", "--no-conf", "--file-allocation=none"]
    fetched = subprocess.run(
        ["aria2c", *options, header, "-d", str(tmp_path), "-o", "got", uploaded], capture_output=True, check=False
    )
    assert fetched.returncode == 0, fetched.stdout
    assert (tmp_path / "got").read_bytes() == CONTENT


# --- One-off links ---


@pytest.mark.needs("curl")
def test_link_gives_the_file_once_whatever_the_client_carries(member: Person, uploaded: str, tmp_path: Path) -> None:
    link = member.link("big.bin")
    plain = ["curl", "-sS", "-w", "%{stderr}%{http_code}"]
    for _ in range(3):  # HEAD does not consume
        head = subprocess.run([*plain, "-I", link], capture_output=True, check=True)
        assert head.stderr == b"200"
        assert f"content-length: {len(CONTENT)}\r\n".encode() in head.stdout.lower()
    first = subprocess.run([*plain, "-OJ", link], cwd=tmp_path, capture_output=True, check=True)
    assert first.stderr == b"200"
    assert (tmp_path / "big.bin").read_bytes() == CONTENT
    second = subprocess.run([*plain, link], capture_output=True, check=True)
    assert (second.stderr, json.loads(second.stdout)["code"]) == (b"404", "not_found")


@pytest.mark.needs("curl")
def test_curl_follows_the_redirect_to_a_link(member: Person, uploaded: str) -> None:
    got = member.curl("-L", f"{member.server.url}{member.files}big.bin/download/")
    assert got.stdout == CONTENT


@pytest.mark.needs("curl")
def test_transfer_of_a_link_that_broke_goes_on(member: Person, uploaded: str, tmp_path: Path) -> None:
    link = member.link("big.bin")
    target = tmp_path / "big.bin"
    cut(member, link, target, 7_000_000)
    resumed = subprocess.run(["curl", "-sS", "-C", "-", "-o", target, link], capture_output=True, check=True)
    assert resumed.stderr == b""
    assert target.read_bytes() == CONTENT


def test_link_fetched_by_50_at_once_is_one_200(member: Person, uploaded: str) -> None:
    """INV-09 with real sockets; tests/services/test_races.py has it on both databases."""
    path = member.link("big.bin").removeprefix(member.server.url)

    def fetch(_: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", member.server.port, timeout=LIMIT)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, hashlib.sha256(body).hexdigest()

    with ThreadPoolExecutor(50) as pool:
        answers = Counter(pool.map(fetch, range(50)))

    assert answers.pop((200, hashlib.sha256(CONTENT).hexdigest())) == 1
    (((status, _), count),) = answers.items()  # all with the same body
    assert (status, count) == (404, 49)


@pytest.mark.needs("curl")
@pytest.mark.quiet
def test_link_is_dead_after_30_seconds(member: Person, uploaded: str) -> None:
    """F-51, on the server's own clock."""
    minted = time.monotonic()
    early, late = member.link("big.bin"), member.link("big.bin")
    time.sleep(28 - (time.monotonic() - minted))
    assert member.curl("-o", "/dev/null", "-w", "%{http_code}", early).stdout == b"200"
    time.sleep(32 - (time.monotonic() - minted))
    assert member.curl("-o", "/dev/null", "-w", "%{http_code}", late).stdout == b"404"


# --- Refused uploads are not read ---

REFUSALS = [
    pytest.param(2 * GIB, "content/a.bin", {"Authorization": ""}, 401, id="anonymous"),
    pytest.param(2 * GIB, "content/taken.bin", {}, 428, id="name-is-taken"),
    pytest.param(2 * GIB, "content/taken.bin", {"If-Match": '"0"'}, 412, id="stale", marks=pytest.mark.long),
    pytest.param(2 * GIB, "content/a%5Cb", {}, 400, id="bad-name", marks=pytest.mark.long),
    pytest.param(2 * GIB, "../nobodys-0000/content/a.bin", {}, 404, id="foreign", marks=pytest.mark.long),
    pytest.param(2 * GIB, "content/a.bin", {"Content-Encoding": "gzip"}, 415, id="encoded", marks=pytest.mark.long),
    pytest.param(101 * GIB, "content/a.bin", {}, 413, id="too-large"),
]


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("size", "path", "headers", "status"), REFUSALS)
def test_refused_upload_of_gigabytes_is_answered_unread(
    member: Person, tmp_path: Path, size: int, path: str, headers: dict[str, str], status: int
) -> None:
    """curl asks first; a client that does not ask is answered after what the sockets' buffers take."""
    member.upload("taken.bin", b"old")
    target = f"/api/v1/collections/{member.collection}/{path}"
    if path.startswith(".."):
        target = f"/api/v1/collections/{path.removeprefix('../')}"
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(size)  # takes no room on the disk
    sent = {"Authorization": f"Bearer {member.token}"} | headers

    command = ["curl", "-sS", "--max-time", str(LIMIT), "-T", str(huge), "-w", "%{stderr}%{http_code} %{size_upload}"]
    for name, value in sent.items():
        command += ["-H", f"{name}: {value}"] if value else []
    asked = subprocess.run([*command, f"{member.server.url}{target}"], capture_output=True, check=False)
    assert asked.stderr == f"{status} 0".encode()
    assert json.loads(asked.stdout)["status"] == status

    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
    answer, count = pushed(member.server, head.encode() + b"\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"application/problem+json" in answer
    assert count < 16 * MIB
    assert member.filenames() == {"taken.bin"}


def pushed(server: Server, head: bytes) -> tuple[bytes, int]:
    """The answer to a client that sends as fast as it can until it hears something, and the bytes that left it."""
    piece, count, answer = bytes(64 * 1024), 0, b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as client:
        client.sendall(head)
        client.settimeout(0)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            readable, writable, _ = select.select([client], [client], [], 1)
            if readable:
                break
            if writable:
                with suppress(BlockingIOError):
                    count += client.send(piece)
        client.settimeout(LIMIT)
        with suppress(ConnectionResetError):
            while data := client.recv(65536):
                answer += data
                if b"\r\n\r\n" in answer and answer.rstrip().endswith(b"}"):
                    break
    return answer, count


@pytest.mark.needs("curl")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_gibibytes_arrive_as_they_were_sent(each_server: Server, tmp_path: Path) -> None:
    member = Person(each_server, "member", tmp_path)
    source, back = tmp_path / "huge.bin", tmp_path / "back"
    with source.open("wb") as file:
        for _ in range(32):
            file.write(os.urandom(64 * MIB))
    expected = sha256(source)
    sent = member.curl("-T", source, member.content())
    assert json.loads(sent.stdout)["sha256"] == expected
    source.unlink()
    back.mkdir()
    assert member.curl("-OJ", member.content("huge.bin"), cwd=back).returncode == 0
    assert sha256(back / "huge.bin") == expected
    (back / "huge.bin").unlink()
    assert member.api("DELETE", f"{member.files}huge.bin/")[0] == 204
    wait_for(member.server.has_no_leftovers)
