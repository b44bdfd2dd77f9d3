"""Released packages: who fetches them, how often, how what broke goes on, and what is told of it (INV-09, F-05, F-55)."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from egress import downloads, jobs
from egress.models import Download
from files import links
from files.http import streaming
from files.http.streaming import SLOTS, TransferEnded
from files.models import Collection, DownloadLink
from tenants import services as people_services
from tenants.models import AuditEvent, Membership, Tenant, User
from tests import invariants
from tests.api.answers import audited, facts, problem
from tests.factories import make_member, make_tenant
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import REASON, Api, body, decide, fill, path, row, see, submit, work_on
from tests.services.egress import released as release
from tests.services.worlds import MIB, POLICY
from tests.worlds import starts_from


LINKS = {"api": False, "link": True}

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
def people(db: None) -> dict[str, User]:
    return {user.username: user for user in User.objects.filter(username__in=["dora", "erin", "grace", "ruth", "rick"])}


@pytest.fixture
def policy(api: Api, alice: User) -> Callable[..., None]:
    """The rules of what is submitted from now on."""

    def put(**wish: Any) -> None:
        answer = api(alice).put(POLICY, wish)
        assert answer.status_code == 200, answer.content

    return put


@pytest.fixture
@mark_dependents(starts_from(worlds.large_released))
def released(own_buckets: Path, built: Any) -> Any:
    """bob's, to be had once."""
    return built


@pytest.fixture
@mark_dependents(starts_from(worlds.large_released_thrice))
def thrice(own_buckets: Path, built: Any) -> Any:
    """For bob and dora together three times."""
    return built


def get(client: APIClient, request: Any, **headers: str) -> Any:
    return client.get(path(request, "package.zip"), headers=headers)


def mint(client: APIClient, request: Any) -> str:
    answer = client.post(path(request, "downloads/"))
    assert answer.status_code == 201, answer.content
    return str(answer["Location"])


def count(request: Any) -> int:
    """As it is stored, which is what the grants say, too."""
    stored = row(request)
    assert stored.download_count == stored.downloads.count() <= stored.max_downloads
    return stored.download_count


def cut(response: Any, *, after: int) -> bytes:
    """What arrives before its client hangs up."""
    received = bytearray()
    pieces = iter(response.streaming_content)
    while len(received) < after:
        received += next(pieces)
    response.close()
    return bytes(received)


# --- What counts ---


@pytest.mark.both_databases
def test_get_counts_one_and_a_further_one_is_refused(api: Api, bob: User, released: Any) -> None:
    content = body(get(api(bob), released))
    assert len(content) == released["package_length"]
    assert count(released) == 1
    problem(get(api(bob), released), 409, "downloads_used")
    assert count(released) == 1
    assert audited("egress.download") == [("egress.download", "bob")]
    assert facts("egress.download") == {
        "download": str(Download.objects.get().pk),
        "first": 0,
        "count": released["package_length"],
    }


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("head", {}, 200),
        ("get", {"if-none-match": "*"}, 304),
        ("get", {"if-match": '"other"'}, 412),
        ("get", {"range": "bytes=99999999-"}, 416),
        ("options", {}, 405),
    ],
)
def test_an_answer_without_bytes_counts_as_none(
    api: Api, bob: User, released: Any, method: str, headers: dict[str, str], status: int
) -> None:
    for _ in range(2):
        answer = getattr(api(bob), method)(path(released, "package.zip"), headers=headers)
        assert answer.status_code == status
    assert count(released) == 0
    assert audited("egress.download") == []
    body(get(api(bob), released))
    assert api(bob).head(path(released, "package.zip")).status_code == 200


def test_a_full_server_counts_nothing(api: Api, bob: User, released: Any, settings: Settings) -> None:
    for _ in range(settings.FILES_MAX_TRANSFERS):
        SLOTS.take()
    problem(get(api(bob), released), 503, "transfers_full")
    for _ in range(settings.FILES_MAX_TRANSFERS):
        SLOTS.release()
    assert count(released) == 0
    body(get(api(bob), released))


