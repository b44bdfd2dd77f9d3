"""A database from a backup cannot bring back what was destroyed since, and somebody else's vault is nobody's to destroy in.

INV-08; F-20, F-63, F-64, F-68.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import Model
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files import holds, services
from files.models import Collection
from purge import jobs, ledger, limits, recovery
from purge.destruction import start_destruction
from purge.models import Destruction
from tenants import audit
from tenants.models import AuditEvent, Tenant, User
from tests.database_guards import guards_disabled
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.purging import expire, fill, under, work_on
from tests.worlds import starts_from
from vault import audit_checkpoints, identity, signing
from vault.models import Deployment, Key
from vault.stores import get_store


Api = Callable[[User | None], APIClient]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_databases]


@pytest.fixture
def vault(settings: Settings, tmp_path: Path, db: None, buckets_of_world: Path) -> Path:
    """A vault of this test's own, which nobody has looked at yet."""
    vault = tmp_path / "vault"
    settings.STORAGES = settings.STORAGES | {
        "vault": {"BACKEND": "vault.stores.local.LocalStore", "OPTIONS": {"location": str(vault)}}
    }
    if buckets_of_world.exists():
        shutil.copytree(buckets_of_world / "vault", vault)
    else:
        vault.mkdir()
    identity.clear_checks()
    return vault


def two_collections() -> int:
    client = worlds.make_people()["alice"]
    fill(client, "December")
    return fill(client).pk


@pytest.fixture
@mark_dependents(starts_from(two_collections))
def november(vault: Path, built: int) -> Collection:
    identity.check(now=timezone.now())
    return Collection.objects.get(pk=built)


@pytest.fixture
def december(november: Collection) -> Collection:
    return Collection.objects.exclude(pk=november.pk).get()


Backup = list[tuple[type[Model], list[dict[str, Any]]]]


def back_up() -> Backup:
    models = [model for model in apps.get_models() if model._meta.app_label in {"tenants", "vault", "files", "egress", "purge"}]
    return [(model, list(model._default_manager.order_by("pk").values())) for model in models]


def restore(backup: Backup) -> None:
    """Puts every row back as it was, and a new process starts on them."""
    with guards_disabled(), connection.constraint_checks_disabled():
        for model, _ in reversed(backup):
            model._default_manager.all()._raw_delete(connection.alias)
        for model, rows in backup:
            model._default_manager.bulk_create([model(**row) for row in rows])
    identity.clear_checks()


def read(api: Api, user: User, collection: Collection) -> tuple[int, str]:
    answer = api(user).get(f"/api/v1/collections/{collection.slug}/content/a.csv")
    if answer.status_code != 200:
        return answer.status_code, answer.json()["code"]
    assert answer.getvalue() == b"a.csv" * 100
    return 200, ""


def run(*args: str) -> str:
    out = StringIO()
    call_command("ledger", *args, stdout=out)
    return out.getvalue()


def destroy(*collections: Collection) -> None:
    for collection in collections:
        expire(collection)
        assert start_destruction(collection, by=None, now=timezone.now())
    work_on()


# --- The entry ---


def test_each_destruction_has_a_signed_entry_before_its_first_object_goes(
    november: Collection, vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    store = type(get_store("vault"))
    erase = store.erase

    def looking(self: Any, entries: Any) -> Any:
        seen.append((vault / identity.ledger_key(1)).exists())
        return erase(self, entries)

    monkeypatch.setattr(store, "erase", looking)
    destroy(november)

    assert seen
    assert all(seen)
    content = (vault / identity.ledger_key(1)).read_bytes()
    public = signing.signer_for(Key.objects.get(purpose="audit")).public_key()
    entry = ledger.parse_entry(content, public=public)
    destruction = Destruction.objects.get()
    assert (entry.collection, entry.destruction, entry.number) == (november.uuid, destruction.pk, 1)
    assert (entry.reason, entry.started_at) == ("expired", destruction.started_at)
    assert json.loads(destruction.certificate)["ledger"] == 1
    assert b"November" not in content  # no name leaves the database


def test_number_that_has_somebody_elses_entry_blocks(november: Collection, vault: Path) -> None:
    """Whoever wrote it: nothing is deleted before our own entry is there."""
    place = vault / identity.ledger_key(1)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"{}")
    identity._checked_at["vault"] = float("inf")  # it came behind our last look

    destroy(november)

    destruction = Destruction.objects.get()
    assert destruction.status == "blocked"
    assert "already exists" in destruction.blocked_by
    assert len(under(november)) == 3


