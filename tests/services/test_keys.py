"""Master keys change, data keys do not: `rotate_keys`, what it must not undo, and what a lost master key answers (F-59, F-67)."""

import random
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings
from rest_framework.test import APIClient

from files.models import Collection
from tenants.models import AuditEvent, User
from tests import invariants
from tests.api import paths
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import fill
from tests.services.keyrings import NEW, OLD, RETIRED, ROTATED
from tests.worlds import starts_from
from vault import crypto, keys
from vault.models import Key


Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
CONTENT = random.Random(1).randbytes(300_000)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


def five() -> None:
    client = worlds.make_people()["alice"]
    for number in range(5):
        fill(client, f"Number {number}", {"a.bin": CONTENT})


@pytest.fixture
@mark_dependents(starts_from(five))
def collections(own_buckets: object) -> list[Collection]:
    return list(Collection.objects.select_related("key").order_by("pk"))


def put(client: APIClient, collection: Collection, filename: str) -> int:
    path = paths.content(collection.slug, filename)
    return int(client.put(path, CONTENT, content_type="application/octet-stream").status_code)


def read(client: APIClient, collection: Collection) -> Any:
    """The content, or the code of the refusal."""
    response: Any = client.get(paths.content(collection.slug, "a.bin"))
    return b"".join(response.streaming_content) if response.streaming else (response.status_code, response.json()["code"])


def rotate() -> str:
    printed = StringIO()
    call_command("rotate_keys", stdout=printed)
    return printed.getvalue()


# --- rotate_keys ---


def test_rotation_rewraps_every_key_and_the_old_master_key_may_go(
    api: Api, alice: User, collections: list[Collection], settings: Settings
) -> None:
    before = {key.pk: key.wrapped for key in Key.objects.all()}
    opened = {key.pk: keys.unwrap(key) for key in Key.objects.all()}
    objects = invariants.entries()
    settings.KEYRING = ROTATED
    assert all(read(api(alice), collection) == CONTENT for collection in collections)

    assert rotate().endswith("5 data keys rewrapped, 0 remaining; the active master key is test-2027\n")

    settings.KEYRING = RETIRED
    assert set(Key.objects.values_list("kek_id", flat=True)) == {"test-2027"}
    assert all(key.wrapped != before[key.pk] for key in Key.objects.all())
    assert {key.pk: keys.unwrap(key) for key in Key.objects.all()} == opened
    assert invariants.entries() == objects  # not touched
    assert all(read(api(alice), collection) == CONTENT for collection in collections)
    assert all(put(api(alice), collection, "b.bin") == 201 for collection in collections)
    invariants.check_all()


def test_rotation_is_audited_by_count_and_says_no_key(collections: list[Collection], settings: Settings) -> None:
    settings.KEYRING = ROTATED
    printed = rotate()
    event = AuditEvent.objects.get(action="keys.rewrap")
    assert (event.chain, event.actor) == ("platform", "system")
    assert '"count":5' in event.body.replace(" ", "")
    for secret in (NEW.split()[1], OLD.split()[1]):
        assert secret not in printed + event.body


def test_rotation_twice_does_nothing_the_second_time(collections: list[Collection], settings: Settings) -> None:
    settings.KEYRING = ROTATED
    rotate()
    after = {key.pk: bytes(key.wrapped or b"") for key in Key.objects.all()}
    assert rotate() == "0 data keys rewrapped, 0 remaining; the active master key is test-2027\n"
    assert {key.pk: bytes(key.wrapped or b"") for key in Key.objects.all()} == after
    assert AuditEvent.objects.filter(action="keys.rewrap").count() == 1


@pytest.mark.both_databases
def test_rotation_that_was_killed_half_way_is_taken_up_by_the_next(
    api: Api, alice: User, collections: list[Collection], settings: Settings, now: datetime
) -> None:
    settings.KEYRING = ROTATED
    killed = keys.rotate(now=now, batch=2)
    assert next(killed) == (2, 3)
    killed.close()  # type: ignore[attr-defined]
    assert all(read(api(alice), collection) == CONTENT for collection in collections)  # under either master key
    assert list(keys.rotate(now=now, batch=2)) == [(2, 1), (1, 0)]


