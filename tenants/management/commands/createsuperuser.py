from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = "Disabled, because Django's command writes no audit event. Use createsupertenant, or add a user in the admin."

    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError("Use createsupertenant, which creates the first tenant and its superuser and writes audit events.")
