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
from purge.destruction import retry_blocked, run_next_step, start_destruction
from purge.file_destruction import destroy_each, find_destroyable
from purge.jobs import TICK_SECONDS
from purge.models import Destruction, Shard
from purge.rules import DueCollection, DueFiles, find_due, find_due_files
from vault import identity
from vault.crypto import WrongKey
from vault.stores import StoreError


class Command(BaseCommand):
    help = (
        "Destroys collections whose purge date has passed or that were deleted longer ago than DELETE_GRACE: first the key, "
        "after which no content can be read, then every version of every object, then the rows. Also destroys files whose "
        "keep_until has passed and, if UNUSED_FILE_DAYS is set, files that were never used. Skips what is held. Continues "
        "destructions that were interrupted or blocked. The server can run meanwhile, and its workers take part. The daily "
        "limits do not apply, but the clock of this host must not be ahead of the clock of the vault. The exit status is 1 if "
        "anything could not be destroyed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("collection", nargs="*", help="ids of collections; default: all that are due")
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would be destroyed, the reasons, sizes and blocking holds"
        )

    def handle(self, *, collection: list[str], dry_run: bool, **options: Any) -> None:
        now = timezone.now()
        due, due_files = list(find_due(now, slugs=collection)), list(find_due_files(now, slugs=collection))
        unfinished = Destruction.objects.exclude(status=Destruction.Status.DONE)
        unfinished = unfinished.filter(slug__in=collection) if collection else unfinished
        known = {each.collection.slug for each in due} | {each.collection.slug for each in due_files}
        known |= set(unfinished.values_list("slug", flat=True))
        if unknown := [slug for slug in collection if slug not in known]:
            raise CommandError(f"These collections are not due or do not exist: {', '.join(unknown)}. Nothing was changed.")
        if dry_run:
            self._print(due, list(unfinished.select_related("tenant").order_by("started_at")), due_files, now)
            return
        self._check_vault(now)
        for destruction in unfinished.filter(status=Destruction.Status.BLOCKED):
            retry_blocked(destruction, by=None, now=now)
        destructions = list(unfinished)
        for each in due:
            if each.is_held:
                self.stdout.write(f"{each.collection.slug}: skipped, because a hold blocks it")
            elif new := start_destruction(each.collection, by=None, now=now):
                destructions.append(new)
        remaining = self._destroy_files(collection, now) if due_files else 0
        self._finish(destructions)
        if remaining:
            raise CommandError(f"{remaining} single files could not be destroyed. The log has the reasons.")

    def _check_vault(self, now: datetime) -> None:
        try:
            identity.check(now=now)
            identity.check_history(now=now)
            limits.check_clock(now)
        except (APIException, WrongKey) as error:
            raise CommandError(f"Nothing was changed: {error} Run manage.py ledger.") from error
        except (limits.ClockAhead, StoreError) as error:
            raise CommandError(f"Nothing was changed: {error}") from error

    def _destroy_files(self, slugs: list[str], now: datetime) -> int:
        """Returns the number of due files that remain."""
        destroyed = sum(destroy_each(files, by=None, now=now) for files in find_destroyable(now, slugs=slugs))
        while cleanup.delete_due_objects(now=timezone.now()):
            pass
        self.stdout.write(f"{destroyed} single files destroyed.")
        return sum(each.count for each in find_due_files(now, slugs=slugs) if not each.is_held)

    def _print(self, due: list[DueCollection], unfinished: list[Destruction], due_files: list[DueFiles], now: datetime) -> None:
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
            (
                each.slug,
                each.tenant.slug,
                f"{each.reason}; in progress",
                str(each.file_count),
                str(each.total_length),
                each.blocked_by,
            )
            for each in unfinished
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
            f"{len(free)} collections would be destroyed, with {sum(each.file_count for each in free)} files of "
            f"{sum(each.total_length for each in free)} bytes."
        )
        if single:
            files = [each for each in single if not each.is_held]
            count, length = sum(each.count for each in files), sum(each.length for each in files)
            self.stdout.write(f"{count} single files would be destroyed, with {length} bytes.")

    def _finish(self, destructions: list[Destruction]) -> None:
        pks = [each.pk for each in destructions]
        running = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.RUNNING)
        expected = sum(each.file_count for each in destructions)
        while running.exists():
            if not run_next_step(now=timezone.now(), seconds=TICK_SECONDS, only=destructions):
                time.sleep(0.2)  # a worker of the server has the lease, or an upload is in progress
            self._show(pks, expected)
        blocked = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.BLOCKED)
        for each in Destruction.objects.filter(pk__in=pks, status=Destruction.Status.DONE).order_by("started_at"):
            self.stdout.write(f"{each.slug}: destroyed, {each.file_count} files; certificate {each.pk}")
        for each in blocked:
            self.stdout.write(f"{each.slug}: blocked: {each.blocked_by}")
        if blocked:
            raise CommandError(
                f"{len(blocked)} of {len(destructions)} destructions are blocked. Their content can no longer be read. Remove "
                "the causes above, then run this command again."
            )
        self.stdout.write(f"{len(destructions)} collections destroyed.")

    def _show(self, pks: list[Any], expected: int) -> None:
        if not sys.stderr.isatty():
            return
        erased = Shard.objects.filter(destruction__in=pks).aggregate(total=Sum("erased", default=0))["total"]
        done = min(1.0, erased / expected) if expected else 1.0
        bar = "#" * int(40 * done)
        self.stderr.write(f"\r[{bar:40}] {erased} of about {expected} objects", ending="")
        self.stderr.flush()
