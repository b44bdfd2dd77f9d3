"""A database of another version: what `migrate` does with it (F-37)."""

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder


pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]

# The migrations of each app's development versions from before 0.1: some of them, as such a database names them.
RETIRED = [("tenants", "0001_people"), ("tenants", "0002_audit_triggers"), ("files", "0001_collections")]


@pytest.fixture
def database_from_before(db: None) -> None:
    """It has migrations of ours that no longer exist, and none that do. Those of Django and of libraries are the same."""
    recorder = MigrationRecorder(connection)
    recorder.migration_qs.filter(app__in=["tenants", "vault", "files", "egress", "purge"]).delete()
    for app, name in RETIRED:
        recorder.record_applied(app, name)


@pytest.mark.parametrize("command", ["migrate", "prepare"])
def test_migrate_refuses_a_database_from_before_the_first_release(database_from_before: None, command: str) -> None:
    tables = connection.introspection.table_names()

    with pytest.raises(CommandError, match="Use a new, empty database and empty buckets"):
        call_command(command)

    assert connection.introspection.table_names() == tables
    applied = MigrationRecorder(connection).applied_migrations()
    assert {key for key in applied if key[0] in {"tenants", "files"}} == {*RETIRED}


def test_migrate_accepts_a_database_of_this_version(db: None) -> None:
    call_command("migrate", verbosity=0)
    assert ("tenants", "0001_people") not in MigrationRecorder(connection).applied_migrations()
