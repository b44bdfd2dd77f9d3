"""Counts and audit trail after every operation of any sequence, against a model of a few lines (INV-14, INV-18)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from tenants.models import AuditEvent, User
from tests.api import paths
from tests.api.answers import digest
from tests.api.vault import WatchedStore


pytestmark = pytest.mark.both_databases
Api = Callable[[User | None], APIClient]
NAMES = st.sampled_from(["a", "b", "c"])
CONTENTS = st.sampled_from([b"", b"1", b"x" * 72, b"x" * 500])
OPERATIONS = st.one_of(
    st.tuples(st.just("put"), NAMES, CONTENTS),
    st.tuples(st.just("replace"), NAMES, CONTENTS),
    st.tuples(st.just("put with another digest"), NAMES, CONTENTS),
    st.tuples(st.just("replace a stale one"), NAMES, CONTENTS),
    st.tuples(st.just("form"), NAMES, CONTENTS),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("annotate"), NAMES, st.just("")),
    st.tuples(st.just("delete"), NAMES, st.just("")),
    st.tuples(st.just("delete a stale one"), NAMES, st.just("")),
    st.tuples(st.just("download"), NAMES, st.just("")),
    st.tuples(st.just("delete and restore"), st.just(""), st.just("")),
)


class Model:
    """What there should be, and what should be on record of it."""

    def __init__(self, client: APIClient, slug: str) -> None:
        self.client, self.slug = client, slug
        self.files: dict[str, bytes] = {}
        self.actions: Counter[str] = Counter()

    def put(self, name: str, content: bytes, **headers: str) -> int:
        given = {header.replace("_", "-"): value for header, value in headers.items()}
        answer = self.client.put(paths.content(self.slug, name), content, content_type="text/plain", headers=given)
        return int(answer.status_code)

    def do(self, operation: str, name: str, value: Any) -> None:
        is_there = name in self.files
        if operation == "put":
            assert self.put(name, value) == (428 if is_there else 201)
            if not is_there:
                self.change("file.create", {name: value})
        elif operation == "replace":
            assert self.put(name, value, If_Match="*") == (200 if is_there else 412)
            if is_there:
                self.change("file.replace", {name: value})
        elif operation == "put with another digest":
            assert self.put(name, value, If_Match="*", Repr_Digest=digest(b"other")) == (400 if is_there else 412)
        elif operation == "replace a stale one":
            assert self.put(name, value, If_Match='"stale"') == 412
        elif operation == "form":
            body = b"".join(
                f'--b\r\nContent-Disposition: form-data; name="file"; filename="{each}"\r\n\r\n'.encode() + value + b"\r\n"
                for each in (name, "z")
            )
            kind = "multipart/form-data; boundary=b"
            results = self.client.post(paths.files(self.slug), body + b"--b--\r\n", content_type=kind).json()["results"]
            for each, result in zip((name, "z"), results, strict=True):
                assert result["status"] == (409 if each in self.files else 201)
                if each not in self.files:
                    self.change("file.create", {each: value})
        elif operation == "rename":
            status = self.client.patch(paths.file(self.slug, name), {"filename": value}).status_code
            assert status == (404 if not is_there else 409 if value in self.files and value != name else 200)
            if status == 200 and value != name:
                self.change("file.update", {value: self.files.pop(name)})
        elif operation == "annotate":
            status = self.client.patch(paths.file(self.slug, name), {"notes": f"{sum(self.actions.values())}"}).status_code
            assert status == (200 if is_there else 404)
            if is_there:
                self.change("file.update", {})
        elif operation in {"delete", "delete a stale one"}:
            headers = {"If-Match": '"stale"'} if operation == "delete a stale one" else {}
            status = self.client.delete(paths.file(self.slug, name), headers=headers).status_code
            assert status == (404 if not is_there else 412 if headers else 204)
            if status == 204:
                del self.files[name]
                self.change("file.delete", {})
        elif operation == "download":
            answer = self.client.get(paths.content(self.slug, name))
            content = b"".join(answer)
            assert answer.status_code == (200 if is_there else 404)
            if is_there:
                assert content == self.files[name]
                self.change("file.download", {})
        else:
            assert self.client.delete(paths.collection(self.slug)).status_code == 202
            assert self.client.post(paths.restore(self.slug)).status_code == 200
            self.actions.update(["collection.delete", "collection.restore"])

    def change(self, action: str, files: dict[str, bytes]) -> None:
        self.actions[action] += 1
        self.files |= files

    def check(self) -> None:
        shown = self.client.get(paths.collection(self.slug)).json()
        assert (shown["file_count"], shown["total_length"]) == (len(self.files), sum(map(len, self.files.values())))
        listed = self.client.get(paths.files(self.slug)).json()["results"]
        assert {file["filename"]: file["length"] for file in listed} == {name: len(file) for name, file in self.files.items()}


@pytest.mark.parametrize("cipher", ["AES-GCM", "NONE"])
@pytest.mark.parametrize("examples", [2, pytest.param(12, marks=pytest.mark.long)])
def test_counts_and_the_audit_trail_follow_every_operation(
    alice: User, api: Api, vault: WatchedStore, cipher: str, examples: int
) -> None:
    @settings(max_examples=examples)
    @given(operations=st.lists(OPERATIONS, min_size=3, max_size=12))
    def check(operations: list[tuple[str, str, Any]]) -> None:
        client = api(alice)
        alice_tenant = alice.memberships.get().tenant
        alice_tenant.allowed_ciphers = ["AES-GCM", "NONE"]
        alice_tenant.save()
        made = client.post(paths.COLLECTIONS, {"display_name": f"{AuditEvent.objects.count()}", "cipher": cipher}).json()
        before = Counter(AuditEvent.objects.values_list("action", flat=True))
        model = Model(client, made["id"])
        for operation in operations:
            model.do(*operation)
            model.check()
        assert Counter(AuditEvent.objects.values_list("action", flat=True)) - before == model.actions

    check()
