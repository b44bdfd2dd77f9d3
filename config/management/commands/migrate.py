from typing import Any, Final

from django.core.management import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder


# The first migration before all migrations were replaced. Only databases of development versions contain it.
RETIRED: Final = ("tenants", "0001_people")


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        """Refuses a database of a development version. Django would only report that tables already exist.

        Raises: CommandError.
        """
        if RETIRED in MigrationRecorder(connections[options["database"]]).applied_migrations():
            raise CommandError(
                "A development version before 0.1 created this database, which cannot be upgraded. "
                "Use a new, empty database and empty buckets, or keep running the version that created it."
            )
        super().handle(*args, **options)
