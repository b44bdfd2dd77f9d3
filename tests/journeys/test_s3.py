"""The same server on a real S3: what it leaves in the bucket, and what it does not (INV-06, INV-15, F-12, F-14)."""

import http.client
import json
import logging
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import stores
from tests.contents import random_bytes
from tests.live.people import Person, sha256
from tests.live.server import OWN_PREFIX, Server
from tests.live.waiting import LIMIT, wait_for


log = logging.getLogger(__name__)

MIB = 1024 * 1024
CONTENT = random_bytes(20 * MIB + 12345)
PARTIAL_FILE = 18  # curl: the transfer ended before the announced length


@pytest.fixture
def member(s3_server: Server, tmp_path: Path) -> Person:
    return Person(s3_server, "member", tmp_path)


class Bucket:
    """The vault, seen with S3's own eyes."""

    def __init__(self, server: Server) -> None:
        self.name = server.environment["S3_BUCKET"]
        self.client = stores.ceph().client

    def keys(self) -> set[str]:
        found = {item["Key"] for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", ())}
        return {key for key in found if not key.startswith(OWN_PREFIX)}

    def uploads(self) -> set[str]:
        return {item["Key"] for item in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())}


@pytest.fixture
def bucket(s3_server: Server) -> Iterator[Bucket]:
    """After the test it holds what it held before."""
    bucket = Bucket(s3_server)
    wait_for(s3_server.has_no_leftovers)
    before = bucket.keys()
    yield bucket
    wait_for(s3_server.has_no_leftovers)
    assert bucket.keys() == before
    assert bucket.uploads() == set()


@pytest.mark.needs("curl")
def test_files_of_any_size_go_up_and_come_down(bucket: Bucket, member: Person, tmp_path: Path) -> None:
    """In one request, and in parts from 8 MiB on. The bucket learns nothing of them but their length."""
    back = tmp_path / "back"
    back.mkdir()
    for size in (0, 1, 8 * MIB, 20 * MIB + 1):
        before = bucket.keys()
        member.upload("report.csv", CONTENT[:size])
        assert member.curl("-OJ", member.content("report.csv"), cwd=back).returncode == 0
        assert sha256(back / "report.csv") == sha256(tmp_path / "upload")
        (back / "report.csv").unlink()
        if size > MIB:
            assert member.curl("-r", f"5-{MIB}", member.content("report.csv")).stdout == CONTENT[5 : MIB + 1]

        (key,) = bucket.keys() - before
        stored: Any = bucket.client.get_object(Bucket=bucket.name, Key=key)
        ciphertext = stored["Body"].read()
        assert len(ciphertext) > size
        assert size < 100 or CONTENT[:100] not in ciphertext
        assert (stored["ContentType"], stored["Metadata"]) == ("application/octet-stream", {})
        assert "report" not in key + str(stored)
        assert member.api("DELETE", f"{member.files}report.csv/")[0] == 204


@pytest.mark.parametrize("framing", ["Content-Length: 99999999", "Transfer-Encoding: chunked"])
def test_upload_that_its_client_cuts_leaves_no_parts(bucket: Bucket, member: Person, framing: str) -> None:
    with begun(member, framing) as client:
        wait_for(bucket.uploads)
        client.close()
    wait_for(lambda: not bucket.uploads())
    wait_for(member.server.has_no_leftovers)
    assert member.filenames() == set()


def begun(member: Person, framing: str) -> socket.socket:
    """An upload that has sent 20 MiB and waits."""
    path = member.content("cut.bin").removeprefix(member.server.url)
    head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {member.token}\r\n{framing}\r\n\r\n"
    client = socket.create_connection(("127.0.0.1", member.server.port), timeout=LIMIT)
    client.sendall(head.encode() + (b"%x\r\n" % len(CONTENT) if "chunked" in framing else b"") + CONTENT)
    return client


@pytest.mark.needs("curl")
def test_refused_upload_leaves_no_parts(bucket: Bucket, member: Person, tmp_path: Path) -> None:
    source = tmp_path / "cut.bin"
    source.write_bytes(CONTENT)
    digest = "Content-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"
    refused = member.curl("-T", source, "-H", digest, member.content())
    assert json.loads(refused.stdout)["code"] == "digest_mismatch"
    assert member.server.has_no_leftovers()
    assert bucket.uploads() == set()


def test_upload_that_a_killed_server_process_cut_is_cleared_away(bucket: Bucket, member: Person) -> None:
    with begun(member, "Content-Length: 99999999") as client:
        wait_for(bucket.uploads)
        member.server.web_worker().kill()
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert len(bucket.uploads()) == 1
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S")
    member.server.sql("UPDATE files_upload SET heartbeat_at = ?", long_ago)
    wait_for(lambda: not bucket.uploads())
    wait_for(member.server.has_no_leftovers)
    assert member.filenames() == set()


@pytest.mark.needs("curl")
def test_object_that_was_overwritten_is_never_mixed_into_a_download(bucket: Bucket, member: Person, tmp_path: Path) -> None:
    """F-08: another object of the same size, before and while it is read."""
    before = bucket.keys()
    member.upload("a.bin", CONTENT)
    (key,) = bucket.keys() - before
    stored: Any = bucket.client.get_object(Bucket=bucket.name, Key=key)
    ciphertext = stored["Body"].read()
    with closing(http.client.HTTPConnection("127.0.0.1", member.server.port, timeout=LIMIT)) as connection:
        path = member.content("a.bin").removeprefix(member.server.url)
        connection.request("GET", path, headers={"Authorization": f"Bearer {member.token}"})
        response = connection.getresponse()
        received = response.read(100_000)
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=ciphertext[: 8 * MIB] + bytes(len(ciphertext) - 8 * MIB))
        while piece := response.read(100_000):
            received += piece
    assert CONTENT.startswith(received)
    assert len(received) < len(CONTENT)

    # The object alone may be a copy that was put back, with another ETag: its tags tell.
    again = member.curl(member.content("a.bin"))
    assert again.returncode == PARTIAL_FILE
    assert CONTENT.startswith(again.stdout)
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=bytes(len(ciphertext)))
    refused = member.curl(member.content("a.bin"), "-w", "%{stderr}%{http_code}")
    assert (refused.stderr, json.loads(refused.stdout)["code"]) == (b"502", "object_corrupt")
    assert member.api("DELETE", f"{member.files}a.bin/")[0] == 204


@pytest.mark.quiet
def test_first_byte_of_a_big_file_is_within_20_ms_of_the_store_s_own(bucket: Bucket, member: Person) -> None:
    before = bucket.keys()
    member.upload("big.bin", CONTENT * 12)
    (key,) = bucket.keys() - before
    direct = bucket.client.generate_presigned_url("get_object", Params={"Bucket": bucket.name, "Key": key})
    differences = []
    for _ in range(30):
        ours = first_byte(member.content("big.bin"), Authorization=f"Bearer {member.token}")
        differences.append(ours - first_byte(direct))
    assert member.api("DELETE", f"{member.files}big.bin/")[0] == 204
    log.info("median difference to the first byte: %.1f ms", statistics.median(differences) * 1000)
    assert statistics.median(differences) < 0.020, sorted(differences)


def first_byte(url: str, **headers: str) -> float:
    """Seconds from the request on a fresh connection to the first byte of the body."""
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=LIMIT)) as connection:
        started = time.perf_counter()
        connection.request("GET", f"{address.path}?{address.query}" if address.query else address.path, headers=headers)
        assert connection.getresponse().read(1)
        return time.perf_counter() - started
