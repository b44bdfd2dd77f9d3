"""Objects that came back by copying: the same bytes under another ETag."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from files.models import StoredFile
from tenants.models import AuditEvent, Tenant, User
from vault.stores import get_store
from vault.stores.local import LocalStore


Api = Callable[[User], APIClient]
CONTENT = bytes(range(256)) * 2000


def upload(client: APIClient, cipher: str) -> str:
    slug = client.post("/api/v1/collections/", {"display_name": "November", "cipher": cipher}).json()["id"]
    address = f"/api/v1/collections/{slug}/content/a.bin"
    assert client.put(address, CONTENT, content_type="application/octet-stream").status_code == 201
    return address


def restore_by_copying(*, altered: bool = False) -> None:
    file = StoredFile.objects.get()
    store = get_store(file.store)
    assert isinstance(store, LocalStore)
    path = store.root / file.object_key
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    if altered:
        copy.write_bytes(copy.read_bytes()[:200] + b"!" + copy.read_bytes()[201:])
    copy.replace(path)
    assert store.stat(file.object_key).etag != file.object_etag


def test_download_of_a_copied_object_is_exact_and_its_etag_noted_once(api: Api, alice: User) -> None:
    client = api(alice)
    address = upload(client, "AES-GCM")
    restore_by_copying()

    answers: list[Any] = [client.get(address) for _ in range(2)]

    assert [b"".join(answer.streaming_content) == CONTENT for answer in answers] == [True, True]
    assert AuditEvent.objects.filter(action="file.etag").count() == 1
    assert AuditEvent.objects.filter(action="file.corrupt").count() == 0


def test_download_of_a_copied_and_altered_object_is_a_problem(api: Api, alice: User) -> None:
    client = api(alice)
    address = upload(client, "AES-GCM")
    restore_by_copying(altered=True)

    assert client.get(address).json()["code"] == "object_corrupt"
    assert AuditEvent.objects.filter(action="file.etag").count() == 0


@pytest.mark.parametrize("part", ["", "bytes=0-9"])
def test_download_of_a_copied_object_without_tags_is_a_problem(api: Api, alice: User, acme: Tenant, part: str) -> None:
    acme.allowed_ciphers = ["NONE"]
    acme.save()
    client = api(alice)
    address = upload(client, "NONE")
    restore_by_copying()

    assert client.get(address, headers={"range": part} if part else {}).json()["code"] == "object_corrupt"
