"""The database itself refuses to change or forget an audit event, whoever asks and however.

Django's SQLite schema editor drops triggers when it rebuilds a table, so that they are installed again after every
`migrate`; `/readyz` reports `missing()`.
"""

from collections.abc import Sequence

from django.db.backends.base.base import BaseDatabaseWrapper


TABLE = "tenants_auditevent"
REFUSAL = "audit events are append-only"

_SQLITE = {
    "audit_event_no_update": f"BEFORE UPDATE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    "audit_event_no_delete": f"BEFORE DELETE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    # INSERT OR REPLACE deletes the row in its way without firing the trigger above.
    "audit_event_no_replace": (
        f"BEFORE INSERT ON {TABLE} WHEN EXISTS (SELECT 1 FROM {TABLE}"  # noqa: S608  constants
        f" WHERE rowid = NEW.rowid OR id = NEW.id OR (chain = NEW.chain AND seq = NEW.seq))"
        f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    ),
}
_POSTGRESQL = {
    "audit_event_no_change": f"BEFORE UPDATE OR DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION audit_event_refuse()",
    "audit_event_no_truncate": f"BEFORE TRUNCATE ON {TABLE} FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse()",
}
_POSTGRESQL_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION audit_event_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'restrict_violation'; END $$
"""


def _wanted(connection: BaseDatabaseWrapper) -> dict[str, str]:
    return {"sqlite": _SQLITE, "postgresql": _POSTGRESQL}[connection.vendor]


def install(connection: BaseDatabaseWrapper) -> None:
    """Puts every trigger in place, also one that was disabled."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_POSTGRESQL_FUNCTION)
        absent = missing(connection)
        for name, definition in _wanted(connection).items():
            if name in absent:
                _drop(connection, name)
                cursor.execute(f"CREATE TRIGGER {name} {definition}")


def remove(connection: BaseDatabaseWrapper) -> None:
    """For migrations backwards, and for tests that must empty or damage the table."""
    for name in _wanted(connection):
        _drop(connection, name)


def missing(connection: BaseDatabaseWrapper) -> Sequence[str]:
    """Names of the triggers that are not in force; empty when all is well."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # 'D' is disabled; 'R' fires in replication only.
            cursor.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgenabled IN ('O', 'A')", [TABLE])
        else:
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = %s", [TABLE])
        present = {name for (name,) in cursor.fetchall()}
    return [name for name in _wanted(connection) if name not in present]


def _drop(connection: BaseDatabaseWrapper, name: str) -> None:
    on_table = f" ON {TABLE}" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER IF EXISTS {name}{on_table}")
