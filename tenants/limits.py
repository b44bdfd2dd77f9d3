"""Rate limits that all processes share: one row for each limit and subject, updated in one statement.

Each limit follows the generic cell rate algorithm (ITU-T I.371): a burst of `count` events is allowed, and the allowance refills
evenly over `period`. The row holds the time when the allowance will be full again. Each event moves it by `period / count`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Final

from django.conf import settings
from django.db import connection
from django.db.models import F
from django.utils.crypto import salted_hmac

from tenants.errors import TooManyRequests
from tenants.models import RateLimit


SECOND: Final = 1_000_000  # microseconds

# Returns no row if the event would exceed the limit. Ignores a time that is farther away than the period, because it was written
# before the clock was set back. GREATEST of PostgreSQL is MAX of SQLite.
TAKE: Final = """
INSERT INTO tenants_ratelimit AS used (key, full_at) VALUES (%(key)s, %(now)s + %(cost)s)
ON CONFLICT (key) DO UPDATE SET full_at = %(cost)s +
    CASE WHEN used.full_at > %(now)s + %(period)s THEN %(now)s ELSE {greatest}(used.full_at, %(now)s) END
WHERE used.full_at + %(cost)s <= %(now)s + %(period)s OR used.full_at > %(now)s + %(period)s
RETURNING full_at
"""


@dataclass(frozen=True)
class Limit:
    """At most `count` events of a subject in `period`. `refusal` is the error of an event that exceeds it."""

    name: str
    count: int
    period: timedelta
    refusal: type[TooManyRequests] = TooManyRequests

    def take(self, subject: str, *, now: datetime) -> None:
        """Counts one event.

        Raises: TooManyRequests.
        """
        given: dict[str, str | int] = {
            "key": self._key(subject),
            "now": _microseconds(now),
            "cost": self._cost,
            "period": self._period,
        }
        greatest = "GREATEST" if connection.vendor == "postgresql" else "MAX"
        with connection.cursor() as cursor:
            cursor.execute(TAKE.format(greatest=greatest), given)
            is_allowed = cursor.fetchone() is not None
        if not is_allowed:
            full_at = RateLimit.objects.filter(key=given["key"]).values_list("full_at", flat=True).first() or 0
            excess = full_at + self._cost - _microseconds(now) - self._period
            raise self.refusal(retry_after=max(1, ceil(excess / SECOND)))

    def refund(self, subject: str) -> None:
        """Removes one event from the count."""
        RateLimit.objects.filter(key=self._key(subject)).update(full_at=F("full_at") - self._cost)

    def reset(self, *subjects: str) -> None:
        """Restores the full allowance of these subjects."""
        RateLimit.objects.filter(key__in=[self._key(subject) for subject in subjects]).delete()

    @property
    def _period(self) -> int:
        return int(self.period.total_seconds() * SECOND)

    @property
    def _cost(self) -> int:
        return self._period // self.count

    def _key(self, subject: str) -> str:
        """Hashes the subject with a key, because it can be an address, or a password that was typed as a username."""
        return f"{self.name}:{salted_hmac('tenants.limits', subject, algorithm='sha256').hexdigest()[:32]}"


# By the network of the client, for requests without credentials or with invalid ones
REQUESTS: Final = Limit("requests", settings.ANONYMOUS_REQUESTS_PER_MINUTE, timedelta(minutes=1))
BAD_TOKENS: Final = Limit("bad tokens", 300, timedelta(minutes=1))
MAILED_TOKENS: Final = Limit("mailed tokens", 30, timedelta(minutes=15))
RESETS: Final = Limit("resets", 20, timedelta(hours=1))
# By tenant
INVITATIONS: Final = Limit("invitations", 200, timedelta(hours=1))


def delete_expired(*, now: datetime) -> int:
    """Deletes the rows of subjects with a full allowance. Returns the number of rows."""
    return RateLimit.objects.filter(full_at__lt=_microseconds(now)).delete()[0]


def _microseconds(moment: datetime) -> int:
    """Returns Unix time in microseconds."""
    return ceil(moment.timestamp() * SECOND)