def test_destruction_of_this_moment_is_no_sign_of_a_backup(
    november: Collection, december: Collection, alice: User, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is committed, and its entry written, between what another process reads of the one and of the other."""
    store = type(get_store("vault"))
    entries = store.entries

    def meanwhile(self: Any, prefix: str) -> Any:
        if prefix.startswith(identity.LEDGER_PREFIX) and not Destruction.objects.exists():
            destroy(december)
        return entries(self, prefix)

    identity.clear_checks()
    with monkeypatch.context() as patch:
        patch.setattr(store, "entries", meanwhile)
        assert read(api, alice, november) == (200, "")
    assert Destruction.objects.get().status == "done"


# --- A backup from before ---


def test_backup_from_before_shows_nothing_of_what_was_destroyed_since(
    november: Collection, december: Collection, vault: Path, alice: User, api: Api, tmp_path: Path
) -> None:
    """The worst case: somebody kept the objects, too."""
    hold = holds.place(november, filename=None, ref="", reason="a suit", by=alice, now=timezone.now())
    assert read(api, alice, november) == (200, "")
    backup = back_up()
    shutil.copytree(vault / november.prefix, tmp_path / "kept")
    holds.lift(hold, by=alice, now=timezone.now())
    destroy(november)

    restore(backup)
    shutil.copytree(tmp_path / "kept", vault / november.prefix, dirs_exist_ok=True)

    assert Key.objects.get(pk=november.key_id).wrapped is not None
    assert read(api, alice, november) == (503, "database_restored")
    assert read(api, alice, december) == (503, "database_restored")
    upload = api(alice).put(f"/api/v1/collections/{december.slug}/content/new.csv", b"new", content_type="text/csv")
    assert (upload.status_code, upload.json()["code"]) == (503, "database_restored")

    jobs.tick(now=timezone.now())  # one entry, and signed: it is applied by itself

    assert not Collection.objects.filter(uuid=november.uuid).exists()
    assert under(november) == []
    assert Destruction.objects.get(collection_uuid=november.uuid).number == 1
    assert read(api, alice, november) == (404, "not_found")
    assert read(api, alice, december) == (200, "")
    assert not list(audit.verify())


def test_many_entries_wait_for_an_operator(
    november: Collection,
    december: Collection,
    alice: User,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recovery, "MAX_AUTOMATIC_ENTRIES", 2)
    monkeypatch.setattr(limits, "_logged_at", {})
    others = [december, *(fill(api(alice), name) for name in ("January", "February"))]
    backup = back_up()
    destroy(*others)
    restore(backup)

    jobs.tick(now=timezone.now())
    assert jobs.purge_expired(now=timezone.now()) == 0
    assert caplog.text.count("until an operator has run") == 1  # of the two times: an hour has not passed
    assert read(api, alice, november) == (503, "database_restored")
    assert not Destruction.objects.exists()

    with pytest.raises(CommandError, match="it lacks 3 destructions"):
        run()
    assert not Destruction.objects.exists()
    assert "3 entries applied: 3 collections are being destroyed again." in run("--apply")
    assert "belong together" in run()
    assert read(api, alice, november) == (200, "")
    work_on()
    assert list(Collection.objects.values_list("pk", flat=True)) == [november.pk]
    assert Deployment.objects.get().ledger_number == 3
    destroy(november)
    assert Destruction.objects.get(collection_uuid=november.uuid).number == 4


@pytest.mark.parametrize(
    "damage",
    [
        *("edited", "renumbered", "another deployment's"),
        *(pytest.param(damage, marks=pytest.mark.long) for damage in ("unsigned", "noise")),
    ],
)
def test_entry_that_nobody_signed_is_never_applied(
    november: Collection, december: Collection, vault: Path, api: Api, alice: User, damage: str
) -> None:
    """Whoever can write into the bucket could else have anything destroyed."""
    other = december
    backup = back_up()
    destroy(other)
    restore(backup)
    place = vault / identity.ledger_key(1)
    document = json.loads(place.read_bytes())
    if damage == "unsigned":
        document["signature"] = ""
    elif damage == "edited":
        document["destroyed"]["collection"] = str(november.uuid)
    elif damage == "renumbered":
        place = place.rename(vault / identity.ledger_key(2))
    elif damage == "another deployment's":
        with guards_disabled():
            Deployment.objects.update(uuid=november.uuid)
        (vault / identity.MARK_KEY).write_bytes(signing.canonical_json({"id": str(november.uuid), "version": 1}))
    place.write_bytes(b"noise" if damage == "noise" else signing.canonical_json(document))

    jobs.tick(now=timezone.now())
    with pytest.raises(CommandError, match=r"Nothing was applied.*000000/00000000"):
        run("--apply")

    assert not Destruction.objects.exists()
    assert Collection.objects.filter(status="open").count() == 2
    assert read(api, alice, november) == (503, "database_restored")


def test_backup_that_lost_only_events_serves_and_destroys_nothing(
    november: Collection, december: Collection, alice: User, api: Api
) -> None:
    """What is due by it may have been kept since: here it was restored, and its date was moved."""
    services.delete_collection(november, by=alice, now=timezone.now())
    expire(december)
    backup = back_up()
    services.restore_collection(november, by=alice, now=timezone.now())
    assert audit_checkpoints.publish(now=timezone.now() + timedelta(minutes=10))
    restore(backup)
    deleted = timezone.now() + timedelta(days=2)

    assert jobs.purge_expired(now=timezone.now()) == 0
    jobs.tick(now=deleted)
    for args in ((), (december.slug,)):
        with pytest.raises(CommandError, match="older than the storage"):
            call_command("purge", *args)
    assert not Destruction.objects.exists()
    assert read(api, alice, december) == (200, "")
    with pytest.raises(CommandError, match=r"it lacks audit events up to"):
        run()

    run("--apply")

    assert "belong together" in run()
    assert AuditEvent.objects.filter(action="deployment.catch_up").count() == 1
    assert audit_checkpoints.publish(now=timezone.now() + timedelta(minutes=20))
    assert not audit_checkpoints.verify().damages
    assert jobs.purge_expired(now=timezone.now()) == 1


# --- Somebody else's vault ---


@contextmanager
def refused(api: Api, user: User, collection: Collection) -> Iterator[None]:
    """Nothing is read, written or destroyed, and nothing is certified for having been looked for in the wrong place."""
    yield
    before = sorted(Collection.objects.values_list("uuid", "status"))
    assert read(api, user, collection) == (503, "foreign_vault")
    upload = api(user).put(f"/api/v1/collections/{collection.slug}/content/new.csv", b"new", content_type="text/csv")
    assert (upload.status_code, upload.json()["code"]) == (503, "foreign_vault")
    expire(collection)
    assert jobs.purge_expired(now=timezone.now()) == 0
    jobs.tick(now=timezone.now())
    with pytest.raises(CommandError, match="does not belong to this database"):
        call_command("purge")
    with pytest.raises(CommandError, match="does not have the mark"):
        run()
    assert sorted(Collection.objects.values_list("uuid", "status")) == before
    assert not Destruction.objects.filter(status="done").exists()


@pytest.mark.parametrize(
    ("other", "is_begun"),
    [
        *(("empty", True), ("another's", False), ("damaged", True)),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("empty", False), ("another's", True), ("damaged", False))),
    ],
)
def test_vault_of_another_database_is_left_alone(
    november: Collection, december: Collection, vault: Path, alice: User, api: Api, acme: Tenant, other: str, *, is_begun: bool
) -> None:
    assert read(api, alice, november) == (200, "")
    if is_begun:
        expire(december)
        start_destruction(december, by=None, now=timezone.now())
    with refused(api, alice, november):
        vault.rename(vault.with_name("right"))
        vault.mkdir()
        if other != "empty":
            (vault / ".strongroom").mkdir()
            content = signing.canonical_json({"id": str(acme.pk), "version": 1}) if other == "another's" else b"noise"
            (vault / identity.MARK_KEY).write_bytes(content)
        identity.clear_checks()
    if other == "empty":
        run("--adopt")
        assert "belong together" in run()
        assert AuditEvent.objects.filter(action="deployment.adopt").count() == 1
    else:
        with pytest.raises(CommandError, match="does not have the mark"):
            run("--adopt")


def test_first_look_leaves_the_mark(november: Collection, vault: Path) -> None:
    assert json.loads((vault / identity.MARK_KEY).read_bytes()) == {"id": str(Deployment.objects.get().uuid), "version": 1}
    assert Deployment.objects.get().marked_at is not None


def test_vault_that_is_away_is_not_somebody_elses(november: Collection, vault: Path, alice: User, api: Api) -> None:
    """What was known a minute ago is believed; a process that has never looked serves nothing."""
    vault.rename(vault.with_name("away"))
    identity._checked_at["vault"] -= 2 * identity.CHECK_SECONDS
    identity.check(now=timezone.now())
    identity.clear_checks()
    assert read(api, alice, november) == (503, "storage_unavailable")
    vault.with_name("away").rename(vault)
    assert read(api, alice, november) == (200, "")