def test_a_package_that_cannot_be_read_counts_nothing(
    api: Api, bob: User, released: Any, own_buckets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = (entry for entry in (own_buckets / "release").rglob("*") if entry.is_file())
    elsewhere = stored.rename(own_buckets / "elsewhere")
    problem(get(api(bob), released), 502, "object_missing")
    assert count(released) == 0
    elsewhere.rename(stored)
    body(get(api(bob), released))


@pytest.mark.parametrize("by_link", LINKS.values(), ids=LINKS)
def test_a_download_of_which_nothing_was_sent_is_given_back(
    api: Api,
    bob: User,
    released: Any,
    by_link: bool,  # noqa: FBT001  a parameter of pytest
) -> None:
    """F-05: its client was gone before the first byte."""
    answer = api(None).get(mint(api(bob), released)) if by_link else get(api(bob), released)
    assert count(released) == 1
    answer.close()
    assert count(released) == 0
    void = facts("egress.download_void")
    assert void["download"] == facts("egress.download")["download"]
    assert audited("egress.download", "egress.download_void") == [("egress.download", "bob"), ("egress.download_void", "bob")]
    body(get(api(bob), released))
    assert count(released) == 1


def test_a_download_whose_rest_is_on_its_way_is_not_given_back(api: Api, bob: User, released: Any) -> None:
    """Nothing went by the first transfer, but by another on the same grant."""
    first = get(api(bob), released)
    assert len(body(get(api(bob), released, range="bytes=100-199"))) == 100
    first.close()
    assert count(released) == 1
    assert audited("egress.download_void") == []


def test_a_transfer_on_a_grant_that_was_given_back_sends_nothing(api: Api, bob: User, released: Any) -> None:
    first = get(api(bob), released)
    second = get(api(bob), released, range="bytes=100-199")
    first.close()
    assert count(released) == 0
    with pytest.raises(TransferEnded):
        b"".join(second.streaming_content)


# --- When there is a package ---


def revoke(request: Any, api: Api, alice: User) -> None:
    assert api(alice).post(path(request, "revoke/"), {"reason": REASON}).status_code == 200


def close(request: Any, api: Api, alice: User) -> None:
    jobs.end_expired(now=timezone.now() + timedelta(days=8))


ENDS = [revoke, close]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("headers", [{"range": "bytes=0-9"}, pytest.param({}, marks=pytest.mark.long)], ids=["range", "whole"])
def test_package_that_was_taken_back_is_409(
    api: Api, alice: User, bob: User, thrice: Any, end: Callable[..., None], headers: dict[str, str]
) -> None:
    link = mint(api(bob), thrice)
    body(get(api(bob), thrice))
    end(thrice, api, alice)
    problem(get(api(bob), thrice, **headers), 409, "wrong_state")
    problem(api(bob).post(path(thrice, "downloads/")), 409, "wrong_state")
    problem(api(None).get(link, headers=headers), 404, "not_found")
    assert count(thrice) == 1
    assert see(api(bob), thrice)["downloads_left"] == 0


def test_package_whose_window_is_over_is_409_before_any_tick(api: Api, bob: User, released: Any) -> None:
    until = datetime.fromisoformat(released["available_until"])
    with time_machine.travel(until - timedelta(seconds=5)):
        link = mint(api(bob), released)
    with time_machine.travel(until):
        problem(get(api(bob), released), 409, "package_gone")
        problem(api(bob).post(path(released, "downloads/")), 409, "package_gone")
        problem(api(None).get(link), 404, "not_found")
    assert count(released) == 0
    with time_machine.travel(until - timedelta(seconds=1)):
        body(get(api(bob), released))


# --- Who ---


@pytest.mark.parametrize(
    ("name", "status"),
    [("bob", 200), ("dora", 200), ("alice", 403), ("carol", 404), ("grace", 403), ("erin", 403), ("root", 403), ("mallory", 404)],
)
def test_package_is_for_whom_the_policy_names(
    api: Api, thrice: Any, people: dict[str, User], carol: User, mallory: User, root: User, name: str, status: int
) -> None:
    """And seen by nobody whom the request is not shown to (INV-01)."""
    who = User.objects.get(username=name)
    answer = get(api(who), thrice)
    assert answer.status_code == status
    minted = api(who).post(path(thrice, "downloads/"))
    assert minted.status_code == (201 if status == 200 else status)
    if status == 200:
        body(answer)
    assert count(thrice) == (status == 200)


def test_role_that_the_policy_names_sees_requests_from_their_release_on(
    api: Api, bob: User, in_review: Any, people: dict[str, User], policy: Callable[..., None]
) -> None:
    """Of this tenant, submitted under this policy."""
    asked = in_review
    policy(downloaders=["data_desk"])
    request = submit(api(bob), fill(api(bob), "Under the policy", {"a.csv": b"a"}))
    work_on()
    dora = api(people["dora"])
    assert dora.get(path(request)).status_code == 404
    for name in ("grace", "ruth"):
        for each in (asked, request):
            assert decide(api(people[name]), each).status_code == 201
    work_on()
    assert see(api(bob), asked)["status"] == see(dora, request)["status"] == "released"
    assert [each["id"] for each in dora.get("/api/v1/egress/requests/").json()["results"]] == [request["id"]]
    assert see(dora, request)["allowed_actions"] == ["download"]
    other = make_member(make_tenant("umbrella"), "donald", "data_desk")
    assert api(other).get(path(request)).status_code == 404


def test_roles_that_the_policy_names_take_the_place_of_the_requester(
    api: Api, bob: User, results: str, people: dict[str, User], policy: Callable[..., None]
) -> None:
    policy(downloaders=["research_it"])
    request = release(api, bob, people, results)
    assert "download" not in see(api(bob), request)["allowed_actions"]
    problem(get(api(bob), request), 403, "refused")
    assert "download" in see(api(people["rick"]), request)["allowed_actions"]
    body(get(api(people["rick"]), request))


def leave(bob: User) -> None:
    people_services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())


