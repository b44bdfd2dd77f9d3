"""Many who want one package at once, with threads and connections of their own, on SQLite and PostgreSQL (INV-09, F-55)."""

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from egress import jobs
from egress.models import EgressRequest
from files import links
from files.http.streaming import TransferEnded
from tenants.models import AuditEvent, User
from tests import invariants
from tests.needs import mark_dependents
from tests.races import race
from tests.services import worlds
from tests.services.egress import REASON, Api, path, row
from tests.services.worlds import MIB
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("own_buckets"), pytest.mark.both_databases]


MANY = pytest.mark.parametrize("many", [10, pytest.param(50, marks=pytest.mark.long)])


def package() -> Any:
    return worlds.released({"a.bin": random.Random(1).randbytes(MIB)}, downloaders=["requester", "research_it"])


@pytest.fixture
def people(db: None) -> dict[str, User]:
    return {user.username: user for user in User.objects.all()}


@pytest.fixture
@mark_dependents(starts_from(package))
def allow(own_buckets: Path, api: Api, people: dict[str, User], built: Any) -> Callable[[int], Any]:
    """A released request of bob's, to be fetched so often, by bob and by the two of research IT."""

    def make(limit: int) -> Any:
        if limit > 1:
            more = {"downloads": limit - 1, "reason": REASON}
            assert api(people["ruth"]).post(path(built, "extend/"), more).status_code == 200
        return built

    return make


