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


LONGEST = timedelta(days=366)


def duration(text: str) -> timedelta:
    """A number and a unit: 90s, 15m, 8h, 30d."""
    if not (match := re.fullmatch("([0-9]{1,9})([smhd])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 15m, 8h or 30d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if not 0 < seconds <= LONGEST.total_seconds():
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1s and {LONGEST.days}d")
    return timedelta(seconds=seconds)


class Command(OperatorCommand):
    help = (
        'Prints {"access": ..., "refresh": ...} for a person and nothing else. Both live as long as --lifetime says, and no '
        "refreshing prolongs that. They end earlier with the person's deactivation or a new password. No password is needed; "
        "the audit trail keeps that the token was made."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="username or id")
        parser.add_argument("--lifetime", type=duration, default="8h", help="90s, 15m, 8h, 30d (default: %(default)s)")

    def handle(self, *, user: str, lifetime: timedelta, **options: Any) -> None:
        person = User.objects.filter(username=user).first()
        if person is None and re.fullmatch("[0-9]{1,18}", user):
            person = User.objects.filter(pk=user).first()
        if person is None:
            raise CommandError(f"There is nobody with the username or id {user}.")
        self.stdout.write(json.dumps(services.create_token(user=person, lifetime=lifetime, by=None, now=timezone.now())))
