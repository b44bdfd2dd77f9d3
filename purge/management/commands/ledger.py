from argparse import ArgumentParser
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from purge import recovery
from vault import errors, identity
from vault.crypto import WrongKey
from vault.stores import StoreError


class Command(BaseCommand):
    help = (
        "Checks that the database and the vault belong together. A database that was restored from a backup does not know "
        "later destructions, which are in the vault's ledger: uploads and downloads answer 503 until these entries are applied. "
        "Up to ten are applied automatically, more by --apply. The backup also lacks later events, such as holds and changed "
        "dates, so nothing new is destroyed or swept until --apply accepts the loss. The exit status is 1 until the database "
        "and the vault agree."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--apply", action="store_true", help="destroy the collections in the ledger again, and accept lost events"
        )
        what.add_argument("--adopt", action="store_true", help="mark a vault that has no mark as this database's")

    def handle(self, *, apply: bool, adopt: bool, **options: Any) -> None:
        try:
            if adopt:
                identity.adopt_vault(now=timezone.now())
            self._look(apply=apply)
        except errors.ForeignVault:
            uuid = identity.this_deployment().uuid
            raise CommandError(
                f"The vault does not have the mark of this database, {uuid}, in {identity.MARK_KEY}. Check the bucket and the "
                "database in the settings. If the bucket was emptied or moved and has no mark, --adopt marks it."
            ) from None
        except recovery.UnsignedEntries as error:
            raise CommandError(
                f"Nothing was applied. Examine these ledger entries and remove those that are not authentic: {error}"
            ) from None
        except (StoreError, FileNotFoundError, WrongKey, errors.StorageUnavailable) as error:
            raise CommandError(f"The vault could not be read: {error}") from error

    def _look(self, *, apply: bool) -> None:
        now = timezone.now()
        identity.clear_checks()
        with suppress(errors.DatabaseRestored):  # reported below, in detail
            identity.check(now=now)
        gap = recovery.find_gap(now=now)
        if apply:
            destroyed = recovery.close_gap(gap, now=now, accept_lost_events=True)
            self.stdout.write(f"{len(gap.entries)} entries applied: {destroyed} collections are being destroyed again.")
            gap = recovery.find_gap(now=now)
        for entry in gap.entries:
            self.stdout.write(f"{entry.number}  {entry.started_at:%Y-%m-%d %H:%M}  {entry.reason}  collection {entry.collection}")
        for problem in gap.problems:
            self.stdout.write(problem)
        here = identity.this_deployment()
        self.stdout.write(f"Deployment {here.uuid}; the last destruction has number {here.ledger_number}.")
        if gap.entries or gap.problems or gap.lost:
            found = [f"it lacks {len(gap.entries)} destructions"] if gap.entries else []
            found += [f"{len(gap.problems)} ledger entries have no valid signature"] if gap.problems else []
            found += [f"it lacks audit events up to {gap.lost.at:%Y-%m-%d %H:%M} UTC"] if gap.lost else []
            raise CommandError(f"The database is older than the vault: {', '.join(found)}. See docs/operations/backup.md.")
        self.stdout.write("The database and the vault belong together, and nothing is missing.")
