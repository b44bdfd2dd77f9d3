"""Limits on automatic destruction: after a clock jump, one night must not destroy data that should be kept for years (F-65).

`manage.py purge` has no daily limit, but refuses to run while the clock is not confirmed.
"""

import logging
import time
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings

from purge.models import Destruction
from tenants.models import AuditEvent
from vault.stores import StoreError, get_store


log = logging.getLogger(__name__)

MAX_CLOCK_LEAD: Final = timedelta(minutes=10)
LIMIT_PERIOD: Final = timedelta(hours=23)  # shorter than a day, so that a daily run never counts the previous one
LOG_INTERVAL_SECONDS: Final = 3600.0  # a tick finds the same problem every five seconds
_logged_at: dict[str, float] = {}


class ClockAhead(Exception):
    """The clock of this host is ahead of the clock of the vault. One of the two is wrong."""


def check_clock(now: datetime) -> None:
    """Compares `now` with the clock of the vault. A local directory has no clock of its own, so nothing is compared.

    Raises: ClockAhead, StoreUnavailable, StoreRefused.
    """
    vault_time = get_store("vault").clock()
    if vault_time is not None and now - vault_time > MAX_CLOCK_LEAD:
        raise ClockAhead(
            f"The clock of this host, {now:%Y-%m-%d %H:%M:%S} UTC, is ahead of the clock of the vault, "
            f"{vault_time:%Y-%m-%d %H:%M:%S} UTC. Correct the one that is wrong."
        )


def is_clock_confirmed(now: datetime) -> bool:
    """Whether `check_clock` succeeds. A failure is logged."""
    try:
        check_clock(now)
    except (ClockAhead, StoreError) as error:
        log_throttled("no automatic destruction: the vault does not confirm the clock of this host", error=str(error))
        return False
    return True


def remaining_collections(now: datetime) -> int:
    """How many more collections may be destroyed today. Packages are copies and do not count.

    Destructions by `manage.py purge` do count: like those of the schedule, they are attributed to the system.
    """
    started = Destruction.objects.filter(started_by="system", started_at__gt=now - LIMIT_PERIOD)
    return max(0, settings.PURGE_DAILY_LIMIT - started.exclude(reason=Destruction.Reason.ENDED).count())


def remaining_files(now: datetime) -> int:
    """How many more single files may be destroyed today. Files that `manage.py purge` destroyed count as well."""
    destroyed = AuditEvent.objects.filter(action="file.purge", actor_id="", at__gt=now - LIMIT_PERIOD).count()
    return max(0, settings.PURGE_DAILY_FILE_LIMIT - destroyed)


def log_limit_reached(what: str) -> None:
    """Logs that the daily limit of `what` ("collections" or "files") is reached."""
    log_throttled(f"more {what} are due than the daily limit allows; the rest waits: check `manage.py purge --dry-run`")


def log_throttled(problem: str, **facts: str) -> None:
    """Logs an error, at most once an hour in each process."""
    if time.monotonic() - _logged_at.get(problem, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
        _logged_at[problem] = time.monotonic()
        log.error(problem, extra=facts)
