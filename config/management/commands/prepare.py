from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, call_command

from config.postgresql import PostgresConnection
from vault import stores


class Command(BaseCommand):
    help = "Migrates the database and, with S3_CREATE_BUCKETS=1, creates missing buckets. Safe to run again."

    def handle(self, *args: Any, **options: Any) -> None:
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # otherwise whitenoise warns that it is missing
        PostgresConnection.timeout = None  # a migration can take hours
        call_command("migrate", interactive=False, verbosity=0)
        stores.ensure_buckets()
