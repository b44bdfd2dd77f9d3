from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants.auth import api_keys
from tenants.management.operator import OperatorCommand
from tenants.models import ApiKey


class Command(OperatorCommand):
    help = (
        "Revokes an API key: it opens nothing any more, and links and downloads that it started end within seconds. Its prefix "
        "is the part before the dot; if that is all that turned up somewhere, the key is still safe."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix", help="sr_ and 8 characters")

    def handle(self, *, prefix: str, **options: Any) -> None:
        key = ApiKey.objects.filter(prefix=prefix).first()
        if key is None:
            raise CommandError(f"There is no key {prefix}.")
        api_keys.revoke(key, by=None, now=timezone.now())
        self.stdout.write(f"{prefix} opens nothing any more.")
