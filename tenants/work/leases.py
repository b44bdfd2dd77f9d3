"""Who works on a row right now. The row decides, not the broker: that may deliver a task twice, late, or to three workers."""

from datetime import datetime, timedelta
from secrets import token_hex
from typing import Self, TypeVar

from django.db import models
from django.db.models import F, Q, QuerySet


class LeaseLost(Exception):
    """Another worker has taken the row over. Stop, and write nothing more."""


class Leased(models.Model):
    """A row that one worker at a time works on. After `claim`, every write goes through `fenced()` and must change one row."""

    lease_owner = models.CharField(max_length=32, blank=True, default="", editable=False)
    lease_at = models.DateTimeField(null=True, blank=True, editable=False)  # the last sign of life
    attempts = models.PositiveIntegerField(default=0, editable=False)

    class Meta:
        abstract = True

    def fenced(self) -> QuerySet[Self]:
        """This row while it is still ours: the only queryset to write it through."""
        if not self.lease_owner:
            raise LeaseLost  # never claimed, or given back: a free row has the same empty owner
        return type(self)._default_manager.filter(pk=self.pk, lease_owner=self.lease_owner)

    def heartbeat(self, now: datetime) -> None:
        if self.fenced().update(lease_at=now) != 1:
            raise LeaseLost
        self.lease_at = now

    def release(self) -> None:
        """Gives the row back before its time, for another attempt."""
        if self.fenced().update(lease_owner="", lease_at=None) != 1:
            raise LeaseLost
        self.lease_owner, self.lease_at = "", None


LeasedRow = TypeVar("LeasedRow", bound=Leased)


def claim(
    queryset: QuerySet[LeasedRow], *, now: datetime, limit: int, timeout: timedelta = timedelta(minutes=5)
) -> list[LeasedRow]:
    """Up to `limit` rows of the queryset that nobody has shown a sign of life on for `timeout`, now leased to the caller.

    The rest of a row is as the queryset read it: what else must hold (its status) belongs into the fenced write.
    """
    claimed = []
    for row in queryset.filter(Q(lease_owner="") | Q(lease_at__lt=now - timeout))[:limit]:
        owner = token_hex(16)
        # The other contenders are another worker's tick that read the same row, and the last owner, alive after all. `attempts`
        # grows with every claim and is never set back; `lease_at` moves with every sign of life.
        unchanged = type(row)._default_manager.filter(pk=row.pk, attempts=row.attempts, lease_at=row.lease_at)
        if unchanged.update(lease_owner=owner, lease_at=now, attempts=F("attempts") + 1) == 1:
            row.lease_owner, row.lease_at, row.attempts = owner, now, row.attempts + 1
            claimed.append(row)
    return claimed
