"""Leases: which worker processes a row. The lease is stored in the row, since a broker can deliver a task late or repeatedly."""

from datetime import datetime, timedelta
from secrets import token_hex
from typing import Self, TypeVar

from django.db import models
from django.db.models import F, Q, QuerySet


class LeaseLost(Exception):
    """Another worker has claimed the row. Stop, and write nothing more to it."""


class Leased(models.Model):
    """A row that one worker processes at a time. After `claim`, each write must go through `fenced()` and change one row."""

    lease_owner = models.CharField(max_length=32, blank=True, default="", editable=False)
    lease_at = models.DateTimeField(null=True, blank=True, editable=False)  # the last heartbeat
    attempts = models.PositiveIntegerField(default=0, editable=False)

    class Meta:
        abstract = True

    def fenced(self) -> QuerySet[Self]:
        """Returns a queryset of this row that is empty if the lease was lost. Write to the row through this queryset only."""
        if not self.lease_owner:
            raise LeaseLost  # never claimed, or released: the filter below would match a free row, whose owner is empty too
        return type(self)._default_manager.filter(pk=self.pk, lease_owner=self.lease_owner)

    def heartbeat(self, now: datetime) -> None:
        """Extends the lease."""
        if self.fenced().update(lease_at=now) != 1:
            raise LeaseLost
        self.lease_at = now

    def release(self) -> None:
        """Releases the row before its lease expires, for another attempt."""
        if self.fenced().update(lease_owner="", lease_at=None) != 1:
            raise LeaseLost
        self.lease_owner, self.lease_at = "", None


LeasedRow = TypeVar("LeasedRow", bound=Leased)


def claim(
    queryset: QuerySet[LeasedRow], *, now: datetime, limit: int, timeout: timedelta = timedelta(minutes=5)
) -> list[LeasedRow]:
    """Leases up to `limit` rows of the queryset to the caller: free rows, and rows without a heartbeat for `timeout`.

    The other columns of a claimed row are as the queryset read them. To depend on one, such as the status, filter the fenced
    write by it.
    """
    claimed = []
    for row in queryset.filter(Q(lease_owner="") | Q(lease_at__lt=now - timeout))[:limit]:
        owner = token_hex(16)
        # The other contenders are another worker's tick that read the same row, and the previous owner, if it is still alive.
        # `attempts` grows with each claim and is never reset. `lease_at` changes with each heartbeat.
        unchanged = type(row)._default_manager.filter(pk=row.pk, attempts=row.attempts, lease_at=row.lease_at)
        if unchanged.update(lease_owner=owner, lease_at=now, attempts=F("attempts") + 1) == 1:
            row.lease_owner, row.lease_at, row.attempts = owner, now, row.attempts + 1
            claimed.append(row)
    return claimed
