"""PUT collections/{id}/content/{filename}: raw bodies in (F-38, F-39), and what a failed one leaves behind: nothing."""

import hashlib
import json
import random
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from django.conf import settings as current
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files.http.streaming import SLOTS
from files.models import Collection, PendingDeletion, StoredFile, Upload
from tenants import services
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, digest, problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
RANDOM = random.Random(4)
# With segments of 128 bytes the first holds 72 bytes of plaintext and each other one 112.
SIZES = [0, 1, 71, 72, 73, 183, 184, 185, 295, 296, 297, 5000]


class Body(BytesIO):
    """A body as WSGI servers hand it over, that says how much of it was taken."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.taken += len(piece)
        return piece


def send(client: APIClient, slug: str, filename: str, body: Any, *, announced: int | None, **environ: Any) -> Any:
    """A PUT whose body is read from `body`, whatever its Content-Length says; None is a chunked one."""
    if announced is None:
        environ |= {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    else:
        environ["CONTENT_LENGTH"] = str(announced)
    return client.put(paths.content(slug, filename), **{"wsgi.input": body, "CONTENT_TYPE": "text/csv", **environ})


def assert_nothing_was_kept(vault: WatchedStore, before: int = 0) -> None:
    assert (StoredFile.objects.count(), PendingDeletion.objects.count(), Upload.objects.count()) == (before, 0, 0)
    assert len(vault.keys()) == before
    assert audited("file.create", "file.replace") == [("file.create", "bob")] * before


# --- New files ---


def test_put_of_a_new_name_is_201_with_its_location(bob: User, november: str, put: Put, api: Api) -> None:
    answer = put(api(bob), november, "Übersicht 1.csv", b"12345", content_type="text/csv")
    assert answer.status_code == 201
    made = answer.json()
    assert answer["Location"] == f"http://testserver/api/v1/collections/{november}/files/%C3%9Cbersicht%201.csv/"
    assert answer["Location"] == made["links"]["self"]
    assert answer["ETag"] == made["etag"] == f'"{StoredFile.objects.get().object_id.hex}"'
    assert api(bob).get(answer["Location"]).json() == made
    assert audited("file.create") == [("file.create", "bob")]
    shown = api(bob).get(paths.collection(november)).json()
    assert (shown["file_count"], shown["total_length"]) == (1, 5)


@pytest.mark.parametrize(
    ("cipher", "is_chunked", "sizes"),
    [
        ("AES-GCM", False, SIZES),
        ("AES-GCM", True, [0, 72, 185]),
        ("NONE", False, [0, 185]),
        ("NONE", True, [0, 185]),
        *(
            pytest.param(*each, SIZES, marks=pytest.mark.long, id="-".join(map(str, each)))
            for each in (("AES-GCM", True), ("NONE", False), ("NONE", True))
        ),
    ],
)
def test_put_keeps_every_byte_at_every_segment_boundary(
    bob: User, november: str, api: Api, vault: WatchedStore, case: Case, cipher: str, sizes: list[int], *, is_chunked: bool
) -> None:
    for size in sizes:
        with case(size):
            Collection.objects.update(cipher=cipher)
            content = RANDOM.randbytes(size)
            made = send(api(bob), november, "a.bin", BytesIO(content), announced=None if is_chunked else size)
            assert made.status_code == 201
            assert (made.json()["length"], made.json()["sha256"]) == (size, hashlib.sha256(content).hexdigest())
            assert b"".join(api(bob).get(paths.content(november, "a.bin"))) == content
            on_disk = vault.path_of("a.bin").read_bytes()
            assert len(on_disk) == StoredFile.objects.get().object_size
            if cipher == "NONE":
                assert on_disk == content
            else:
                assert size < 20 or content[:20] not in on_disk


def test_put_of_many_segments_of_the_usual_size(bob: User, november: str, put: Put, api: Api, settings: Settings) -> None:
    settings.FILES_SEGMENT_SIZE = 128 * 1024
    content = RANDOM.randbytes(5 * 1024**2 + 17)
    assert put(api(bob), november, "a.bin", content).json()["sha256"] == hashlib.sha256(content).hexdigest()
    assert b"".join(api(bob).get(paths.content(november, "a.bin"))) == content


def test_put_without_any_body_makes_an_empty_file(bob: User, november: str, api: Api) -> None:
    assert api(bob).put(paths.content(november, "a.bin")).json()["length"] == 0


def test_put_keeps_a_media_type_or_takes_it_from_the_name(bob: User, november: str, api: Api, case: Case) -> None:
    for filename, sent, kept in [
        ("a.csv", "text/csv", "text/csv"),
        ("a.csv", "Text/CSV; charset=utf-8", "text/csv"),
        ("a.csv", "application/octet-stream", "text/csv"),
        ("a.csv", "application/x-www-form-urlencoded", "text/csv"),
        ("a.csv", "", "text/csv"),
        ("a.unknown-kind", "", "application/octet-stream"),
        ("a", "image/svg+xml", "image/svg+xml"),
        ("a", "nonsense", "application/octet-stream"),
        ("a", "text/html, text/plain", "application/octet-stream"),
        ("a", f"{'x' * 100}/{'y' * 100}", "application/octet-stream"),
        ("a", "text/ht\x01ml", "application/octet-stream"),
        ("a", "téxt/html", "application/octet-stream"),
    ]:
        with case(filename, sent, kept):
            answer = send(api(bob), november, filename, BytesIO(b""), announced=0, CONTENT_TYPE=sent)
            assert answer.json()["content_type"] == kept
            assert api(bob).head(paths.content(november, filename))["Content-Type"] == kept


# --- Names that are there ---


def test_put_of_a_name_that_is_there_is_428_and_reads_nothing(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore
) -> None:
    put(api(bob), november, "a.csv", b"old")
    body = Body(b"new")
    problem(send(api(bob), november, "A.CSV", body, announced=3), 428, "precondition_required")
    assert body.taken == 0
    assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"old"
    assert_nothing_was_kept(vault, before=1)


def test_put_with_if_match_replaces_the_content_and_keeps_the_rest(
    alice: User, bob: User, november: str, put: Put, api: Api, case: Case
) -> None:
    for condition in ["{etag}", '"other", {etag}', "*"]:
        with case(condition):
            old = put(api(bob), november, "a.csv", b"old").json()
            api(bob).patch(paths.file(november, "a.csv"), {"notes": "Mind the gap"})
            before = StoredFile.objects.get()

            answer = put(
                api(alice), november, "A.csv", b"newer", content_type="text/plain", if_match=condition.format(etag=old["etag"])
            )
            assert answer.status_code == 200
            new, after = answer.json(), StoredFile.objects.get()
            assert new["etag"] == answer["ETag"] != old["etag"]
            assert new["sha256"] == hashlib.sha256(b"newer").hexdigest()
            assert new["updated_at"] > old["updated_at"]
            kept = ("id", "filename", "created_at", "created_by", "links")
            assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
            assert (new["notes"], new["length"], new["content_type"], new["updated_by"]) == (
                "Mind the gap",
                5,
                "text/plain",
                "alice",
            )
            for field in ("object_id", "object_key", "key_salt", "key_commitment", "header"):
                assert getattr(after, field) != getattr(before, field)
            assert PendingDeletion.objects.get().object_key == before.object_key
            assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"newer"
            assert audited("file.create", "file.replace") == [("file.create", "bob"), ("file.replace", "alice")]
            shown = api(bob).get(paths.collection(november)).json()
            assert (shown["file_count"], shown["total_length"]) == (1, 5)


def test_put_with_a_stale_if_match_is_412_and_reads_nothing(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    for condition in ['"other"', "W/{etag}", "garbage", ""]:
        with case(condition):
            old = put(api(bob), november, "a.csv", b"old").json()
            body = Body(b"new")
            stale = send(api(bob), november, "a.csv", body, announced=3, HTTP_IF_MATCH=condition.format(etag=old["etag"]))
            problem(stale, 412, "precondition_failed")
            assert body.taken == 0
            assert_nothing_was_kept(vault, before=1)


def test_put_with_an_etag_that_was_replaced_meanwhile_is_412(bob: User, november: str, put: Put, api: Api) -> None:
    first = put(api(bob), november, "a.csv", b"1").json()["etag"]
    put(api(bob), november, "a.csv", b"2", if_match=first)
    problem(put(api(bob), november, "a.csv", b"3", if_match=first), 412, "precondition_failed")
    assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"2"


def test_put_with_if_match_of_a_new_name_is_412(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    for condition in ['"any"', "*"]:
        with case(condition):
            problem(put(api(bob), november, "a.csv", b"1", if_match=condition), 412, "precondition_failed")
            assert_nothing_was_kept(vault)


def test_put_with_if_none_match_makes_and_never_replaces(bob: User, november: str, put: Put, api: Api) -> None:
    made = put(api(bob), november, "a.csv", b"1", if_none_match="*")
    assert made.status_code == 201
    problem(put(api(bob), november, "a.csv", b"2", if_none_match="*"), 412, "precondition_failed")
    etag = made.json()["etag"]
    problem(put(api(bob), november, "a.csv", b"2", if_none_match="*", if_match=etag), 412, "precondition_failed")
    problem(put(api(bob), november, "a.csv", b"2", if_none_match=etag, if_match=etag), 412, "precondition_failed")
    assert put(api(bob), november, "a.csv", b"2", if_none_match='"other"', if_match=etag).status_code == 200


def test_a_name_is_free_again_after_its_file_was_deleted(bob: User, november: str, put: Put, api: Api) -> None:
    old = put(api(bob), november, "a.csv", b"1").json()
    api(bob).delete(paths.file(november, "a.csv"))
    new = put(api(bob), november, "a.csv", b"2")
    assert new.status_code == 201
    assert new.json()["id"] != old["id"]


# --- Digests ---


def test_put_with_the_digest_of_the_content(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    for header in ["content_digest", "repr_digest"]:
        with case(header):
            sent = f"md5=:AAAA:, {digest(b'12345')}"
            assert put(api(bob), november, "a.csv", b"12345", **{header: sent}).status_code == 201


def test_put_with_another_digest_keeps_nothing(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    for header in ["content_digest", "repr_digest"]:
        with case(header):
            problem(put(api(bob), november, "a.csv", b"12345" * 100, **{header: digest(b"54321")}), 400, "digest_mismatch")
            assert_nothing_was_kept(vault)


def test_put_with_two_digests_that_differ_is_400(bob: User, november: str, put: Put, api: Api, vault: WatchedStore) -> None:
    answer = put(api(bob), november, "a.csv", b"1", content_digest=digest(b"1"), repr_digest=digest(b"2"))
    problem(answer, 400, "digest_mismatch")
    assert_nothing_was_kept(vault)


def test_put_with_an_unreadable_digest_is_400_and_reads_nothing(
    bob: User, november: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    for value in ["garbage", "sha-256=abc", "sha-256=:AAAA:", "sha-256=:!!!:", "sha-256=", ":"]:
        for header in ["Content-Digest", "Repr-Digest"]:
            with case(value, header):
                body = Body(b"1")
                environ = {f"HTTP_{header.upper().replace('-', '_')}": value}
                refused = problem(send(api(bob), november, "a.csv", body, announced=1, **environ), 400, "bad_digest")
                assert list(refused["errors"]) == [header]
                assert body.taken == 0
                assert_nothing_was_kept(vault)


def test_put_with_a_digest_of_another_kind_only_is_taken(bob: User, november: str, put: Put, api: Api) -> None:
    assert put(api(bob), november, "a.csv", b"1", content_digest="sha-512=:AAAA:").status_code == 201


def test_a_replacement_with_another_digest_leaves_the_old_content(bob: User, november: str, put: Put, api: Api) -> None:
    old = put(api(bob), november, "a.csv", b"old").json()
    answer = put(api(bob), november, "a.csv", b"new", if_match=old["etag"], repr_digest=digest(b"other"))
    problem(answer, 400, "digest_mismatch")
    assert api(bob).get(paths.file(november, "a.csv")).json() == old
    assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"old"


# --- Bodies that are not what they say ---


def test_put_of_an_encoded_body_is_415_and_reads_nothing(
    bob: User, november: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    for coding in ["gzip", "deflate", "br", "GZIP", "identity, gzip", "x"]:
        with case(coding):
            body = Body(b"\x1f\x8b")
            problem(send(api(bob), november, "a.csv", body, announced=2, HTTP_CONTENT_ENCODING=coding), 415, "content_encoding")
            assert body.taken == 0
            assert_nothing_was_kept(vault)


def test_put_of_a_body_that_is_encoded_as_itself(bob: User, november: str, api: Api, case: Case) -> None:
    for coding in ["identity", "Identity", ""]:
        with case(coding):
            assert send(api(bob), november, "a.csv", BytesIO(b"12"), announced=2, HTTP_CONTENT_ENCODING=coding).status_code == 201


def test_put_that_ends_before_its_length_is_400_and_keeps_nothing(
    bob: User, november: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    for sent in [0, 1, 72, 300, 999]:
        with case(sent):
            problem(send(api(bob), november, "a.csv", BytesIO(b"x" * sent), announced=1000), 400, "bad_body")
            assert_nothing_was_kept(vault)


def test_put_reads_no_further_than_its_length(bob: User, november: str, api: Api) -> None:
    body = Body(b"12345GET / HTTP/1.1")
    assert send(api(bob), november, "a.csv", body, announced=5).json()["length"] == 5
    assert body.taken == 5


class Breaking(BytesIO):
    def __init__(self, content: bytes, error: Exception) -> None:
        super().__init__(content)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= 300:
            raise self.error
        return super().read(300)


def test_put_that_breaks_off_keeps_nothing(bob: User, november: str, api: Api, vault: WatchedStore, case: Case) -> None:
    for error, status, code in [
        (ConnectionResetError(), 400, "bad_body"),
        (OSError("chunk"), 400, "bad_body"),
        (TimeoutError(), 408, "body_timeout"),
    ]:
        for is_chunked in [False, True]:
            with case(error, status, code, is_chunked):
                body = Breaking(b"x" * 900, error)
                answer = send(api(bob), november, "a.csv", body, announced=None if is_chunked else 900)
                problem(answer, status, code)
                assert_nothing_was_kept(vault)


def test_put_of_a_part_is_400_because_it_would_become_the_whole(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    """RFC 9110, 14.5: `curl -C 5 -T` sends this."""
    for content_range in ["bytes 5-9/10", "bytes 0-4/5", "bytes */5", "garbage"]:
        with case(content_range):
            refused = problem(put(api(bob), november, "a.csv", b"12345", content_range=content_range), 400, "partial_upload")
            assert list(refused["errors"]) == ["Content-Range"]
            assert_nothing_was_kept(vault)


# --- Sizes ---


def test_put_of_the_largest_size(bob: User, november: str, api: Api, settings: Settings) -> None:
    settings.FILES_MAX_UPLOAD_BYTES = 1000
    assert send(api(bob), november, "a.csv", BytesIO(b"x" * 1000), announced=1000).status_code == 201
    assert send(api(bob), november, "b.csv", BytesIO(b"x" * 1000), announced=None).status_code == 201


def test_put_that_announces_too_much_is_413_and_reads_nothing(
    bob: User, november: str, api: Api, settings: Settings, vault: WatchedStore, case: Case
) -> None:
    for announced in [1001, 2**31, 2**63, 10**30]:
        with case(announced):
            settings.FILES_MAX_UPLOAD_BYTES = 1000
            body = Body(b"x" * 1001)
            problem(send(api(bob), november, "a.csv", body, announced=announced), 413, "too_large")
            assert (body.taken, vault.created) == (0, 0)
            assert_nothing_was_kept(vault)


def test_put_that_goes_on_past_the_largest_size_is_413_and_reads_no_more(
    bob: User, november: str, api: Api, settings: Settings, vault: WatchedStore
) -> None:
    settings.FILES_MAX_UPLOAD_BYTES = 1000

    class Endless(Body):
        def read(self, size: int | None = -1, /) -> bytes:
            self.taken += 100
            assert self.taken < 10_000, "it reads on and on"
            return b"x" * 100

    body = Endless()
    problem(send(api(bob), november, "a.csv", body, announced=None), 413, "too_large")
    assert body.taken == 1100
    assert_nothing_was_kept(vault)


# --- Quota (INV-18) ---


def test_put_over_the_quota_of_bytes_is_409(
    bob: User, acme: Tenant, november: str, put: Put, api: Api, vault: WatchedStore
) -> None:
    acme.quota_bytes = 10
    acme.save()
    first = put(api(bob), november, "a.csv", b"12345678").json()
    body = Body(b"123")
    problem(send(api(bob), november, "b.csv", body, announced=3), 409, "over_quota")
    assert body.taken == 0
    problem(send(api(bob), november, "b.csv", BytesIO(b"123"), announced=None), 409, "over_quota")
    assert_nothing_was_kept(vault, before=1)
    assert put(api(bob), november, "b.csv", b"12").status_code == 201
    problem(put(api(bob), november, "a.csv", b"123456789", if_match=first["etag"]), 409, "over_quota")
    assert put(api(bob), november, "a.csv", b"1", if_match=first["etag"]).status_code == 200
    assert put(api(bob), november, "c.csv", b"1234567").status_code == 201


def test_put_over_the_quota_of_files_is_409(bob: User, acme: Tenant, november: str, put: Put, api: Api) -> None:
    acme.quota_files = 1
    acme.save()
    first = put(api(bob), november, "a.csv", b"1").json()
    problem(put(api(bob), november, "b.csv", b""), 409, "over_quota")
    assert put(api(bob), november, "a.csv", b"22", if_match="*").status_code == 200
    api(bob).delete(paths.file(november, "a.csv"))
    assert put(api(bob), november, "b.csv", b"").json()["id"] != first["id"]


def test_quota_counts_every_collection_of_the_tenant_and_of_no_other(
    alice: User, bob: User, mallory: User, acme: Tenant, november: str, put: Put, api: Api
) -> None:
    acme.quota_bytes = 10
    acme.save()
    second = api(bob).post(paths.COLLECTIONS, {"display_name": "Second"}).json()["id"]
    foreign = api(mallory).post(paths.COLLECTIONS, {"display_name": "Foreign"}).json()["id"]
    assert put(api(mallory), foreign, "a.csv", b"x" * 100).status_code == 201
    assert put(api(bob), november, "a.csv", b"123456").status_code == 201
    problem(put(api(bob), second, "a.csv", b"123456"), 409, "over_quota")
    api(alice).delete(paths.collection(november))
    problem(put(api(bob), second, "a.csv", b"123456"), 409, "over_quota")


def test_a_full_tenant_still_takes_smaller_contents(bob: User, acme: Tenant, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "a.csv", b"12345678")
    acme.quota_bytes = 5
    acme.save()
    assert put(api(bob), november, "a.csv", b"1234567", if_match="*").status_code == 200


# --- What changes while bytes arrive ---


class Interrupted(BytesIO):
    """A body during which something happens."""

    def __init__(self, content: bytes, happens: Callable[[], object]) -> None:
        super().__init__(content)
        self.happens: Callable[[], object] | None = happens

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() and self.happens:
            happens, self.happens = self.happens, None
            happens()
        return super().read(min(200, size if size is not None and size >= 0 else 200))


def test_put_of_who_lost_access_meanwhile_keeps_nothing(bob: User, november: str, api: Api, vault: WatchedStore) -> None:
    membership = Membership.objects.get(user=bob)
    body = Interrupted(b"x" * 500, lambda: services.remove_member(membership=membership, by=None, now=timezone.now()))
    problem(send(api(bob), november, "a.csv", body, announced=500), 404, "not_found")
    assert_nothing_was_kept(vault)


def test_put_of_who_was_deactivated_meanwhile_keeps_nothing(bob: User, november: str, api: Api, vault: WatchedStore) -> None:
    def deactivate() -> None:
        person = User.objects.get(pk=bob.pk)
        person.is_active = False
        services.update(person, changed=["is_active"], by=None, now=timezone.now())

    problem(send(api(bob), november, "a.csv", Interrupted(b"x" * 500, deactivate), announced=500), 404, "not_found")
    assert_nothing_was_kept(vault)


def test_put_into_a_collection_that_is_deleted_meanwhile_keeps_nothing(
    alice: User, bob: User, november: str, api: Api, vault: WatchedStore
) -> None:
    body = Interrupted(b"x" * 500, lambda: api(alice).delete(paths.collection(november)))
    problem(send(api(bob), november, "a.csv", body, announced=500), 409, "collection_not_open")
    assert_nothing_was_kept(vault)


def test_put_of_a_name_that_is_taken_meanwhile_is_409(bob: User, november: str, put: Put, api: Api, vault: WatchedStore) -> None:
    body = Interrupted(b"x" * 500, lambda: put(api(bob), november, "A.csv", b"first"))
    problem(send(api(bob), november, "a.csv", body, announced=500), 409, "name_taken")
    assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"first"
    assert_nothing_was_kept(vault, before=1)


def test_put_over_a_file_that_changes_meanwhile_is_412(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    def happens(change: str, etag: str) -> None:
        if change == "replace":
            assert put(api(bob), november, "a.csv", b"mine", if_match=etag).status_code == 200
        else:
            assert api(bob).delete(paths.file(november, "a.csv")).status_code == 204

    for change in ["replace", "delete"]:
        with case(change):
            etag = put(api(bob), november, "a.csv", b"old").json()["etag"]
            body = Interrupted(b"x" * 500, partial(happens, change, etag))
            problem(send(api(bob), november, "a.csv", body, announced=500, HTTP_IF_MATCH=etag), 412, "precondition_failed")
            if change == "replace":
                assert b"".join(api(bob).get(paths.content(november, "a.csv"))) == b"mine"
            else:
                assert not StoredFile.objects.exists()


def test_put_of_a_file_that_is_renamed_meanwhile_keeps_the_new_name(bob: User, november: str, put: Put, api: Api) -> None:
    etag = put(api(bob), november, "a.csv", b"old").json()["etag"]
    body = Interrupted(b"x" * 500, lambda: api(bob).patch(paths.file(november, "a.csv"), {"filename": "b.csv", "notes": "kept"}))
    replaced = send(api(bob), november, "a.csv", body, announced=500, HTTP_IF_MATCH=etag).json()
    assert (replaced["filename"], replaced["length"], replaced["notes"]) == ("b.csv", 500, "kept")
    problem(api(bob).get(paths.file(november, "a.csv")), 404, "not_found")


def test_put_while_the_quota_fills_up_keeps_nothing(
    bob: User, acme: Tenant, november: str, put: Put, api: Api, vault: WatchedStore
) -> None:
    acme.quota_bytes = 600
    acme.save()
    body = Interrupted(b"x" * 500, lambda: put(api(bob), november, "first.csv", b"y" * 500))
    problem(send(api(bob), november, "a.csv", body, announced=500), 409, "over_quota")
    assert_nothing_was_kept(vault, before=1)


# --- Room for others ---


def test_put_beyond_the_transfers_of_this_server_is_503_and_reads_nothing(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore
) -> None:
    client, body = api(bob), Body(b"1")
    for _ in range(current.FILES_MAX_TRANSFERS):
        SLOTS.take()
    try:
        full = send(client, november, "a.csv", body, announced=1)
        problem(full, 503, "transfers_full")
        assert int(full["Retry-After"]) > 0
        assert body.taken == 0
        assert client.get(paths.collection(november)).status_code == 200
        assert_nothing_was_kept(vault)
    finally:
        for _ in range(current.FILES_MAX_TRANSFERS):
            SLOTS.release()
    assert put(client, november, "a.csv", b"1").status_code == 201


def test_the_bytes_of_no_upload_are_in_the_audit_trail_or_the_log(
    bob: User, november: str, put: Put, api: Api, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    put(api(bob), november, "canary-name.csv", b"canary-content")
    told = "".join(capfd.readouterr()) + json.dumps([vars(record) for record in caplog.records], default=str)
    assert "strongroom.request" in told
    assert "canary" not in told
