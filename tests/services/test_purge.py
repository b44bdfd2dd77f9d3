"""The end of a collection: nobody reads it from the first moment, nothing of it is left, and a certificate says so.

INV-07, INV-08; F-59. What is in its way is in test_purge_broken.py, buckets with versions and locks in test_purge_buckets.py.
"""

import base64
import json
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.core.management import call_command
from django.utils import timezone
from pytest_django import Settings

from files import cleanup, holds, services, uploads
from files.models import Collection, DownloadLink, Grant, PendingDeletion, StoredFile, Upload
from purge import certificates, jobs
from purge import destruction as destroying
from purge.models import Destruction, Shard
from tenants.models import Tenant, User
from tests.services.purging import NAMES, Api, assert_gone, begin, end, expire, fill, under, work_on
from vault import audit_checkpoints, keys
from vault.models import Key
from vault.stores import get_store


pytestmark = [pytest.mark.django_db(transaction=True)]
DAY = timedelta(days=1)


# --- When ---


@pytest.mark.parametrize(
    ("hours", "status", "goes"),
    [
        (-1, "open", True),
        (0, "open", True),
        (1, "open", False),
        (-1, "deleted", True),
        (1, "deleted", False),
        (None, "open", False),
    ],
)
def test_collection_goes_when_its_purge_date_is_over(filled: Collection, hours: int | None, status: str, *, goes: bool) -> None:
    now = timezone.now()
    purge_at = None if hours is None else now + timedelta(hours=hours)
    deleted_at = now if status == "deleted" else None
    Collection.objects.update(purge_at=purge_at, status=status, deleted_at=deleted_at)

    assert jobs.purge_expired(now=now) == goes

    assert list(Destruction.objects.values_list("reason", "due_at")) == ([("expired", purge_at)] if goes else [])


@pytest.mark.parametrize(("seconds", "goes"), [(-1, False), (0, True), (1, True)])
def test_deleted_collection_goes_when_the_grace_is_over(
    filled: Collection, settings: Settings, alice: User, seconds: int, *, goes: bool
) -> None:
    deleted_at = timezone.now()
    services.delete_collection(filled, by=alice, now=deleted_at)

    jobs.tick(now=deleted_at + timedelta(seconds=settings.DELETE_GRACE + seconds))

    assert Destruction.objects.filter(reason="deleted").exists() == goes
    if goes:
        assert_gone(filled)


def test_open_collection_is_nobodys_to_destroy(filled: Collection) -> None:
    assert destroying.start_destruction(filled, by=None, now=timezone.now()) is None
    jobs.tick(now=timezone.now() + 400 * DAY)
    assert Collection.objects.get().status == "open"


@pytest.mark.parametrize("filename", [None, "b.csv"])
def test_hold_keeps_what_is_due_until_it_is_lifted(filled: Collection, alice: User, filename: str | None, api: Api) -> None:
    hold = holds.place(filled, filename=filename, ref="", reason="a suit", by=alice, now=timezone.now())
    expire(filled)

    assert jobs.purge_expired(now=timezone.now()) == 0
    assert destroying.start_destruction(filled, by=None, now=timezone.now()) is None
    assert api(alice).get(f"/api/v1/collections/{filled.slug}/content/a.csv").getvalue() == b"a.csv" * 100

    holds.lift(hold, by=alice, now=timezone.now())
    assert jobs.purge_expired(now=timezone.now()) == 1


# --- What ---


def test_nobody_reads_it_from_the_first_moment(filled: Collection, alice: User, bob: User, api: Api) -> None:
    """However many files there are: the key is gone before anything else is (INV-08)."""
    wrapped = Key.objects.get(pk=filled.key_id).wrapped
    begin(filled)

    key = Key.objects.get(pk=filled.key_id)
    assert (key.wrapped, key.destroyed_at is not None) == (None, True)
    for user in (alice, bob):
        address = f"/api/v1/collections/{filled.slug}"
        assert [api(user).get(f"{address}{rest}").status_code for rest in ("/", "/files/", "/content/a.csv", "/archive.zip")] == [
            404
        ] * 4
    assert api(alice).post(f"/api/v1/collections/{filled.slug}/restore/").status_code == 404
    assert not DownloadLink.objects.exists()
    assert len(under(filled)) == len(NAMES)
    key.wrapped = wrapped
    assert not keys.rewrap(key)  # a rotation that read it before does not bring it back (F-59)
    assert Key.objects.get(pk=filled.key_id).wrapped is None


@pytest.mark.both_databases
def test_nothing_of_it_is_left_and_others_keep_theirs(filled: Collection, alice: User, api: Api) -> None:
    other = fill(api(alice), "December")

    end(filled)

    assert under(filled) == []
    assert not Collection.objects.filter(pk=filled.pk).exists()
    assert not Key.objects.filter(pk=filled.key_id).exists()
    assert StoredFile.objects.count() == Grant.objects.exclude(file=None).count() * len(NAMES) == len(NAMES)
    assert api(alice).get(f"/api/v1/collections/{other.slug}/content/a.csv").getvalue() == b"a.csv" * 100
    assert api(alice).post("/api/v1/collections/", {"display_name": "November"}).status_code == 201  # the name is free


