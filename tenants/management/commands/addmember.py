from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand
from tenants.models import Role


class Command(OperatorCommand):
    help = (
        "Adds a user to a tenant with the given roles. An existing member keeps their other roles. A user who does not exist "
        "is created without a password: set one with changepassword or in the admin, or create a token with createusertoken. An "
        "existing user must have the given e-mail address."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("user", help="username")
        parser.add_argument("--email", default="", help="required for a new user")
        parser.add_argument(
            "--role",
            action="append",
            dest="roles",
            help=f"repeatable (default: member): {', '.join(Role.values)}, or the role of an egress stage",
        )

    def handle(self, *, tenant: str, user: str, email: str, roles: list[str] | None, **options: Any) -> None:
        membership = services.ensure_member(
            slug=tenant, username=user, email=email, roles=roles or [Role.MEMBER], by=None, now=timezone.now()
        )
        self.stdout.write(f"{user} is {', '.join(membership.roles)} in {tenant}.")
