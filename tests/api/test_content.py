"""GET and HEAD collections/{id}/content/{filename} and …/preview/: whole contents, and objects that are not what they were."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings as current
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files import tasks
from files.http import streaming
from files.http.streaming import SLOTS, TransferEnded
from files.models import Collection, PendingDeletion, StoredFile
from tenants import services
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, digest, problem
from tests.api.cases import EACH_IN_TURN, Case, Combine
from tests.api.vault import WatchedStore
from tests.api.worlds import CONTENT, make_one_file
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
Damage = Callable[[bytes], bytes]
Change = Callable[..., None]
SEGMENT = 128


@pytest.fixture
@provides_world(make_one_file)
def stored(november: str) -> StoredFile:
    """a.csv"""
    return StoredFile.objects.get()


def alter(path: Path, damage: Damage) -> None:
    """Other bytes in an object that keeps its times, as its store's ETag tells nothing of a rotten disk."""
    before = path.stat()
    path.write_bytes(damage(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(position: int) -> Damage:
    def damage(content: bytes) -> bytes:
        altered = bytearray(content)
        altered[position] ^= 1
        return bytes(altered)

    return damage


def swap(one: int, other: int) -> Damage:
    def damage(content: bytes) -> bytes:
        pieces = [content[start : start + SEGMENT] for start in range(0, len(content), SEGMENT)]
        pieces[one], pieces[other] = pieces[other], pieces[one]
        return b"".join(pieces)

    return damage


def become(content: bytes) -> Damage:
    return lambda _: content


def whole(answer: Any) -> bytes:
    return b"".join(answer)


def until_it_breaks(pieces: Iterable[bytes]) -> bytes:
    """What arrives of a body that must not end well."""
    arrived = b""
    try:
        for piece in pieces:
            arrived += piece
    except TransferEnded:
        return arrived
    pytest.fail(f"the body ended as if it were whole, after {len(arrived)} bytes")


# --- The answer ---


def test_download_has_the_headers_that_keep_it_harmless(
    bob: User, november: str, stored: StoredFile, api: Api, case: Case
) -> None:
    for address, disposition, method in [
        (paths.content, "attachment", "get"),
        (paths.content, "attachment", "head"),
        (paths.preview, "inline", "get"),
        (paths.preview, "inline", "head"),
    ]:
        with case(address, disposition, method):
            answer = getattr(api(bob), method)(address(november, "a.csv"))
            assert answer.status_code == 200
            assert whole(answer) == (CONTENT if method == "get" else b"")
            expected = {
                "Content-Type": "text/csv",
                "Content-Length": "5000",
                "Content-Disposition": f"{disposition}; filename=\"a.csv\"; filename*=UTF-8''a.csv",
                "ETag": stored.etag,
                "Accept-Ranges": "bytes",
                "Repr-Digest": digest(CONTENT),
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "Cache-Control": "private, no-store",
                "Cross-Origin-Resource-Policy": "same-site",
                "Referrer-Policy": "no-referrer",
            }
            assert {name: answer[name] for name in expected} == expected
            assert "Content-Encoding" not in answer
            assert "Content-Range" not in answer
            assert "Set-Cookie" not in answer


def test_download_says_who_may_embed_it(bob: User, november: str, stored: StoredFile, api: Api, settings: Settings) -> None:
    settings.FILES_RESOURCE_POLICY = "cross-origin"
    assert api(bob).head(paths.content(november, "a.csv"))["Cross-Origin-Resource-Policy"] == "cross-origin"


def test_download_shows_its_headers_to_the_frontend_of_another_origin(
    bob: User, november: str, stored: StoredFile, api: Api, settings: Settings
) -> None:
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example.org"]
    answer = api(bob).head(paths.content(november, "a.csv"), headers={"Origin": "https://app.example.org"})
    shown = {name.strip().lower() for name in answer["Access-Control-Expose-Headers"].split(",")}
    assert shown >= {"content-disposition", "etag", "repr-digest", "content-range", "accept-ranges", "location"}
    foreign = api(bob).head(paths.content(november, "a.csv"), headers={"Origin": "https://evil.example.org"})
    assert "Access-Control-Allow-Origin" not in foreign


def test_download_is_never_compressed(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    answer = api(bob).get(paths.content(november, "a.csv"), headers={"Accept-Encoding": "gzip, br"})
    assert "Content-Encoding" not in answer
    assert whole(answer) == CONTENT


def test_an_html_file_is_previewed_as_what_it_is_and_can_do_nothing(bob: User, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "a.html", b"<script>alert(1)</script>", content_type="text/html")
    answer = api(bob).get(paths.preview(november, "a.html"))
    assert answer["Content-Type"] == "text/html"
    assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert whole(answer) == b"<script>alert(1)</script>"


def test_head_reads_nothing_of_the_store_and_is_not_audited(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    before = audited()
    for address in (paths.content, paths.preview):
        assert api(bob).head(address(november, "a.csv")).status_code == 200
    assert (vault.reads, vault.stats, audited()) == ([], 0, before)


def test_an_empty_file_is_served(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    for cipher in ["AES-GCM", "NONE"]:
        with case(cipher):
            Collection.objects.update(cipher=cipher)
            put(api(bob), november, "empty", b"")
            answer = api(bob).get(paths.content(november, "empty"))
            assert (answer.status_code, answer["Content-Length"], whole(answer)) == (200, "0", b"")
            assert answer["Repr-Digest"] == digest(b"")
            assert audited("file.download") == [("file.download", "bob")]


def test_a_big_file_is_read_in_large_windows_by_who_takes_it_fast(
    bob: User, november: str, put: Put, api: Api, settings: Settings, vault: WatchedStore
) -> None:
    settings.FILES_SEGMENT_SIZE = 128 * 1024
    content = random.Random(6).randbytes(7 * 1024**2)
    put(api(bob), november, "big.bin", content)
    vault.forget()
    assert hashlib.sha256(whole(api(bob).get(paths.content(november, "big.bin")))).digest() == hashlib.sha256(content).digest()
    lengths = [length for _, length in vault.reads]
    assert lengths[0] == 128 * 1024  # no more than the first segment before there is an answer
    assert max(lengths) >= 4 * 1024**2
    assert sum(lengths) == vault.path_of("big.bin").stat().st_size


def test_downloads_are_on_record_once_each(bob: User, alice: User, november: str, stored: StoredFile, api: Api) -> None:
    whole(api(bob).get(paths.content(november, "a.csv")))
    whole(api(alice).get(paths.preview(november, "a.csv")))
    assert audited("file.download", "file.download_range") == [("file.download", "bob"), ("file.download", "alice")]
    assert AuditEvent.objects.filter(action="file.download").first().target_id == str(stored.uuid)  # type: ignore[union-attr]


# --- Conditions (RFC 9110, 13) ---


def test_download_of_what_the_client_has_is_304(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case
) -> None:
    for condition in ["{etag}", "W/{etag}", '"other", {etag}', "*", '"a",W/{etag} , "b"']:
        for method in ["get", "head"]:
            with case(condition, method):
                headers = {"If-None-Match": condition.format(etag=stored.etag), "Range": "bytes=0-1"}
                answer = getattr(api(bob), method)(paths.content(november, "a.csv"), headers=headers)
                assert (answer.status_code, answer.content, answer["ETag"]) == (304, b"", stored.etag)
                assert not {"Content-Type", "Content-Disposition", "Repr-Digest", "Content-Range"} & set(answer.headers)
                assert (answer["Cache-Control"], answer["Content-Length"]) == ("private, no-store", "5000")
                assert vault.reads == []
                assert audited("file.download") == []


def test_download_of_what_the_client_does_not_have_is_200(
    bob: User, november: str, stored: StoredFile, api: Api, case: Case
) -> None:
    for condition in ['"other"', "garbage", "", '"{bare}', "{bare}"]:
        with case(condition):
            headers = {"If-None-Match": condition.format(bare=stored.object_id.hex)}
            answer = api(bob).get(paths.content(november, "a.csv"), headers=headers)
            assert (answer.status_code, whole(answer)) == (200, CONTENT)


def test_download_on_condition_of_its_state(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case
) -> None:
    for condition, status in [
        ("{etag}", 200),
        ("*", 200),
        ('"x", {etag}', 200),
        ('"x"', 412),
        ("W/{etag}", 412),
        ("garbage", 412),
    ]:
        with case(condition, status):
            answer = api(bob).get(paths.content(november, "a.csv"), headers={"If-Match": condition.format(etag=stored.etag)})
            if status == 200:
                assert (answer.status_code, whole(answer)) == (200, CONTENT)
            else:
                problem(answer, 412, "precondition_failed")
                assert vault.reads == []


def test_if_match_is_asked_before_if_none_match(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    headers = {"If-Match": '"other"', "If-None-Match": stored.etag}
    problem(api(bob).get(paths.content(november, "a.csv"), headers=headers), 412, "precondition_failed")


def test_dates_are_no_conditions_here(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    """There is no Last-Modified, so that they do not apply (RFC 9110, 13.1.3 and 13.1.4)."""
    for name in ["If-Modified-Since", "If-Unmodified-Since"]:
        with case(name):
            answer = api(bob).get(paths.content(november, "a.csv"), headers={name: "Tue, 01 Jan 2030 00:00:00 GMT"})
            assert "Last-Modified" not in answer
            assert (answer.status_code, whole(answer)) == (200, CONTENT)


# --- Objects that are not what they were (F-06..F-10) ---


FIRST: dict[str, Damage] = {
    "magic": flip(0),
    "salt": flip(5),
    "prefix": flip(36),
    "first-byte": flip(40),
    "first-tag": flip(127),
    "first-two-swapped": swap(0, 1),
    "cut-by-one": lambda content: content[:-1],
    "cut-by-a-segment": lambda content: content[: -(len(content) % SEGMENT)],
    "cut-to-the-header": lambda content: content[:40],
    "cut-to-nothing": lambda content: b"",
    "one-more": lambda content: content + b"\0",
    "last-twice": lambda content: content + content[-(len(content) % SEGMENT) :],
    "a-page-of-html": lambda content: b"<html>502 Bad Gateway</html>".ljust(len(content)),
    "zeros": lambda content: bytes(len(content)),
}


@EACH_IN_TURN
def test_download_of_an_object_whose_damage_shows_at_once_is_502(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case, combine: Combine
) -> None:
    for (name, damage), address in combine(FIRST.items(), [paths.content, paths.preview]):
        with case(name, address):
            alter(vault.path_of("a.csv"), damage)
            answer = api(bob).get(address(november, "a.csv"))
            told = problem(answer, 502, "object_corrupt")
            assert not any(
                secret in str(told) for secret in (stored.object_key, str(stored.object_id), "segment", str(vault.root))
            )
            assert "ETag" not in answer
            assert audited("file.download", "file.corrupt") == [("file.corrupt", "bob")]


LATER: dict[str, tuple[Damage, int]] = {  # with the number of the first segment that shows it
    "second": (flip(128), 1),
    "second-tag": (flip(255), 1),
    "middle": (flip(2600), 20),
    "last": (flip(-20), 44),
    "last-tag": (flip(-1), 44),
    "two-swapped": (swap(7, 9), 7),
    "middle-zeroed": (lambda content: content[:1280] + bytes(128) + content[1408:], 10),
    "last-full-one-in-place-of-another": (lambda content: content[:1280] + content[2560:2688] + content[1408:], 10),
}


def test_download_that_meets_damage_on_its_way_ends_visibly_short(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore, case: Case
) -> None:
    for name_of_case, (damage, index) in LATER.items():
        with case(name_of_case):
            alter(vault.path_of("a.csv"), damage)
            answer = api(bob).get(paths.content(november, "a.csv"))
            assert (answer.status_code, answer["Content-Length"]) == (200, "5000")
            arrived = until_it_breaks(answer)
            assert arrived == CONTENT[: max(0, index * 112 - 40)]  # every byte before the damage, and none behind it (INV-03)
            assert audited("file.download", "file.corrupt") == [("file.download", "bob"), ("file.corrupt", "bob")]


def test_damage_is_nothing_to_who_reads_past_it(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    alter(vault.path_of("a.csv"), flip(1300))
    answer = api(bob).get(paths.content(november, "a.csv"), headers={"Range": "bytes=3000-"})
    assert whole(answer) == CONTENT[3000:]


def test_a_big_download_that_meets_damage_ends_visibly_short(
    bob: User, november: str, put: Put, api: Api, settings: Settings, vault: WatchedStore
) -> None:
    settings.FILES_SEGMENT_SIZE = 128 * 1024
    content = random.Random(7).randbytes(6 * 1024**2)
    put(api(bob), november, "big.bin", content)
    alter(vault.path_of("big.bin"), flip(5 * 1024**2))
    arrived = until_it_breaks(api(bob).get(paths.content(november, "big.bin")))
    assert arrived == content[: len(arrived)]
    assert 4 * 1024**2 < len(arrived) < 5 * 1024**2
    assert audited("file.corrupt") == [("file.corrupt", "bob")]


def test_another_files_object_of_the_same_size_opens_nowhere_else(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    """INV-05: with the header and the salt of the other row it still is another file's."""
    for is_same_collection in [True, False]:
        with case(is_same_collection):
            where = november if is_same_collection else api(bob).post(paths.COLLECTIONS, {"display_name": "Other"}).json()["id"]
            put(api(bob), where, "b.csv", bytes(5000))
            other = vault.path_of("b.csv").read_bytes()
            alter(vault.path_of("a.csv"), become(other))
            problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")
            row = StoredFile.objects.get(filename="b.csv")
            StoredFile.objects.filter(filename="a.csv").update(header=row.header, key_salt=row.key_salt)
            problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")
            StoredFile.objects.filter(filename="a.csv").update(key_commitment=row.key_commitment)
            problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")


def test_an_older_content_of_the_same_file_is_not_its_content(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api, vault: WatchedStore
) -> None:
    old = vault.path_of("a.csv").read_bytes()
    put(api(bob), november, "a.csv", bytes(5000), if_match="*")
    alter(vault.path_of("a.csv"), become(old))
    problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")


def test_a_row_that_commits_to_another_key_is_told_before_anything_is_decrypted(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    StoredFile.objects.update(key_commitment=bytes(32))
    problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")
    assert vault.reads == []


def test_a_row_of_aes_gcm_never_yields_what_is_not_authenticated(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    alter(vault.path_of("a.csv"), lambda content: b"plaintext".ljust(len(content)))
    Collection.objects.update(cipher="NONE")
    problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_corrupt")


def test_an_object_without_cipher_is_known_by_its_size(
    bob: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    damages: list[Damage] = [lambda content: content[:-1], lambda content: content + b"x"]
    for damage in damages:
        for size in [0, 5000]:
            with case(damage, size):
                Collection.objects.update(cipher="NONE")
                put(api(bob), november, "plain", CONTENT[:size])
                path = vault.path_of("plain")
                path.write_bytes(damage(path.read_bytes()))
                if size or path.stat().st_size:
                    problem(api(bob).get(paths.content(november, "plain")), 502, "object_corrupt")


def test_a_keyring_without_the_key_is_503(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api, settings: Settings
) -> None:
    right = settings.KEYRING
    settings.KEYRING = "other " + right.split()[1]
    gone = api(bob).get(paths.content(november, "a.csv"))
    problem(gone, 503, "key_unavailable")
    assert int(gone["Retry-After"]) > 0
    problem(put(api(bob), november, "b.csv", b"1"), 503, "key_unavailable")
    settings.KEYRING = right
    assert whole(api(bob).get(paths.content(november, "a.csv"))) == CONTENT


def test_download_of_a_lost_object_is_502_and_marks_the_file(
    bob: User, alice: User, november: str, put: Put, api: Api, vault: WatchedStore, case: Case
) -> None:
    for cipher in ["AES-GCM", "NONE"]:
        for size in [0, 5000]:
            with case(cipher, size):
                Collection.objects.update(cipher=cipher)
                put(api(bob), november, "a.csv", CONTENT[:size])
                path = vault.path_of("a.csv")
                lost = path.read_bytes(), path.stat()
                path.unlink()
                problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_missing")
                assert api(bob).get(paths.file(november, "a.csv")).json()["status"] == "missing"
                assert audited("file.download", "file.missing") == [("file.missing", "bob")]

                path.write_bytes(lost[0])
                os.utime(path, ns=(lost[1].st_atime_ns, lost[1].st_mtime_ns))
                assert whole(api(alice).get(paths.content(november, "a.csv"))) == CONTENT[:size]
                assert api(bob).get(paths.file(november, "a.csv")).json()["status"] == "ready"
                assert audited("file.found", "file.download") == [("file.found", "alice"), ("file.download", "alice")]


def test_a_lost_file_can_be_replaced(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api, vault: WatchedStore
) -> None:
    vault.path_of("a.csv").unlink()
    problem(api(bob).get(paths.content(november, "a.csv")), 502, "object_missing")
    assert put(api(bob), november, "a.csv", b"again", if_match=stored.etag).json()["status"] == "ready"
    assert whole(api(bob).get(paths.content(november, "a.csv"))) == b"again"
    api(bob).delete(paths.file(november, "a.csv"))
    with time_machine.travel(timezone.now() + timedelta(hours=2)):
        tasks.tick()  # erases the object that is lost as if it were there
    assert not PendingDeletion.objects.exists()


def test_download_whose_object_goes_on_its_way_ends_visibly_short(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    answer = api(bob).get(paths.content(november, "a.csv"))
    pieces = iter(answer)
    arrived = next(pieces)
    vault.path_of("a.csv").unlink()
    arrived += until_it_breaks(pieces)
    assert len(arrived) < 5000
    assert CONTENT.startswith(arrived)
    assert StoredFile.objects.get().status == "missing"
    assert audited("file.download", "file.missing") == [("file.download", "bob"), ("file.missing", "bob")]


# --- What happens to the reader while bytes flow (INV-16) ---


@pytest.fixture
def asked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams ask before each piece whether they may go on, not every few seconds."""
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1.0)


def test_a_running_download_goes_on_when_nothing_happens(
    bob: User, november: str, stored: StoredFile, api: Api, asked_always: None
) -> None:
    assert whole(api(bob).get(paths.content(november, "a.csv"))) == CONTENT


def leave(bob: User, **_: Any) -> None:
    services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())


def deactivate(bob: User, **_: Any) -> None:
    bob.is_active = False
    services.update(bob, changed=["is_active"], by=None, now=timezone.now())


def demote(bob: User, **_: Any) -> None:
    services.set_roles(membership=Membership.objects.get(user=bob), roles=["auditor"], by=None, now=timezone.now())


def suspend(acme: Tenant, **_: Any) -> None:
    acme.is_active = False
    services.update(acme, changed=["is_active"], by=None, now=timezone.now())


def delete_collection(admin: APIClient, slug: str, **_: Any) -> None:
    admin.delete(paths.collection(slug))


def delete_file(admin: APIClient, slug: str, **_: Any) -> None:
    admin.delete(paths.file(slug, "a.csv"))


def test_a_running_download_ends_when_its_reader_may_read_no_more(
    alice: User, bob: User, acme: Tenant, november: str, stored: StoredFile, api: Api, asked_always: None, case: Case
) -> None:
    changes: list[Change] = [leave, deactivate, demote, suspend, delete_collection, delete_file]
    for change in changes:
        with case(change):
            admin = api(alice)
            pieces = iter(api(bob).get(paths.content(november, "a.csv")))
            arrived = next(pieces)
            change(bob=User.objects.get(pk=bob.pk), acme=Tenant.objects.get(pk=acme.pk), admin=admin, slug=november)
            with pytest.raises(TransferEnded):
                next(pieces)
            assert CONTENT.startswith(arrived)


def test_a_running_download_does_not_mind_that_its_token_expired(
    bob: User, november: str, stored: StoredFile, api: Api, asked_always: None
) -> None:
    client = api(bob)
    pieces = iter(client.get(paths.content(november, "a.csv")))
    arrived = next(pieces)
    with time_machine.travel(timezone.now() + timedelta(minutes=6)):
        assert arrived + b"".join(pieces) == CONTENT
        assert client.get(paths.content(november, "a.csv")).status_code == 401


def test_a_running_download_ends_with_what_it_began(
    bob: User, november: str, stored: StoredFile, put: Put, api: Api, asked_always: None
) -> None:
    pieces = iter(api(bob).get(paths.content(november, "a.csv")))
    arrived = next(pieces)
    put(api(bob), november, "a.csv", b"new", if_match=stored.etag)
    assert arrived + b"".join(pieces) == CONTENT


# --- Room for others, and what is left of who went away ---


def test_who_goes_away_leaves_nothing_open(
    bob: User, november: str, stored: StoredFile, vault: WatchedStore, serve: Callable[..., Any], case: Case
) -> None:
    for taken in [0, 1, 3]:
        with case(taken):
            for _ in range(3):
                answer = serve(bob, "GET", paths.content(november, "a.csv").encode())
                assert answer.status_code == 200
                pieces = iter(answer)
                for _ in range(taken):
                    next(pieces)
                answer.close()
                assert not vault.bodies
    # `vault` finds every slot free.


def test_download_beyond_the_transfers_of_this_server_is_503(
    bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore
) -> None:
    client = api(bob)
    for _ in range(current.FILES_MAX_TRANSFERS - 1):
        SLOTS.take()
    try:
        last = client.get(paths.content(november, "a.csv"))
        full = client.get(paths.content(november, "a.csv"))
        problem(full, 503, "transfers_full")
        assert int(full["Retry-After"]) > 0
        assert client.head(paths.content(november, "a.csv")).status_code == 200
        assert client.get(paths.file(november, "a.csv")).status_code == 200
        assert whole(last) == CONTENT
        assert whole(client.get(paths.content(november, "a.csv"))) == CONTENT
    finally:
        for _ in range(current.FILES_MAX_TRANSFERS - 1):
            SLOTS.release()
    assert audited("file.download") == [("file.download", "bob")] * 2


def test_a_session_cookie_of_the_admin_opens_no_content(root: User, november: str, stored: StoredFile) -> None:
    browser = Client()
    browser.force_login(root)
    problem(browser.get(paths.content(november, "a.csv")), 401, "not_authenticated")
