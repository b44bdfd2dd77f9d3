"""One-off links: …/download/ and GET, HEAD /downloads/{token} (F-51, but for the races)."""

import io
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings as current
from django.db.models import F
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files import links, tasks
from files.http import streaming
from files.http.streaming import SLOTS, TransferEnded
from files.models import Collection, DownloadLink, StoredFile
from tenants import services
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore
from tests.api.worlds import CONTENT, make_one_file, make_three_files
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
Change = Callable[..., None]
NOON = datetime.fromisoformat("2030-05-04T12:00:00Z")


@pytest.fixture
@provides_world(make_one_file)
def stored(november: str) -> StoredFile:
    return StoredFile.objects.get()


@pytest.fixture
def link(bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore) -> str:
    """The address of a link that bob minted. It lives for longer than a busy machine takes for the cases of a test."""
    address = str(api(bob).get(paths.download(november, "a.csv"))["Location"])
    DownloadLink.objects.update(expires_at=F("expires_at") + timedelta(minutes=10))
    vault.forget()
    return address


def fetch(address: str, **headers: str) -> Any:
    """Without any credential, as a browser or a download manager does."""
    return APIClient().get(address, headers={name.replace("_", "-"): value for name, value in headers.items()})


def is_dead(address: str, **headers: str) -> bool:
    """Whether a link looks exactly as one that never was."""
    used, unknown = fetch(address, **headers), fetch("/downloads/" + "x" * 43, **headers)
    if used.status_code != 404:
        used.close()
        return False
    problem(used, 404, "not_found")
    assert used.content == unknown.content

    def shown(answer: Any) -> dict[str, str]:
        return {name: value for name, value in answer.items() if name != "X-Request-ID"}

    assert shown(used) == shown(unknown)
    return True


def budget() -> int:
    return DownloadLink.objects.get().bytes_left


# --- Minting ---


