"""The end of a collection: nobody reads it from the first moment, nothing of it is left, and a certificate says so.

INV-07, INV-08; F-17, F-18, F-26, F-31, F-33, F-59, F-60.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.utils import timezone
from pytest_django import Settings
from rest_framework.exceptions import APIException
from rest_framework.test import APIClient

from files import audit_heads, erasing, holds, keys, services, uploads
from files.models import Collection, DownloadLink, Erasure, Grant, Key, StoredFile, Upload
from files.stores import Entry, Failure, StoreUnavailable, get_store
from files.stores.local import LocalStore
from purge import certificates, destroying, schedule
from purge.models import Destruction, Portion
from tenants import audit
from tenants.models import AuditEvent, Tenant, User
from tests import stores
from tests.faults.breaking import FUSE, KINDS
from tests.invariants import entries
from tests.live.waiting import wait_for
from tests.races import race


pytestmark = pytest.mark.django_db(transaction=True)
Api = Callable[[User | None], APIClient]
DAY = timedelta(days=1)
NAMES = ["a.csv", "b.csv", "c.csv"]


@pytest.fixture
def filled(own_buckets: Path, api: Api, alice: User, bob: User) -> Collection:
    return fill(api(alice))


def fill(client: APIClient, display_name: str = "November", **wish: str) -> Collection:
    made = client.post("/api/v1/collections/", {"display_name": display_name, **wish})
    slug = made.json()["id"]
    for name in NAMES:
        put = client.put(f"/api/v1/collections/{slug}/content/{name}", name.encode() * 100, content_type="text/csv")
        assert put.status_code == 201
    grant = client.post(f"/api/v1/collections/{slug}/files/{NAMES[0]}/grants/", {"user": "bob", "level": "viewer"})
    assert grant.status_code == 201
    assert client.post(f"/api/v1/collections/{slug}/files/{NAMES[0]}/download/").status_code == 201
    return Collection.objects.get(slug=slug)


def expire(collection: Collection) -> None:
    Collection.objects.filter(pk=collection.pk).update(purge_at=timezone.now() - timedelta(minutes=1))


def end(collection: Collection) -> Destruction:
    """Begins it, and brings it to its end."""
    expire(collection)
    assert destroying.begin(collection, by=None, now=timezone.now())
    work_on()
    return Destruction.objects.get(collection_uuid=collection.uuid)


def work_on() -> None:
    while destroying.work(now=timezone.now(), seconds=60):
        pass


def under(collection: Collection) -> list[Entry]:
    return [entry for _, entry in entries() if entry.key.startswith(collection.prefix)]


def assert_gone(collection: Collection) -> Destruction:
    """INV-07."""
    assert under(collection) == []
    assert not Collection.objects.filter(uuid=collection.uuid).exists()
    for model in (StoredFile, Grant, DownloadLink, Upload, Erasure):
        assert not model._default_manager.exists()
    assert not Key.objects.filter(pk=collection.key_id).exists()
    actions = AuditEvent.objects.filter(target_id=str(collection.uuid)).values_list("action", flat=True)
    assert [list(actions).count(action) for action in ("collection.shred", "collection.purge")] == [1, 1]
    assert not list(audit.verify())
    destruction = Destruction.objects.get(collection_uuid=collection.uuid)
    assert (destruction.status, destruction.collection) == ("done", None)
    return destruction


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

    assert schedule.purge_expired(now=now) == goes

    assert list(Destruction.objects.values_list("why", "due_at")) == ([("expired", purge_at)] if goes else [])


@pytest.mark.parametrize(("seconds", "goes"), [(-1, False), (0, True), (1, True)])
def test_deleted_collection_goes_when_the_grace_is_over(
    filled: Collection, settings: Settings, alice: User, seconds: int, *, goes: bool
) -> None:
    deleted_at = timezone.now()
    services.delete_collection(filled, by=alice, now=deleted_at)

    schedule.tick(now=deleted_at + timedelta(seconds=settings.DELETE_GRACE + seconds))

    assert Destruction.objects.filter(why="deleted").exists() == goes
    if goes:
        assert_gone(filled)


def test_open_collection_is_nobodys_to_destroy(filled: Collection) -> None:
    assert destroying.begin(filled, by=None, now=timezone.now()) is None
    schedule.tick(now=timezone.now() + 400 * DAY)
    assert Collection.objects.get().status == "open"


@pytest.mark.parametrize("filename", [None, "b.csv"])
def test_hold_keeps_what_is_due_until_it_is_lifted(filled: Collection, alice: User, filename: str | None, api: Api) -> None:
    hold = holds.place(filled, filename=filename, ref="", reason="a suit", by=alice, now=timezone.now())
    expire(filled)

    assert schedule.purge_expired(now=timezone.now()) == 0
    assert destroying.begin(filled, by=None, now=timezone.now()) is None
    assert api(alice).get(f"/api/v1/collections/{filled.slug}/content/a.csv").getvalue() == b"a.csv" * 100

    holds.lift(hold, by=alice, now=timezone.now())
    assert schedule.purge_expired(now=timezone.now()) == 1


# --- What ---


def test_nobody_reads_it_from_the_first_moment(filled: Collection, alice: User, bob: User, api: Api) -> None:
    """However many files there are: the key is gone before anything else is (INV-08)."""
    wrapped = Key.objects.get(pk=filled.key_id).wrapped
    expire(filled)
    destroying.begin(filled, by=None, now=timezone.now())

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
        "version": 1,
        "id": str(destruction.pk),
        "tenant": {"id": str(filled.tenant_id), "slug": "acme"},
        "collection": {
            "id": filled.slug, "uuid": str(filled.uuid), "display_name": "November", "key": str(filled.key_id),
        },
        "why": "expired",
        "began_by": "system",
        "total_length": 1500,
        "methods": [{"files": 3, "method": certificates.SHREDDED}],
    }  # fmt: skip
    assert [(each["store"], each["erased"]) for each in document["stores"]] == [
        ("public", 0), ("release", 0), ("staging", 0), ("vault", 3),
    ]  # fmt: skip
    public: Any = load_pem_public_key((audit_heads.public_key() or "").encode())
    signature = base64.b64decode(destruction.signature)
    public.verify(signature, certificates.CONTEXT + destruction.certificate.encode())
    with pytest.raises(InvalidSignature):
        public.verify(signature, certificates.CONTEXT + destruction.certificate.replace("1500", "1501").encode())


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
    assert (Erasure.objects.count(), len(under(filled))) == (1, 4)

    end(filled)

    assert_gone(filled)
    assert erasing.erase_due(now=timezone.now() + DAY) == 0


def test_many_files_are_shared_out_and_rows_go_in_batches(filled: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destroying, "MANY", 2)
    monkeypatch.setattr(destroying, "ROWS", 2)
    expire(filled)
    destroying.begin(filled, by=None, now=timezone.now())
    assert Portion.objects.filter(store="vault").count() == 16

    work_on()

    assert sum(Portion.objects.values_list("erased", flat=True)) == len(NAMES)
    assert_gone(filled)


# --- Uploads ---


def test_upload_that_is_arriving_is_waited_for_and_refused(filled: Collection, alice: User, now: datetime) -> None:
    """F-59: what it wrote lies nowhere afterwards."""
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    with incoming:
        incoming.write(b"late")
        expire(filled)
        destroying.begin(filled, by=None, now=timezone.now())
        work_on()
        assert Destruction.objects.get().status == "running"
        assert len(under(filled)) >= len(NAMES)
        with pytest.raises(Exception, match="not open"):
            incoming.commit(by=alice, now=timezone.now())

    work_on()
    assert_gone(filled)


def test_long_upload_ends_at_its_next_sign_of_life(filled: Collection, alice: User, now: datetime) -> None:
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    with incoming:
        incoming.write(b"late")
        expire(filled)
        destroying.begin(filled, by=None, now=timezone.now())
        incoming._beat -= 3600
        with pytest.raises(Exception, match="not open"):
            incoming.write(b"later")
    work_on()
    assert_gone(filled)


def test_upload_that_died_is_given_up_and_waited_for_no_longer(filled: Collection, alice: User, now: datetime) -> None:
    incoming = uploads.begin(
        by=alice, collection=filled, filename="late.csv", content_type="text/csv", notes="", size=None, conditions=None, now=now,
    )  # fmt: skip
    incoming._settle()  # its process was killed
    expire(filled)
    destroying.begin(filled, by=None, now=timezone.now())
    work_on()
    assert Destruction.objects.get().status == "running"

    erasing.give_up_stalled_uploads(now=timezone.now() + timedelta(hours=1))
    work_on()

    assert_gone(filled)


@pytest.fixture
def listed_empty(filled: Collection) -> Collection:
    """All its objects are gone, and nothing else is."""
    expire(filled)
    destroying.begin(filled, by=None, now=timezone.now())
    while Portion.objects.filter(verified_at=None).exists():
        assert destroying.work(now=timezone.now(), seconds=60)
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
    assert set(Portion.objects.values_list("verified_at", flat=True)) == {None}

    late.delete()
    work_on()
    assert_gone(listed_empty)


# --- What is in its way ---


class Stubborn(LocalStore):
    """A store that refuses, as Object Lock and a missing permission do."""

    locked = ""

    def erase(self, entries: Any) -> list[Failure]:
        entries = list(entries)
        kept = [entry for entry in entries if entry.key == self.locked]
        return super().erase([entry for entry in entries if entry not in kept]) + [
            Failure(entry, "AccessDenied: Access Denied") for entry in kept
        ]


@pytest.fixture
def stubborn(filled: Collection, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of an object that will not go."""
    vault = settings.STORAGES["vault"]
    settings.STORAGES = settings.STORAGES | {"vault": vault | {"BACKEND": f"{__name__}.Stubborn"}}
    key = StoredFile.objects.order_by("pk")[1].object_key
    monkeypatch.setattr(Stubborn, "locked", key)
    return key