def deactivate(bob: User) -> None:
    bob.is_active = False
    people_services.update(bob, changed=["is_active"], by=None, now=timezone.now())


def remove(bob: User) -> None:
    User.objects.filter(pk=bob.pk).delete()


def suspend(bob: User) -> None:
    tenant = Tenant.objects.get(slug="acme")
    tenant.is_active = False
    people_services.update(tenant, changed=["is_active"], by=None, now=timezone.now())


WAYS = [leave, deactivate, remove, suspend]


@pytest.mark.parametrize("lose", WAYS)
def test_requester_who_is_no_member_any_more_fetches_nothing(
    api: Api, bob: User, released: Any, lose: Callable[[User], None]
) -> None:
    """F-49, INV-16: neither with their token nor with a link that they minted before."""
    asking, link = api(bob), mint(api(bob), released)
    lose(bob)
    assert get(asking, released).status_code in {401, 403, 404}
    problem(api(None).get(link), 404, "not_found")
    assert count(released) == 0


# --- Links ---


def test_link_counts_when_it_is_used_and_opens_once(api: Api, bob: User, thrice: Any) -> None:
    """INV-09."""
    unused, link = mint(api(bob), thrice), mint(api(bob), thrice)
    assert unused != link
    assert api(None).head(link).status_code == 200
    assert count(thrice) == 0
    fetched = api(None).get(link)
    assert fetched["Content-Disposition"].startswith(f'attachment; filename="egress-{thrice["id"]}.zip"')
    assert len(body(fetched)) == thrice["package_length"]
    assert count(thrice) == 1
    problem(api(None).get(link), 404, "not_found")
    assert count(thrice) == 1
    assert see(api(bob), thrice)["downloads_left"] == 2


@pytest.mark.parametrize(("seconds", "status"), [(29, 200), (30, 404), (3600, 404)])
def test_link_is_dead_after_30_seconds(api: Api, bob: User, released: Any, seconds: int, status: int) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        link = mint(api(bob), released)
        clock.shift(seconds)
        answer = api(None).get(link)
        assert answer.status_code == status
        b"".join(answer)
        assert count(released) == (status == 200)


def test_link_is_not_minted_when_no_download_is_left(api: Api, bob: User, released: Any) -> None:
    link = mint(api(bob), released)
    body(get(api(bob), released))
    problem(api(bob).post(path(released, "downloads/")), 409, "downloads_used")
    problem(api(None).get(link), 409, "downloads_used")  # minted while there was one
    assert DownloadLink.objects.get().claimed_at is None
    assert count(released) == 1


