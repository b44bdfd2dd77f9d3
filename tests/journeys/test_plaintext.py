"""No plaintext on the disk, at any size and on any way in or out: the server is watched by strace while it works (F-66)."""

import hashlib
import mmap
import re
import secrets
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import stores
from tests.live.child_process import killed_with_parent
from tests.live.people import Person, sha256
from tests.live.server import ROOT, Server
from tests.live.waiting import wait_for
from tests.needs import mark_dependents


KIB, MIB, GIB = 1024, 1024**2, 1024**3
CANARY = b"plaintext-canary-" + secrets.token_hex(16).encode() + b"\n"
FILENAME = "filename-canary.txt"
REFUSED = "Content-Digest: sha-256=:" + "A" * 43 + "=:"
OPENED = re.compile(r'^\d+ +(?:open|openat|openat2|creat)\([^"\n]*"(?P<path>[^"\n]*)", (?P<flags>[^)\n]*)', re.MULTILINE)
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|\b0[0-7]+\b")


@pytest.fixture(params=["directory", pytest.param("bucket", marks=pytest.mark.needs("ceph"))])
@mark_dependents(pytest.mark.needs("curl", "strace"))
def traced(request: pytest.FixtureRequest, ready_server: Callable[..., Server], tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A server, and the file to which strace writes what it opens: nothing else sees a file that is gone by then."""
    log, scratch = tmp_path / "strace", tmp_path / "tmp"
    scratch.mkdir()
    with ExitStack() as stack:
        place: dict[str, str] = {}
        if request.param == "bucket":
            endpoint = stores.ceph()
            vault, staging, release = stack.enter_context(stores.buckets(endpoint, len(stores.ALIASES)))
            place = endpoint.environment(vault)
            place |= {"S3_STAGING_BUCKET": staging, "S3_RELEASE_BUCKET": release}
        server = ready_server(TMPDIR=str(scratch), PYTHONDONTWRITEBYTECODE="1", **place)
        calls = "trace=open,openat,openat2,creat,memfd_create"
        server.tracer = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", calls)
        server.start()
        # A tick goes to the worker through the temporary folder, which Python tries out with a file before it first uses it.
        wait_for(lambda: re.search(rf'"{scratch}/[^"]*[.]msg"', log.read_text(errors="replace")))
        yield server, log
        server.kill()  # before its buckets go


def write_plaintext(path: Path, size: int) -> None:
    block = CANARY * (MIB // len(CANARY))
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            file.write(block[:left])


def send(member: Person, *arguments: object, stdin: Path | None = None) -> bytes:
    with (stdin or Path("/dev/null")).open("rb") as source:
        sent = subprocess.run(member.command(*arguments), stdin=source, capture_output=True, check=False)
    assert sent.returncode == 0, sent
    return sent.stdout


def received(member: Person, *arguments: object) -> str:
    """The SHA-256 of what comes, which nobody keeps."""
    command = killed_with_parent(*member.command("--fail", *arguments))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as stream:
        assert stream.stdout
        digest = hashlib.file_digest(stream.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
    assert stream.returncode == 0
    return digest


def sha256_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def member_of(archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive) as files, files.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def holds(path: Path, *needles: bytes) -> bool:
    with suppress(FileNotFoundError):  # a tick's message, which somebody has read
        if path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return any(content.find(needle) >= 0 for needle in needles)
    return False


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((KIB, 10 * MIB), id="1KiB-10MiB"),
        pytest.param((GIB,), id="1GiB", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_no_plaintext_reaches_the_disk(traced: tuple[Server, Path], tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """PUT, chunked PUT, form; download, ranges, preview, link and archive. With S3 no object is ever on the disk at all."""
    server, log = traced
    folder = tmp_path / "person"
    folder.mkdir()
    source, archive = folder / "source", folder / "archive.zip"
    has_directory = "S3_BUCKET" not in server.environment
    started = log.stat().st_size

    def kept() -> list[Path]:
        return [path for place in (server.home, tmp_path / "tmp") for path in place.rglob("*") if path.is_file()]

    for size in sizes:
        member = Person(server, "member", folder)
        form = f"{server.url}{member.files}"
        write_plaintext(source, size)
        whole, short = sha256(source), folder / "short"
        short.write_bytes(CANARY)

        send(member, "--fail", "-T", source, member.content(FILENAME))
        assert b"digest_mismatch" in send(member, "-T", source, "-H", REFUSED, member.content("refused.txt"))
        assert received(member, member.content(FILENAME)) == whole
        assert received(member, "-r", "5-", member.content(FILENAME)) == sha256_from(source, 5)
        assert received(member, "-r", f"{size - 16}-", member.content(FILENAME)) == sha256_from(source, size - 16)
        assert received(member, f"{form}{FILENAME}/preview/") == whole
        assert received(member, member.link(FILENAME)) == whole
        send(member, "--fail", "-o", archive, f"{form.removesuffix('files/')}archive.zip")
        assert member_of(archive, FILENAME) == whole
        assert [path for path in kept() if holds(path, CANARY.strip())] == []
        assert bool(server.object_files()) == has_directory
        assert member.api("DELETE", f"{member.files}{FILENAME}/")[0] == 204  # 1 GiB at a time is enough

        send(member, "--fail", "-T", "-", member.content("piped.txt"), stdin=source)
        assert received(member, member.content("piped.txt")) == whole
        assert member.api("DELETE", f"{member.files}piped.txt/")[0] == 204

        several = [f"file=@{short};filename=one.txt", f"file=@{source};filename=two.txt", "notes=n"]
        send(member, "--fail", *(argument for part in several for argument in ("-F", part)), form)
        assert received(member, member.content("two.txt")) == whole
        assert [path for path in kept() if holds(path, CANARY.strip(), member.token.encode())] == []
        assert member.api("DELETE", f"{member.files}two.txt/")[0] == 204

    trace = log.read_text(errors="replace")[started:]
    written = {found["path"] for found in OPENED.finditer(trace) if WRITING.search(found["flags"])}
    objects = str(server.home / "objects/vault/")
    assert any(path.startswith(objects) for path in written) == has_directory  # or we do not see what we look for
    own = (
        "strongroom.sqlite3",
        "broker/",
        "broker-control/",
        "celerybeat-schedule",
        *(["objects/vault/"] if has_directory else []),
    )
    allowed = tuple(str(server.home / name) for name in own)
    assert any("strongroom.sqlite3" in path for path in written)
    assert {path for path in written if not path.startswith(allowed)} - {"/dev/null"} == set()
    assert "memfd_create" not in trace
    assert len(kept()) > 6
    outside = [
        path for path in kept() if not path.name.startswith("strongroom.sqlite3")
    ]  # the row has the name, nothing else does
    assert [path for path in outside if holds(path, b"filename-canary") or "filename-canary" in str(path)] == []
