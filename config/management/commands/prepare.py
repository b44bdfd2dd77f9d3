from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, call_command

from config.postgresql import Connection
from vault import stores


class Command(BaseCommand):
    help = "Brings the database to this version and, with S3_CREATE_BUCKETS=1, creates missing buckets. Safe to run again."

    def handle(self, *args: Any, **options: Any) -> None:
        settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # or whitenoise warns of it, where nothing was collected
        Connection.timeout = None  # a migration may take hours
        call_command("migrate", interactive=False, verbosity=0)
        stores.ensure_buckets()
