import argparse
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants.auth import api_keys
from tenants.management.operator import OperatorCommand
from tenants.models import Scope, Tenant, User


def days(text: str) -> timedelta:
    if not re.fullmatch("[0-9]{1,4}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return timedelta(days=int(text))


class Command(OperatorCommand):
    help = (
        "Prints a new API key of a member of the tenant, or of one of its service accounts, and nothing else. It is shown this "
        "once. It opens what its owner may do there, within its scopes, and never more than that: not as a superuser, and no "
        "decisions. The audit trail keeps that the key was made."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("user", help="username")
        parser.add_argument("--name", required=True, help="what it is for")
        parser.add_argument(
            "--scope", required=True, action="append", dest="scopes", choices=Scope.values, help="repeatable: %(choices)s"
        )
        parser.add_argument("--days", type=days, dest="lifetime", metavar="N", help="until it ends (default: a year)")

    def handle(self, *, tenant: str, user: str, name: str, scopes: list[str], lifetime: timedelta | None, **options: Any) -> None:
        found, owner = Tenant.objects.filter(slug=tenant).first(), User.objects.filter(username=user).first()
        if found is None:
            raise CommandError(f"There is no tenant {tenant}.")
        if owner is None:
            raise CommandError(f"There is nobody with the username {user}.")
        now = timezone.now()
        expires_at = None if lifetime is None else now + lifetime
        _, text = api_keys.create(tenant=found, owner=owner, name=name, scopes=scopes, expires_at=expires_at, by=None, now=now)
        self.stdout.write(text)
