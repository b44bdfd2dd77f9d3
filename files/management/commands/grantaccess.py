from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from files import access, grants
from files.models import GRANTABLE_LEVELS, Level
from tenants.management.operator import OperatorCommand


class Command(OperatorCommand):
    help = (
        "Gives a person, or all members of the tenant, access to a collection or to one file of it; with --revoke, takes what "
        "was given to them there. The highest level wins: what somebody has by role or by another grant stays. People of another "
        "tenant can be given access while the tenant allows external sharing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("collection", help="id, as the API shows it")
        subject = parser.add_mutually_exclusive_group(required=True)
        subject.add_argument("--user", help="username")
        subject.add_argument("--everyone", action="store_true", help="all members of the tenant")
        parser.add_argument("--file", help="filename: this file alone")
        change = parser.add_mutually_exclusive_group(required=True)
        change.add_argument("--level", choices=[level.label for level in GRANTABLE_LEVELS])
        change.add_argument("--revoke", action="store_true")

    def handle(
        self, *, collection: str, user: str | None, file: str | None, level: str | None, revoke: bool, **options: Any
    ) -> None:
        target, one = access.get_target_as_operator(collection, file)
        subject, what = user or "everyone", file or collection
        if revoke:
            given = access.grants_to(target, one, username=user).first()
            if given is None:
                raise CommandError(f"Nothing is given to {subject} on {what}.")
            grants.revoke(given, by=None, now=timezone.now())
            self.stdout.write(f"{subject} has no grant on {what} any more.")
        else:
            grants.grant(target, file=one, username=user, level=Level[str(level).upper()], by=None, now=timezone.now())
            self.stdout.write(f"{subject} is {level} of {what}.")
