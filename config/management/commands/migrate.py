from typing import Any, Final

from django.core.management import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder


# The first migration before all of them were written anew. Every database from before has it, and no other.
RETIRED: Final = ("tenants", "0001_people")


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        """Django's, unless the database is of a development version: its own answer would be that tables exist already.

        Raises: CommandError.
        """
        if RETIRED in MigrationRecorder(connections[options["database"]]).applied_migrations():
            raise CommandError(
                "This database was created by a development version before 0.1, which cannot be upgraded: "
                "start with a new, empty database and empty buckets, or keep running the version that created it."
            )
        super().handle(*args, **options)
