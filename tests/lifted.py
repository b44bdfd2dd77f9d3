"""Without the guards of the database: for what its owner could do, and for cleaning up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection, transaction

from tenants.work import triggers


OF_MIGRATE: Final = {model._meta.db_table for model in (ContentType, Permission)}


@contextmanager
def guards_lifted() -> Iterator[None]:
    with transaction.atomic():
        connection.check_constraints()  # PostgreSQL drops no trigger of a table that has checks put off
        triggers.remove(connection)
        yield
        triggers.install(connection)


def empty_database() -> None:
    """As the command `flush`, which empties every table, makes what `migrate` makes anew, and would need every guard lifted.

    Only tables with rows are emptied, and only what guards those is put back, with any guard that the test had damaged.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - OF_MIGRATE
        cursor.execute(" UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in sorted(tables)))  # noqa: S608  our own
        filled = [table for (table,) in cursor.fetchall()]
        triggers.remove(connection, [guard for guard in triggers.guards if guard.on == "DELETE" and guard.table in filled])
        for table in filled:
            cursor.execute(f"DELETE FROM {table}")  # noqa: S608  our own
        connection.check_constraints()  # PostgreSQL makes no trigger of a table that has checks put off
        triggers.install(connection)
