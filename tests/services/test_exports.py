"""The way out without us: `decrypt_object`, and stock Tink on both sides of the store."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings
from rest_framework.test import APIClient

from files.models import Collection, StoredFile
from tenants.models import Tenant, User
from tests.api import paths
from tests.services.keyrings import OLD, ROTATED
from tests.unit import stock
from vault import content, crypto, keys
from vault.models import Cipher
from vault.stores import get_store


ROOT = Path(__file__).resolve().parents[2]
Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
SEGMENT = 4096
FIRST = SEGMENT - crypto.HEADER_SIZE - crypto.TAG_SIZE
LENGTHS = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + SEGMENT - crypto.TAG_SIZE, 100_000]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture(autouse=True)
def short_segments(settings: Settings) -> None:
    settings.FILES_SEGMENT_SIZE = SEGMENT


@pytest.fixture
def november(make_collection: MakeCollection, alice: User) -> Collection:
    return make_collection(alice, "November")


@pytest.fixture
def upload(api: Api, alice: User, november: Collection) -> Callable[[bytes], StoredFile]:
    def put(content: bytes) -> StoredFile:
        path = paths.content(november.slug, "a.bin")
        assert api(alice).put(path, content, content_type="application/octet-stream").status_code == 201
        return StoredFile.objects.select_related("collection__key", "collection__tenant").get()

    return put


def object_of(file: StoredFile) -> bytes:
    store = get_store(file.store)
    if not file.object_size:
        return b""
    _, body = store.open(file.object_key, start=0, length=file.object_size, etag=None)
    try:
        return body.read(file.object_size)
    finally:
        body.close()


def exported(file: StoredFile, folder: Path) -> tuple[Path, Path]:
    """The row as `decrypt_object export` prints it, and a copy of the object."""
    printed = StringIO()
    call_command("decrypt_object", "export", file.collection.slug, file.filename, stdout=printed)
    row, copy = folder / "row.json", folder / "object"
    row.write_text(printed.getvalue())
    copy.write_bytes(object_of(file))
    return row, copy


# --- decrypt_object ---


@pytest.mark.parametrize("length", LENGTHS)
def test_exported_row_and_object_give_the_plaintext(upload: Callable[[bytes], StoredFile], tmp_path: Path, length: int) -> None:
    content = random.Random(length).randbytes(length)
    row, copy = exported(upload(content), tmp_path)
    call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert (tmp_path / "plaintext").read_bytes() == content


def test_object_is_opened_with_the_keyring_alone(upload: Callable[[bytes], StoredFile], tmp_path: Path) -> None:
    """On another machine: an empty home, no database, no server, other secrets."""
    content = random.Random(1).randbytes(100_000)
    row, copy = exported(upload(content), tmp_path)
    environment = {
        "PATH": os.environ["PATH"],
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "STRONGROOM_HOME": str(tmp_path / "nothing-here"),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "SECRET_KEY": "any",
        "JWT_SIGNING_KEY": "any",
        "KEYRING": OLD,
    }
    opened = subprocess.run(
        [sys.executable, "manage.py", "decrypt_object", "open", str(row), str(copy)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (opened.returncode, opened.stderr) == (0, b"")
    assert opened.stdout == content


def test_row_that_was_exported_before_a_rotation_opens_while_its_master_key_is_kept(
    upload: Callable[[bytes], StoredFile], tmp_path: Path, settings: Settings
) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    settings.KEYRING = ROTATED
    call_command("rotate_keys", stdout=StringIO())
    call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert (tmp_path / "plaintext").read_bytes() == b"content"


def test_object_without_encryption_is_checked_by_its_digest(
    upload: Callable[[bytes], StoredFile], acme: Tenant, november: Collection, tmp_path: Path
) -> None:
    Tenant.objects.filter(pk=acme.pk).update(allowed_ciphers=["AES-GCM", "NONE"])
    Collection.objects.filter(pk=november.pk).update(cipher=Cipher.NONE)
    row, copy = exported(upload(b"content"), tmp_path)
    assert copy.read_bytes() == b"content"
    call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    copy.write_bytes(b"CONTENT")
    with pytest.raises(CommandError, match="SHA-256"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def flipped(ciphertext: bytes) -> bytes:
    return ciphertext[:60_000] + bytes([ciphertext[60_000] ^ 1]) + ciphertext[60_001:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flipped, id="bit"),
        pytest.param(lambda ciphertext: ciphertext[:-1], id="cut"),
        pytest.param(lambda ciphertext: ciphertext[: 10 * SEGMENT], id="last-segments-missing"),
        pytest.param(lambda ciphertext: ciphertext + b"\0", id="longer"),
        pytest.param(lambda ciphertext: b"", id="empty"),
        pytest.param(lambda ciphertext: ciphertext[SEGMENT : 2 * SEGMENT] * 25, id="other-segments"),
    ],
)
def test_altered_object_is_refused_and_leaves_no_output(
    upload: Callable[[bytes], StoredFile], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    row, copy = exported(upload(random.Random(1).randbytes(100_000)), tmp_path)
    copy.write_bytes(damage(copy.read_bytes()))
    with pytest.raises(CommandError, match="CorruptObject"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert not (tmp_path / "plaintext").exists()


def test_other_keyring_is_told_from_a_damaged_object(
    upload: Callable[[bytes], StoredFile], tmp_path: Path, settings: Settings
) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    settings.KEYRING = f"test-2026 {ROTATED.split()[-1]}"
    with pytest.raises(CommandError, match="WrongKey"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))


def test_row_of_another_file_opens_nothing(upload: Callable[[bytes], StoredFile], tmp_path: Path) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    fields = json.loads(row.read_text())
    for name in ("tenant", "collection", "file", "object_id"):
        row.write_text(json.dumps(fields | {name: "00000000-0000-4000-8000-000000000000"}))
        with pytest.raises(CommandError, match="WrongKey"):
            call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{}", "format"),
        ("[]", "format"),
        ("no json", "Expecting"),
        ('{"format": "strongroom/row/v1"}', "cipher"),
        ('{"format": "strongroom/row/v1", "cipher": "NONE", "length": "1", "segment_size": 64}', "TypeError"),
    ],
)
def test_what_is_no_row_is_said_clearly(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "row.json").write_text(row)
    (tmp_path / "object").write_bytes(b"")
    with pytest.raises(CommandError, match=reason):
        call_command("decrypt_object", "open", str(tmp_path / "row.json"), str(tmp_path / "object"), str(tmp_path / "plaintext"))
    assert not (tmp_path / "plaintext").exists()


def test_output_that_exists_is_left_alone(upload: Callable[[bytes], StoredFile], tmp_path: Path) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    (tmp_path / "plaintext").write_text("mine")
    with pytest.raises(CommandError, match="exists"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert (tmp_path / "plaintext").read_text() == "mine"


def test_output_is_for_its_owner_alone(upload: Callable[[bytes], StoredFile], tmp_path: Path) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert (tmp_path / "plaintext").stat().st_mode & 0o777 == 0o600


def test_object_that_is_not_there_is_said_clearly(upload: Callable[[bytes], StoredFile], tmp_path: Path) -> None:
    row, copy = exported(upload(b"content"), tmp_path)
    copy.unlink()
    with pytest.raises(CommandError, match="object"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))
    assert not (tmp_path / "plaintext").exists()


def test_export_of_an_unknown_file_is_said_clearly(november: Collection) -> None:
    with pytest.raises(CommandError, match="has no file"):
        call_command("decrypt_object", "export", november.slug, "a.bin")


def test_export_of_a_file_whose_collection_key_was_destroyed_opens_nothing(
    upload: Callable[[bytes], StoredFile], tmp_path: Path, now: datetime
) -> None:
    file = upload(b"content")
    key = file.collection.key
    key.wrapped, key.destroyed_at = None, now
    key.save()
    row, copy = exported(file, tmp_path)
    with pytest.raises(CommandError, match="WrongKey"):
        call_command("decrypt_object", "open", str(row), str(copy), str(tmp_path / "plaintext"))


# --- Stock Tink ---


def key_material(file: StoredFile) -> tuple[bytes, bytes]:
    """Tink's key material for a file's object, and its associated data, by the two lines of docs."""
    aad = content.associated_data(file)
    key = crypto.derive_file_key(keys.unwrap(file.collection.key), key_salt=bytes(file.key_salt), aad=aad)
    return key.material, aad


@pytest.mark.parametrize("length", LENGTHS)
def test_stock_tink_decrypts_the_object_as_the_store_holds_it(upload: Callable[[bytes], StoredFile], length: int) -> None:
    content = random.Random(length).randbytes(length)
    file = upload(content)
    material, aad = key_material(file)
    assert stock.decrypt(object_of(file), key_material=material, aad=aad, segment_size=SEGMENT) == content


@pytest.mark.parametrize("length", LENGTHS)
def test_object_that_stock_tink_wrote_downloads_through_the_api(
    api: Api, alice: User, upload: Callable[[bytes], StoredFile], length: int
) -> None:
    """With the row's key material, in the place of the object, and the header of Tink's own in the row."""
    file = upload(bytes(length))
    material, aad = key_material(file)
    content = random.Random(length).randbytes(length)
    ciphertext = stock.encrypt(content, key_material=material, aad=aad, segment_size=SEGMENT)
    assert len(ciphertext) == file.object_size
    store = get_store(file.store)
    assert store.erase(store.entries(file.object_key)) == []
    writer = store.create(file.object_key, size=len(ciphertext))
    writer.write(ciphertext)
    stat = writer.commit()
    StoredFile.objects.update(header=ciphertext[: crypto.HEADER_SIZE], object_etag=stat.etag)

    whole: Any = api(alice).get(paths.content(file.collection.slug, "a.bin"))
    assert b"".join(whole.streaming_content) == content
    if length > 2:
        part: Any = api(alice).get(paths.content(file.collection.slug, "a.bin"), headers={"range": f"bytes=1-{length - 2}"})
        assert b"".join(part.streaming_content) == content[1:-1]
