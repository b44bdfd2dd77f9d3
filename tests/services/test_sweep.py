"""Objects that no row names, and rows whose object is gone: found in one reading, and nothing is touched that might be needed.

INV-06; F-14, F-19, F-20, F-63, F-64, F-70.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from egress import services as egress
from egress.models import StagedFile
from files import cleanup, quota
from files.models import Collection, PendingDeletion, StoredFile, Upload
from purge import destruction
from purge import orphans as sweeping
from tenants import audit
from tenants.models import AuditEvent, AuditHead, Tenant, User
from tests import invariants, stores
from tests.database_guards import guards_disabled
from tests.invariants import entries
from tests.services.purging import expire, fill
from vault import audit_checkpoints, identity
from vault.stores import ObjectStore, StoreEntry, StoreUnavailable, get_store
from vault.stores.local import LocalStore


Api = Callable[[User | None], APIClient]
pytestmark = [pytest.mark.django_db(transaction=True)]
WEEKS = timedelta(days=15)


@pytest.fixture
def november(filled: Collection) -> Collection:
    identity.clear_checks()
    identity.check(now=timezone.now())
    return filled


@pytest.fixture
def later() -> datetime:
    """When all that is there now is older than the grace."""
    return timezone.now() + WEEKS


def put(key: str, content: bytes = b"noise", *, alias: str = "vault") -> str:
    writer = get_store(alias).create(key, size=len(content))
    writer.write(content)
    writer.commit()
    return key


def leave_orphan(collection: Collection, *, alias: str = "vault") -> str:
    return put(collection.object_key(uuid4()), alias=alias)


def begin_upload(collection: Collection) -> str:
    """What a killed upload leaves in the store, if not in the database."""
    key = collection.object_key(uuid4())
    get_store("vault").create(key, size=None).write(b"x" * 9 * 1024 * 1024)
    return key


def sweep(now: datetime, *, at_most: int | None = None) -> int:
    swept = sum(sweeping.sweep(found, at_most=at_most, now=now) for found in list(sweeping.survey(now=now)))
    cleanup.delete_due_objects(now=now, limit=1000)
    return swept


def keys() -> set[str]:
    return {entry.key for _, entry in entries() if not entry.key.startswith(identity.SYSTEM_PREFIX)}


def files_of(collection: Collection) -> set[str]:
    return set(collection.files.values_list("object_key", flat=True))


# --- Who names objects ---


def test_every_model_that_names_objects_is_known_to_the_sweep() -> None:
    """One that is forgotten here would have its objects destroyed."""
    naming = {model for model in apps.get_models() if any("object_key" in field.name for field in model._meta.get_fields())}
    assert naming == set(sweeping.OBJECT_MODELS)


@pytest.mark.parametrize("model", sweeping.OBJECT_MODELS)
def test_object_that_a_row_names_stays(november: Collection, alice: User, model: type, later: datetime) -> None:
    now = timezone.now()
    common: dict[str, Any] = {"store": "vault", "object_key": leave_orphan(november)}
    if model is Upload:
        Upload.objects.create(
            collection=november, object_id=uuid4(), started_by=alice, started_at=now, heartbeat_at=now, **common
        )
    elif model is StagedFile:
        stage(november, alice, common["object_key"])
    elif model is PendingDeletion:
        PendingDeletion.objects.create(due_at=later + WEEKS, requested_at=now, **common)
    else:
        november.files.filter(filename="a.csv").update(object_key=common["object_key"], object_size=5)
        cleanup.erase_object(get_store("vault"), next(iter(keys() - files_of(november))))
    before = keys()

    assert sweep(later) == 0
    assert keys() == before


def stage(collection: Collection, by: User, key: str) -> StagedFile:
    """An egress request's item that has its copy there."""
    request = egress.submit(collection=collection, filenames=["a.csv"], justification="A good reason.", by=by, now=timezone.now())
    with guards_disabled():
        StagedFile.objects.update(store="vault", object_key=key, status=StagedFile.Status.STAGED)
    return request.items.get()


