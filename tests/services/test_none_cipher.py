"""`NONE` contents have no tags: a whole read compares their digest before its last piece leaves (INV-02)."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from files.http.streaming import TransferEnded
from files.models import StoredFile
from tenants.models import AuditEvent, Tenant, User
from vault.stores import get_store
from vault.stores.local import LocalStore


Api = Callable[[User], APIClient]


@pytest.fixture
def plain(api: Api, alice: User, acme: Tenant) -> str:
    """Address of the contents of a collection that stores as is."""
    acme.allowed_ciphers = ["NONE"]
    acme.save()
    made = api(alice).post("/api/v1/collections/", {"display_name": "Plain", "cipher": "NONE"})
    return f"/api/v1/collections/{made.json()['id']}/content"


def flip_last_byte(filename: str) -> None:
    file = StoredFile.objects.get(filename=filename)
    store = get_store(file.store)
    assert isinstance(store, LocalStore)
    path = store.root / file.object_key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    StoredFile.objects.update(object_etag=store.stat(file.object_key).etag)


@pytest.mark.parametrize("content", [b"", b"a", b"a" * 131_072, b"a" * 131_073, b"a" * 400_000])
def test_download_of_a_plain_content_is_exact(api: Api, alice: User, plain: str, content: bytes) -> None:
    client = api(alice)
    assert client.put(f"{plain}/a.bin", content, content_type="application/octet-stream").status_code == 201

    answer: Any = client.get(f"{plain}/a.bin")
    assert b"".join(answer.streaming_content) == content


def test_download_of_a_small_altered_content_is_a_problem(api: Api, alice: User, plain: str) -> None:
    client = api(alice)
    client.put(f"{plain}/a.bin", b"four", content_type="application/octet-stream")
    flip_last_byte("a.bin")

    answer = client.get(f"{plain}/a.bin")

    assert (answer.status_code, answer.json()["code"]) == (502, "object_corrupt")
    assert AuditEvent.objects.filter(action="file.corrupt").count() == 1


def test_download_of_a_large_altered_content_ends_short(api: Api, alice: User, plain: str) -> None:
    client = api(alice)
    client.put(f"{plain}/a.bin", b"a" * 400_000, content_type="application/octet-stream")
    flip_last_byte("a.bin")

    answer: Any = client.get(f"{plain}/a.bin")
    received: list[bytes] = []
    with pytest.raises(TransferEnded):
        received.extend(answer.streaming_content)

    assert answer.status_code == 200
    assert len(b"".join(received)) < 400_000
    assert AuditEvent.objects.filter(action="file.corrupt").count() == 1
