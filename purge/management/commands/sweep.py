from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rest_framework.exceptions import APIException

from purge import orphans
from purge.orphans import Survey
from vault.crypto import WrongKey
from vault.stores import StoreError


class Command(BaseCommand):
    help = (
        "Compares every bucket with the database. Lists orphans (objects and unfinished uploads without a row, older than "
        "SWEEP_GRACE) and files whose object is missing or has another size. Changes nothing without --apply. Ignores keys that "
        "this application did not create. Refuses to continue if the bucket belongs to another deployment, if the database is "
        "older than the vault, or if it would change more than 5 percent of a bucket and more than 100 objects. The exit status "
        "is 1 if it refused or if files are missing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--apply", action="store_true", help="destroy orphans and mark missing files")
        parser.add_argument("--at-most", type=int, metavar="N", help="allow up to N orphans and N missing files per bucket")

    def handle(self, *, apply: bool, at_most: int | None, **options: Any) -> None:
        now, missing = timezone.now(), 0
        try:
            found = list(orphans.survey(now=now))  # survey every bucket before changing the first
            for each in found:
                missing += len(each.missing)
                self._print(each)
                if apply:
                    destroyed = orphans.sweep(each, at_most=at_most, now=now)
                    self.stdout.write(
                        f"  destroyed {destroyed}, marked missing {len(each.missing)}, restored {len(each.restored)}"
                    )
        except orphans.TooManyDifferences as error:
            raise CommandError(
                f"{error}, which is suspiciously many. Nothing was changed in this bucket. Check whether the settings name the "
                "right bucket and database. If they do, allow the number with --at-most N."
            ) from None
        except (APIException, StoreError, FileNotFoundError, WrongKey) as error:
            raise CommandError(f"Nothing was changed: {error} Run manage.py ledger.") from error
        if missing:
            raise CommandError(f"{missing} files are missing.")

    def _print(self, found: Survey) -> None:
        self.stdout.write(
            f"{found.store}: {found.objects} objects, {found.files} files; {found.orphaned} orphaned with "
            f"{found.orphaned_bytes} bytes, {found.recent} too recent to judge, {found.foreign} foreign keys"
        )
        for entry in found.orphans:
            self.stdout.write(f"  orphaned {entry.kind} {entry.key} {entry.size} {entry.modified:%Y-%m-%dT%H:%M:%SZ}")
        for file in found.missing:
            self.stdout.write(f"  missing {file.object_key}: file {file.uuid} of {file.collection.slug}")
        for file in found.restored:
            self.stdout.write(f"  restored {file.object_key}: file {file.uuid}")