def test_certificate_says_what_is_gone_and_is_signed(filled: Collection, alice: User, api: Api, now: datetime) -> None:
    destruction = end(filled)

    document = json.loads(destruction.certificate)
    assert document == document | {
        "version": 2,
        "id": str(destruction.pk),
        "tenant": {"id": str(filled.tenant_id), "slug": "acme"},
        "collection": {
            "id": filled.slug, "uuid": str(filled.uuid), "display_name": "November", "key": str(filled.key_id),
        },
        "reason": "expired",
        "started_by": "system",
        "total_length": 1500,
        "methods": [{"files": 3, "method": certificates.SHREDDED}],
    }  # fmt: skip
    assert [(each["store"], each["erased"]) for each in document["stores"]] == [
        ("release", 0), ("staging", 0), ("vault", 3),
    ]  # fmt: skip
    public: Any = load_pem_public_key((audit_checkpoints.public_key() or "").encode())
    signature = base64.b64decode(destruction.signature)
    public.verify(signature, certificates.CONTEXT + destruction.certificate.encode())
    with pytest.raises(InvalidSignature):
        public.verify(signature, certificates.CONTEXT + destruction.certificate.replace("1500", "1501").encode())


def test_first_certificate_leaves_the_audit_trail_whole(filled: Collection) -> None:
    """The key that signs it is made for it, before any head was published: that must not look like a trail that was cut."""
    assert keys.find_signing_key(Key.Purpose.AUDIT) is None
    end(filled)
    call_command("verify_audit", stdout=StringIO())


def test_certificate_says_what_was_never_encrypted(own_buckets: Path, api: Api, alice: User, bob: User) -> None:
    """`NONE` files are deleted, not shredded."""
    Tenant.objects.update(allowed_ciphers=["AES-GCM", "NONE"])
    plain = fill(api(alice), cipher="NONE")

    document = json.loads(end(plain).certificate)

    assert document["methods"] == [{"files": 3, "method": certificates.DELETED}]
    assert_gone(plain)


def test_replaced_and_deleted_contents_that_wait_go_with_it(filled: Collection, alice: User, api: Api) -> None:
    address = f"/api/v1/collections/{filled.slug}"
    etag = api(alice).get(f"{address}/files/a.csv/")["ETag"]
    api(alice).put(f"{address}/content/a.csv", b"new", content_type="text/csv", headers={"If-Match": etag})
    assert (PendingDeletion.objects.count(), len(under(filled))) == (1, 4)

    end(filled)

    assert_gone(filled)
    assert cleanup.delete_due_objects(now=timezone.now() + DAY) == 0


@pytest.mark.both_databases
def test_many_files_are_shared_out_and_rows_go_in_batches(filled: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destroying, "SHARDING_THRESHOLD", 2)
    monkeypatch.setattr(destroying, "ROWS_PER_TRANSACTION", 2)
    begin(filled)
    assert Shard.objects.filter(store="vault").count() == 16

    work_on()

    assert sum(Shard.objects.values_list("erased", flat=True)) == len(NAMES)
    assert_gone(filled)


# --- Uploads ---


def test_upload_that_is_arriving_is_waited_for_and_refused(filled: Collection, alice: User, now: datetime) -> None:
    """F-59: what it wrote lies nowhere afterwards."""
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    with incoming:
        incoming.write(b"late")
        begin(filled)
        work_on()
        assert Destruction.objects.get().status == "running"
        assert len(under(filled)) >= len(NAMES)
        with pytest.raises(Exception, match="is being purged"):
            incoming.commit(by=alice, now=timezone.now())

    work_on()
    assert_gone(filled)


@pytest.mark.both_databases
def test_long_upload_ends_at_its_next_sign_of_life(filled: Collection, alice: User, now: datetime) -> None:
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    with incoming:
        incoming.write(b"late")
        begin(filled)
        incoming._last_heartbeat -= 3600
        with pytest.raises(Exception, match="is being purged"):
            incoming.write(b"later")
    work_on()
    assert_gone(filled)


def test_upload_that_died_is_given_up_and_waited_for_no_longer(filled: Collection, alice: User, now: datetime) -> None:
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    incoming._finish()  # its process was killed
    begin(filled)
    work_on()
    assert Destruction.objects.get().status == "running"

    cleanup.abandon_stalled_uploads(now=timezone.now() + timedelta(hours=1))
    work_on()

    assert_gone(filled)


@pytest.fixture
def listed_empty(filled: Collection) -> Collection:
    """All its objects are gone, and nothing else is."""
    begin(filled)
    while Shard.objects.filter(verified_at=None).exists():
        assert destroying.run_next_step(now=timezone.now(), seconds=60)
    return filled


def test_object_that_came_late_is_found_by_the_last_listing(listed_empty: Collection) -> None:
    writer = get_store("vault").create(f"{listed_empty.prefix}late", size=4)
    writer.write(b"late")
    writer.commit()

    work_on()

    assert_gone(listed_empty)


def test_upload_that_began_late_is_waited_for(listed_empty: Collection, alice: User, now: datetime) -> None:
    """Of which the store has nothing yet: its bytes come in one request, at its end."""
    object_id = uuid4()
    late = Upload.objects.create(
        store="vault", object_id=object_id, object_key=listed_empty.object_key(object_id), collection=listed_empty,
        started_by=alice, started_at=now, heartbeat_at=now,
    )  # fmt: skip
    work_on()
    assert Destruction.objects.get().status == "running"
    assert set(Shard.objects.values_list("verified_at", flat=True)) == {None}

    late.delete()
    work_on()
    assert_gone(listed_empty)
