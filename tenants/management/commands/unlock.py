from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand, find_user


class Command(OperatorCommand):
    help = "Resets the limits on failed sign-ins, so that a user can sign in again immediately. Does not change the password."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")

    def handle(self, *, username: str, **options: Any) -> None:
        user = find_user(username)
        services.unlock(user=user, by=None, now=timezone.now())
        self.stdout.write(f"{username} can sign in again.")
