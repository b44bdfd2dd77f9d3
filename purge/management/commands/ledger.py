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
        "Says whether the database and the vault belong together. A database that was restored from a backup lacks destructions "
        "that the vault's ledger has: uploads and downloads answer 503 until they are applied to it, a few by themselves, many "
        "by --apply. It also lacks what happened since: nothing new is destroyed or swept until --apply says that this is known, "
        "as what is due by the backup may have been kept, held or restored later. Exit 1 while something is wrong."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--apply", action="store_true", help="destroy again what the ledger names, and accept what is lost")
        what.add_argument("--adopt", action="store_true", help="take a vault that has no mark for this database's: it was moved")

    def handle(self, *, apply: bool, adopt: bool, **options: Any) -> None:
        try:
            if adopt:
                identity.adopt_vault(now=timezone.now())
            self._look(apply=apply)
        except errors.ForeignVault:
            uuid = identity.this_deployment().uuid
            raise CommandError(
                f"The vault does not have the mark of this database, {uuid}, in {identity.MARK_KEY}. It is another bucket or "
                "database, or it was emptied or moved: --adopt marks one that has no mark at all."
            ) from None
        except recovery.UnsignedEntries as error:
            raise CommandError(
                f"Nothing was applied. Look at these objects, and remove what nobody can explain: {error}"
            ) from None
        except (StoreError, FileNotFoundError, WrongKey, errors.StorageUnavailable) as error:
            raise CommandError(f"The vault could not be read: {error}") from error

    def _look(self, *, apply: bool) -> None:
        now = timezone.now()
        identity.clear_checks()
        with suppress(errors.DatabaseRestored):  # which is what we are here to tell
            identity.check(now=now)
        gap = recovery.find_gap(now=now)
        if apply:
            destroyed = recovery.close_gap(gap, now=now, lost_too=True)
            self.stdout.write(f"{len(gap.entries)} entries applied: {destroyed} collections are being destroyed again.")
            gap = recovery.find_gap(now=now)
        for entry in gap.entries:
            self.stdout.write(f"{entry.number}  {entry.started_at:%Y-%m-%d %H:%M}  {entry.reason}  collection {entry.collection}")
        for problem in gap.problems:
            self.stdout.write(problem)
        here = identity.this_deployment()
        self.stdout.write(f"Deployment {here.uuid}; the last destruction has number {here.ledger_number}.")
        if gap.entries or gap.problems or gap.lost:
            found = [f"{len(gap.entries)} destructions are not in it"] if gap.entries else []
            found += [f"{len(gap.problems)} entries are signed by nobody"] if gap.problems else []
            found += [f"its events up to {gap.lost.at:%Y-%m-%d %H:%M} UTC are gone"] if gap.lost else []
            raise CommandError(f"The database is older than the vault: {', '.join(found)}. See docs/operations/backup.md.")
        self.stdout.write("The database and the vault belong together, and nothing is missing.")
