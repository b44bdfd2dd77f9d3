from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand


class Command(OperatorCommand):
    help = "Creates a tenant without members. Add members with addmember."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", help="its short name in URLs, which cannot be changed")
        parser.add_argument("--name", help="its name (default: the slug)")

    def handle(self, *, slug: str, name: str | None, **options: Any) -> None:
        tenant = services.create_tenant(slug=slug, name=name or slug, by=None, now=timezone.now())
        self.stdout.write(f"Created tenant {tenant.slug} ({tenant.pk}).")
