"""What the tick clears away: stalled uploads, objects that no file needs, dead links. Each step is safe to repeat."""

import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from rest_framework.test import APIClient

from config.celery import app
from files import cleanup, uploads
from files.models import Collection, DownloadLink, PendingDeletion, StoredFile, Upload
from files.tasks import tick
from tenants.models import User
from tests import invariants
from tests.api import paths
from tests.needs import mark_dependents
from tests.services import worlds
from tests.worlds import starts_from
from vault.stores import get_store


Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
CONTENT = random.Random(1).randbytes(300_000)
DEAD_AFTER = timedelta(seconds=Upload.STALLED_AFTER_SECONDS)
GRACE = timedelta(seconds=uploads.REPLACED_GRACE_SECONDS)
SECOND = timedelta(seconds=1)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("own_buckets")]


@pytest.fixture
@mark_dependents(starts_from(worlds.empty_november))
def november(own_buckets: Path, built: int) -> Collection:
    return Collection.objects.get(pk=built)


def begin(by: User, collection: Collection, filename: str, now: datetime) -> uploads.UploadSession:
    """An upload that has sent bytes and says no more."""
    collection = Collection.objects.select_related("tenant", "key").get(pk=collection.pk)
    incoming = uploads.begin(
        by=by, collection=collection, filename=filename, content_type="", notes="", size=None, conditions=None, now=now
    )
    incoming.write(CONTENT)
    return incoming


def put(client: APIClient, collection: Collection, filename: str, content: bytes = CONTENT, **headers: str) -> StoredFile:
    path = paths.content(collection.slug, filename)
    response = client.put(path, content, content_type="application/octet-stream", headers=headers)
    assert response.status_code in {200, 201}, response.json()
    return StoredFile.objects.get(uuid=response.json()["id"])


def read(client: APIClient, collection: Collection, filename: str) -> bytes:
    response: Any = client.get(paths.content(collection.slug, filename))
    return b"".join(response.streaming_content)


def keys() -> set[str]:
    return {entry.key for _, entry in invariants.entries()}


# --- Stalled uploads ---


def test_stalled_upload_is_given_up_after_15_minutes_and_not_before(alice: User, november: Collection, now: datetime) -> None:
    with begin(alice, november, "a.bin", now):
        assert cleanup.abandon_stalled_uploads(now=now + DEAD_AFTER) == 0
        assert Upload.objects.count() == 1
        invariants.check_objects()

        late = now + DEAD_AFTER + SECOND
        assert cleanup.abandon_stalled_uploads(now=late) == 1
        assert not Upload.objects.exists()
        invariants.check_objects()
        assert cleanup.delete_due_objects(now=late) == 1
        assert keys() == set()
        assert cleanup.abandon_stalled_uploads(now=late) == cleanup.delete_due_objects(now=late) == 0
    invariants.check_all()


@pytest.mark.both_databases
def test_giving_up_goes_on_where_its_limit_stopped_it_oldest_first(alice: User, november: Collection, now: datetime) -> None:
    stalled = [begin(alice, november, f"{number}.bin", now + number * SECOND) for number in range(5)]
    late = now + 2 * DEAD_AFTER

    assert cleanup.abandon_stalled_uploads(now=late, limit=3) == 3
    assert {upload.object_key for upload in Upload.objects.all()} == {left.draft.object_key for left in stalled[3:]}
    assert cleanup.abandon_stalled_uploads(now=late, limit=3) == 2
    for incoming in stalled:
        incoming.abandon()
    invariants.check_all()


# --- Objects that no file needs ---


def test_object_of_a_deleted_file_is_erased_at_the_next_tick(api: Api, alice: User, november: Collection, now: datetime) -> None:
    put(api(alice), november, "a.bin")
    api(alice).delete(paths.file(november.slug, "a.bin"))
    invariants.check_all()

    assert cleanup.delete_due_objects(now=now + timedelta(minutes=1)) == 1

    assert keys() == set()
    assert not PendingDeletion.objects.exists()
    invariants.check_all()


def test_replaced_object_is_erased_after_its_grace_and_not_before(api: Api, alice: User, november: Collection) -> None:
    old = put(api(alice), november, "a.bin", b"old")
    new = put(api(alice), november, "a.bin", b"new", if_match=old.etag)
    due = PendingDeletion.objects.get().due_at
    assert due - new.updated_at == GRACE

    assert cleanup.delete_due_objects(now=due - SECOND) == 0
    assert keys() == {old.object_key, new.object_key}
    invariants.check_all()
    assert cleanup.delete_due_objects(now=due) == 1
    assert keys() == {new.object_key}
    assert read(api(alice), november, "a.bin") == b"new"
    invariants.check_all()


def test_download_that_began_before_a_replacement_ends_with_the_old_bytes(
    api: Api, alice: User, november: Collection, now: datetime
) -> None:
    etag = put(api(alice), november, "a.bin", CONTENT).etag
    response: Any = api(alice).get(paths.content(november.slug, "a.bin"))
    pieces = response.streaming_content
    first = next(pieces)
    put(api(alice), november, "a.bin", b"new", if_match=etag)
    cleanup.delete_due_objects(now=now + GRACE / 2)
    assert first + b"".join(pieces) == CONTENT


