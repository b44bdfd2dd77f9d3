import argparse
import json
import re
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from tenants import services
from tenants.management.operator import OperatorCommand
from tenants.models import User


MAX_LIFETIME = timedelta(days=366)


def duration(text: str) -> timedelta:
    """Parses a number and a unit: 90s, 15m, 8h, 30d."""
    if not (match := re.fullmatch("([0-9]{1,9})([smhd])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 15m, 8h or 30d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if not 0 < seconds <= MAX_LIFETIME.total_seconds():
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1s and {MAX_LIFETIME.days}d")
    return timedelta(seconds=seconds)


class Command(OperatorCommand):
    help = (
        'Creates tokens for a user, and prints only {"access": ..., "refresh": ...}. No password is needed. Both tokens expire '
        "after --lifetime, and refreshing does not extend that. They become invalid earlier if the user is deactivated or gets a "
        "new password. The audit trail records their creation."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="username or id")
        parser.add_argument("--lifetime", type=duration, default="8h", help="90s, 15m, 8h, 30d (default: %(default)s)")

    def handle(self, *, user: str, lifetime: timedelta, **options: Any) -> None:
        found = User.objects.filter(username=user).first()
        if found is None and re.fullmatch("[0-9]{1,18}", user):
            found = User.objects.filter(pk=user).first()
        if found is None:
            raise CommandError(f"There is no user with the username or id {user}.")
        self.stdout.write(json.dumps(services.create_token(user=found, lifetime=lifetime, by=None, now=timezone.now())))