def test_object_that_will_not_go_blocks_with_its_reason(
    filled: Collection, stubborn: str, monkeypatch: pytest.MonkeyPatch, alice: User
) -> None:
    """F-18: never called purged. All else of it goes, and it goes on when the reason is gone."""
    destruction = end(filled)

    assert (destruction.status, destruction.blocked_by, destruction.certificate) == ("blocked", "AccessDenied: Access Denied", "")
    assert Collection.objects.get().status == "blocked"
    assert [entry.key for entry in under(filled)] == [stubborn]
    assert Key.objects.get(pk=filled.key_id).wrapped is None
    work_on()
    assert Destruction.objects.get().status == "blocked"

    schedule.purge_expired(now=timezone.now())  # tomorrow
    work_on()
    assert Destruction.objects.get().status == "blocked"
    assert AuditEvent.objects.filter(action="collection.purge_blocked").count() == 2

    monkeypatch.setattr(Stubborn, "locked", "")
    assert destroying.try_again(destruction, by=alice, now=timezone.now())
    assert not destroying.try_again(destruction, by=alice, now=timezone.now())
    work_on()
    assert_gone(filled)


def test_store_that_is_away_is_waited_for(filled: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_away(*_: object) -> Iterator[Entry]:
        raise StoreUnavailable("ListObjectVersions: no answer")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "entries", is_away)
        destruction = end(filled)
    assert destruction.status == "running"

    later = timezone.now() + timedelta(minutes=6)
    while destroying.work(now=later, seconds=60):
        pass
    assert_gone(filled)


