"""`StoredFile.open()`: the plaintext as a Django File, for code in the process."""

import hashlib
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rest_framework.test import APIClient

from files.models import StoredFile
from tenants.models import User
from vault import content_reader
from vault.crypto import CorruptObject
from vault.stores import get_store
from vault.stores.local import LocalStore


CONTENT = random.Random(1).randbytes(5_000_000)


@pytest.fixture
def file(api: Callable[[User], APIClient], alice: User) -> StoredFile:
    alices = api(alice)
    slug = alices.post("/api/v1/collections/", {"display_name": "November"}).json()["id"]
    uploaded = alices.put(f"/api/v1/collections/{slug}/content/a.bin", CONTENT, content_type="application/octet-stream").json()
    return StoredFile.objects.get(uuid=uploaded["id"])


def test_open_reads_what_was_uploaded(file: StoredFile) -> None:
    with file.open() as plaintext:
        assert hashlib.sha256(plaintext.read()).hexdigest() == file.sha256
        assert plaintext.size == len(CONTENT)
        assert plaintext.name == "a.bin"


def test_open_seeks_anywhere_like_a_file_in_memory(file: StoredFile) -> None:
    steps, oracle = random.Random(2), io.BytesIO(CONTENT)
    with file.open() as plaintext:
        for _ in range(200):
            position, count = steps.randrange(len(CONTENT) + 10), steps.choice([0, 1, 100, 5000, 200_000])
            assert plaintext.seek(position) == oracle.seek(position)
            assert plaintext.read(count) == oracle.read(count)
            assert plaintext.tell() == oracle.tell()
        assert plaintext.seek(-7, os.SEEK_END) == len(CONTENT) - 7
        assert plaintext.seek(2, os.SEEK_CUR) == len(CONTENT) - 5
        assert plaintext.read() == CONTENT[-5:]
        with pytest.raises(ValueError, match="negative"):
            plaintext.seek(-len(CONTENT) - 1, os.SEEK_END)
        assert plaintext.seek(-len(CONTENT), os.SEEK_END) == 0


def test_open_that_is_closed_holds_nothing_and_reads_nothing(file: StoredFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_reader, "FAST_RATE", 0)  # however busy the machine is
    monkeypatch.setattr(content_reader, "STALL_SECONDS", 60)

    def descriptors() -> set[str]:
        return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}

    plaintext = file.open()
    assert plaintext.size == len(CONTENT)
    plaintext.read(len(CONTENT) * 3 // 4)  # by now it is read from an open object
    assert any(file.object_key in name for name in descriptors())
    plaintext.close()
    assert not any(file.object_key in name for name in descriptors())
    with pytest.raises(ValueError, match="closed"):
        plaintext.read(1)


def test_open_is_what_other_libraries_take_for_a_file(api: Callable[[User], APIClient], alice: User, file: StoredFile) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("inner.txt", "hello")
    slug = file.collection.slug
    api(alice).put(f"/api/v1/collections/{slug}/content/b.zip", archive.getvalue(), content_type="application/zip")

    with StoredFile.objects.get(filename="b.zip").open() as plaintext, zipfile.ZipFile(plaintext) as read:
        assert read.read("inner.txt") == b"hello"


def test_open_of_an_altered_object_yields_no_byte_of_it(file: StoredFile) -> None:
    store = get_store(file.store)
    assert isinstance(store, LocalStore)
    path = Path(store.path(file.object_key))
    path.chmod(0o600)
    with path.open("r+b") as ciphertext:
        ciphertext.seek(300_000)
        ciphertext.write(b"\0\0\0\0")
    StoredFile.objects.update(object_etag=store.stat(file.object_key).etag)
    file.refresh_from_db()

    with file.open() as plaintext:
        assert plaintext.read(131_000) == CONTENT[:131_000]
        with pytest.raises(CorruptObject):
            plaintext.read()