def test_mint_by_get_redirects_to_a_link(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    answer = api(bob).get(paths.download(november, "a.csv"))
    assert (answer.status_code, answer.content) == (303, b"")
    assert re.fullmatch(r"http://testserver/downloads/[A-Za-z0-9_-]{43}", answer["Location"])
    assert answer["Cache-Control"] == "no-store"
    assert audited("link.mint") == [("link.mint", "bob")]


def test_mint_by_post_is_201_with_the_link(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    for body, kind in [(None, "attachment"), ({}, "attachment"), ({"disposition": "inline"}, "inline")]:
        with case(body, kind):
            answer = api(bob).post(paths.download(november, "a.csv"), body)
            assert answer.status_code == 201
            assert answer.json() == {"url": answer["Location"], "expires_in": 30}
            assert answer["Cache-Control"] == "no-store"
            fetched = fetch(answer["Location"])
            assert fetched["Content-Disposition"].startswith(f"{kind}; ")
            assert b"".join(fetched) == CONTENT


def test_mint_with_another_disposition_is_400(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    for disposition in ["", "evil", None, 1, ["inline"], "attachment\r\nX: y"]:
        with case(disposition):
            answer = api(bob).post(paths.download(november, "a.csv"), {"disposition": disposition})
            assert list(problem(answer, 400, answer.json()["code"])["errors"]) == ["disposition"]
            assert not DownloadLink.objects.exists()


def test_links_are_as_long_lived_as_the_settings_say(
    bob: User, november: str, stored: StoredFile, api: Api, settings: Settings
) -> None:
    settings.FILES_DOWNLOAD_EXPIRY_SECONDS = 5
    assert api(bob).post(paths.download(november, "a.csv"), {}).json()["expires_in"] == 5


def test_links_lead_to_the_public_address(bob: User, november: str, stored: StoredFile, api: Api, settings: Settings) -> None:
    settings.PUBLIC_URL = "https://strongroom.example.org/base"
    assert (
        api(bob).get(paths.download(november, "a.csv"))["Location"].startswith("https://strongroom.example.org/base/downloads/")
    )


def test_a_link_is_on_record_with_its_file(link: str, stored: StoredFile) -> None:
    b"".join(fetch(link))
    events = AuditEvent.objects.filter(action__in=["link.mint", "link.claim"]).values_list("target_kind", "target_id")
    assert list(events) == [("storedfile", str(stored.uuid))] * 2


def test_the_token_is_kept_nowhere(link: str) -> None:
    token = link.rpartition("/")[2]
    row = DownloadLink.objects.values().get()
    assert token not in str(row)
    assert token not in "".join(AuditEvent.objects.values_list("body", flat=True))


# --- Claiming ---


def test_a_link_serves_the_file_once(link: str, stored: StoredFile) -> None:
    answer = fetch(link)
    assert (answer.status_code, answer["Content-Length"], answer["ETag"]) == (200, "5000", stored.etag)
    assert answer["Content-Disposition"] == "attachment; filename=\"a.csv\"; filename*=UTF-8''a.csv"
    assert (answer["Content-Security-Policy"], answer["Cache-Control"]) == ("sandbox; default-src 'none'", "private, no-store")
    assert (answer["Referrer-Policy"], answer["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert b"".join(answer) == CONTENT
    assert is_dead(link)
    assert audited("link.claim", "file.download") == [("link.claim", "bob")]


def test_a_link_serves_an_empty_file_once(bob: User, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "empty", b"")
    address = api(bob).get(paths.download(november, "empty"))["Location"]
    assert b"".join(fetch(address)) == b""
    assert is_dead(address)


def test_head_tells_about_the_file_and_uses_nothing_up(link: str, stored: StoredFile, vault: WatchedStore) -> None:
    for _ in range(3):
        answer = APIClient().head(link)
        assert (answer.status_code, answer["Content-Length"], answer["ETag"]) == (200, "5000", stored.etag)
    assert vault.reads == []
    assert audited("link.claim") == []
    assert b"".join(fetch(link)) == CONTENT
    assert APIClient().head(link).status_code == 404


def test_other_methods_use_nothing_up(link: str, case: Case) -> None:
    for method in ["post", "put", "patch", "delete", "options"]:
        with case(method):
            problem(getattr(APIClient(), method)(link), 405, "method_not_allowed")
            assert b"".join(fetch(link)) == CONTENT


def test_an_answer_without_bytes_uses_nothing_up(link: str, case: Case) -> None:
    for headers, status in [({"If_Match": '"other"'}, 412), ({"If_None_Match": "*"}, 304), ({"Range": "bytes=5000-"}, 416)]:
        with case(headers, status):
            assert fetch(link, **headers).status_code == status
            assert b"".join(fetch(link)) == CONTENT
            assert audited("link.claim") == [("link.claim", "bob")]


def test_an_object_that_cannot_be_read_uses_nothing_up(link: str, vault: WatchedStore) -> None:
    path = vault.path_of("a.csv")
    path.rename(path.with_name("elsewhere"))
    problem(fetch(link), 502, "object_missing")
    path.with_name("elsewhere").rename(path)
    assert b"".join(fetch(link)) == CONTENT


def test_a_full_server_uses_nothing_up(link: str) -> None:
    for _ in range(current.FILES_MAX_TRANSFERS):
        SLOTS.take()
    problem(fetch(link), 503, "transfers_full")
    for _ in range(current.FILES_MAX_TRANSFERS):
        SLOTS.release()
    assert b"".join(fetch(link)) == CONTENT


def test_a_link_needs_no_credential_and_minds_none(link: str, case: Case) -> None:
    for authorization in ["Bearer garbage", "Basic YTpi", ""]:
        with case(authorization):
            assert b"".join(fetch(link, Authorization=authorization)) == CONTENT


def test_another_token_opens_nothing_and_uses_nothing_up(link: str, case: Case) -> None:
    changes: list[Callable[[str], str]] = [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token + "%20",
        lambda token: token + "%0A",
        lambda token: token + "." * 5000,
        lambda token: token.swapcase(),
        lambda _: "é" * 10,
        lambda _: "..",
        lambda _: "%FF",
    ]
    for change in changes:
        with case(change):
            base, _, token = link.rpartition("/")
            assert is_dead(f"{base}/{change(token)}")
            assert b"".join(fetch(link)) == CONTENT


def test_another_address_opens_nothing_and_uses_nothing_up(link: str, case: Case) -> None:
    for address in ["{base}/{token}/", "{base}//{token}", "{base}/%2F{token}", "{base}/a/../{token}"]:
        with case(address):
            base, _, token = link.rpartition("/")
            problem(fetch(address.format(base=base, token=token)), 404, "not_found")
            assert b"".join(fetch(link)) == CONTENT


def test_a_link_opens_its_own_file_only(bob: User, november: str, link: str, put: Put, api: Api) -> None:
    put(api(bob), november, "b.csv", b"other")
    other = api(bob).get(paths.download(november, "b.csv"))["Location"]
    assert b"".join(fetch(other)) == b"other"
    assert b"".join(fetch(link)) == CONTENT


# --- Until when ---


def test_a_link_expires_after_thirty_seconds(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    """Minus five minutes: the clock of another server."""
    for seconds, works in [(0, True), (29.9, True), (30, False), (86_400, False), (-300, True)]:
        with case(seconds, works):
            with time_machine.travel(NOON, tick=False):
                address = api(bob).get(paths.download(november, "a.csv"))["Location"]
            with time_machine.travel(NOON + timedelta(seconds=seconds), tick=False):
                if works:
                    assert b"".join(fetch(address)) == CONTENT
                else:
                    assert APIClient().head(address).status_code == 404
                    assert is_dead(address)


def test_a_download_goes_on_when_its_link_has_expired(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        pieces = iter(fetch(api(bob).get(paths.download(november, "a.csv"))["Location"]))
        arrived = next(pieces)
        clock.shift(3600)
        assert arrived + b"".join(pieces) == CONTENT


def test_dead_links_are_forgotten_in_the_end(link: str) -> None:
    tasks.tick()
    assert DownloadLink.objects.exists()
    with time_machine.travel(timezone.now() + timedelta(hours=2)):
        tasks.tick()
    assert not DownloadLink.objects.exists()


# --- What happens to its minter and its file (INV-16) ---


def leave(bob: User, **_: Any) -> None:
    services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())


def deactivate(bob: User, **_: Any) -> None:
    bob.is_active = False
    services.update(bob, changed=["is_active"], by=None, now=timezone.now())


def remove(bob: User, **_: Any) -> None:
    bob.delete()


def demote(bob: User, **_: Any) -> None:
    services.set_roles(membership=Membership.objects.get(user=bob), roles=["research_it"], by=None, now=timezone.now())


def suspend(acme: Tenant, **_: Any) -> None:
    acme.is_active = False
    services.update(acme, changed=["is_active"], by=None, now=timezone.now())


def delete_collection(admin: APIClient, slug: str, **_: Any) -> None:
    assert admin.delete(paths.collection(slug)).status_code == 202


def delete_file(admin: APIClient, slug: str, **_: Any) -> None:
    assert admin.delete(paths.file(slug, "a.csv")).status_code == 204


def purge(**_: Any) -> None:
    Collection.objects.update(status="purging")


CHANGES: list[Change] = [leave, deactivate, remove, demote, suspend, delete_collection, delete_file, purge]


def test_a_link_dies_with_the_access_of_its_minter_and_with_its_file(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    for change in CHANGES:
        with case(change):
            change(bob=User.objects.get(pk=bob.pk), acme=Tenant.objects.get(pk=acme.pk), admin=api(alice), slug=november)
            assert APIClient().head(link).status_code == 404
            assert is_dead(link)
            assert is_dead(link, Range="bytes=0-1")
            assert vault.reads == []
            assert audited("link.claim") == []


def test_a_broken_transfer_is_not_resumed_after_the_access_of_its_minter(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, case: Case
) -> None:
    for change in CHANGES:
        with case(change):
            b"".join(fetch(link))
            change(bob=User.objects.get(pk=bob.pk), acme=Tenant.objects.get(pk=acme.pk), admin=api(alice), slug=november)
            assert is_dead(link, Range="bytes=4000-")


def test_a_running_download_ends_with_the_access_of_its_minter(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    changes: list[Change] = [leave, deactivate, demote, suspend, delete_collection, delete_file]
    for change in changes:
        with case(change):
            monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1.0)
            admin, pieces = api(alice), iter(fetch(link))
            assert CONTENT.startswith(next(pieces))
            change(bob=User.objects.get(pk=bob.pk), acme=Tenant.objects.get(pk=acme.pk), admin=admin, slug=november)
            with pytest.raises(TransferEnded):
                next(pieces)


def test_a_link_follows_its_file_to_another_name_and_to_a_newer_content(
    bob: User, november: str, link: str, put: Put, api: Api
) -> None:
    api(bob).patch(paths.file(november, "a.csv"), {"filename": "b.csv"})
    put(api(bob), november, "b.csv", b"newer", if_match="*")
    answer = fetch(link)
    assert "b.csv" in answer["Content-Disposition"]
    assert b"".join(answer) == b"newer"


def test_a_link_does_not_follow_the_name_to_another_file(bob: User, november: str, link: str, put: Put, api: Api) -> None:
    api(bob).delete(paths.file(november, "a.csv"))
    put(api(bob), november, "a.csv", b"another file")
    assert is_dead(link)


# --- Resuming ---


def test_a_transfer_that_broke_is_resumed_with_range(
    bob: User, link: str, stored: StoredFile, serve: Callable[..., Any], vault: WatchedStore
) -> None:
    broken = serve(None, "GET", link.removeprefix("http://testserver").encode())
    arrived = b"".join(next(iter(broken)) for _ in range(10))
    broken.close()
    assert CONTENT.startswith(arrived)
    assert budget() == len(CONTENT) + links.RESUME_ALLOWANCE - len(arrived)

    resumed = fetch(link, Range=f"bytes={len(arrived)}-", If_Range=stored.etag)
    assert resumed.status_code == 206
    assert resumed["Content-Range"] == f"bytes {len(arrived)}-4999/5000"
    assert arrived + b"".join(resumed) == CONTENT
    assert budget() == links.RESUME_ALLOWANCE
    assert is_dead(link)
    assert audited("link.claim", "link.resume") == [("link.claim", "bob"), ("link.resume", "bob")]


def test_a_link_may_be_claimed_with_a_range(link: str) -> None:
    assert b"".join(fetch(link, Range="bytes=0-99")) == CONTENT[:100]
    assert b"".join(fetch(link, Range="bytes=100-")) == CONTENT[100:]
    assert is_dead(link)
    assert audited("link.claim") == [("link.claim", "bob")]


def test_a_range_that_does_not_count_brings_no_second_whole(link: str, case: Case) -> None:
    for headers in [
        {"Range": "lines=0-99"},
        {"Range": "bytes=a-b"},
        {"Range": "bytes=0-1,4-5"},
        {"Range": "bytes=1-", "If_Range": '"other"'},
    ]:
        with case(headers):
            b"".join(fetch(link))
            assert is_dead(link, **headers)
            assert APIClient().head(link, headers={"range": "bytes=1-"}).status_code == 404


def test_a_transfer_in_many_pieces_is_on_record_once(link: str) -> None:
    """As the ranges of any download: whoever holds a link must not fill the trail with it."""
    for start in range(0, 5000, 500):
        b"".join(fetch(link, Range=f"bytes={start}-{start + 499}"))
    assert audited("link.claim", "link.resume") == [("link.claim", "bob"), ("link.resume", "bob")]


def test_a_transfer_is_resumed_for_ten_minutes(bob: User, november: str, stored: StoredFile, api: Api, case: Case) -> None:
    for minutes, works in [(0, True), (9.9, True), (10, True), (10.1, False)]:
        with case(minutes, works):
            with time_machine.travel(NOON, tick=False):
                address = api(bob).get(paths.download(november, "a.csv"))["Location"]
                b"".join(fetch(address))
            with time_machine.travel(NOON + timedelta(minutes=minutes), tick=False):
                if works:
                    assert b"".join(fetch(address, Range="bytes=4000-")) == CONTENT[4000:]
                else:
                    assert is_dead(address, Range="bytes=4000-")


def test_a_transfer_is_not_resumed_from_another_content(
    bob: User, november: str, link: str, stored: StoredFile, put: Put, api: Api
) -> None:
    b"".join(fetch(link, Range="bytes=0-99"))
    put(api(bob), november, "a.csv", bytes(5000), if_match=stored.etag)
    assert is_dead(link, Range="bytes=100-")


def test_resumed_transfers_stay_within_the_budget(link: str) -> None:
    b"".join(fetch(link))
    assert budget() == links.RESUME_ALLOWANCE == 16 * 1024**2
    DownloadLink.objects.update(bytes_left=6000)
    assert b"".join(fetch(link, Range="bytes=0-")) == CONTENT
    assert budget() == 1000
    arrived = b""
    pieces = iter(fetch(link, Range="bytes=0-"))
    with pytest.raises(TransferEnded):  # noqa: PT012  how many pieces fit is what is being asked
        for piece in pieces:
            arrived += piece
    assert CONTENT.startswith(arrived)
    assert 1000 - 112 < len(arrived) <= 1000
    assert budget() == 1000 - len(arrived)
    DownloadLink.objects.update(bytes_left=0)
    assert is_dead(link, Range="bytes=0-0")


@pytest.mark.parametrize("step", [37, pytest.param(16, marks=pytest.mark.long)])
def test_a_budget_is_spent_to_its_last_piece_however_it_is_paid(
    link: str, monkeypatch: pytest.MonkeyPatch, case: Case, step: int
) -> None:
    """Segments may be larger than what is paid in advance."""
    for in_advance in [1, 100, 300]:
        with case(in_advance):
            monkeypatch.setattr(links, "RESERVATION_BYTES", in_advance)
            b"".join(fetch(link))
            for given in range(1000, 1112, step):
                DownloadLink.objects.update(bytes_left=given)
                arrived = 0
                with pytest.raises(TransferEnded):  # noqa: PT012  how many pieces fit is what is being asked
                    for piece in fetch(link, Range="bytes=0-"):
                        arrived += len(piece)
                assert given - 112 < arrived <= given
                assert budget() == given - arrived


def test_a_budget_pays_for_what_was_sent_only(link: str, serve: Callable[..., Any]) -> None:
    b"".join(fetch(link))
    for taken in (0, 1, 5):
        DownloadLink.objects.update(bytes_left=9_000_000)
        answer = serve(None, "GET", link.removeprefix("http://testserver").encode(), Range="bytes=0-")
        pieces = iter(answer)
        sent = sum(len(next(pieces)) for _ in range(taken))
        answer.close()
        assert budget() == 9_000_000 - sent


def test_what_is_no_range_resumes_nothing_but_the_whole(link: str, case: Case) -> None:
    """It costs its whole length of the budget, as any transfer does."""
    for asked in ["items=0-1", "garbage", "bytes=0-1,3-4", ""]:
        with case(asked):
            b"".join(fetch(link))
            answer = fetch(link, Range=asked)
            if answer.status_code == 200:
                assert b"".join(answer) == CONTENT
                assert budget() == links.RESUME_ALLOWANCE - len(CONTENT)
            else:
                problem(answer, 404, "not_found")


def test_a_range_outside_of_the_file_is_told_to_who_resumes(link: str) -> None:
    b"".join(fetch(link))
    problem(fetch(link, Range="bytes=5000-"), 416, "range_not_satisfiable")


def test_nothing_is_resumed_that_was_never_claimed(bob: User, november: str, stored: StoredFile, api: Api) -> None:
    with time_machine.travel(NOON, tick=False):
        address = api(bob).get(paths.download(november, "a.csv"))["Location"]
    with time_machine.travel(NOON + timedelta(seconds=31), tick=False):
        assert is_dead(address, Range="bytes=1-")


# --- Of archives ---


def zipped(answer: Any) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(b"".join(answer))).namelist()


@pytest.fixture
@provides_world(make_three_files)
def three(november: str) -> str:
    """With a.csv, b.csv and ç.csv in it."""
    return november


def test_a_link_to_an_archive_serves_it_once(bob: User, three: str, api: Api, case: Case) -> None:
    for body, found in [
        (None, ["a.csv", "b.csv", "ç.csv"]),
        ({}, ["a.csv", "b.csv", "ç.csv"]),
        ({"file": ["b.csv"]}, ["b.csv"]),
        ({"file": ["ç.csv", "A.CSV"]}, ["a.csv", "ç.csv"]),
        ({"file": ["a.csv", "a.csv", "A.csv"]}, ["a.csv"]),
    ]:
        with case(body, found):
            minted = api(bob).post(paths.archive_link(three), body)
            assert minted.status_code == 201
            address = minted.json()["url"]
            assert address == minted["Location"]
            head = APIClient().head(address)
            answer = fetch(address)
            assert answer["Content-Type"] == "application/zip"
            assert head["Content-Length"] == answer["Content-Length"]
            assert zipped(answer) == found
            assert is_dead(address)
            assert is_dead(address, Range="bytes=0-")
            assert APIClient().head(address).status_code == 404
            assert audited("link.mint", "link.claim", "collection.archive") == [("link.mint", "bob"), ("link.claim", "bob")]


def test_a_link_to_an_archive_of_something_else_is_refused(bob: User, three: str, api: Api, case: Case) -> None:
    for body, status, field in [
        ({"file": ["nothing.csv"]}, 404, None),
        ({"file": ["a.csv", "nothing.csv"]}, 404, None),
        ({"file": []}, 400, "file"),
        ({"file": None}, 400, "file"),
        ({"file": "a.csv"}, 400, "file"),
        ({"file": [None]}, 400, "file.0"),
        ({"file": [["a.csv"]]}, 400, "file.0"),
        ({"file": [""]}, 400, "file.0"),
        ({"file": {"a.csv": 1}}, 400, "file"),
        ({"file": ["a.csv"] * 10_001}, 400, "file"),
    ]:
        with case(body, status, field):
            answer = api(bob).post(paths.archive_link(three), body)
            told = problem(answer, status, answer.json()["code"])
            assert list(told.get("errors", [None])) == [field]
            assert not DownloadLink.objects.exists()


def test_a_link_to_an_archive_of_ten_thousand_names_is_minted_soon(
    bob: User, three: str, api: Api, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(20):
        answer = api(bob).post(paths.archive_link(three), {"file": [f"{number}" for number in range(10_000)]})
    problem(answer, 404, "not_found")


def test_a_link_to_an_archive_dies_with_what_it_was_minted_for(
    alice: User, bob: User, acme: Tenant, three: str, api: Api, case: Case
) -> None:
    changes: list[Change] = [leave, deactivate, remove, demote, suspend, delete_collection, delete_file]
    for change in changes:
        with case(change):
            address = api(bob).post(paths.archive_link(three), {"file": ["a.csv", "b.csv"]}).json()["url"]
            change(bob=User.objects.get(pk=bob.pk), acme=Tenant.objects.get(pk=acme.pk), admin=api(alice), slug=three)
            assert APIClient().head(address).status_code == 404
            assert is_dead(address)


def test_a_link_to_an_archive_expires(bob: User, three: str, api: Api, case: Case) -> None:
    for seconds in [30, 30.1]:
        with case(seconds):
            with time_machine.travel(NOON, tick=False):
                address = api(bob).post(paths.archive_link(three), {}).json()["url"]
            with time_machine.travel(NOON + timedelta(seconds=seconds), tick=False):
                assert APIClient().head(address).status_code == 404
                assert is_dead(address)


def test_a_link_to_everything_holds_what_is_there_when_it_is_opened(bob: User, three: str, put: Put, api: Api) -> None:
    address = api(bob).post(paths.archive_link(three), {}).json()["url"]
    put(api(bob), three, "d.csv", b"new")
    api(bob).delete(paths.file(three, "a.csv"))
    assert zipped(fetch(address)) == ["b.csv", "d.csv", "ç.csv"]
