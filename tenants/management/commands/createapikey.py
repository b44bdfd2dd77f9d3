import argparse
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants.auth import api_keys
from tenants.management.operator import OperatorCommand, find_user
from tenants.models import Scope, Tenant


def days(text: str) -> timedelta:
    if not re.fullmatch("[0-9]{1,4}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return timedelta(days=int(text))


class Command(OperatorCommand):
    help = (
        "Creates an API key for a member or a service account of the tenant, and prints only the key. The key cannot be shown "
        "again. It grants the rights of its owner in the tenant, limited by its scopes. It cannot decide on egress requests and "
        "never has the rights of a superuser. The audit trail records its creation."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("user", help="username")
        parser.add_argument("--name", required=True, help="the purpose of the key, in one line")
        parser.add_argument(
            "--scope", required=True, action="append", dest="scopes", choices=Scope.values, help="repeatable: %(choices)s"
        )
        parser.add_argument("--days", type=days, dest="lifetime", metavar="N", help="days until it expires (default: a year)")

    def handle(self, *, tenant: str, user: str, name: str, scopes: list[str], lifetime: timedelta | None, **options: Any) -> None:
        found = Tenant.objects.filter(slug=tenant).first()
        if found is None:
            raise CommandError(f"There is no tenant {tenant}.")
        owner = find_user(user)
        now = timezone.now()
        expires_at = None if lifetime is None else now + lifetime
        _, text = api_keys.create(tenant=found, owner=owner, name=name, scopes=scopes, expires_at=expires_at, by=None, now=now)
        self.stdout.write(text)
