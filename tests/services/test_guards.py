"""Nothing leads back from a destruction, past the application either: the database itself refuses (INV-08, F-61)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings
from rest_framework.test import APIClient

from files.models import Collection
from purge.destruction import _block, retry_blocked, run_next_step, start_destruction
from purge.models import Destruction
from tenants.apps import remove_cross_table_guards
from tenants.models import User
from tenants.work import triggers
from tests.database_guards import empty_database
from tests.needs import mark_dependents
from tests.services import worlds
from tests.services.egress import fill
from tests.services.keyrings import ROTATED
from tests.worlds import starts_from
from vault import identity, keys
from vault.models import Deployment, Key


pytestmark = pytest.mark.both_databases
Api = Callable[[User | None], APIClient]
MODELS: list[type[models.Model]] = [Key, Collection, Destruction]
REFUSALS = "|".join({guard.refusal for guard in triggers.guards if guard.table != "tenants_auditevent"})


@dataclass(frozen=True)
class Case:
    """A collection that is going or gone, as it was, and a dump of it from before."""

    collection: Collection
    key: Key
    destruction: Destruction
    dump: Path


def work_on() -> None:
    while run_next_step(now=timezone.now(), seconds=60):
        pass


def two_tenants() -> str:
    clients = worlds.make_people()
    fill(clients["mallory"], "November", {})
    return fill(clients["alice"], "November", {"a.csv": b"a,b"})


@pytest.fixture
@mark_dependents(starts_from(two_tenants))
def november(own_buckets: Path, built: str) -> Collection:
    """With a file, and another tenant's collection beside it."""
    return Collection.objects.get(slug=built)


@pytest.fixture
def going(november: Collection, tmp_path: Path) -> Case:
    dump = tmp_path / "before.json"
    call_command("dumpdata", "vault.key", "files.collection", "files.storedfile", output=dump, verbosity=0)
    key = november.key
    Collection.objects.filter(pk=november.pk).update(purge_at=timezone.now() - timedelta(minutes=1))
    destruction = start_destruction(november, by=None, now=timezone.now())
    assert destruction
    return Case(november, key, destruction, dump)


@pytest.fixture
def gone(going: Case) -> Case:
    work_on()
    assert not Collection.objects.filter(uuid=going.collection.uuid).exists()
    return going


def rows() -> list[Any]:
    return [list(model._default_manager.order_by("pk").values()) for model in MODELS]


def assert_refused(attempt: Callable[[], object]) -> None:
    before = rows()
    if connection.vendor == "postgresql":
        execute("SET CONSTRAINTS ALL DEFERRED")  # as a transaction begins
    with pytest.raises(DatabaseError, match=REFUSALS), transaction.atomic():
        attempt()
    assert rows() == before


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        for statement in sql.split("; "):
            cursor.execute(statement)


# --- By SQL ---


# What stands for what below
WORDS = {
    "GOING": "id = (SELECT collection_id FROM purge_destruction)",
    "OTHER": "id <> (SELECT collection_id FROM purge_destruction)",
    "DEAD": "destroyed_at IS NOT NULL",
    "AS_IF_LIVE": "(id, purpose, owner, kek_id, wrapped, created_at)"
    " SELECT id, purpose, owner, kek_id, 'x', created_at FROM vault_key",
    "RENAMED": "(id, purpose, owner, kek_id, wrapped, created_at)"
    " SELECT lower(hex(randomblob(16))), purpose, owner, kek_id, 'x', created_at FROM vault_key",
}
COME_BACK = (
    "CREATE TABLE kept AS SELECT * FROM files_collection WHERE GOING; UPDATE kept SET status = 'open';"
    " DELETE FROM files_collection WHERE GOING; INSERT INTO files_collection SELECT * FROM kept"
)
SQL = [
    "UPDATE files_collection SET status = 'open', deleted_at = NULL WHERE GOING",
    "UPDATE files_collection SET status = 'deleted', deleted_at = created_at WHERE GOING",
    "UPDATE files_collection SET status = 'open', deleted_at = NULL",
    "UPDATE files_collection SET uuid = key_id",
    "UPDATE files_collection SET tenant_id = (SELECT tenant_id FROM files_collection WHERE OTHER) WHERE GOING",
    "UPDATE files_collection SET key_id = (SELECT id FROM purge_destruction) WHERE GOING",
    "UPDATE files_collection SET id = id + 1000 WHERE GOING",
    "INSERT INTO files_collection SELECT * FROM files_collection WHERE true ON CONFLICT (id) DO UPDATE SET status = 'open'",
    "UPDATE vault_key SET wrapped = 'x', destroyed_at = NULL WHERE DEAD",
    "UPDATE vault_key SET destroyed_at = created_at WHERE DEAD",
    "UPDATE vault_key SET owner = 'nobody' WHERE destroyed_at IS NULL",
    "UPDATE vault_key SET purpose = 'audit' WHERE destroyed_at IS NULL",
    "UPDATE vault_key SET id = (SELECT id FROM purge_destruction) WHERE DEAD",
    "INSERT INTO vault_key AS_IF_LIVE WHERE DEAD ON CONFLICT (id) DO UPDATE SET wrapped = 'x', destroyed_at = NULL",
    "DELETE FROM vault_key WHERE DEAD",
    "DELETE FROM purge_destruction",
    "UPDATE purge_destruction SET collection_uuid = id",
    "UPDATE purge_destruction SET id = collection_uuid",
    "UPDATE purge_destruction SET collection_id = (SELECT id FROM files_collection WHERE OTHER)",
    COME_BACK,
]
DONE = [
    "UPDATE purge_destruction SET certificate = 'x'",
    "UPDATE purge_destruction SET status = 'running', completed_at = NULL, certificate = ''",
    "UPDATE purge_destruction SET lease_owner = lease_owner",
    "DELETE FROM purge_destruction",
]
ONLY = {
    "postgresql": [f"TRUNCATE {table} CASCADE" for table in ("vault_key", "files_collection", "purge_destruction")],
    "sqlite": [
        "INSERT OR REPLACE INTO files_collection SELECT * FROM files_collection",
        "INSERT OR REPLACE INTO files_collection SELECT * FROM files_collection WHERE OTHER",
        "INSERT OR REPLACE INTO vault_key AS_IF_LIVE",
        "REPLACE INTO vault_key RENAMED",
        "REPLACE INTO purge_destruction SELECT * FROM purge_destruction",
        "UPDATE OR IGNORE files_collection SET status = 'open'",
        "UPDATE OR REPLACE vault_key SET id = (SELECT id FROM vault_key WHERE DEAD) WHERE NOT DEAD",
    ],
}


