"""Background jobs: copy files to staging, build packages, delete copies, enforce deadlines.

Each job finds its rows by status and leases them. Each call does a bounded amount of work.
"""

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

TICK_SECONDS: Final = 4.0  # less than the interval between ticks
LEASE_TIMEOUT: Final = timedelta(minutes=5)  # since the last heartbeat; then another worker may take over
MAX_OUTAGE: Final = timedelta(days=1)  # of a store; later failures count as attempts
RESUME_PERIOD: Final = timedelta(hours=1)  # since bytes were last sent
MAX_CONCURRENT_COPIES: Final = 2  # requests, over all workers: leaves workers for other jobs
BATCH: Final = 100

WIPING: Final = StagedFile.objects.filter(status=StagedFile.Status.WIPING)
Step = Callable[[EgressRequest], None]


def tick(*, now: datetime) -> None:
    """Enforces deadlines, sends reminders, then copies or deletes files for about `TICK_SECONDS`."""
    end_expired(now=now)
    notifications.remind(now=now)
    until = time.monotonic() + TICK_SECONDS
    while time.monotonic() < until and process_copies(now=timezone.now(), until=until):
        pass


# --- Deadlines ---


def end_expired(*, now: datetime) -> None:
    """Ends open requests at their deadline, and releases whose download window or number of downloads is used up."""
    overdue = EgressRequest.objects.filter(expires_at__lte=now).order_by("expires_at")[:BATCH]
    for request in [*overdue, *_finished_releases(now)[:BATCH]]:
        try:
            _end_request(request, now=now)
        except Exception:  # The other requests must not wait for a faulty one.
            log.exception("egress request could not be ended", extra={"request": str(request.pk)})


def _finished_releases(now: datetime) -> QuerySet[EgressRequest]:
    """Releases that no user can download from, and none can resume."""
    touched = Download.objects.filter(request=OuterRef("pk"), touched_at__gt=now - RESUME_PERIOD)
    fetched = Q(download_count__gte=F("max_downloads")) & ~Exists(touched)
    return EgressRequest.objects.filter(Q(available_until__lte=now) | fetched, status=State.RELEASED)


@retry_on_deadlock
def _end_request(request: EgressRequest, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        if locked.step != request.step:
            return  # It has moved since it was read, and has a new deadline.
        if locked.status == State.RELEASED:
            if _finished_releases(now).filter(pk=locked.pk).exists():  # It was not extended in the meantime.
                move(locked, State.CLOSED, by=None, now=now, action="egress.close")
        elif locked.status == State.APPROVED:
            problem = "The package could not be built in time."
            move(locked, State.FAILED, by=None, now=now, reason=problem, action="egress.fail", problem=problem)
        else:
            move(locked, State.EXPIRED, by=None, now=now, reason="The deadline has passed.", action="egress.expire")


# --- Copies ---


def process_copies(*, now: datetime, until: float) -> bool:
    """Deletes or makes the copies of one request. Returns False if no request is due or all are leased to other workers.

    `until` is the time on the monotonic clock at which copying pauses.
    """
    # Requests that still need copies or a package come first: an old copy that cannot be deleted must not block them.
    wiping = EgressRequest.objects.filter(pk__in=WIPING.values("request")).exclude(status__in=[State.SUBMITTED, State.APPROVED])
    for request in _claim(wiping.order_by("changed_at"), now=now):
        _attempt(request, partial(staging.wipe, now=now))
        return True
    submitted = EgressRequest.objects.filter(status=State.SUBMITTED)
    if _count_leased(submitted, now) >= MAX_CONCURRENT_COPIES:
        return False
    # Fewest attempts first, so that a large request does not delay the others.
    for request in _claim(submitted.order_by("attempts", "changed_at"), now=now):
        _attempt(request, partial(_copy_files, until=until))
        return True
    return False


def _copy_files(request: EgressRequest, *, until: float) -> None:
    if staging.copy_pinned_files(request, until=until):
        staging.begin_review(request, now=timezone.now())


# --- Packages ---


def build_packages() -> None:
    """Builds packages one after another for about `TICK_SECONDS`."""
    until = time.monotonic() + TICK_SECONDS
    while build_package(now=timezone.now()) and time.monotonic() < until:
        pass


def build_package(*, now: datetime) -> bool:
    """Builds one package, unless the maximum number is already being built. Returns False if none was built."""
    approved = EgressRequest.objects.filter(status=State.APPROVED)
    if _count_leased(approved, now) >= settings.EGRESS_PACKAGES_AT_ONCE:
        return False
    for request in _claim(approved.order_by("changed_at"), now=now):
        _attempt(request, partial(build.build, now=now))
        return True
    return False


# --- Leases and failures ---


def _count_leased(requests: QuerySet[EgressRequest], now: datetime) -> int:
    """The number of these requests that a worker holds a lease on."""
    return requests.exclude(lease_owner="").filter(lease_at__gt=now - LEASE_TIMEOUT).count()


def _claim(requests: QuerySet[EgressRequest], *, now: datetime) -> list[EgressRequest]:
    """Leases the first of these requests. Skips requests that failed recently, see `_back_off`."""
    rested = requests.exclude(lease_owner="", lease_at__gt=now - LEASE_TIMEOUT).select_related("tenant")
    return claim(rested, now=now, limit=1, timeout=LEASE_TIMEOUT)


def _attempt(request: EgressRequest, step: Step) -> None:
    try:
        step(request)
    except FileNotFoundError as error:
        log.error("egress request has missing objects", extra={"request": str(request.pk), "error": str(error)})
        _back_off(request, "A file is missing from the storage. Ask an operator to restore it, or withdraw the request.")
    except (StoreError, StorageUnavailable) as error:
        log.warning("egress request waits for the object store", extra={"request": str(request.pk), "error": str(error)})
        is_refusal = isinstance(error.__cause__ or error, StoreRefused)  # Waiting does not help.
        counts = is_refusal or timezone.now() - request.changed_at > MAX_OUTAGE
        _back_off(request, "The storage is unavailable or refuses the operation. The next attempt is automatic.", counts=counts)
    except LeaseLost:  # Leased to another worker, or ended. If ended, the job that deletes the copies must not wait.
        _release(request)
    except Exception:  # The other requests must not wait for a faulty one.
        log.exception("egress job failed", extra={"request": str(request.pk)})
        _back_off(request, "An internal error occurred. The next attempt is automatic.")
    else:
        with suppress(LeaseLost):
            _set_problem(request, "")
        _release(request)


def _release(request: EgressRequest) -> None:
    with suppress(LeaseLost):
        request.release()


def _back_off(request: EgressRequest, problem: str, *, counts: bool = True) -> None:
    """Releases the lease. `_claim` skips the request until `LEASE_TIMEOUT` has passed. `counts`: against `build.MAX_ATTEMPTS`."""
    with suppress(LeaseLost):
        _set_problem(request, problem)
        before = F("attempts_before") + (0 if counts else 1)
        request.fenced().update(lease_owner="", lease_at=timezone.now(), attempts_before=before)


def _set_problem(request: EgressRequest, problem: str) -> None:
    """Only for a request with unfinished jobs: on any other request no later job would clear the text."""
    is_unfinished = Q(status__in=[State.SUBMITTED, State.APPROVED]) | Exists(WIPING.filter(request=OuterRef("pk")))
    request.fenced().exclude(status=State.FAILED).filter(is_unfinished).update(problem=problem)
