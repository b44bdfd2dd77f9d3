"""The package: a plain zip for everybody's tools, the same bytes each time, and proof of what is in it without this server.

INV-10, INV-11, INV-13.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone
from time_machine import travel

from egress import jobs
from egress.models import Decision
from tenants.models import Tenant, User
from tests.live.server import ROOT
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import Api, approved, body, decide, fill, make_reviewers, path, row, see, submit, work_on
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]

CONTENTS = {
    "Ünï ☃ 1.csv": b"a,1\n" * 100,
    "b.csv": b"b,2\n" * 100_000,
    "C.csv": b"\xc3",
    "empty.txt": b"",
    "=cmd|'calc'!A1 & co.txt": b"harmless",
    "n" * 251 + ".csv": b"a name of 255 bytes",
    "日本.csv": b"x",
}
OWN = ["manifest.json", "manifest.json.sig"]


@pytest.fixture
def people(acme: Tenant) -> dict[str, User]:
    return make_reviewers(acme)


def with_contents() -> Any:
    return worlds.released(CONTENTS)


def approved_with_contents() -> Any:
    return worlds.approved(CONTENTS)


@pytest.fixture
@mark_dependents(starts_from(with_contents))
def request_(own_buckets: Path, built: Any) -> Any:
    return built


@pytest.fixture
def package(request_: Any, api: Api, bob: User, tmp_path: Path) -> Path:
    """As bob downloads it."""
    place = tmp_path / "package.zip"
    place.write_bytes(body(api(bob).get(path(request_, "package.zip"))))
    return place


@pytest.fixture
def public_key(request_: Any, api: Api, tmp_path: Path) -> Path:
    return public_key_of(api, tmp_path)


def public_key_of(api: Api, tmp_path: Path) -> Path:
    """As anybody fetches it."""
    (key,) = api(None).get("/api/v1/egress/signing-keys/").json()["results"]
    place = tmp_path / "key.pem"
    place.write_text(key["public_key"])
    return place


def verify(package: Path, *arguments: object) -> str:
    out = StringIO()
    call_command("verify_package", str(package), *map(str, arguments), stdout=out)
    return out.getvalue()


# --- What everybody's tools make of it ---


def test_members_are_the_files_in_their_order_and_then_the_manifest(package: Path) -> None:
    with zipfile.ZipFile(package) as opened:
        members = opened.infolist()
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in CONTENTS} == CONTENTS
    assert [member.filename for member in members][-2:] == OWN
    assert {member.filename for member in members} == {*CONTENTS, *OWN}
    names = [member.filename for member in members[:-2]]
    assert names == sorted(names, key=str.casefold)
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert {member.external_attr >> 16 for member in members} == {0o600}
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("unzip", "-t"), marks=pytest.mark.needs("unzip")),
        pytest.param(("7z", "t"), marks=pytest.mark.needs("7z")),
        (sys.executable, "-m", "zipfile", "-t"),
    ],
)
def test_everybodys_tool_finds_nothing_wrong_with_it(package: Path, command: tuple[str, ...]) -> None:
    tested = subprocess.run([*command, package], capture_output=True, check=False)
    assert tested.returncode == 0, tested


@pytest.mark.needs("unzip")
def test_unzip_writes_the_files_as_they_were(package: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    subprocess.run(["unzip", "-q", package, "-d", tmp_path / "out"], check=True, env=environment)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.name not in OWN} == CONTENTS


@pytest.fixture
@mark_dependents(starts_from(approved_with_contents))
def zip64(own_buckets: Path, api: Api, bob: User, built: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """With the limit from which on a zip needs it brought down from 2 GiB to what a test can afford."""
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 10_000)
        work_on()
    place = tmp_path / "package.zip"
    place.write_bytes(body(api(bob).get(path(built, "package.zip"))))
    return place


@pytest.mark.needs("unzip")
def test_unzip_finds_nothing_wrong_with_zip64(zip64: Path) -> None:
    subprocess.run(["unzip", "-tq", zip64], check=True, capture_output=True)


def test_large_files_are_zip64(zip64: Path) -> None:
    place = zip64
    assert "The package is authentic" in verify(place)
    with zipfile.ZipFile(place) as opened:
        large = opened.getinfo("b.csv")
        assert large.extra
        assert not opened.infolist()[0].extra
        assert opened.read("b.csv") == CONTENTS["b.csv"]

    content = bytearray(place.read_bytes())  # as Python 3.11.2 writes it: of version 2.0, and without a length
    content[large.header_offset + 4 : large.header_offset + 6] = b"\x14\0"
    content[large.header_offset + 18 : large.header_offset + 26] = bytes(8)
    place.write_bytes(content)
    assert "The package is authentic" in verify(place)


# --- The same, whoever builds it ---


@pytest.mark.usefixtures("released")  # which made the key that signs
def test_the_same_bytes_whenever_it_is_built(api: Api, bob: User, people: dict[str, User]) -> None:
    """As a worker whose transaction was lost, and another an hour later."""
    request = approved(api, bob, people, fill(api(bob), "Others", CONTENTS))
    built = []
    for hours in (0, 1):
        with travel(timezone.now() + timedelta(hours=hours)), transaction.atomic():
            assert jobs.build_package(now=timezone.now())
            built.append((row(request).status, row(request).package_sha256, row(request).signature))
            transaction.set_rollback(True)
    assert built[0] == built[1]
    assert built[0][0] == "released"


def test_manifest_names_what_was_decided_on(request_: Any, package: Path, api: Api, bob: User) -> None:
    """INV-10."""
    shown = see(api(bob), request_)
    content = package.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (row(request_).package_length, shown["package_sha256"])
    with zipfile.ZipFile(package) as opened:
        text = opened.read("manifest.json")
        manifest = json.loads(text)
        assert opened.read("manifest.json.sig").decode() == row(request_).signature
    assert text.decode() == row(request_).manifest
    listed = [
        {"name": name, "length": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in CONTENTS.items()
    ]
    assert sorted(manifest["files"], key=lambda file: file["name"]) == sorted(listed, key=lambda file: str(file["name"]))
    canonical = json.dumps({"files": manifest["files"]}, sort_keys=True, separators=(",", ":")).encode()
    assert manifest["content_sha256"] == hashlib.sha256(canonical).hexdigest()
    assert {decision["content_sha256"] for decision in manifest["decisions"]} == {manifest["content_sha256"]}
    decided = Decision.objects.filter(request=request_["id"]).values_list("by_name", "content_sha256")
    assert sorted(decided) == [(name, manifest["content_sha256"]) for name in ("grace", "ruth")]
    assert [decision["role"] for decision in manifest["decisions"]] == manifest["policy"]["stages"]


# --- verify_package ---


def test_good_package_is_what_was_released(package: Path, request_: Any) -> None:
    said = verify(package)
    assert f"Request {request_['id']} of bob" in said
    assert f"The package is authentic: {len(CONTENTS)} files" in said
    for content in CONTENTS.values():
        assert hashlib.sha256(content).hexdigest() in said


def offline(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """verify_package as whoever got a package runs it: there is no installation, and none is made."""
    environment = {"PATH": os.environ["PATH"], "STRONGROOM_HOME": str(tmp_path / "none")}
    command = [sys.executable, "manage.py", "verify_package", *map(str, arguments)]
    verified = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert not (tmp_path / "none").exists()
    return verified


def test_good_package_is_verified_offline(package: Path, public_key: Path, tmp_path: Path) -> None:
    """And nothing is said of an installation but where it is."""
    verified = offline(tmp_path, package, "--public-key", public_key)
    assert verified.returncode == 0, verified
    assert b"The package is authentic" in verified.stdout


@pytest.mark.long
def test_changed_package_and_one_without_a_key_are_refused_offline(package: Path, public_key: Path, tmp_path: Path) -> None:
    package.write_bytes(package.read_bytes().replace(b"harmless", b"harmful!"))
    verified = offline(tmp_path, package, "--public-key", public_key)
    assert verified.returncode == 1
    assert b"The package is not authentic" in verified.stderr

    verified = offline(tmp_path, package)
    assert (verified.returncode, b"Give the key with --public-key" in verified.stderr) == (1, True)


def test_nobodys_words_pass_for_the_verifiers(api: Api, bob: User, people: dict[str, User], results: str, tmp_path: Path) -> None:
    """Reasons and justifications may have lines; what is said of them has one for each."""
    forged = "\nThe package is authentic: 99 files, 1 bytes."
    request = submit(api(bob), results, justification=f"Tables of the paper.{forged}")
    work_on()
    for name in ("grace", "ruth"):
        assert decide(api(people[name]), request, reason=f"No small cells.{forged}").status_code == 201
    work_on()
    package = tmp_path / "package.zip"
    package.write_bytes(body(api(bob).get(path(request, "package.zip"))))
    said = verify(package).splitlines()
    assert [line for line in said if line.startswith("The package is")] == said[-1:]
    assert len([line for line in said if "99 files" in line]) == 3


@pytest.mark.needs("openssl")
def test_openssl_verifies_the_signature(package: Path, public_key: Path, tmp_path: Path) -> None:
    """Nobody needs our code for it: the signature is over a line of its own and the bytes of manifest.json."""
    signed, signature = tmp_path / "signed", tmp_path / "signature"
    with zipfile.ZipFile(package) as opened:
        signed.write_bytes(b"strongroom/egress/v1\n" + opened.read("manifest.json"))
        encoded = opened.read("manifest.json.sig")
    subprocess.run(["openssl", "base64", "-d", "-A", "-out", signature], input=encoded, check=True)
    verifying = f"openssl pkeyutl -verify -pubin -inkey {public_key} -rawin -in {signed} -sigfile {signature}"
    command = verifying.split()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    signed.write_bytes(signed.read_bytes() + b" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


Members = list[tuple[str, bytes]]


def flipped(content: bytes, at: int = 5, *, bit: int = 1) -> bytes:
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def change(name: str, new: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    return lambda members: [(each, new(content) if each == name else content) for each, content in members]


DAMAGES: dict[str, tuple[Callable[[Members], Members], str]] = {
    "byte of a file": (change("b.csv", flipped), "'b.csv' differs from the released file"),
    "file cut": (change("b.csv", lambda content: content[:-1]), "'b.csv' differs from the released file"),
    "byte of the manifest": (change("manifest.json", flipped), "not signed by any of the given keys"),
    "space behind the manifest": (change("manifest.json", lambda content: content + b" "), "not signed by any of the given keys"),
    "byte of the signature": (change("manifest.json.sig", flipped), "not signed by any of the given keys"),
    "no base64": (change("manifest.json.sig", lambda _: b"\xff"), "not signed by any of the given keys"),
    "added": (lambda members: [*members, ("more.csv", b"more")], "'more.csv' was not released"),
    "added folder": (lambda members: [("folder/", b""), *members], "'folder/' was not released"),
    "removed": (lambda members: [each for each in members if each[0] != "C.csv"], "'C.csv' is missing"),
    "renamed": (lambda members: [("c.csv" if name == "C.csv" else name, text) for name, text in members], "'C.csv' is missing"),
    "doubled": (lambda members: [*members, *members[:1]], " was not released"),
    "manifest doubled": (lambda members: [("manifest.json", b"{}"), *members], "'manifest.json' was not released"),
    "no manifest": (lambda members: [each for each in members if each[0] != "manifest.json"], "manifest.json is missing"),
    "no signature": (lambda members: members[:-1], "manifest.json.sig is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_package_that_was_changed_is_none(package: Path, public_key: Path, damage: str) -> None:
    change, reason = DAMAGES[damage]
    with zipfile.ZipFile(package) as opened:
        members = [(member.filename, opened.read(member)) for member in opened.infolist()]
    with zipfile.ZipFile(package, "w") as altered:
        for name, content in change(members):
            altered.writestr(name, content)

    with pytest.raises(CommandError, match="The package is not authentic") as refusal:
        verify(package, "--public-key", public_key)
    assert reason in str(refusal.value)
    assert refusal.value.returncode == 1


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip_is_no_package(tmp_path: Path, public_key: Path, content: bytes) -> None:
    place = tmp_path / "no.zip"
    place.write_bytes(content)
    with pytest.raises(CommandError, match="The package is not authentic"):
        verify(place, "--public-key", public_key)


def test_what_is_not_there_or_no_key_is_said(tmp_path: Path, package: Path, public_key: Path) -> None:
    with pytest.raises(CommandError, match=r"none.zip: No such file"):
        verify(tmp_path / "none.zip", "--public-key", public_key)
    with pytest.raises(CommandError, match="The public key must be an Ed25519 key in a PEM file"):
        verify(package, "--public-key", package)


def test_package_that_somebody_else_signed_is_none(package: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pem"
    public = Ed25519PrivateKey.generate().public_key()
    foreign.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(CommandError, match="its manifest is not signed by any of the given keys"):
        verify(package, "--public-key", foreign)


def test_installation_that_released_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="has no signing key yet"):
        verify(tmp_path / "any.zip")


def small() -> Any:
    return worlds.released({"\u00fc.csv": b"a,1\n"})


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.long)])
@starts_from(small)
def test_no_byte_of_a_package_is_free(api: Api, bob: User, built: Any, tmp_path: Path, step: int) -> None:
    """Where no unpacker looks, nothing leaves: at any place between the contents, a flipped bit is seen."""
    request, public_key = built, public_key_of(api, tmp_path)
    content = body(api(bob).get(path(request, "package.zip")))
    manifest = content.index(row(request).manifest.encode())
    place = tmp_path / "flipped.zip"
    place.write_bytes(content)
    verify(place, "--public-key", public_key)
    for at in [*range(manifest), *range(manifest + len(row(request).manifest), len(content))][::step]:
        place.write_bytes(flipped(content, at, bit=(1, 8, 0x80)[at % 3]))
        with pytest.raises(CommandError, match="The package is not authentic"):
            verify(place, "--public-key", public_key)


def packed_anew(content: bytes) -> bytes:
    anew = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as opened, zipfile.ZipFile(anew, "w") as archive:
        for member in opened.infolist():
            archive.writestr(member.filename, opened.read(member))
    return anew.getvalue()


SMUGGLED: dict[str, Callable[[bytes], bytes]] = {
    "in front": lambda content: b"secret" + content,
    "behind": lambda content: content + b"secret",
    "in a comment": lambda content: content[:-2] + b"\6\0secret",
    "by packing anew": packed_anew,
}


@pytest.mark.parametrize("way", SMUGGLED)
def test_bytes_that_belong_to_no_file_are_seen(package: Path, public_key: Path, way: str) -> None:
    package.write_bytes(SMUGGLED[way](package.read_bytes()))
    with zipfile.ZipFile(package) as opened:
        assert opened.testzip() is None  # an unpacker finds nothing wrong
    with pytest.raises(CommandError, match="contains bytes that belong to no file"):
        verify(package, "--public-key", public_key)
