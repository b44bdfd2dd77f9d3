from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Refuses: Django's command of this name writes no audit event. Use createsupertenant, or the admin's people page."

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError("Use createsupertenant: it makes the first tenant and its superuser, and is on record.")