# --- Killed, doubled and raced ---


@pytest.fixture
def breaking(filled: Collection, settings: Settings) -> None:
    settings.STORAGES = settings.STORAGES | {
        alias: settings.STORAGES[alias] | {"BACKEND": "tests.faults.breaking.BreakingLocal"} for alias in settings.BUCKETS
    }


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("breaking")
def test_broken_off_at_any_point_it_is_taken_up_again(filled: Collection, kind: str, api: Api, alice: User, step: int) -> None:
    """F-26, at every query and every request to the store; it is never readable again, and ends the same."""
    first = 1 + list(KINDS).index(kind)
    for point in count(first, step):
        collection = filled if point == first else fill(api(alice), f"Number {point}")
        expire(collection)
        with FUSE.armed(point, kind), suppress(APIException, DatabaseError):
            destroying.begin(collection, by=None, now=timezone.now())
            work_on()
        is_over = not FUSE.is_blown
        FUSE.disarm()

        later = timezone.now() + timedelta(minutes=6)  # whoever had it is dead
        destroying.begin(collection, by=None, now=later)
        while destroying.work(now=later, seconds=60):
            pass
        assert_gone(collection)
        if is_over:
            break
    assert point > 30


def test_many_at_once_do_it_once(filled: Collection) -> None:
    """F-31, F-33."""
    expire(filled)

    begun = race([lambda: destroying.begin(filled, by=None, now=timezone.now())] * 6)
    race([work_on] * 4)
    work_on()

    assert sum(each is not None for each in begun) == 1
    assert_gone(filled)


def test_restore_against_the_end_of_the_grace(filled: Collection, alice: User, settings: Settings) -> None:
    services.delete_collection(filled, by=alice, now=timezone.now())
    later = timezone.now() + timedelta(seconds=settings.DELETE_GRACE + 1)

    def restore() -> bool:
        try:
            services.restore_collection(filled, by=alice, now=later)
        except APIException:
            return False
        return True

    is_restored, destruction = race([restore, lambda: destroying.begin(filled, by=None, now=later)])

    assert is_restored == (destruction is None) == (Collection.objects.get().status == "open")
    assert (Key.objects.get(pk=filled.key_id).wrapped is None) == (destruction is not None)


# --- The command ---


def run(*args: str) -> str:
    from io import StringIO

    out = StringIO()
    call_command("purge", *args, stdout=out)
    return out.getvalue()


