"""Uploads that do not end well: whatever stops them, neither an object nor a row stays behind (F-12, F-22, F-24, INV-06)."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from pytest_django import Settings
from rest_framework.test import APIClient

from files import cleanup, errors, uploads
from files.models import Collection, PendingDeletion, StoredFile, Upload
from tenants.errors import NotFound
from tenants.models import AuditEvent, Membership, Tenant, User
from tests import invariants, stores
from tests.api import paths
from vault.errors import StorageUnavailable
from vault.stores import get_store
from vault.stores.local import LocalStore


Api = Callable[[User | None], APIClient]
MakeCollection = Callable[..., Collection]
MIB = 1024 * 1024
CONTENT = random.Random(1).randbytes(300_000)
DEAD_AFTER = timedelta(seconds=Upload.STALLED_AFTER_SECONDS)

pytestmark = [pytest.mark.django_db]
LOCAL = pytest.param("local", marks=pytest.mark.both_databases)


@pytest.fixture
def november(make_collection: MakeCollection, alice: User) -> Collection:
    return make_collection(alice, "November")


@pytest.fixture(params=[LOCAL, pytest.param("s3", marks=pytest.mark.long)], autouse=True)
def store(request: pytest.FixtureRequest, own_buckets: Path, settings: Settings) -> Iterator[None]:
    """Each test on both kinds of store: what is unfinished looks different in each. In the gate some are on S3."""
    with stores.use_new_buckets(stores.moto(), settings) if request.param == "s3" else nullcontext():
        yield


on_both = pytest.mark.parametrize("store", [LOCAL, "s3"], indirect=True)
of_a_directory = pytest.mark.parametrize("store", [LOCAL], indirect=True)


@pytest.fixture(autouse=True)
def nothing_is_left(store: None) -> Iterator[None]:
    yield
    assert not Upload.objects.exists()
    invariants.check_all()


def begin(by: User, collection: Collection, filename: str, now: datetime, **wish: Any) -> uploads.UploadSession:
    collection = Collection.objects.select_related("tenant", "key").get(pk=collection.pk)
    given = {"content_type": "", "notes": "", "size": None, "conditions": None} | wish
    return uploads.begin(by=by, collection=collection, filename=filename, now=now, **given)


def put(client: APIClient, collection: Collection, filename: str, content: bytes = CONTENT, **headers: str) -> Any:
    path = paths.content(collection.slug, filename)
    return client.put(path, content, content_type="application/octet-stream", headers=headers)


# --- Given up ---


@on_both
@pytest.mark.parametrize("length", [pytest.param(0, marks=pytest.mark.long), 300_000, 12 * MIB])
def test_upload_that_is_left_leaves_nothing(alice: User, november: Collection, now: datetime, length: int) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(bytes(length))
        assert Upload.objects.get().object_key == incoming.draft.object_key
        assert bool(invariants.entries()) == (length > 8 * MIB or get_store("vault").__class__ is LocalStore)
    assert invariants.entries() == []


def test_exception_while_bytes_arrive_leaves_nothing(alice: User, november: Collection, now: datetime) -> None:
    incoming = begin(alice, november, "a.bin", now)
    incoming.write(CONTENT)
    with pytest.raises(ZeroDivisionError), incoming:
        raise ZeroDivisionError
    assert invariants.entries() == []


@on_both
def test_commit_that_lost_its_row_to_the_clean_up_leaves_nothing(alice: User, november: Collection, now: datetime) -> None:
    """The worst order: the clean-up and its erasure are through before the object is written."""
    later = now + 2 * DEAD_AFTER
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        assert cleanup.abandon_stalled_uploads(now=later) == 1
        assert cleanup.delete_due_objects(now=later) == 1
        with suppress(errors.UploadLost, StorageUnavailable):
            incoming.commit(by=alice, now=later)
            pytest.fail("it was given up")
    assert not StoredFile.objects.exists()
    assert invariants.entries() == []


def test_commit_that_lost_its_row_before_its_erasure_leaves_nothing(alice: User, november: Collection, now: datetime) -> None:
    later = now + 2 * DEAD_AFTER
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        assert cleanup.abandon_stalled_uploads(now=later) == 1
        with pytest.raises(errors.UploadLost):
            incoming.commit(by=alice, now=later)
    assert invariants.entries() == []
    assert cleanup.delete_due_objects(now=later) == 1


def test_upload_that_went_on_after_it_was_given_up_stops_at_its_heartbeat(
    alice: User, november: Collection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        assert cleanup.abandon_stalled_uploads(now=now + 2 * DEAD_AFTER) == 1
        monkeypatch.setattr(uploads, "HEARTBEAT_SECONDS", 0)
        with pytest.raises(errors.UploadLost):
            incoming.write(CONTENT)
    assert invariants.entries() == []
    assert cleanup.delete_due_objects(now=now + 2 * DEAD_AFTER) == 1


def test_upload_that_moves_is_not_given_up(
    alice: User, november: Collection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "HEARTBEAT_SECONDS", 0)
    later = now + 3 * DEAD_AFTER
    with begin(alice, november, "a.bin", now) as incoming:
        with time_machine.travel(later - DEAD_AFTER / 2, tick=False):
            incoming.write(CONTENT)
        assert cleanup.abandon_stalled_uploads(now=later) == 0
        incoming.commit(by=alice, now=later)
    assert StoredFile.objects.get().length == len(CONTENT)


@pytest.mark.django_db(transaction=True)
def test_upload_goes_on_when_a_heartbeat_is_not_heard(
    alice: User, november: Collection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "HEARTBEAT_SECONDS", 0)
    with begin(alice, november, "a.bin", now) as incoming:
        with connection.execute_wrapper(refusing("files_upload")):
            incoming.write(CONTENT)
        incoming.commit(by=alice, now=now)
    assert StoredFile.objects.get().length == len(CONTENT)


# --- Refused at the commit, by what has changed since it began ---


def test_commit_into_a_deleted_collection_leaves_nothing(api: Api, alice: User, november: Collection, now: datetime) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        assert api(alice).delete(paths.collection(november.slug)).status_code == 202
        with pytest.raises(errors.NotOpen):
            incoming.commit(by=alice, now=now)
    assert invariants.entries() == []


def end_membership(user: User) -> None:
    Membership.objects.filter(user=user).delete()


def demote(user: User) -> None:
    Membership.objects.filter(user=user).update(roles=["research_it"])


def deactivate(user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def suspend_tenant(user: User) -> None:
    Tenant.objects.filter(memberships__user=user).update(is_active=False)


@pytest.mark.parametrize("revoke", [end_membership, demote, deactivate, suspend_tenant])
def test_commit_after_access_has_ended_leaves_nothing(
    bob: User, november: Collection, now: datetime, revoke: Callable[[User], None]
) -> None:
    """INV-16: as it is at the commit, not as it was when the first byte came."""
    with begin(bob, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        revoke(bob)
        with pytest.raises(NotFound):
            incoming.commit(by=bob, now=now)
    assert invariants.entries() == []


def test_commit_beyond_a_quota_that_was_lowered_meanwhile_leaves_nothing(
    acme: Tenant, alice: User, november: Collection, now: datetime
) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        Tenant.objects.filter(pk=acme.pk).update(quota_bytes=len(CONTENT) - 1)
        with pytest.raises(errors.QuotaExceeded):
            incoming.commit(by=alice, now=now)
    assert invariants.entries() == []


def test_commit_of_a_name_that_was_taken_meanwhile_leaves_only_the_first(
    api: Api, alice: User, november: Collection, now: datetime
) -> None:
    with begin(alice, november, "A.BIN", now) as incoming:
        incoming.write(b"second")
        assert put(api(alice), november, "a.bin", b"first").status_code == 201
        with pytest.raises(errors.NameTaken):
            incoming.commit(by=alice, now=now)
    assert [entry.key for _, entry in invariants.entries()] == [StoredFile.objects.get(filename="a.bin").object_key]


@on_both
def test_replacement_of_a_file_that_was_deleted_meanwhile_leaves_nothing(
    api: Api, alice: User, november: Collection, now: datetime
) -> None:
    etag = put(api(alice), november, "a.bin").headers["ETag"]
    conditions = uploads.Conditions(if_match=etag, if_none_match=None)
    with begin(alice, november, "a.bin", now, conditions=conditions) as incoming:
        incoming.write(b"second")
        assert api(alice).delete(paths.file(november.slug, "a.bin")).status_code == 204
        with pytest.raises(errors.PreconditionFailed):
            incoming.commit(by=alice, now=now)
    assert cleanup.delete_due_objects(now=now + timedelta(seconds=5)) == 1
    assert invariants.entries() == []


# --- The store fails ---


@of_a_directory
def test_store_that_is_not_there_is_503_and_leaves_nothing(
    api: Api, alice: User, november: Collection, own_buckets: Path
) -> None:
    (own_buckets / "vault").rmdir()
    refused = put(api(alice), november, "a.bin")
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
    assert refused.headers["Retry-After"]
    assert not Upload.objects.exists()
    (own_buckets / "vault").mkdir()
    assert put(api(alice), november, "a.bin").status_code == 201


class ShortStore(LocalStore):
    """Says of each object that it is a byte longer than it is."""

    def create(self, key: str, **options: Any) -> Any:
        writer = super().create(key, **options)
        writer.write(b"!")
        return writer


@of_a_directory
def test_object_of_another_size_than_was_sent_is_503_and_leaves_nothing(
    api: Api, alice: User, november: Collection, settings: Settings, own_buckets: Path
) -> None:
    options = {"location": str(own_buckets / "vault")}
    settings.STORAGES = settings.STORAGES | {"vault": {"BACKEND": f"{__name__}.ShortStore", "OPTIONS": options}}
    assert put(api(alice), november, "a.bin").status_code == 503
    assert invariants.entries() == []


@of_a_directory
def test_store_that_is_lost_in_mid_upload_leaves_it_to_the_clean_up(
    alice: User, november: Collection, now: datetime, own_buckets: Path
) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        (own_buckets / "vault").rename(own_buckets / "unmounted")
        with pytest.raises(StorageUnavailable):
            incoming.commit(by=alice, now=now)
    assert Upload.objects.count() == 1
    (own_buckets / "unmounted").rename(own_buckets / "vault")

    later = now + 2 * DEAD_AFTER
    assert cleanup.abandon_stalled_uploads(now=later) == 1
    assert cleanup.delete_due_objects(now=later) == 1
    assert invariants.entries() == []


# --- The database fails ---


@contextmanager
def commits_that_are_lost(*, after: bool) -> Iterator[None]:
    """The connection is lost at COMMIT: before the server has heard of it, or before we hear of its success (F-24)."""
    commit = BaseDatabaseWrapper._commit  # type: ignore[attr-defined]

    def lose(self: Any) -> None:
        if after:
            commit(self)
        raise OperationalError("the connection is closed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "_commit", lose)
        yield


@pytest.mark.django_db(transaction=True)
def test_commit_whose_success_was_not_heard_is_read_back(alice: User, november: Collection, now: datetime) -> None:
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        with commits_that_are_lost(after=True):
            file = incoming.commit(by=alice, now=now)
    assert StoredFile.objects.get() == file
    assert AuditEvent.objects.filter(action="file.create").count() == 1
    assert len(invariants.entries()) == 1


@pytest.mark.django_db(transaction=True)
def test_commit_that_never_arrived_says_so_and_its_object_goes_with_the_clean_up(
    alice: User, november: Collection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-22: the answer says that the outcome is unknown; nothing is deleted before it is known."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        with commits_that_are_lost(after=False), pytest.raises(uploads.OutcomeUnknown):
            incoming.commit(by=alice, now=now)
        assert len(invariants.entries()) == 1
    assert len(invariants.entries()) == 1

    later = now + 2 * DEAD_AFTER
    assert cleanup.abandon_stalled_uploads(now=later) == 1
    assert cleanup.delete_due_objects(now=later) == 1
    assert invariants.entries() == []
    november.refresh_from_db()
    assert november.file_count == 0


@pytest.mark.django_db(transaction=True)
def test_commit_that_fails_before_its_end_leaves_nothing_at_once(alice: User, november: Collection, now: datetime) -> None:
    """F-22: it was rolled back, so there is nothing to look for and no clean-up to wait for."""
    with begin(alice, november, "a.bin", now) as incoming:
        incoming.write(CONTENT)
        with connection.execute_wrapper(refusing("tenants_auditevent")), pytest.raises(OperationalError):
            incoming.commit(by=alice, now=now)
    assert invariants.entries() == []
    assert not Upload.objects.exists()
    invariants.check_all()


def refusing(table: str) -> Callable[..., Any]:
    """Whatever is said of this table fails."""

    def refuse(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        if table in sql:
            raise OperationalError("disk I/O error")
        return execute(sql, *arguments)

    return refuse


# --- Several at once ---


def test_replaced_object_keeps_the_old_content_for_readers_of_before(
    api: Api, alice: User, november: Collection, now: datetime
) -> None:
    etag = put(api(alice), november, "a.bin", b"old").headers["ETag"]
    old = StoredFile.objects.get().object_key
    assert put(api(alice), november, "a.bin", b"new", if_match=etag).status_code == 200
    assert get_store("vault").stat(old).size
    erasure = PendingDeletion.objects.get()
    assert (erasure.object_key, erasure.store) == (old, "vault")
    assert erasure.due_at > now + timedelta(minutes=59)
