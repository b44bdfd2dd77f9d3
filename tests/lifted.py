"""Without the guards of the database: for what its owner could do, and for cleaning up."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

from tenants import triggers


@contextmanager
def guards_lifted() -> Iterator[None]:
    with transaction.atomic():
        connection.check_constraints()  # PostgreSQL drops no trigger of a table that has checks put off
        triggers.remove(connection)
        yield
        triggers.install(connection)
