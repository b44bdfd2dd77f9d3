import os
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand, ask_password
from tenants.models import User


class Command(OperatorCommand):
    help = (
        "Creates the first tenant and its superuser, who is also its admin. Asks for missing values, unless --no-input is given. "
        "Does not change an existing tenant or superuser, so it is safe to run again. Refuses an existing user who is not a "
        "superuser."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--slug", help="the tenant's short name in URLs")
        parser.add_argument("--name", help="the tenant's name (default: the slug)")
        parser.add_argument("--username")
        parser.add_argument("--email")
        parser.add_argument(
            "--password", help="visible in the list of processes; DJANGO_SUPERUSER_PASSWORD in the environment is not"
        )
        parser.add_argument("--no-input", action="store_false", dest="interactive", help="fail instead of asking")

    def handle(self, *, interactive: bool, password: str | None, name: str | None, **options: Any) -> None:
        slug = self._value("slug", options["slug"], interactive=interactive)
        username = self._value("username", options["username"], interactive=interactive)
        email, password = options["email"] or "", password or os.environ.get("DJANGO_SUPERUSER_PASSWORD")
        if not User.objects.filter(username=username).exists():
            email = self._value("email", email, interactive=interactive)
            if password is None and interactive:
                password = ask_password()
        services.bootstrap_tenant(
            slug=slug, name=name or slug, username=username, email=email, password=password, now=timezone.now()
        )
        self.stdout.write(f"Tenant {slug} and its superuser {username} exist.")

    def _value(self, option: str, value: str | None, *, interactive: bool) -> str:
        if not value and interactive:
            value = input(f"{option.capitalize()}: ").strip()
        if not value:
            raise CommandError(f"Give a value for --{option}.")
        return value
