"""One-off links: …/download/ and GET, HEAD /downloads/{token} (F-51, but for the races)."""

import io
import random
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings as current
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files import links, tasks, transfers
from files.models import Collection, DownloadLink, StoredFile
from files.transfers import SLOTS, TransferEnded
from tenants import services
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.vault import WatchedStore


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
CONTENT = random.Random(12).randbytes(5000)
NOON = datetime.fromisoformat("2030-05-04T12:00:00Z")


@pytest.fixture
def stored(bob: User, november: str, put: Put, api: Api, vault: WatchedStore) -> StoredFile:
    put(api(bob), november, "a.csv", CONTENT, content_type="text/csv")
    return StoredFile.objects.get()


@pytest.fixture
def link(bob: User, november: str, stored: StoredFile, api: Api, vault: WatchedStore) -> str:
    """The address of a link that bob minted."""
    address = str(api(bob).get(paths.download(november, "a.csv"))["Location"])
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


@pytest.mark.parametrize(("body", "kind"), [(None, "attachment"), ({}, "attachment"), ({"disposition": "inline"}, "inline")])
def test_mint_by_post_is_201_with_the_link(
    bob: User, november: str, stored: StoredFile, api: Api, body: dict[str, str] | None, kind: str
) -> None:
    answer = api(bob).post(paths.download(november, "a.csv"), body)
    assert answer.status_code == 201
    assert answer.json() == {"url": answer["Location"], "expires_in": 30}
    assert answer["Cache-Control"] == "no-store"
    fetched = fetch(answer["Location"])
    assert fetched["Content-Disposition"].startswith(f"{kind}; ")
    assert b"".join(fetched) == CONTENT


@pytest.mark.parametrize("disposition", ["", "evil", None, 1, ["inline"], "attachment\r\nX: y"])
def test_mint_with_another_disposition_is_400(bob: User, november: str, stored: StoredFile, api: Api, disposition: Any) -> None:
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


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
def test_other_methods_use_nothing_up(link: str, method: str) -> None:
    problem(getattr(APIClient(), method)(link), 405, "method_not_allowed")
    assert b"".join(fetch(link)) == CONTENT


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"If_Match": '"other"'}, 412), ({"If_None_Match": "*"}, 304), ({"Range": "bytes=5000-"}, 416)],
)
def test_an_answer_without_bytes_uses_nothing_up(link: str, headers: dict[str, str], status: int) -> None:
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
        SLOTS.give_back()
    assert b"".join(fetch(link)) == CONTENT


@pytest.mark.parametrize("authorization", ["Bearer garbage", "Basic YTpi", ""])
def test_a_link_needs_no_credential_and_minds_none(link: str, authorization: str) -> None:
    assert b"".join(fetch(link, Authorization=authorization)) == CONTENT


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token + "%20",
        lambda token: token + "%0A",
        lambda token: token + "." * 5000,
        lambda token: token.swapcase(),
        lambda _: "é" * 10,
        lambda _: "..",
        lambda _: "%FF",
    ],
)
def test_another_token_opens_nothing_and_uses_nothing_up(link: str, change: Callable[[str], str]) -> None:
    base, _, token = link.rpartition("/")
    assert is_dead(f"{base}/{change(token)}")
    assert b"".join(fetch(link)) == CONTENT


@pytest.mark.parametrize("address", ["{base}/{token}/", "{base}//{token}", "{base}/%2F{token}", "{base}/a/../{token}"])
def test_another_address_opens_nothing_and_uses_nothing_up(link: str, address: str) -> None:
    base, _, token = link.rpartition("/")
    problem(fetch(address.format(base=base, token=token)), 404, "not_found")
    assert b"".join(fetch(link)) == CONTENT


def test_a_link_opens_its_own_file_only(bob: User, november: str, link: str, put: Put, api: Api) -> None:
    put(api(bob), november, "b.csv", b"other")
    other = api(bob).get(paths.download(november, "b.csv"))["Location"]
    assert b"".join(fetch(other)) == b"other"
    assert b"".join(fetch(link)) == CONTENT


# --- Until when ---


@pytest.mark.parametrize(("seconds", "works"), [(0, True), (29.9, True), (30, False), (86_400, False), (-300, True)])
def test_a_link_expires_after_thirty_seconds(
    bob: User,
    november: str,
    stored: StoredFile,
    api: Api,
    seconds: float,
    works: bool,  # noqa: FBT001
) -> None:
    """Minus five minutes: the clock of another server."""
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


CHANGES = [leave, deactivate, remove, demote, suspend, delete_collection, delete_file, purge]


@pytest.mark.parametrize("change", CHANGES)
def test_a_link_dies_with_the_access_of_its_minter_and_with_its_file(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, vault: WatchedStore, change: Any
) -> None:
    change(bob=bob, acme=acme, admin=api(alice), slug=november)
    assert APIClient().head(link).status_code == 404
    assert is_dead(link)
    assert is_dead(link, Range="bytes=0-1")
    assert vault.reads == []
    assert audited("link.claim") == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_broken_transfer_is_not_resumed_after_the_access_of_its_minter(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, change: Any
) -> None:
    b"".join(fetch(link))
    change(bob=bob, acme=acme, admin=api(alice), slug=november)
    assert is_dead(link, Range="bytes=4000-")


