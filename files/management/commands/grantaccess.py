from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from files import access, grants
from files.models import GRANTABLE_LEVELS, Level
from tenants.management.operator import OperatorCommand


class Command(OperatorCommand):
    help = (
        "Gives a user, or all members of the tenant, access to a collection or to one of its files. With --revoke, deletes that "
        "grant. The highest level applies, so levels from roles and from other grants remain. Users of other tenants can have "
        "access while the tenant allows external sharing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("collection", help="id of the collection in the API")
        subject = parser.add_mutually_exclusive_group(required=True)
        subject.add_argument("--user", help="username")
        subject.add_argument("--everyone", action="store_true", help="all members of the tenant")
        parser.add_argument("--file", help="name of a single file in the collection")
        change = parser.add_mutually_exclusive_group(required=True)
        change.add_argument("--level", choices=[level.label for level in GRANTABLE_LEVELS], help="level to grant")
        change.add_argument("--revoke", action="store_true", help="delete the grant")

    def handle(
        self, *, collection: str, user: str | None, file: str | None, level: str | None, revoke: bool, **options: Any
    ) -> None:
        target, target_file = access.get_target_as_operator(collection, file)
        subject, target_name = user or "everyone", file or collection
        if revoke:
            grant = access.grants_to(target, target_file, username=user).first()
            if grant is None:
                raise CommandError(f"There is no grant to {subject} on {target_name}.")
            grants.revoke_grant(grant, by=None, now=timezone.now())
            self.stdout.write(f"Revoked the grant to {subject} on {target_name}.")
        else:
            new_level = Level[str(level).upper()]
            grants.grant_access(target, file=target_file, username=user, level=new_level, by=None, now=timezone.now())
            self.stdout.write(f"Granted the level {level} on {target_name} to {subject}.")