@pytest.mark.parametrize("status", StagedFile.Status)
def test_staged_copy_is_an_orphan_once_it_is_said_to_be_wiped(
    november: Collection, alice: User, later: datetime, status: StagedFile.Status
) -> None:
    item = stage(november, alice, leave_orphan(november))
    with guards_disabled():
        StagedFile.objects.update(status=status, wiped_at=timezone.now() if status == StagedFile.Status.WIPED else None)
    before = keys()
    assert sweep(later) == (1 if status == StagedFile.Status.WIPED else 0)
    assert keys() == (before - {item.object_key} if status == StagedFile.Status.WIPED else before)


# --- Orphans ---


@pytest.mark.both_databases
def test_orphans_go_and_files_stay(november: Collection, later: datetime) -> None:
    orphans = {leave_orphan(november), leave_orphan(november, alias="staging"), begin_upload(november)}
    assert keys() == files_of(november) | orphans

    found = {each.store: each for each in sweeping.survey(now=later)}
    assert keys() == files_of(november) | orphans  # looking changes nothing
    assert (found["vault"].orphaned, found["staging"].orphaned, found["vault"].objects) == (2, 1, 5)

    assert sweep(later) == 3
    assert keys() == files_of(november)
    assert AuditEvent.objects.filter(action="sweep.destroy", chain="platform").count() == 2
    assert sweep(later) == 0
    invariants.check_all()


def test_orphan_of_a_collection_that_is_gone_goes(november: Collection, acme: Tenant, later: datetime) -> None:
    gone = Collection(tenant=acme)
    leave_orphan(gone)
    assert sweep(later) == 1
    assert keys() == files_of(november)


@pytest.mark.parametrize("age", [timedelta(), timedelta(days=6, hours=23)])
def test_young_object_is_nobodys_orphan(november: Collection, age: timedelta) -> None:
    """It may be an upload whose row this reading came too early for."""
    leave_orphan(november)
    begin_upload(november)
    now = timezone.now() + age
    assert [each.recent for each in sweeping.survey(now=now) if each.store == "vault"] == [2]
    assert sweep(now) == 0


@pytest.mark.parametrize(
    "key",
    [
        "readme.txt",
        "backup/2026/database.dump",
        f"{identity.SYSTEM_PREFIX}audit/notes.json",
        f"0a1b/{uuid4()}/{uuid4()}/{uuid4()}",  # another deployment's tenant
        "0a1b/{tenant}/{collection}/notes.txt",
        "0A1B/{tenant}/{collection}/{object}",
    ],
)
def test_key_that_is_not_ours_is_left_alone(november: Collection, later: datetime, key: str) -> None:
    key = put(key.format(tenant=november.tenant_id, collection=november.uuid, object=uuid4()))
    (found,) = (each for each in sweeping.survey(now=later) if each.store == "vault")
    assert (found.orphaned, found.foreign) == (0, 0 if key.startswith(identity.SYSTEM_PREFIX) else 1)
    assert sweep(later) == 0
    assert key in {entry.key for _, entry in entries()}


def test_collection_that_is_being_destroyed_is_left_to_that(november: Collection, later: datetime) -> None:
    leave_orphan(november)
    expire(november)
    destruction.start_destruction(november, by=None, now=timezone.now())
    before = keys()
    assert sweep(later) == 0
    assert keys() == before


def test_unfinished_upload_beside_a_file_of_its_key_goes_alone(
    settings: Settings, api: Api, alice: User, bob: User, later: datetime
) -> None:
    """A start that was not heard leaves one; the file of the same key stays."""
    with stores.use_new_buckets(stores.moto(), settings) as by_alias:
        key = fill(api(alice)).files.order_by("pk")[0].object_key
        stores.moto().client.create_multipart_upload(Bucket=by_alias["vault"], Key=key)
        assert sorted(entry.kind for entry in get_store("vault").entries(key)) == ["object", "upload"]

        assert sweep(later) == 1

        assert [entry.kind for entry in get_store("vault").entries(key)] == ["object"]