def test_erasure_that_fails_does_not_hold_up_the_others_and_is_tried_again(
    api: Api, alice: User, november: Collection, now: datetime, own_buckets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        put(api(alice), november, f"{number}.bin")
        api(alice).delete(paths.file(november.slug, f"{number}.bin"))
    stuck = PendingDeletion.objects.order_by("due_at")[0]
    PendingDeletion.objects.filter(pk=stuck.pk).update(store="staging")
    (own_buckets / "staging").rmdir()
    later = now + timedelta(minutes=1)

    with caplog.at_level(logging.WARNING):
        assert cleanup.delete_due_objects(now=later, limit=2) == 1
    assert cleanup.delete_due_objects(now=later, limit=2) == 2  # the one that failed is not tried again at once
    assert [(left.pk, left.attempts) for left in PendingDeletion.objects.all()] == [(stuck.pk, 1)]
    assert [record.message for record in caplog.records if record.name == "files.cleanup"] == ["deleting an object failed"]

    (own_buckets / "staging").mkdir()
    PendingDeletion.objects.filter(pk=stuck.pk).update(store="vault")
    assert cleanup.delete_due_objects(now=later + timedelta(minutes=5)) == 0
    assert cleanup.delete_due_objects(now=later + timedelta(minutes=5, seconds=1)) == 1
    assert keys() == set()
    invariants.check_all()


def test_erasure_of_an_object_that_is_gone_already_is_done(api: Api, alice: User, november: Collection, now: datetime) -> None:
    """F-17: the kill came between the object and the row."""
    file = put(api(alice), november, "a.bin")
    api(alice).delete(paths.file(november.slug, "a.bin"))
    cleanup.erase_object(get_store("vault"), file.object_key)
    assert cleanup.delete_due_objects(now=now + timedelta(minutes=1)) == 1


def test_erasure_of_an_object_that_a_file_names_is_refused(api: Api, alice: User, november: Collection, now: datetime) -> None:
    file = put(api(alice), november, "a.bin")
    PendingDeletion.objects.create(store="vault", object_key=file.object_key, due_at=now, requested_at=now)
    assert cleanup.delete_due_objects(now=now + timedelta(minutes=1)) == 0
    assert read(api(alice), november, "a.bin") == CONTENT


# --- Dead links ---


def test_dead_links_are_forgotten_and_living_ones_are_not(api: Api, alice: User, november: Collection, now: datetime) -> None:
    put(api(alice), november, "a.bin")
    for _ in range(3):
        assert api(alice).post(paths.download(november.slug, "a.bin")).status_code == 201
    living, dead, claimed = DownloadLink.objects.order_by("pk")
    DownloadLink.objects.filter(pk__in=[dead.pk, claimed.pk]).update(expires_at=now - cleanup.LINK_RETENTION)
    DownloadLink.objects.filter(pk=claimed.pk).update(claimed_at=now - cleanup.LINK_RETENTION)

    assert cleanup.delete_expired_links(now=now) == 0
    assert cleanup.delete_expired_links(now=now + SECOND) == 2
    assert list(DownloadLink.objects.all()) == [living]
    assert cleanup.delete_expired_links(now=now + SECOND) == 0


def test_a_claimed_link_outlives_the_time_in_which_it_may_be_resumed(api: Api, alice: User, november: Collection) -> None:
    put(api(alice), november, "a.bin")
    link = api(alice).post(paths.download(november.slug, "a.bin")).json()["url"]
    response: Any = api(None).get(link)
    assert b"".join(response.streaming_content) == CONTENT

    with time_machine.travel(DownloadLink.objects.get().claimed_at + timedelta(minutes=10) - SECOND):  # type: ignore[operator]
        tick()
        resumed: Any = api(None).get(link, headers={"range": "bytes=100-"})
        assert b"".join(resumed.streaming_content) == CONTENT[100:]


# --- The tick ---


@pytest.mark.both_databases
def test_tick_does_all_of_it_and_nothing_the_second_time(api: Api, alice: User, november: Collection, now: datetime) -> None:
    put(api(alice), november, "a.bin")
    assert api(alice).post(paths.download(november.slug, "a.bin")).status_code == 201
    api(alice).delete(paths.file(november.slug, "a.bin"))
    kept = put(api(alice), november, "kept.bin")
    assert api(alice).post(paths.download(november.slug, "kept.bin")).status_code == 201
    with begin(alice, november, "b.bin", now), time_machine.travel(now + timedelta(hours=2)):
        tick()
        assert keys() == {kept.object_key}
        assert not Upload.objects.exists()
        assert not PendingDeletion.objects.exists()
        assert not DownloadLink.objects.exists()
        tick()
        assert keys() == {kept.object_key}
    invariants.check_all()


def test_tick_is_scheduled_under_its_name_and_expires_before_the_next() -> None:
    schedule = app.conf.beat_schedule["files"]
    assert schedule["task"] in app.tasks
    assert app.tasks[schedule["task"]].run.__module__ == tick.run.__module__
    assert schedule["options"]["expires"] < schedule["schedule"]


def test_tick_leaves_what_lies_in_the_buckets_and_is_not_its_own(api: Api, alice: User, november: Collection) -> None:
    store = get_store("vault")
    for key in (".strongroom/ledger", f"{november.object_key(november.uuid)}"):
        writer = store.create(key, size=1)
        writer.write(b"!")
        writer.commit()
    with time_machine.travel("2036-01-01"):
        tick()
    assert len(invariants.entries()) == 2