def test_dry_run_says_what_why_how_much_and_what_blocks(filled: Collection, alice: User, api: Api) -> None:
    held = fill(api(alice), "December")
    fill(api(alice), "January")
    holds.place(held, filename=None, ref="", reason="a suit", by=alice, now=timezone.now())
    for each in (filled, held):
        expire(each)

    lines = run("--dry-run").splitlines()

    assert lines[0].split() == ["collection", "tenant", "why", "files", "bytes", "blocked", "by"]
    assert [line.split()[:4] for line in lines[1:3]] == [[each.slug, "acme", "expired", "on"] for each in (filled, held)]
    assert [line.rstrip().endswith("a hold") for line in lines[1:3]] == [False, True]
    assert lines[3] == "1 collections would go, with 3 files of 1500 bytes."
    assert Collection.objects.filter(status="open").count() == 3


def test_command_destroys_what_is_due_and_finishes(filled: Collection, alice: User, api: Api) -> None:
    other = fill(api(alice), "December")
    expire(filled)

    assert run() == (f"{filled.slug}: destroyed, 3 files; certificate {Destruction.objects.get().pk}\n1 collections destroyed.\n")

    assert list(Collection.objects.values_list("pk", flat=True)) == [other.pk]
    assert run() == "0 collections destroyed.\n"


def test_command_takes_up_what_is_blocked_and_fails_if_it_still_is(filled: Collection, stubborn: str, monkeypatch: Any) -> None:
    expire(filled)
    for _ in range(2):
        with pytest.raises(CommandError, match="1 of 1 are blocked"):
            run()
    monkeypatch.setattr(Stubborn, "locked", "")
    assert run(filled.slug).endswith("1 collections destroyed.\n")
    assert_gone(filled)


def test_command_refuses_what_is_not_due_and_does_nothing(filled: Collection, alice: User, api: Api) -> None:
    other = fill(api(alice), "December")
    expire(filled)
    with pytest.raises(CommandError, match=f"{other.slug}.*Nothing was done"):
        run(filled.slug, other.slug)
    assert not Destruction.objects.exists()


# --- A real S3 server ---


@pytest.fixture(params=["Enabled", "Suspended", "never"])
def versioned(request: pytest.FixtureRequest, settings: Settings) -> Iterator[dict[str, str]]:
    """Buckets of Ceph, by alias."""
    endpoint = stores.ceph()
    with stores.stored_in(endpoint, settings) as by_alias:
        for bucket in by_alias.values():
            if request.param != "never":
                endpoint.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        yield by_alias


@pytest.mark.any_database
def test_no_version_of_it_is_left_in_a_bucket(
    versioned: dict[str, str], request: pytest.FixtureRequest, api: Api, alice: User, bob: User
) -> None:
    """F-18: on a bucket with versions, on one whose versioning was suspended in between, and on one that never had any."""
    november = fill(api(alice))
    client, bucket = stores.ceph().client, versioned["vault"]
    kind = request.node.callspec.params["versioned"]
    for key in [entry.key for entry in under(november)][:2]:  # somebody hid one, and wrote over it
        client.delete_object(Bucket=bucket, Key=key)
        client.put_object(Bucket=bucket, Key=key, Body=b"noise")
        if kind == "Suspended":
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
            client.delete_object(Bucket=bucket, Key=key)
            client.put_object(Bucket=bucket, Key=key, Body=b"more noise")
    client.create_multipart_upload(Bucket=bucket, Key=f"{november.prefix}unfinished")

    end(november)

    assert_gone(november)
    page = client.list_object_versions(Bucket=bucket, Prefix=november.prefix)
    assert not page.get("Versions")
    assert not page.get("DeleteMarkers")
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.any_database
@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_object_lock_blocks_and_is_said_so(settings: Settings, api: Api, alice: User, bob: User, mode: str) -> None:
    """Never called purged: what is locked is there, if only as noise."""
    endpoint = stores.ceph()
    with stores.buckets(endpoint, 1, ObjectLockEnabledForBucket=True) as (bucket,), stores.stored_in(endpoint, settings):
        settings.STORAGES = settings.STORAGES | {
            "vault": {"BACKEND": "files.stores.s3.S3Store", "OPTIONS": endpoint.options(bucket)}
        }
        november = fill(api(alice))
        locked = under(november)[0]
        until = timezone.now() + timedelta(seconds=12)
        lock: Any = {"Mode": mode, "RetainUntilDate": until}
        endpoint.client.put_object_retention(Bucket=bucket, Key=locked.key, VersionId=locked.version, Retention=lock)

        destruction = end(november)

        assert destruction.status == "blocked"
        assert "AccessDenied" in destruction.blocked_by
        assert [entry.key for entry in under(november)] == [locked.key]
        assert Key.objects.get(pk=november.key_id).wrapped is None

        wait_for(lambda: timezone.now() > until + timedelta(seconds=1), seconds=60)
        schedule.purge_expired(now=timezone.now())
        work_on()
        assert_gone(november)
