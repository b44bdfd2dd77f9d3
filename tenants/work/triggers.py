"""Database triggers that refuse statements, whatever program sends them. Each app registers its guards in its `triggers.py`.

Django's SQLite schema editor drops triggers when it rebuilds a table, so they are reinstalled after each `migrate`. `/readyz`
reports `missing()`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


@dataclass(frozen=True, slots=True)
class Guard:
    """A trigger that refuses one kind of statement on one table.

    `when` is an SQL condition on the rows OLD and NEW that both databases accept. TRUNCATE exists on PostgreSQL only. REPLACE is
    SQLite's INSERT OR REPLACE, which deletes conflicting rows without firing DELETE triggers: its `when` is a condition on an
    existing row, true if the row conflicts with NEW.
    """

    name: str
    table: str
    on: Literal["INSERT", "UPDATE", "DELETE", "REPLACE", "TRUNCATE"]
    refusal: str  # the error message; without apostrophes
    when: str = "TRUE"
    also_reads: str = ""  # another table that `when` reads


guards: Final[list[Guard]] = []


def register(*more: Guard) -> None:
    guards.extend(more)


def install(connection: BaseDatabaseWrapper) -> None:
    """Creates the guards that are missing, disabled or outdated. Skips guards of tables that do not exist yet."""
    tables = {*connection.introspection.table_names(), ""}
    absent = missing(connection)
    for guard in _guards_of(connection):
        if guard.name in absent and {guard.table, guard.also_reads} <= tables:
            remove(connection, [guard])
            with connection.cursor() as cursor:
                if connection.vendor == "postgresql":
                    cursor.execute(_function(guard))
                cursor.execute(_trigger(guard, connection.vendor))


def install_in_migration(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """For `RunPython` at the end of an app's first migration, so that its tables are never without guards."""
    install(schema_editor.connection)


def remove(connection: BaseDatabaseWrapper, some: Iterable[Guard] = guards) -> None:
    """Drops guards. For migrations, and for tests that must empty or damage a table."""
    with connection.cursor() as cursor:
        for guard in some:
            on_table = f" ON {guard.table}" if connection.vendor == "postgresql" else ""
            cursor.execute(f"DROP TRIGGER IF EXISTS {guard.name}{on_table}")


def missing(connection: BaseDatabaseWrapper) -> Sequence[str]:
    """Returns the names of the guards that are missing, disabled or outdated."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # The other values of tgenabled are 'D' (disabled) and 'R' (fires in replication mode only).
            cursor.execute(
                "SELECT relname, tgname, prosrc FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
                " JOIN pg_proc ON pg_proc.oid = tgfoid WHERE tgenabled IN ('O', 'A') AND pg_table_is_visible(tgrelid)"
            )
            present = set(cursor.fetchall())
            return [guard.name for guard in _guards_of(connection) if (guard.table, guard.name, _body(guard)) not in present]
        cursor.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'")
        definitions = {sql for (sql,) in cursor.fetchall()}
        return [guard.name for guard in _guards_of(connection) if _trigger(guard, connection.vendor) not in definitions]


def _guards_of(connection: BaseDatabaseWrapper) -> list[Guard]:
    unsupported = {"sqlite": "TRUNCATE", "postgresql": "REPLACE"}[connection.vendor]
    return [guard for guard in guards if guard.on != unsupported]


def _trigger(guard: Guard, vendor: str) -> str:
    name, table, on, when = guard.name, guard.table, guard.on, guard.when
    if vendor == "postgresql":
        row = "STATEMENT" if on == "TRUNCATE" else "ROW"
        return f"CREATE TRIGGER {name} BEFORE {on} ON {table} FOR EACH {row} EXECUTE FUNCTION {name}()"
    if on == "REPLACE":
        on, when = "INSERT", f"EXISTS (SELECT 1 FROM {table} WHERE {when})"  # noqa: S608  constants
    return f"CREATE TRIGGER {name} BEFORE {on} ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, '{guard.refusal}'); END"


def _function(guard: Guard) -> str:
    return f"CREATE OR REPLACE FUNCTION {guard.name}() RETURNS trigger LANGUAGE plpgsql AS $${_body(guard)}$$"


def _body(guard: Guard) -> str:
    refuse = f"RAISE EXCEPTION USING MESSAGE = '{guard.refusal}', ERRCODE = 'restrict_violation'"
    return f"BEGIN IF {guard.when} THEN {refuse}; END IF; RETURN COALESCE(NEW, OLD); END"