# --- What is missing ---


def test_file_without_its_object_is_marked_and_never_dropped(
    november: Collection, api: Api, alice: User, later: datetime
) -> None:
    lost, cut, _ = november.files.order_by("filename")
    vault = get_store("vault")
    assert isinstance(vault, LocalStore)
    path = vault.root / lost.object_key
    kept = path.read_bytes()
    path.unlink()
    (vault.root / cut.object_key).write_bytes(b"cut")

    assert sweep(later) == 0

    assert sorted(november.files.values_list("filename", "status")) == [
        ("a.csv", "missing"),
        ("b.csv", "missing"),
        ("c.csv", "ready"),
    ]
    assert AuditEvent.objects.filter(action="file.missing").count() == 2
    assert sweep(later) == 0
    assert AuditEvent.objects.filter(action="file.missing").count() == 2

    path.write_bytes(kept)
    os.utime(path, (0, 0))
    assert sweep(later) == 0
    assert november.files.get(filename="a.csv").status == "ready"
    assert api(alice).get(f"/api/v1/collections/{november.slug}/content/a.csv").getvalue() == b"a.csv" * 100


# --- What it refuses ---


def snapshot() -> tuple[set[str], list[tuple[str, str]], int]:
    return keys(), sorted(StoredFile.objects.values_list("object_key", "status")), AuditEvent.objects.count()