def spelled_out(sql: str) -> str:
    for word, meaning in WORDS.items():
        sql = sql.replace(word, meaning)
    return sql


@pytest.mark.parametrize("status", ["purging", "blocked"])
def test_what_is_going_is_not_brought_back_by_sql(going: Case, status: str) -> None:
    Collection.objects.filter(pk=going.collection.pk).update(status=status)
    for sql in [*SQL, *ONLY[connection.vendor]]:
        assert_refused(partial(execute, spelled_out(sql)))


def test_certificate_is_not_changed_by_sql(gone: Case) -> None:
    for sql in DONE:
        assert_refused(partial(execute, sql))


# --- By the ORM, loaddata and the admin site ---


def opened(case: Case) -> Collection:
    collection = Collection.objects.get(pk=case.collection.pk)
    collection.status, collection.deleted_at = Collection.Status.OPEN, None
    return collection


def stays(destruction: Destruction) -> Destruction:
    destruction.display_name = "Another"
    return destruction


@pytest.mark.parametrize(
    "attempt",
    [
        lambda case: opened(case).save(),
        lambda case: opened(case).save(update_fields=["status"]),
        lambda case: Collection.objects.update(status="open", deleted_at=None),
        lambda case: Collection.objects.bulk_update([opened(case)], ["status", "deleted_at"]),
        lambda case: Collection.objects.update_or_create({"status": "open"}, pk=case.collection.pk),
        lambda case: Collection.objects.bulk_create(
            [opened(case)], update_conflicts=True, unique_fields=["id"], update_fields=["status"]
        ),
        lambda case: case.key.save(),
        lambda case: Key.objects.filter(pk=case.key.pk).update(wrapped=case.key.wrapped, destroyed_at=None),
        lambda case: Key.objects.bulk_update([case.key], ["wrapped", "destroyed_at"]),
        lambda case: Key.objects.filter(pk=case.key.pk)._raw_delete("default"),
        lambda case: Destruction.objects.all().delete(),
        lambda case: case.destruction.delete(),
        lambda case: call_command("loaddata", case.dump, verbosity=0),
    ],
)
def test_what_is_going_is_not_brought_back_by_the_orm(going: Case, attempt: Callable[[Case], object]) -> None:
    assert_refused(lambda: attempt(going))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda case: stays(Destruction.objects.get()).save(),
        lambda case: case.destruction.save(),  # as it was when it ran
        lambda case: Destruction.objects.update(display_name="Another"),
        lambda case: Destruction.objects.bulk_update([stays(Destruction.objects.get())], ["display_name"]),
        lambda case: Destruction.objects.all().delete(),
        lambda case: (case.key.save(force_insert=True), case.collection.save(force_insert=True)),
        lambda case: call_command("loaddata", case.dump, verbosity=0),
    ],
)
def test_what_is_gone_does_not_come_back_by_the_orm(gone: Case, attempt: Callable[[Case], object]) -> None:
    assert_refused(lambda: attempt(gone))


def test_admin_site_has_no_way_back(going: Case, client: Client, root: User) -> None:
    client.force_login(root)
    before = rows()
    for thing in (going.collection, going.destruction):
        for page in ("change", "delete"):
            address = reverse(f"admin:{thing._meta.app_label}_{thing._meta.model_name}_{page}", args=[thing.pk])
            assert client.post(address, {"status": "open", "blocked_by": "", "post": "yes"}).status_code == 403
    assert rows() == before


# --- What goes on as before ---


