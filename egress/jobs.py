"""What goes on by itself: copies, packages, wiping, deadlines. Rows found by status; each call does a bounded piece."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from egress import notifications, staging
from egress.models import Download, EgressRequest, StagedFile
from egress.package import build
from egress.states import State
from egress.transitions import lock_request, move
from tenants.work.deadlocks import retry_on_deadlock
from tenants.work.leases import LeaseLost, claim
from vault.errors import StorageUnavailable
from vault.stores import StoreError, StoreRefused


log = logging.getLogger(__name__)

TICK_SECONDS: Final = 4.0  # seconds: a tick is over before the next one
LEASE_TIMEOUT: Final = timedelta(minutes=5)  # without a sign of life, before another worker takes over
MAX_OUTAGE: Final = timedelta(days=1)  # for which a store may be away without a package being given up
RESUME_PERIOD: Final = timedelta(hours=1)  # for which the last download may still be resumed
MAX_CONCURRENT_COPIES: Final = 2  # requests, by all workers together: a copy may take long, and there is other process_copies
BATCH: Final = 100

WIPING: Final = StagedFile.objects.filter(status=StagedFile.Status.WIPING)
Step = Callable[[EgressRequest], None]


def tick(*, now: datetime) -> None:
    end_expired(now=now)
    notifications.remind(now=now)
    until = time.monotonic() + TICK_SECONDS
    while time.monotonic() < until and process_copies(now=timezone.now(), until=until):
        pass


# --- Deadlines ---


def end_expired(*, now: datetime) -> None:
    """What nobody has gone on with ends by itself, and so do packages whose window is over or that were fetched to the limit."""
    overdue = EgressRequest.objects.filter(expires_at__lte=now).order_by("expires_at")[:BATCH]
    for request in [*overdue, *_finished_releases(now)[:BATCH]]:
        try:
            _end_request(request, now=now)
        except Exception:  # one request that will not end must not hold up the rest
            log.exception("an egress request did not end", extra={"request": str(request.pk)})


def _finished_releases(now: datetime) -> QuerySet[EgressRequest]:
    """Releases of which nobody may fetch anything any more."""
    touched = Download.objects.filter(request=OuterRef("pk"), touched_at__gt=now - RESUME_PERIOD)
    fetched = Q(download_count__gte=F("max_downloads")) & ~Exists(touched)
    return EgressRequest.objects.filter(Q(available_until__lte=now) | fetched, status=State.RELEASED)


@retry_on_deadlock
def _end_request(request: EgressRequest, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        if locked.step != request.step:
            return  # somebody was faster, and it has another deadline by now
        if locked.status == State.RELEASED:
            if _finished_releases(now).filter(pk=locked.pk).exists():  # nobody extended it just now
                move(locked, State.CLOSED, by=None, now=now, action="egress.close")
        elif locked.status == State.APPROVED:
            problem = "The package could not be built in time."
            move(locked, State.FAILED, by=None, now=now, reason=problem, action="egress.fail", problem=problem)
        else:
            move(locked, State.EXPIRED, by=None, now=now, reason="Its deadline is over.", action="egress.expire")


# --- Copies ---


def process_copies(*, now: datetime, until: float) -> bool:
    """Wipes or makes copies of one request. False if there was nothing to do, or others are at it."""
    # What waits for copies or its package has that done first: an old copy that will not go must not hold it up for ever.
    wiping = EgressRequest.objects.filter(pk__in=WIPING.values("request")).exclude(status__in=[State.SUBMITTED, State.APPROVED])
    for request in _claim(wiping.order_by("changed_at"), now=now):
        _attempt(request, partial(staging.wipe, now=now))
        return True
    submitted = EgressRequest.objects.filter(status=State.SUBMITTED)
    if _count_leased(submitted, now) >= MAX_CONCURRENT_COPIES:
        return False
    for request in _claim(submitted.order_by("attempts", "changed_at"), now=now):  # a large one takes turns with the others
        _attempt(request, partial(_copy_files, until=until))
        return True
    return False


def _copy_files(request: EgressRequest, *, until: float) -> None:
    if staging.copy_pinned_files(request, until=until):
        staging.begin_review(request, now=timezone.now())


# --- Packages ---


def build_packages() -> None:
    """One package after the other, for about a tick."""
    until = time.monotonic() + TICK_SECONDS
    while build_package(now=timezone.now()) and time.monotonic() < until:
        pass


def build_package(*, now: datetime) -> bool:
    """Builds one package, unless enough of them are being built. False if there was nothing to do."""
    approved = EgressRequest.objects.filter(status=State.APPROVED)
    if _count_leased(approved, now) >= settings.EGRESS_PACKAGES_AT_ONCE:
        return False
    for request in _claim(approved.order_by("changed_at"), now=now):
        _attempt(request, partial(build.build, now=now))
        return True
    return False


# --- One request after the other ---


def _count_leased(requests: QuerySet[EgressRequest], now: datetime) -> int:
    """How many of them somebody is at."""
    return requests.exclude(lease_owner="").filter(lease_at__gt=now - LEASE_TIMEOUT).count()


def _claim(requests: QuerySet[EgressRequest], *, now: datetime) -> list[EgressRequest]:
    """The first of them that did not fail just now: those rest, and the others have their turn."""
    rested = requests.exclude(lease_owner="", lease_at__gt=now - LEASE_TIMEOUT).select_related("tenant")
    return claim(rested, now=now, limit=1, timeout=LEASE_TIMEOUT)


def _attempt(request: EgressRequest, step: Step) -> None:
    try:
        step(request)
    except FileNotFoundError as error:
        log.error("the storage has lost what an egress request is about", extra={"request": str(request.pk), "error": str(error)})
        _back_off(request, "The storage has lost a file of it: an operator has to put it back, or it is withdrawn.")
    except (StoreError, StorageUnavailable) as error:
        log.warning("an egress request waits for the store", extra={"request": str(request.pk), "error": str(error)})
        is_refusal = isinstance(error.__cause__ or error, StoreRefused)  # of which no waiting makes anything else
        counts = is_refusal or timezone.now() - request.changed_at > MAX_OUTAGE
        _back_off(request, "The storage does not do what it is asked; it is tried again.", counts=counts)
    except LeaseLost:  # somebody else's by now, or it ended meanwhile: then whoever wipes it need not wait for us
        _release(request)
    except Exception:  # a bug met by one request must not hold up the others
        log.exception("an egress request did not go on", extra={"request": str(request.pk)})
        _back_off(request, "Something went wrong, and is tried again.")
    else:
        with suppress(LeaseLost):
            _set_problem(request, "")
        _release(request)


def _release(request: EgressRequest) -> None:
    with suppress(LeaseLost):
        request.release()


def _back_off(request: EgressRequest, problem: str, *, counts: bool = True) -> None:
    """Free for whoever comes when the rest is over: see `_claim`. An attempt that does not count uses up none of the five."""
    with suppress(LeaseLost):
        _set_problem(request, problem)
        before = F("attempts_before") + (0 if counts else 1)
        request.fenced().update(lease_owner="", lease_at=timezone.now(), attempts_before=before)


def _set_problem(request: EgressRequest, problem: str) -> None:
    """Of one that has something left to do: nobody would take the note away again from another."""
    is_unfinished = Q(status__in=[State.SUBMITTED, State.APPROVED]) | Exists(WIPING.filter(request=OuterRef("pk")))
    request.fenced().exclude(status=State.FAILED).filter(is_unfinished).update(problem=problem)
