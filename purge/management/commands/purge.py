import sys
import time
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Sum
from django.utils import timezone
from rest_framework.exceptions import APIException

from files import cleanup
from purge import limits
from purge.destruction import begin, retry_blocked, work
from purge.file_destruction import destroy_each, find_destroyable
from purge.jobs import TICK
from purge.models import Destruction, Shard
from purge.rules import Due, DueFiles, find_due, find_due_files
from vault import identity
from vault.crypto import WrongKey
from vault.stores import StoreError


class Command(BaseCommand):
    help = (
        "Destroys the collections whose purge date is over, or that were deleted longer ago than DELETE_GRACE, and finishes "
        "before it ends: the key first, so that nobody can read them any more, then every version of every object, then the "
        "rows. Then the single files whose keep_until is over, and those that nobody ever used if UNUSED_FILE_DAYS says so. What "
        "is under a hold stays. What was begun before, and was killed or blocked, is taken up again. The server may run "
        "meanwhile, and its workers help. The schedule's daily limits do not count here, but this host's clock must not be ahead "
        "of the vault's. Exit 1 if something would not go."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("collection", nargs="*", help="ids, of which what is due goes, or files of it; without any, all")
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would be destroyed, the reasons, sizes and blocking holds"
        )

    def handle(self, *, collection: list[str], dry_run: bool, **options: Any) -> None:
        now = timezone.now()
        due, due_files = list(find_due(now, slugs=collection)), list(find_due_files(now, slugs=collection))
        begun = Destruction.objects.exclude(status=Destruction.Status.DONE)
        begun = begun.filter(slug__in=collection) if collection else begun
        known = {each.collection.slug for each in due} | {each.collection.slug for each in due_files}
        known |= set(begun.values_list("slug", flat=True))
        if unknown := [slug for slug in collection if slug not in known]:
            raise CommandError(f"Not due, or not there: {', '.join(unknown)}. Nothing was done.")
        if dry_run:
            self._print(due, list(begun.select_related("tenant").order_by("started_at")), due_files, now)
            return
        self._refuse_in_doubt(now)
        for destruction in begun.filter(status=Destruction.Status.BLOCKED):
            retry_blocked(destruction, by=None, now=now)
        destructions = list(begun)
        for each in due:
            if each.is_held:
                self.stdout.write(f"{each.collection.slug}: held, and stays")
            elif new := begin(each.collection, by=None, now=now):
                destructions.append(new)
        remaining = self._destroy_files(collection, now) if due_files else 0
        self._finish(destructions)
        if remaining:
            raise CommandError(f"{remaining} single files would not go: the log says why.")

    def _refuse_in_doubt(self, now: datetime) -> None:
        try:
            identity.check(now=now)
            identity.check_history(now=now)
            limits.check_clock(now)
        except (APIException, WrongKey) as error:
            raise CommandError(f"Nothing was done: {error} See manage.py ledger.") from error
        except (limits.ClockAhead, StoreError) as error:
            raise CommandError(f"Nothing was done: {error}") from error

    def _destroy_files(self, slugs: list[str], now: datetime) -> int:
        """Returns how many are left."""
        gone = sum(destroy_each(files, by=None, now=now) for files in find_destroyable(now, slugs=slugs))
        while cleanup.delete_due_objects(now=timezone.now()):
            pass
        self.stdout.write(f"{gone} single files destroyed.")
        return sum(each.count for each in find_due_files(now, slugs=slugs) if not each.is_held)

    def _print(self, due: list[Due], begun: list[Destruction], due_files: list[DueFiles], now: datetime) -> None:
        rows = [
            (
                each.collection.slug,
                each.collection.tenant.slug,
                each.rule.explain(each.collection, now),
                str(each.collection.file_count),
                str(each.collection.total_length),
                "a hold" if each.is_held else "",
            )
            for each in due
        ]
        rows += [
            (each.slug, each.tenant.slug, f"{each.reason}; begun", str(each.file_count), str(each.total_length), each.blocked_by)
            for each in begun
        ]
        free = [each.collection for each in due if not each.is_held]
        single = [each for each in due_files if each.collection not in free]
        rows += [
            (
                each.collection.slug,
                each.collection.tenant.slug,
                f"single files: {each.rule.explain(each.first, now)}{' and others' if each.count > 1 else ''}",
                str(each.count),
                str(each.length),
                "a hold" if each.is_held else "",
            )
            for each in single
        ]
        head = ("collection", "tenant", "reason", "files", "bytes", "blocked by")
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        self.stdout.write(
            f"{len(free)} collections would go, with {sum(each.file_count for each in free)} files of "
            f"{sum(each.total_length for each in free)} bytes."
        )
        if single:
            gone = [each for each in single if not each.is_held]
            self.stdout.write(f"{sum(e.count for e in gone)} single files would go, of {sum(e.length for e in gone)} bytes.")

    def _finish(self, destructions: list[Destruction]) -> None:
        pks = [each.pk for each in destructions]
        running = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.RUNNING)
        expected = sum(each.file_count for each in destructions)
        while running.exists():
            if not work(now=timezone.now(), seconds=TICK, only=destructions):
                time.sleep(0.2)  # a worker of the server is at it, or an upload is just ending
            self._show(pks, expected)
        blocked = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.BLOCKED)
        for each in Destruction.objects.filter(pk__in=pks, status=Destruction.Status.DONE).order_by("started_at"):
            self.stdout.write(f"{each.slug}: destroyed, {each.file_count} files; certificate {each.pk}")
        for each in blocked:
            self.stdout.write(f"{each.slug}: blocked: {each.blocked_by}")
        if blocked:
            raise CommandError(f"{len(blocked)} of {len(destructions)} are blocked; nobody can read them any more all the same.")
        self.stdout.write(f"{len(destructions)} collections destroyed.")

    def _show(self, pks: list[Any], expected: int) -> None:
        if not sys.stderr.isatty():
            return
        erased = Shard.objects.filter(destruction__in=pks).aggregate(total=Sum("erased", default=0))["total"]
        done = min(1.0, erased / expected) if expected else 1.0
        bar = "#" * int(40 * done)
        self.stderr.write(f"\r[{bar:40}] {erased} of about {expected} objects", ending="")
        self.stderr.flush()