def test_link_of_a_package_goes_on_for_ten_minutes(api: Api, bob: User, released: Any) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        link = mint(api(bob), released)
        received = cut(api(None).get(link), after=3 * MIB)
        clock.shift(links.RESUME_WINDOW)
        rest = body(api(None).get(link, headers={"range": f"bytes={len(received)}-"}))
        assert len(received) + len(rest) == released["package_length"]
        clock.shift(1)
        problem(api(None).get(link, headers={"range": "bytes=1-"}), 404, "not_found")
        assert len(body(get(api(bob), released, range="bytes=1-9"))) == 9  # by who minted it, signed in
    assert count(released) == 1


# --- What broke ---


@pytest.mark.parametrize("by_link", LINKS.values(), ids=LINKS)
def test_broken_transfer_goes_on_and_is_not_counted_again(
    api: Api,
    bob: User,
    people: dict[str, User],
    thrice: Any,
    by_link: bool,  # noqa: FBT001  a parameter of pytest
) -> None:
    whole = body(get(api(people["dora"]), thrice))
    client = api(None if by_link else bob)
    address = mint(api(bob), thrice) if by_link else path(thrice, "package.zip")
    first = client.get(address)
    etag = first["ETag"]
    received = cut(first, after=1)
    for more in (MIB, 3 * MIB, 10):
        resumed = client.get(address, headers={"range": f"bytes={len(received)}-", "if-range": etag})
        assert resumed.status_code == 206
        received += cut(resumed, after=more)
    rest = client.get(address, headers={"range": f"bytes={len(received)}-"})
    assert received + body(rest) == whole
    assert count(thrice) == 2
    assert audited("egress.download") == [("egress.download", "dora"), ("egress.download", "bob")]


def test_resuming_is_on_record_once_a_quarter_of_an_hour(api: Api, bob: User, released: Any) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        cut(get(api(bob), released), after=1)
        for minutes, rows in ((0, 1), (14, 1), (2, 2), (14, 2), (2, 3)):
            clock.shift(timedelta(minutes=minutes))
            for _ in range(2):
                body(get(api(bob), released, range="bytes=7-16"))
            assert len(audited("egress.download_resume")) == rows
    assert facts("egress.download_resume") == {"download": str(Download.objects.get().pk), "first": 7, "count": 10}


def test_range_of_somebody_else_is_a_download_of_their_own(api: Api, bob: User, people: dict[str, User], thrice: Any) -> None:
    cut(get(api(bob), thrice), after=MIB)
    assert len(body(get(api(people["dora"]), thrice, range="bytes=10-19"))) == 10
    assert count(thrice) == 2
    assert {(download["by"], download["is_complete"]) for download in see(api(bob), thrice)["downloads"]} == {
        ("bob", False),
        ("dora", False),
    }


def test_range_of_somebody_else_is_refused_when_none_is_left(
    api: Api, bob: User, results: str, people: dict[str, User], policy: Callable[..., None]
) -> None:
    policy(downloaders=["requester", "data_desk"])
    request = release(api, bob, people, results)
    cut(get(api(bob), request), after=1)
    problem(get(api(people["dora"]), request, range="bytes=10-19"), 409, "downloads_used")
    problem(get(api(bob), request), 409, "downloads_used")  # a whole is a further download
    assert len(body(get(api(bob), request, range="bytes=10-19"))) == 10


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "lines=0-99"},
        {"range": "bytes=a-b"},
        {"range": "bytes=0-1,4-5"},
        {"range": "bytes=1-", "if-range": '"other"'},
    ],
)
def test_range_that_does_not_count_brings_no_second_whole(api: Api, bob: User, released: Any, headers: dict[str, str]) -> None:
    body(get(api(bob), released))
    problem(get(api(bob), released, **headers), 409, "downloads_used")