def fetched(client: APIClient, address: str, *, most: int | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of a GET, which is broken off once there are `most` bytes, before the first one for 0."""
    response: Any = client.get(address, headers=headers)
    if not response.streaming:
        return response.status_code, response.content
    body, pieces = bytearray(), iter(response.streaming_content)
    try:
        with suppress(TransferEnded):
            while most is None or len(body) < most:
                body += next(pieces)
    except StopIteration:
        pass
    finally:
        response.close()
    return response.status_code, bytes(body)


def mint(client: APIClient, request: Any) -> str:
    answer = client.post(path(request, "downloads/"))
    assert answer.status_code == 201, answer.content
    return str(answer["Location"])


def check(request: Any, *, at_most: int) -> EgressRequest:
    """What is counted is what was granted and what is on record."""
    stored = row(request)
    assert stored.download_count == stored.downloads.count() <= at_most
    granted = AuditEvent.objects.filter(action="egress.download").count()
    assert granted - AuditEvent.objects.filter(action="egress.download_void").count() == stored.download_count
    invariants.check_all()
    return stored


@MANY
def test_package_fetched_by_many_at_once_with_a_limit_of_one_is_one_200(
    api: Api, bob: User, allow: Callable[[int], Any], many: int
) -> None:
    request = allow(1)

    answers = race([partial(fetched, api(bob), path(request, "package.zip"))] * many)

    assert Counter(status for status, _ in answers) == {200: 1, 409: many - 1}
    assert [len(body) for status, body in answers if status == 200] == [request["package_length"]]
    assert {b"downloads_used" in body for status, body in answers if status == 409} == {True}
    assert check(request, at_most=1).download_count == 1


@pytest.mark.parametrize(
    ("limit", "many"), [(3, 4), pytest.param(2, 10, marks=pytest.mark.long), pytest.param(7, 10, marks=pytest.mark.long)]
)
def test_package_fetched_by_many_more_than_the_limit_is_fetched_so_often(
    api: Api, bob: User, people: dict[str, User], allow: Callable[[int], Any], limit: int, many: int
) -> None:
    """By several people, with their tokens and with links."""
    request = allow(limit)
    whole = [partial(fetched, api(who), path(request, "package.zip")) for who in (bob, people["ruth"], people["rick"])] * many
    by_link = [partial(fetched, api(None), mint(api(bob), request)) for _ in range(limit + 2 * many)]

    answers = race(whole + by_link)

    assert Counter(status for status, _ in answers) == {200: limit, 409: 5 * many}
    assert {len(body) for status, body in answers if status == 200} == {request["package_length"]}
    assert check(request, at_most=limit).download_count == limit


@MANY
def test_one_link_fetched_by_many_at_once_counts_one(api: Api, bob: User, allow: Callable[[int], Any], many: int) -> None:
    request = allow(5)

    answers = race([partial(fetched, api(None), mint(api(bob), request))] * many)

    assert Counter(status for status, _ in answers) == {200: 1, 404: many - 1}
    assert check(request, at_most=5).download_count == 1


@pytest.mark.parametrize("many", [6, pytest.param(18, marks=pytest.mark.long)])
def test_broken_ones_parts_and_links_at_once_are_no_more_than_the_limit(
    api: Api, bob: User, people: dict[str, User], allow: Callable[[int], Any], many: int
) -> None:
    limit = 4
    request = allow(limit)
    length, address = request["package_length"], path(request, "package.zip")
    clients = [api(who) for who in (bob, people["ruth"], people["rick"])]
    calls: list[Callable[[], tuple[int, bytes]]] = []
    for number in range(many):
        client = clients[number % 3]
        calls.append(partial(fetched, client, address, most=(0, 1, None)[number // 3 % 3]))
        calls.append(partial(fetched, client, address, range=f"bytes={number * 50_000}-"))
    calls += [partial(fetched, api(None), mint(clients[0], request), most=most) for most in (0, 1, None) * (many // 3)]

    answers = race(calls)

    assert {status for status, _ in answers} <= {200, 206, 409}
    sent = sum(len(body) for status, body in answers if status in {200, 206})
    assert sent <= limit * (length + min(length, links.RESUME_ALLOWANCE))
    stored = check(request, at_most=limit)
    left = sum(download.bytes_left for download in stored.downloads.all())
    assert left + sent == stored.download_count * (length + min(length, links.RESUME_ALLOWANCE))  # every byte was paid for
    # What was given back is to be had again, and no more than that.
    again = race([partial(fetched, clients[0], address)] * 10)
    assert Counter(status for status, _ in again)[200] == limit - stored.download_count
    assert check(request, at_most=limit).download_count == limit


@MANY
def test_resumed_parts_at_once_cannot_overdraw_a_download(api: Api, bob: User, allow: Callable[[int], Any], many: int) -> None:
    request = allow(1)
    length, address = request["package_length"], path(request, "package.zip")
    assert len(fetched(api(bob), address)[1]) == length

    answers = race([partial(fetched, api(bob), address, range="bytes=1-")] * many)

    assert {status for status, _ in answers} <= {206, 409}
    sent = length + sum(len(body) for status, body in answers if status == 206)
    assert sent <= length + min(length, links.RESUME_ALLOWANCE)
    assert sent + check(request, at_most=1).downloads.get().bytes_left == length + min(length, links.RESUME_ALLOWANCE)


# --- Against its end ---


def revoke(client: APIClient, request: Any) -> int:
    return int(client.post(path(request, "revoke/"), {"reason": REASON}).status_code)


def close(request: Any) -> int:
    jobs.end_expired(now=timezone.now() + timedelta(days=8))
    return 200


@pytest.mark.parametrize("end", ["revoke", "close"])
def test_downloads_at_the_moment_of_its_end_are_whole_or_refused(
    api: Api, alice: User, bob: User, allow: Callable[[int], Any], end: str
) -> None:
    """Nobody is granted anything behind it, and what was granted is on record."""
    request = allow(20)
    ending = partial(revoke, api(alice), request) if end == "revoke" else partial(close, request)
    links_of_it = [mint(api(bob), request) for _ in range(5)]
    calls: list[Callable[[], tuple[int, bytes]]] = [partial(fetched, api(bob), path(request, "package.zip"))] * 10
    calls += [partial(fetched, api(None), link) for link in links_of_it]

    def ended() -> tuple[int, bytes]:
        return ending(), b"ended"

    answers = race([*calls[:8], ended, *calls[8:]])

    assert (200, b"ended") in answers
    assert {status for status, _ in answers} <= {200, 404, 409}
    stored = check(request, at_most=15)
    assert stored.status == {"revoke": "revoked", "close": "closed"}[end]
    assert stored.download_count == sum(status == 200 for status, _ in answers) - 1
    behind = AuditEvent.objects.get(action=f"egress.{end}").seq
    assert not AuditEvent.objects.filter(action="egress.download", seq__gt=behind).exists()
    assert fetched(api(bob), path(request, "package.zip"))[0] == 409


def test_revocations_and_the_end_of_the_window_at_once_are_one_end(
    api: Api, alice: User, people: dict[str, User], allow: Callable[[int], Any]
) -> None:
    request = allow(1)
    revokes = [partial(revoke, api(who), request) for who in (alice, people["grace"], people["ruth"])] * 2

    statuses = race([*revokes, partial(close, request), partial(close, request)])

    assert Counter(statuses[:-2]).keys() <= {200, 409}
    assert AuditEvent.objects.filter(action__in=["egress.revoke", "egress.close"]).count() == 1
    assert Counter(statuses[:-2])[200] == (row(request).status == "revoked")
    check(request, at_most=0)


def test_extensions_at_once_add_up(api: Api, bob: User, people: dict[str, User], allow: Callable[[int], Any]) -> None:
    request = allow(1)

    def extend(client: APIClient) -> tuple[int, bytes]:
        wish = {"downloads": 1, "days": 1, "reason": REASON}
        answer = client.post(path(request, "extend/"), wish)
        return int(answer.status_code), bytes(answer.content)

    extensions = [partial(extend, api(people[name])) for name in ("ruth", "rick")] * 3
    fetches = [partial(fetched, api(bob), path(request, "package.zip"))] * 12
    answers = race([*extensions, *fetches])

    assert [status for status, _ in answers[:6]] == [200] * 6
    stored = check(request, at_most=7)
    assert stored.max_downloads == 7
    until = datetime.fromisoformat(request["available_until"]) + timedelta(days=6)
    assert stored.available_until == until
    assert stored.download_count == Counter(status for status, _ in answers[6:])[200]