@pytest.mark.parametrize("change", [leave, deactivate, demote, suspend, delete_collection, delete_file])
def test_a_running_download_ends_with_the_access_of_its_minter(
    alice: User, bob: User, acme: Tenant, november: str, link: str, api: Api, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    monkeypatch.setattr(transfers, "CHECK_SECONDS", -1.0)
    admin, pieces = api(alice), iter(fetch(link))
    assert CONTENT.startswith(next(pieces))
    change(bob=bob, acme=acme, admin=admin, slug=november)
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
    assert budget() == len(CONTENT) + links.RESUME_EXTRA - len(arrived)

    resumed = fetch(link, Range=f"bytes={len(arrived)}-", If_Range=stored.etag)
    assert resumed.status_code == 206
    assert resumed["Content-Range"] == f"bytes {len(arrived)}-4999/5000"
    assert arrived + b"".join(resumed) == CONTENT
    assert budget() == links.RESUME_EXTRA
    assert is_dead(link)
    assert audited("link.claim", "link.resume") == [("link.claim", "bob"), ("link.resume", "bob")]


def test_a_link_may_be_claimed_with_a_range(link: str) -> None:
    assert b"".join(fetch(link, Range="bytes=0-99")) == CONTENT[:100]
    assert b"".join(fetch(link, Range="bytes=100-")) == CONTENT[100:]
    assert is_dead(link)
    assert audited("link.claim") == [("link.claim", "bob")]


@pytest.mark.parametrize(
    "headers",
    [{"Range": "lines=0-99"}, {"Range": "bytes=a-b"}, {"Range": "bytes=0-1,4-5"}, {"Range": "bytes=1-", "If_Range": '"other"'}],
)
def test_a_range_that_does_not_count_brings_no_second_whole(link: str, headers: dict[str, str]) -> None:
    b"".join(fetch(link))
    assert is_dead(link, **headers)
    assert APIClient().head(link, headers={"range": "bytes=1-"}).status_code == 404


def test_a_transfer_in_many_pieces_is_on_record_once(link: str) -> None:
    """As the ranges of any download: whoever holds a link must not fill the trail with it."""
    for start in range(0, 5000, 500):
        b"".join(fetch(link, Range=f"bytes={start}-{start + 499}"))
    assert audited("link.claim", "link.resume") == [("link.claim", "bob"), ("link.resume", "bob")]


@pytest.mark.parametrize(("minutes", "works"), [(0, True), (9.9, True), (10, True), (10.1, False)])
def test_a_transfer_is_resumed_for_ten_minutes(
    bob: User,
    november: str,
    stored: StoredFile,
    api: Api,
    minutes: float,
    works: bool,  # noqa: FBT001
) -> None:
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
    assert budget() == links.RESUME_EXTRA == 16 * 1024**2
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


@pytest.mark.parametrize("in_advance", [1, 100, 300])
def test_a_budget_is_spent_to_its_last_piece_however_it_is_paid(
    link: str, monkeypatch: pytest.MonkeyPatch, in_advance: int
) -> None:
    """Segments may be larger than what is paid in advance."""
    monkeypatch.setattr(links, "PAID_IN_ADVANCE", in_advance)
    b"".join(fetch(link))
    for given in range(1000, 1112, 16):
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


@pytest.mark.parametrize("asked", ["items=0-1", "garbage", "bytes=0-1,3-4", ""])
def test_what_is_no_range_resumes_nothing_but_the_whole(link: str, asked: str) -> None:
    """It costs its whole length of the budget, as any transfer does."""
    b"".join(fetch(link))
    answer = fetch(link, Range=asked)
    if answer.status_code == 200:
        assert b"".join(answer) == CONTENT
        assert budget() == links.RESUME_EXTRA - len(CONTENT)
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
def three(bob: User, november: str, put: Put, api: Api) -> str:
    for name in ("a.csv", "b.csv", "ç.csv"):
        put(api(bob), november, name, CONTENT[:300])
    return november


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (None, ["a.csv", "b.csv", "ç.csv"]),
        ({}, ["a.csv", "b.csv", "ç.csv"]),
        ({"file": ["b.csv"]}, ["b.csv"]),
        ({"file": ["ç.csv", "A.CSV"]}, ["a.csv", "ç.csv"]),
        ({"file": ["a.csv", "a.csv", "A.csv"]}, ["a.csv"]),
    ],
)
def test_a_link_to_an_archive_serves_it_once(bob: User, three: str, api: Api, body: Any, found: list[str]) -> None:
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


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
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
    ],
)
def test_a_link_to_an_archive_of_something_else_is_refused(
    bob: User, three: str, api: Api, body: Any, status: int, field: str | None
) -> None:
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


@pytest.mark.parametrize("change", [leave, deactivate, remove, demote, suspend, delete_collection, delete_file])
def test_a_link_to_an_archive_dies_with_what_it_was_minted_for(
    alice: User, bob: User, acme: Tenant, three: str, api: Api, change: Any
) -> None:
    address = api(bob).post(paths.archive_link(three), {"file": ["a.csv", "b.csv"]}).json()["url"]
    change(bob=bob, acme=acme, admin=api(alice), slug=three)
    assert APIClient().head(address).status_code == 404
    assert is_dead(address)


@pytest.mark.parametrize("seconds", [30, 30.1])
def test_a_link_to_an_archive_expires(bob: User, three: str, api: Api, seconds: float) -> None:
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