def test_package_may_be_fetched_in_parts_from_the_first_on(api: Api, bob: User, released: Any) -> None:
    """A range as the first request is the download; the others are its rest."""
    client, length = api(bob), released["package_length"]
    parts = [body(get(client, released, range=f"bytes={start}-{start + MIB - 1}")) for start in range(0, length, MIB)]
    assert len(b"".join(parts)) == length
    assert count(released) == 1
    assert facts("egress.download")["count"] == MIB
    (made,) = see(client, released)["downloads"]
    assert (made["bytes_taken"], made["is_complete"]) == (length, True)


def test_parts_that_are_fetched_at_once_do_not_take_each_others_budget(api: Api, bob: User, released: Any) -> None:
    """As aria2c does it: a whole that it breaks off, beside many parts, none of which is far."""
    client, length = api(bob), released["package_length"]
    first = get(client, released)
    received = [next(iter(first.streaming_content))]
    parts = [get(client, released, range=f"bytes={start}-{start + MIB // 4 - 1}") for start in range(0, length, MIB // 4)]
    streams = [iter(part.streaming_content) for part in parts]
    for _ in range(3):
        for stream in streams:
            with suppress(StopIteration):
                received.append(next(stream))
    for part in [first, *parts]:
        part.close()
    assert sum(map(len, received[1:])) == length
    assert count(released) == 1


@pytest.mark.both_databases
def test_budget_is_the_package_and_what_buffers_hold_of_it(api: Api, bob: User, released: Any) -> None:
    """Nobody gets the package often by asking for most of it again and again: here buffers hold all of it, once."""
    client, length = api(bob), released["package_length"]
    sent = len(body(get(client, released)))
    problem(get(client, released, range="bytes=0-"), 409, "downloads_used")  # the whole of it is not its rest
    while (answer := get(client, released, range="bytes=1-")).status_code == 206:
        with suppress(TransferEnded):
            for piece in answer.streaming_content:
                sent += len(piece)
        answer.close()
        assert sent <= length + length
    problem(answer, 409, "downloads_used")
    assert sent > length
    assert count(released) == 1
    (made,) = see(client, released)["downloads"]
    assert made["bytes_taken"] == sent
    assert made["bytes_taken"] + made["bytes_left"] == length + min(length, links.RESUME_ALLOWANCE)


@pytest.mark.both_databases
def test_next_download_takes_over_when_the_budget_of_one_is_used_up(api: Api, bob: User, thrice: Any) -> None:
    body(get(api(bob), thrice))
    Download.objects.update(bytes_left=1000)
    assert len(body(get(api(bob), thrice, range="bytes=0-999"))) == 1000
    assert count(thrice) == 1
    assert len(body(get(api(bob), thrice, range="bytes=0-999"))) == 1000
    assert count(thrice) == 2


# --- What is told of it ---


def test_revocation_says_who_has_how_much(api: Api, alice: User, bob: User, people: dict[str, User], thrice: Any) -> None:
    length = thrice["package_length"]
    with time_machine.travel(timezone.now(), tick=False) as clock:
        body(get(api(bob), thrice))
        clock.shift(60)
        received = cut(get(api(people["dora"]), thrice), after=MIB)
        clock.shift(60)
        body(get(api(people["dora"]), thrice, range="bytes=0-9"))
        clock.shift(60)
        answer = api(alice).post(path(thrice, "revoke/"), {"reason": REASON})
    assert answer.status_code == 200
    revoked = answer.json()
    assert (revoked["download_count"], revoked["max_downloads"], revoked["downloads_left"]) == (2, 3, 0)
    first, second = revoked["downloads"]
    assert (first["by"], first["bytes_taken"], first["is_complete"]) == ("bob", length, True)
    assert (second["by"], second["bytes_taken"], second["is_complete"]) == ("dora", len(received) + 10, False)
    ago = [datetime.fromisoformat(second["last_at"]) - datetime.fromisoformat(each["at"]) for each in (first, second)]
    assert ago == [timedelta(minutes=2), timedelta(minutes=1)]


def test_running_download_is_told_with_what_it_may_have_sent(api: Api, bob: User, released: Any) -> None:
    answer = get(api(bob), released)
    received = len(next(iter(answer.streaming_content)))
    (made,) = see(api(bob), released)["downloads"]
    assert received <= made["bytes_taken"] <= released["package_length"]
    answer.close()
    (made,) = see(api(bob), released)["downloads"]
    assert (made["bytes_taken"], made["is_complete"]) == (received, False)


@pytest.mark.parametrize(("more", "field"), [({"downloads": 2}, "downloads_left"), ({"days": 3}, "available_until")])
def test_extension_adds_downloads_or_days(
    api: Api, bob: User, people: dict[str, User], released: Any, more: dict[str, int], field: str
) -> None:
    body(get(api(bob), released))
    answer = api(people["ruth"]).post(path(released, "extend/"), {**more, "reason": REASON})
    assert answer.status_code == 200, answer.content
    extended = answer.json()
    until = datetime.fromisoformat(released["available_until"]) + timedelta(days=more.get("days", 0))
    assert extended["downloads_left"] == more.get("downloads", 0)
    assert datetime.fromisoformat(extended["available_until"]) == until
    assert Collection.objects.get(package_of=released["id"]).purge_at == until
    assert facts("egress.extend")["reason"] == REASON
    for left in reversed(range(extended["downloads_left"])):
        body(get(api(bob), released))
        assert see(api(bob), released)["downloads_left"] == left
    problem(get(api(bob), released), 409, "downloads_used")


def test_extension_is_not_for_the_first_stage_or_the_requester(
    api: Api, bob: User, people: dict[str, User], released: Any
) -> None:
    for name in ("bob", "grace", "erin"):
        who = User.objects.get(username=name)
        assert api(who).post(path(released, "extend/"), {"downloads": 1, "reason": REASON}).status_code == 403
    assert row(released).max_downloads == 1


# --- Streams ---


@pytest.fixture
def asked_before_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1)


def end_window(request: Any) -> None:
    stored = row(request)
    stored.available_until = timezone.now()
    stored.save(update_fields=["available_until"])


LOSSES = [*WAYS, revoke, close, end_window]


@pytest.mark.parametrize(
    ("lose", "by_link"),
    [
        *((lose, number % 2 == 0) for number, lose in enumerate(LOSSES)),
        *(pytest.param(lose, number % 2 == 1, marks=pytest.mark.long) for number, lose in enumerate(LOSSES)),
    ],
)
def test_running_download_ends_with_the_right_to_it(
    asked_before_every_piece: None,
    api: Api,
    alice: User,
    bob: User,
    released: Any,
    lose: Callable[..., None],
    by_link: bool,  # noqa: FBT001  a parameter of pytest
) -> None:
    """F-49, INV-16."""
    answer: Any = api(None).get(mint(api(bob), released)) if by_link else get(api(bob), released)
    pieces = iter(answer.streaming_content)
    received = next(pieces) + next(pieces)
    if lose in ENDS:
        lose(released, api, alice)
    else:
        lose(released if lose is end_window else bob)
    with pytest.raises(TransferEnded):
        next(pieces)
    answer.close()
    (made,) = row(released).downloads.all()
    assert downloads.bytes_taken(made) == len(received)


def test_running_download_goes_on_while_nothing_changes(
    asked_before_every_piece: None, api: Api, bob: User, released: Any
) -> None:
    assert len(body(get(api(bob), released))) == released["package_length"]


def test_package_is_not_closed_under_who_has_fetched_it_for_hours(
    asked_before_every_piece: None, api: Api, bob: User, released: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last download is over when nothing has left for a while, not a while after it began."""
    monkeypatch.setattr(downloads, "TOUCH_INTERVAL_SECONDS", -1)
    received = 0
    with time_machine.travel(timezone.now(), tick=False) as clock:
        answer = get(api(bob), released)
        for piece in answer.streaming_content:
            received += len(piece)
            clock.shift(timedelta(minutes=20))
            jobs.end_expired(now=timezone.now())
            if received > 3 * MIB:
                break
        assert row(released).status == "released"
        answer.close()
        clock.shift(jobs.RESUME_PERIOD + timedelta(minutes=1))
        jobs.end_expired(now=timezone.now())
    assert row(released).status == "closed"
    assert AuditEvent.objects.filter(action="egress.close").count() == 1
    invariants.check_slots()