def test_rotation_without_the_old_master_key_says_what_is_left(collections: list[Collection], settings: Settings) -> None:
    settings.KEYRING = RETIRED
    before = set(Key.objects.values_list("wrapped", flat=True))
    with pytest.raises(CommandError, match="lacks their old master key"):
        rotate()
    assert set(Key.objects.values_list("wrapped", flat=True)) == before
    settings.KEYRING = ROTATED
    rotate()


def test_rotation_passes_over_a_key_it_cannot_open_and_rewraps_the_rest(
    collections: list[Collection], settings: Settings
) -> None:
    damaged = Key.objects.order_by("id")[2]
    Key.objects.filter(pk=damaged.pk).update(wrapped=bytes(60))
    settings.KEYRING = ROTATED
    with pytest.raises(CommandError):
        rotate()
    assert list(Key.objects.exclude(kek_id="test-2027")) == [damaged]


def destroy(key: Key, now: datetime) -> None:
    Key.objects.filter(pk=key.pk).update(wrapped=None, destroyed_at=now)


@pytest.mark.both_databases
def test_rotation_does_not_bring_a_destroyed_key_back(collections: list[Collection], settings: Settings, now: datetime) -> None:
    """INV-08: the purge destroys between the rotation's read and its write."""
    settings.KEYRING = ROTATED
    key = Key.objects.all()[0]
    destroy(key, now)
    assert not keys.rewrap(key)
    assert Key.objects.get(pk=key.pk).wrapped is None
    assert "4 data keys rewrapped, 0 remaining" in rotate()
    assert Key.objects.get(pk=key.pk).kek_id == "test-2026"


def test_key_of_a_collection_made_under_the_old_master_key_meanwhile_goes_with_the_next_rotation(
    api: Api, alice: User, make_collection: MakeCollection, collections: list[Collection], settings: Settings
) -> None:
    """A process that has not been restarted yet still wraps with the key that was active when it started."""
    settings.KEYRING = ROTATED
    rotate()
    settings.KEYRING = OLD
    late = make_collection(alice, "Late")
    put(api(alice), late, "a.bin")
    settings.KEYRING = ROTATED
    assert "1 data keys rewrapped, 0 remaining" in rotate()
    settings.KEYRING = RETIRED
    assert read(api(alice), late) == CONTENT


# --- Without the right key ---


def test_lost_master_key_is_503_and_an_upload_under_it_writes_nothing(
    api: Api, alice: User, collections: list[Collection], settings: Settings
) -> None:
    settings.KEYRING = RETIRED
    objects = invariants.entries()
    assert read(api(alice), collections[0]) == (503, "key_unavailable")
    assert put(api(alice), collections[0], "b.bin") == 503
    assert invariants.entries() == objects
    invariants.check_all()


def test_other_master_key_of_the_same_name_is_503(
    api: Api, alice: User, collections: list[Collection], settings: Settings
) -> None:
    settings.KEYRING = f"test-2026 {NEW.split()[1]}"
    assert read(api(alice), collections[0]) == (503, "key_unavailable")


def test_destroyed_key_is_503_and_never_made_anew(api: Api, alice: User, collections: list[Collection], now: datetime) -> None:
    destroy(collections[0].key, now)
    assert read(api(alice), collections[0]) == (503, "key_unavailable")
    assert put(api(alice), collections[0], "b.bin") == 503
    assert Key.objects.get(pk=collections[0].key_id).wrapped is None


@pytest.mark.parametrize("part", ["id", "purpose", "owner", "kek_id"])
def test_wrapping_opens_in_no_other_row(collections: list[Collection], settings: Settings, part: str) -> None:
    """INV-05: not for another key, purpose, owner or master key's name."""
    key, other = collections[0].key, collections[1].key
    assert keys.unwrap(key)
    if part == "kek_id":
        settings.KEYRING = f"other {OLD.split()[1]}"  # the same master key under another name
    setattr(key, part, {"id": other.id, "purpose": "signing", "owner": other.owner, "kek_id": "other"}[part])
    with pytest.raises(crypto.WrongKey):
        keys.unwrap(key)


def test_keys_of_two_collections_changed_over_are_refused(api: Api, alice: User, collections: list[Collection]) -> None:
    one, other = (bytes(collection.key.wrapped or b"") for collection in collections[:2])
    Key.objects.filter(pk=collections[0].key_id).update(wrapped=other)
    Key.objects.filter(pk=collections[1].key_id).update(wrapped=one)
    assert read(api(alice), collections[0]) == (503, "key_unavailable")
