from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand, ask_password, find_user


class Command(OperatorCommand):
    help = "Asks for a new password of a user, and sets it. All tokens and admin sessions of the user end."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")

    def handle(self, *, username: str, **options: Any) -> None:
        user = find_user(username)
        services.set_password(user=user, password=ask_password(), by=None, now=timezone.now())
        self.stdout.write(f"Changed the password of {username}.")
