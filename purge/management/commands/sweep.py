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
        "Compares every bucket with the database: objects and unfinished uploads that no row names, older than SWEEP_GRACE, and "
        "files whose object is gone or has another size. Without options it changes nothing. Keys that are not of our own form "
        "and tenants are left alone. Refuses on another deployment's bucket, on a database that is older than the vault, and if "
        "more than one in 20 (and more than 100) would go. Exit 1 if it refused, or if files are missing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--apply", action="store_true", help="destroy the orphans, and mark the files that are missing")
        parser.add_argument("--at-most", type=int, metavar="N", help="how many may go from, or be missing in, one bucket")

    def handle(self, *, apply: bool, at_most: int | None, **options: Any) -> None:
        now, missing = timezone.now(), 0
        try:
            found = list(orphans.survey(now=now))  # all of them before the first is changed
            for each in found:
                missing += len(each.missing)
                self._print(each)
                if apply:
                    gone = orphans.sweep(each, at_most=at_most, now=now)
                    self.stdout.write(f"  {gone} destroyed, {len(each.missing)} marked missing, {len(each.found)} found again")
        except orphans.TooMany as error:
            raise CommandError(
                f"{error}: more than is likely, and nothing of it was changed. Is this the right bucket, and the right database? "
                "--at-most N allows it."
            ) from None
        except (APIException, StoreError, FileNotFoundError, WrongKey) as error:
            raise CommandError(f"Nothing was changed: {error} See manage.py ledger.") from error
        if missing:
            raise CommandError(f"{missing} files are missing.")

    def _print(self, found: Survey) -> None:
        self.stdout.write(
            f"{found.store}: {found.objects} objects of ours, {found.files} files; {found.orphaned} orphaned with "
            f"{found.orphaned_bytes} bytes, {found.young} too young to tell, {found.strangers} that are not ours"
        )
        for entry in found.orphans:
            self.stdout.write(f"  orphaned {entry.kind} {entry.key} {entry.size} {entry.modified:%Y-%m-%dT%H:%M:%SZ}")
        for file in found.missing:
            self.stdout.write(f"  missing {file.object_key}: file {file.uuid} of {file.collection.slug}")
        for file in found.found:
            self.stdout.write(f"  found again {file.object_key}: file {file.uuid}")
