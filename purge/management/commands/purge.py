import sys
import time
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Sum
from django.utils import timezone
from rest_framework.exceptions import APIException

from files import deployment
from files.crypto import WrongKey
from purge import destroying
from purge.due import Due, find_due
from purge.models import Destruction, Portion
from purge.schedule import TICK


class Command(BaseCommand):
    help = (
        "Destroys the collections whose purge date is over, or that were deleted longer ago than DELETE_GRACE, and finishes "
        "before it ends: the key first, so that nobody can read them any more, then every version of every object, then the "
        "rows. What is under a hold stays. What was begun before, and was killed or blocked, is taken up again. The server may "
        "run meanwhile, and its workers help. Exit 1 if something in the storage would not go."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("collection", nargs="*", help="ids; without any, all that are due")
        parser.add_argument("--dry-run", action="store_true", help="print what would go, why, how much and what blocks it")

    def handle(self, *, collection: list[str], dry_run: bool, **options: Any) -> None:
        now = timezone.now()
        due = list(find_due(now, slugs=collection))
        begun = Destruction.objects.exclude(status=Destruction.Status.DONE)
        begun = begun.filter(slug__in=collection) if collection else begun
        known = {each.collection.slug for each in due} | set(begun.values_list("slug", flat=True))
        if unknown := [slug for slug in collection if slug not in known]:
            raise CommandError(f"Not due, or not there: {', '.join(unknown)}. Nothing was done.")
        if dry_run:
            self._print(due, list(begun.select_related("tenant").order_by("began_at")))
            return
        self._refuse_in_doubt(now)
        for destruction in begun.filter(status=Destruction.Status.BLOCKED):
            destroying.try_again(destruction, by=None, now=now)
        destructions = list(begun)
        for each in due:
            if each.is_held:
                self.stdout.write(f"{each.collection.slug}: held, and stays")
            elif new := destroying.begin(each.collection, by=None, now=now):
                destructions.append(new)
        self._finish(destructions)

    def _refuse_in_doubt(self, now: datetime) -> None:
        try:
            deployment.check(now=now)
            deployment.check_history(now=now)
        except (APIException, WrongKey) as error:
            raise CommandError(f"{error} Nothing was done; see manage.py ledger.") from error

    def _print(self, due: list[Due], begun: list[Destruction]) -> None:
        rows = [
            (
                each.collection.slug,
                each.collection.tenant.slug,
                each.rule.explain(each.collection),
                str(each.collection.file_count),
                str(each.collection.total_length),
                "a hold" if each.is_held else "",
            )
            for each in due
        ]
        rows += [
            (each.slug, each.tenant.slug, f"{each.why}; begun", str(each.file_count), str(each.total_length), each.blocked_by)
            for each in begun
        ]
        head = ("collection", "tenant", "why", "files", "bytes", "blocked by")
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        free = [each.collection for each in due if not each.is_held]
        self.stdout.write(
            f"{len(free)} collections would go, with {sum(each.file_count for each in free)} files of "
            f"{sum(each.total_length for each in free)} bytes."
        )

    def _finish(self, destructions: list[Destruction]) -> None:
        pks = [each.pk for each in destructions]
        running = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.RUNNING)
        expected = sum(each.file_count for each in destructions)
        while running.exists():
            if not destroying.work(now=timezone.now(), seconds=TICK, only=destructions):
                time.sleep(0.2)  # a worker of the server is at it, or an upload is just ending
            self._show(pks, expected)
        blocked = Destruction.objects.filter(pk__in=pks, status=Destruction.Status.BLOCKED)
        for each in Destruction.objects.filter(pk__in=pks, status=Destruction.Status.DONE).order_by("began_at"):
            self.stdout.write(f"{each.slug}: destroyed, {each.file_count} files; certificate {each.pk}")
        for each in blocked:
            self.stdout.write(f"{each.slug}: blocked: {each.blocked_by}")
        if blocked:
            raise CommandError(f"{len(blocked)} of {len(destructions)} are blocked; nobody can read them any more all the same.")
        self.stdout.write(f"{len(destructions)} collections destroyed.")

    def _show(self, pks: list[Any], expected: int) -> None:
        if not sys.stderr.isatty():
            return
        erased = Portion.objects.filter(destruction__in=pks).aggregate(total=Sum("erased", default=0))["total"]
        done = min(1.0, erased / expected) if expected else 1.0
        bar = "#" * int(40 * done)
        self.stderr.write(f"\r[{bar:40}] {erased} of about {expected} objects", ending="")
        self.stderr.flush()