def test_legal_moves_are_not_in_the_way(going: Case, settings: Settings, alice: User, now: datetime) -> None:
    others = Collection.objects.exclude(pk=going.collection.pk)
    for change in (
        {"status": "deleted", "deleted_at": now},
        {"status": "open", "deleted_at": None},
        {"slug": "x", "purge_at": now},
    ):
        assert others.update(**change) == 1
    _block(going.destruction, "a lock")
    assert Collection.objects.get(pk=going.collection.pk).status == "blocked"
    assert retry_blocked(going.destruction, by=alice, now=now)

    settings.KEYRING = ROTATED
    assert list(keys.rotate(now=now)) == [(1, 0)]
    assert set(Key.objects.filter(destroyed_at=None).values_list("kek_id", flat=True)) == {"test-2027"}

    work_on()
    assert Destruction.objects.get().status == "done"
    assert not Key.objects.filter(pk=going.key.pk).exists()


# --- That they are there ---


def disarm(guard: triggers.Guard) -> None:
    """It has its name still, and refuses nothing."""
    if connection.vendor == "postgresql":
        execute(f"CREATE OR REPLACE FUNCTION {guard.name}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW;END$$")
    else:
        triggers.remove(connection, [guard])
        on = guard.on.replace("REPLACE", "INSERT")
        execute(f"CREATE TRIGGER {guard.name} BEFORE {on} ON {guard.table} WHEN FALSE BEGIN SELECT 1;END")


@pytest.mark.parametrize("guard", triggers._guards_of(connection), ids=lambda guard: guard.name)
@pytest.mark.parametrize("harm", [lambda guard: triggers.remove(connection, [guard]), disarm], ids=["dropped", "disarmed"])
def test_each_one_that_is_not_in_force_is_named_and_comes_back(
    db: None, guard: triggers.Guard, harm: Callable[[triggers.Guard], None], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    harm(guard)
    assert triggers.missing(connection) == [guard.name]

    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["guards"]) == (503, "failed")
    assert [vars(record)["error"] for record in caplog.records if record.message == "not ready"] == [
        f"DatabaseError: triggers are missing: {guard.name}"
    ]

    triggers.install(connection)
    assert triggers.missing(connection) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("model", "name"), [(Collection, "display_name"), (Key, "kek_id"), (Destruction, "blocked_by")])
def test_guards_survive_a_rebuild_of_their_table(model: type[models.Model], name: str) -> None:
    field: Any = model._meta.get_field(name)
    longer = field.clone()
    longer.max_length = field.max_length + 1
    longer.set_attributes_from_name(name)
    longer.model = model
    remove_cross_table_guards(using="default", plan=[object()])
    with connection.schema_editor() as editor:
        editor.alter_field(model, field, longer)
        editor.alter_field(model, longer, field)
    assert triggers.missing(connection)
    call_command("migrate", verbosity=0)
    assert triggers.missing(connection) == []


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_guards_survive_migrations_backwards_and_forwards() -> None:
    """Those of other tables stay in force meanwhile."""
    try:
        call_command("migrate", "files", "zero", verbosity=0)
        names = triggers.missing(connection)
        missing = {guard.table for guard in triggers.guards if guard.name in names}
        egress = {"egress_contributor", "egress_decision", "egress_egressrequest", "egress_stagedfile", "egress_transition"}
        assert missing == {"files_collection", "vault_key", "purge_destruction"} | egress
        assert [name for name in names if name.startswith("key_")] == ["key_stays_with_its_collection"]  # it asks the collections
    finally:
        call_command("migrate", verbosity=0)
    assert triggers.missing(connection) == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("harm", [lambda guard: None, lambda guard: triggers.remove(connection, [guard]), disarm])
def test_database_is_empty_and_guarded_between_tests(going: Case, harm: Callable[[triggers.Guard], None]) -> None:
    """Each test that is not rolled back begins as the first one did, whatever the one before it filled or broke."""
    harm(next(guard for guard in triggers.guards if guard.table == Collection._meta.db_table))
    kept = [list(model._default_manager.order_by("pk").values()) for model in (ContentType, Permission)]
    assert all(kept)

    empty_database()

    assert {model for model in apps.get_models(include_auto_created=True) if model._default_manager.exists()} == {
        ContentType,
        Permission,
    }
    assert [list(model._default_manager.order_by("pk").values()) for model in (ContentType, Permission)] == kept
    assert triggers.missing(connection) == []


@pytest.mark.parametrize(
    "change",
    ["ledger_number = 4", "uuid = '00000000000000000000000000000000'", "marked_at = NULL", "lost_until = ''"],
)
def test_what_is_known_of_the_ledger_is_not_forgotten(db: None, change: str) -> None:
    """F-63: a restored database that forgot its number again would serve what was destroyed."""
    identity.this_deployment()
    Deployment.objects.update(ledger_number=5, marked_at=timezone.now(), lost_until="a")
    before = Deployment.objects.values().get()
    with pytest.raises(DatabaseError, match="cannot be reset"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE vault_deployment SET {change}")  # noqa: S608  constants, above
    assert Deployment.objects.values().get() == before
