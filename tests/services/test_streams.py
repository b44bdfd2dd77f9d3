"""Downloads while they run: who may go on, what they hold, and what it looks like when they break (F-05, F-23, F-49, INV-16)."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from rest_framework.test import APIClient

from files import grants
from files.http import streaming
from files.http.streaming import TransferEnded
from files.models import Collection, Grant, StoredFile
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.needs import mark_dependents
from tests.services import worlds
from tests.worlds import starts_from
from vault import content_reader
from vault.stores import get_store
from vault.stores.local import LocalStore


Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
MIB = 1024 * 1024
CONTENT = random.Random(1).randbytes(5 * MIB)  # from the third on the store is read while it is sent

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


def with_a_large_file() -> int:
    return worlds.november_with({"a.bin": CONTENT})


@pytest.fixture
@mark_dependents(starts_from(with_a_large_file))
def november(own_buckets: Path, built: int) -> Collection:
    return Collection.objects.get(pk=built)


@pytest.fixture
def asked_before_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1)


def stream(client: APIClient, path: str, **headers: str) -> Any:
    response: Any = client.get(path, headers=headers)
    assert response.status_code in {200, 206}
    return response.streaming_content


# --- Who may go on ---


def deactivate(bob: User, november: Collection) -> None:
    User.objects.filter(pk=bob.pk).update(is_active=False)


def delete_user(bob: User, november: Collection) -> None:
    User.objects.filter(pk=bob.pk).delete()


def expel(bob: User, november: Collection) -> None:
    Membership.objects.filter(user=bob).delete()


def demote(bob: User, november: Collection) -> None:
    Membership.objects.filter(user=bob).update(roles=["auditor"])


def suspend(bob: User, november: Collection) -> None:
    Tenant.objects.filter(pk=november.tenant_id).update(is_active=False)


def delete_collection(bob: User, november: Collection) -> None:
    Collection.objects.filter(pk=november.pk).update(status="deleted", deleted_at=november.created_at)


def delete_file(bob: User, november: Collection) -> None:
    StoredFile.objects.all().delete()


def take_grants(bob: User, november: Collection) -> None:
    for grant in Grant.objects.filter(user=None):
        grants.revoke_grant(grant, by=None, now=timezone.now())


WAYS = [deactivate, delete_user, expel, demote, suspend, delete_collection, take_grants]


@pytest.mark.parametrize("lose", [*WAYS, delete_file])
@pytest.mark.parametrize("by_link", [False, True], ids=["by-token", "by-link"])
def test_stream_ends_when_its_reader_loses_the_right_to_it(
    asked_before_every_piece: None,
    api: Api,
    bob: User,
    november: Collection,
    lose: Callable[[User, Collection], None],
    by_link: bool,  # noqa: FBT001  a parameter of pytest
) -> None:
    path = paths.content(november.slug, "a.bin")
    if by_link:
        path = api(bob).post(paths.download(november.slug, "a.bin")).json()["url"]
    pieces = stream(api(None if by_link else bob), path)
    received = next(pieces) + next(pieces)
    lose(bob, november)
    with pytest.raises(TransferEnded):
        next(pieces)
    assert CONTENT.startswith(received)


@pytest.mark.parametrize("lose", WAYS)
def test_archive_ends_when_its_reader_loses_the_right_to_it(
    asked_before_every_piece: None, api: Api, bob: User, november: Collection, lose: Callable[[User, Collection], None]
) -> None:
    pieces = stream(api(bob), paths.archive(november.slug))
    next(pieces)
    lose(bob, november)
    with pytest.raises(TransferEnded):
        b"".join(pieces)


@pytest.fixture
def archive_of_grants(api: Api, alice: User, bob: User, november: Collection) -> Iterator[bytes]:
    """On its way to bob, who was granted two files, one by one, and not the collection."""
    api(alice).put(paths.content(november.slug, "b.bin"), CONTENT, content_type="application/octet-stream")
    take_grants(bob, november)
    for name in ("a.bin", "b.bin"):
        api(alice).post(paths.file_grants(november.slug, name), {"user": "bob", "level": "viewer"})
    return iter(stream(api(bob), paths.archive(november.slug)))


def take_the_second(bob: User) -> None:
    grants.revoke_grant(Grant.objects.get(user=bob, file__filename="b.bin"), by=None, now=timezone.now())


def test_archive_leaves_out_no_file_silently_that_was_taken_before_its_turn(
    archive_of_grants: Iterator[bytes], bob: User
) -> None:
    received = [next(archive_of_grants)]
    take_the_second(bob)
    with pytest.raises(TransferEnded):
        received.extend(archive_of_grants)
    assert 5 * MIB <= len(b"".join(received)) < 5 * MIB + 4096  # the first file and no byte of the second


def test_archive_ends_in_a_file_that_is_taken_while_it_is_sent(
    asked_before_every_piece: None, archive_of_grants: Iterator[bytes], bob: User
) -> None:
    received = [next(archive_of_grants)]
    while len(b"".join(received)) < 8 * MIB:
        received.append(next(archive_of_grants))
    take_the_second(bob)
    with pytest.raises(TransferEnded):
        next(archive_of_grants)


def test_stream_goes_on_while_nothing_changes_and_asks_every_few_seconds_only(
    api: Api, bob: User, november: Collection, django_assert_num_queries: Any
) -> None:
    pieces = stream(api(bob), paths.content(november.slug, "a.bin"))
    with django_assert_num_queries(0):
        assert b"".join(pieces) == CONTENT


def test_archive_whose_next_file_was_replaced_ends_visibly(api: Api, alice: User, november: Collection) -> None:
    """Its length was announced with the content of before."""
    second = paths.content(november.slug, "b.bin")
    etag = api(alice).put(second, b"old", content_type="application/octet-stream").headers["ETag"]
    pieces = stream(api(alice), paths.archive(november.slug))
    next(pieces)
    api(alice).put(second, b"new", content_type="application/octet-stream", headers={"if-match": etag})
    with pytest.raises(TransferEnded):
        b"".join(pieces)


# --- What it holds, and what it does without ---


def test_stream_goes_on_while_the_database_is_away_for_a_while(
    asked_before_every_piece: None, api: Api, bob: User, november: Collection
) -> None:
    """F-23."""
    pieces = stream(api(bob), paths.content(november.slug, "a.bin"))
    with connection.execute_wrapper(lost):
        assert b"".join(pieces) == CONTENT


def test_stream_ends_when_the_database_stays_away(
    asked_before_every_piece: None, api: Api, bob: User, november: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "MAX_UNCHECKED_SECONDS", -1)
    pieces = stream(api(bob), paths.content(november.slug, "a.bin"))
    with connection.execute_wrapper(lost), pytest.raises(TransferEnded):
        b"".join(pieces)


def lost(*_: Any) -> Any:
    raise OperationalError("server closed the connection unexpectedly")


def test_link_whose_budget_cannot_be_paid_ends_visibly(api: Api, bob: User, november: Collection) -> None:
    """Nothing leaves that was not paid for."""
    link = api(bob).post(paths.download(november.slug, "a.bin")).json()["url"]
    pieces = stream(api(None), link)
    with connection.execute_wrapper(lost), pytest.raises(TransferEnded):
        next(pieces)
    with pytest.raises((TransferEnded, StopIteration)):
        next(pieces)


# --- A store that stumbles ---


class Stumbling(LocalStore):
    """Its bodies break off after some bytes, as often as `stumbles` says; it counts those that are open."""

    stumbles = 0
    asked = 0
    unclosed = 0

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> Any:  # type: ignore[override]
        stat, body = super().open(key, start=start, length=length, etag=etag)
        Stumbling.asked += 1
        Stumbling.unclosed += 1
        return stat, _Body(body, length)


class _Body:
    def __init__(self, body: Any, left: int) -> None:
        self._body, self._left, self._is_broken = body, left, False

    def read(self, size: int) -> bytes:
        if Stumbling.stumbles and not self._is_broken:
            Stumbling.stumbles -= 1
            self._left, self._is_broken = 10_000, True
        piece: bytes = self._body.read(min(size, self._left))
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        Stumbling.unclosed -= 1
        self._body.close()


@pytest.fixture
def stumbling(
    settings: Any, own_buckets: Path, november: Collection, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Stumbling]]:
    options = {"location": str(own_buckets / "vault")}
    settings.STORAGES = settings.STORAGES | {"vault": {"BACKEND": f"{__name__}.Stumbling", "OPTIONS": options}}
    monkeypatch.setattr("time.sleep", lambda _: None)
    Stumbling.stumbles = Stumbling.asked = Stumbling.unclosed = 0
    yield Stumbling
    assert Stumbling.unclosed == 0


@pytest.mark.parametrize("after", [0, 1, 5, 30])
def test_stream_goes_on_behind_a_storage_error(
    api: Api, bob: User, november: Collection, stumbling: type[Stumbling], after: int
) -> None:
    """F-05: at the start, in a window that is read whole, and in a body that is sent while it is read."""
    if after == 0:
        stumbling.stumbles = 3
    pieces = stream(api(bob), paths.content(november.slug, "a.bin"))
    received = b"".join(next(pieces) for _ in range(after))
    stumbling.stumbles = stumbling.stumbles or (3 if after else 0)
    assert received + b"".join(pieces) == CONTENT
    assert stumbling.stumbles == 0


@pytest.mark.parametrize("after", [1, 30])
def test_store_that_keeps_stumbling_is_503_before_and_a_visible_end_after_the_first_byte(
    api: Api, bob: User, november: Collection, stumbling: type[Stumbling], after: int
) -> None:
    path = paths.content(november.slug, "a.bin")
    stumbling.stumbles = 1000
    refused = api(bob).get(path)
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
    assert stumbling.asked == content_reader.MAX_ATTEMPTS
    stumbling.stumbles = 0
    pieces = stream(api(bob), path)
    for _ in range(after):
        next(pieces)
    stumbling.stumbles = 1000
    with pytest.raises(TransferEnded):
        b"".join(pieces)
    assert stumbling.stumbles == 1000 - content_reader.MAX_ATTEMPTS


@pytest.mark.parametrize("after", [0, 3])
def test_object_that_vanishes_is_told_to_the_operator(api: Api, alice: User, november: Collection, after: int) -> None:
    """F-10: 502 and a row that says so while it can be said; a visible end afterwards."""
    file = StoredFile.objects.get()
    path = paths.content(november.slug, "a.bin")
    pieces: Any = stream(api(alice), path) if after else None
    for _ in range(after):
        next(pieces)
    get_store("vault").erase(get_store("vault").entries(file.object_key))
    if pieces:
        with pytest.raises(TransferEnded):
            b"".join(pieces)
    refused = api(alice).get(path)
    assert (refused.status_code, refused.json()["code"]) == (502, "object_missing")
    file.refresh_from_db()
    assert file.status == StoredFile.Status.MISSING


def test_bodies_are_closed_wherever_a_stream_is_cut(
    api: Api, bob: User, november: Collection, stumbling: type[Stumbling]
) -> None:
    """INV-19, T-6: in a window that is read whole, and in a body that is sent while it is read."""
    were_open = set()
    for taken in (1, 2, 9, 20, 30, 39):
        response: Any = api(bob).get(paths.content(november.slug, "a.bin"))
        for _ in range(taken):
            next(response.streaming_content)
        were_open.add(stumbling.unclosed)
        response._iterator.close()  # as a server does, without the test client's own end of the request
        assert stumbling.unclosed == 0
    assert were_open == {0, 1}