def test_listing_that_breaks_off_changes_nothing(november: Collection, later: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-19: what it did not list is not missing, and nothing before it is swept."""
    leave_orphan(november)
    whole = LocalStore.entries

    def breaks_off(self: LocalStore, prefix: str) -> Iterator[StoreEntry]:
        for number, entry in enumerate(whole(self, prefix)):
            if number == 2:
                raise StoreUnavailable("ListObjectVersions: no answer")
            yield entry

    before = snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "entries", breaks_off)
        with pytest.raises(CommandError, match="Nothing was changed"):
            call_command("sweep", "--apply")
    assert snapshot() == before


@pytest.mark.parametrize("what", ["orphaned", "missing"])
def test_too_much_to_be_true_changes_nothing_unless_allowed(
    november: Collection, later: datetime, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """F-20, F-64: an emptied database, and an emptied bucket."""
    monkeypatch.setattr(sweeping, "ALWAYS_ALLOWED", 2)
    if what == "orphaned":
        StoredFile.objects.all().delete()
    else:
        for key in files_of(november):
            cleanup.erase_object(get_store("vault"), key)
    before = snapshot()

    with pytest.raises(sweeping.TooManyDifferences, match=f"3 of 3 are {what} in vault"):
        sweep(later)
    assert snapshot() == before

    assert sweep(later, at_most=3) == (3 if what == "orphaned" else 0)
    assert keys() == set()
    assert set(StoredFile.objects.values_list("status", flat=True)) <= {"missing"}


@pytest.mark.parametrize("doubt", ["empty vault", "another's vault", "older database"])
def test_doubt_about_the_database_or_the_vault_changes_nothing(
    november: Collection, later: datetime, doubt: str, acme: Tenant
) -> None:
    """F-20, F-63, F-68."""
    vault = get_store("vault")
    assert isinstance(vault, LocalStore)
    leave_orphan(november)
    if doubt == "older database":
        with transaction.atomic():
            audit.record("collection.update", by=None, tenant=acme, target=november, now=timezone.now())
        assert audit_checkpoints.publish(now=timezone.now() + timedelta(minutes=10))
        last = AuditEvent.objects.filter(chain=acme.pk).latest("seq")
        AuditHead.objects.filter(chain=acme.pk).update(seq=last.seq - 1, hash=last.prev_hash)
        with guards_disabled():
            AuditEvent.objects.filter(pk=last.pk).delete()
    else:
        vault.root.rename(vault.root.with_name("right"))
        vault.prepare(create=True)
        if doubt == "another's vault":
            put(identity.MARK_KEY, f'{{"id":"{acme.pk}"}}'.encode())
    before = snapshot()

    for args in ((), ("--apply",), ("--apply", "--at-most", "1000")):
        with pytest.raises(CommandError, match="Nothing was changed"):
            call_command("sweep", *args)
    assert snapshot() == before


# --- The command, and the schedule ---


def test_command_prints_and_only_applies_when_told(november: Collection, settings: Settings, later: datetime) -> None:
    orphan = leave_orphan(november)
    vault = get_store("vault")
    assert isinstance(vault, LocalStore)
    os.utime(vault.root / orphan, (0, 0))
    out = StringIO()

    call_command("sweep", stdout=out)

    lines = out.getvalue().splitlines()
    assert "vault: 4 objects, 3 files; 1 orphaned with 5 bytes, 0 too recent to judge, 0 foreign keys" in lines
    assert f"  orphaned object {orphan} 5 1970-01-01T00:00:00Z" in lines
    assert orphan in keys()

    call_command("sweep", "--apply", stdout=out)
    assert "  destroyed 1, marked missing 0, restored 0" in out.getvalue().splitlines()
    cleanup.delete_due_objects(now=timezone.now())
    assert keys() == files_of(november)


def test_command_fails_while_files_are_missing(november: Collection) -> None:
    cleanup.erase_object(get_store("vault"), min(files_of(november)))
    out = StringIO()
    with pytest.raises(CommandError, match="1 files are missing"):
        call_command("sweep", stdout=out)
    assert f"  missing {min(files_of(november))}: file " in out.getvalue()
    assert set(november.files.values_list("status", flat=True)) == {"ready"}


def test_schedule_only_reports(november: Collection, later: datetime, caplog: pytest.LogCaptureFixture) -> None:
    assert sweeping.report(now=later)
    leave_orphan(november)
    before = snapshot()
    assert not sweeping.report(now=later)
    assert "a bucket and the database differ" in caplog.text
    assert snapshot() == before


# --- On real servers ---


@pytest.mark.parametrize("is_versioned", [False, True])
@pytest.mark.parametrize("server", stores.SERVER_PARAMS)
def test_orphans_go_with_all_their_versions(
    settings: Settings, api: Api, alice: User, bob: User, server: str, later: datetime, *, is_versioned: bool
) -> None:
    endpoint = stores.SERVERS[server]()
    with stores.use_new_buckets(endpoint, settings) as by_alias:
        client, bucket = endpoint.client, by_alias["vault"]
        if is_versioned:
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        november = fill(api(alice))
        hidden = leave_orphan(november)
        client.delete_object(Bucket=bucket, Key=hidden)
        leave_orphan(november)
        begin_upload(november)
        store: ObjectStore = get_store("vault")

        assert sweep(later) >= 2

        remaining = {entry.key for entry in store.entries("") if not entry.key.startswith(identity.SYSTEM_PREFIX)}
        assert remaining == files_of(november)


# --- Counts ---


@pytest.mark.both_databases
def test_counts_that_drifted_are_mended_and_told(
    november: Collection, api: Api, alice: User, caplog: pytest.LogCaptureFixture
) -> None:
    """F-70, INV-18."""
    december = fill(api(alice), "December")
    Collection.objects.filter(pk=november.pk).update(file_count=7, total_length=1)
    with suppress(AssertionError):
        invariants.check_counts()
        pytest.fail("the drift would not be seen")

    assert quota.recount(now=timezone.now()) == 1

    invariants.check_counts()
    assert "corrected the counts of a collection" in caplog.text
    event = AuditEvent.objects.get(action="collection.recount")
    assert event.target_id == str(november.uuid)
    assert audit.facts_of(event.body) == {"files": -4, "length": 1499}
    assert quota.recount(now=timezone.now()) == 0
    assert december.files.count() == 3
