from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants.auth import api_keys
from tenants.management.operator import OperatorCommand
from tenants.models import ApiKey


class Command(OperatorCommand):
    help = (
        "Revokes an API key. Links and downloads that the key started end within seconds. The prefix of a key is the part before "
        "the dot. A key of which only the prefix has leaked is still safe."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix", help="sr_ and 8 characters")

    def handle(self, *, prefix: str, **options: Any) -> None:
        key = ApiKey.objects.filter(prefix=prefix).first()
        if key is None:
            raise CommandError(f"There is no API key {prefix}.")
        api_keys.revoke(key, by=None, now=timezone.now())
        self.stdout.write(f"{prefix} is revoked.")
