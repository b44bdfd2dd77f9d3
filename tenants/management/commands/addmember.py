from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand
from tenants.models import Role


class Command(OperatorCommand):
    help = (
        "Makes a person a member of a tenant, with the given roles besides those that they have there already. "
        "Whoever does not exist is created, with the e-mail address and without a password: give them one with changepassword "
        "or in the admin, or a token with createusertoken. If they exist, an e-mail address that is not theirs is refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("user", help="username")
        parser.add_argument("--email", default="", help="needed for a new person")
        parser.add_argument(
            "--role",
            action="append",
            dest="roles",
            help=f"repeatable, default member: {', '.join(Role.values)}, or a stage's role",
        )

    def handle(self, *, tenant: str, user: str, email: str, roles: list[str] | None, **options: Any) -> None:
        membership = services.ensure_member(
            slug=tenant, username=user, email=email, roles=roles or [Role.MEMBER], by=None, now=timezone.now()
        )
        self.stdout.write(f"{user} is {', '.join(membership.roles)} in {tenant}.")
