"""How much the schedule may begin, and when: a clock that jumped ahead must not destroy in a night what had years to go (F-65).

What an operator starts by hand knows no limit, but the same clocks.
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

MOST_AHEAD: Final = timedelta(minutes=10)
DAY: Final = timedelta(hours=23)  # the run of a day must not count that of the day before, which may have begun a moment later
TOLD_EVERY: Final = 3600.0  # seconds: a tick meets the same every five
_told_at: dict[str, float] = {}


class ClockAhead(Exception):
    """By this host it is later than by the vault, and it is not known who is right."""


def check_clock(now: datetime) -> None:
    """Raises ClockAhead, or StoreError if the vault does not tell. A local directory has no clock to compare with."""
    theirs = get_store("vault").clock()
    if theirs is not None and now - theirs > MOST_AHEAD:
        raise ClockAhead(f"It is {now:%Y-%m-%d %H:%M:%S} UTC by this host, and {theirs:%Y-%m-%d %H:%M:%S} UTC by the vault.")


def is_time(now: datetime) -> bool:
    """As `check_clock`, told in the log."""
    try:
        check_clock(now)
    except (ClockAhead, StoreError) as error:
        log_throttled("nothing is destroyed by itself: the vault does not confirm this host's clock", error=str(error))
        return False
    return True


def remaining_collections(now: datetime) -> int:
    """How many more may begin today. What was begun by hand counts, too: the system's name is on both. Packages are copies."""
    begun = Destruction.objects.filter(began_by="system", started_at__gt=now - DAY).exclude(reason=Destruction.Reason.ENDED)
    return max(0, settings.PURGE_DAILY_LIMIT - begun.count())


def remaining_files(now: datetime) -> int:
    gone = AuditEvent.objects.filter(action="file.purge", actor_id="", at__gt=now - DAY).count()
    return max(0, settings.PURGE_DAILY_FILE_LIMIT - gone)


def log_that_some_wait(what: str) -> None:
    log_throttled(
        f"more {what} are due than may go by themselves in a day, and the rest waits: look at `manage.py purge --dry-run`"
    )


def log_throttled(problem: str, **facts: str) -> None:
    """In the log, once an hour from each process."""
    if time.monotonic() - _told_at.get(problem, -TOLD_EVERY) >= TOLD_EVERY:
        _told_at[problem] = time.monotonic()
        log.error(problem, extra=facts)
