"""Downloads: staged files for reviewers, and released packages, as often as the policy allows.

A download entitles one user to the bytes of one package. A conditional update counts it before the first byte is sent. An
interrupted transfer resumes with Range requests within the byte budget of the download. A cut at 99 % therefore costs no further
download, and no user gets the package twice (F-55).
"""

import logging
import time
from collections.abc import Callable, Generator
from datetime import datetime
from functools import partial
from typing import Final

from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from egress import access, errors
from egress.access import Actor, actor_of
from egress.models import Download, EgressRequest, ReadReceipt, StagedFile
from egress.package.build import staged_content
from egress.states import State
from files import links
from files.downloads import RANGE_AUDIT_INTERVAL, Source, file_source, open_source, read_verified
from files.http.responses import ByteRequest, ByteResponse
from files.links import RESERVATION_BYTES, RESUME_ALLOWANCE, RESUME_WINDOW, Budget
from files.models import Collection, DownloadLink, StoredFile
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


log = logging.getLogger(__name__)

TOUCH_INTERVAL_SECONDS: Final = 60.0  # between updates of `touched_at` during a transfer


# --- Staged files ---


def open_staged_file(item: StagedFile, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    """A staged file for a reviewer, to be displayed inline. Every read is recorded.

    Raises: NotAReviewer, OwnRequest, PreconditionFailed, RangeNotSatisfiable, TransfersFull, WrongState.
    """
    access.check_can_read_items(actor_of(by), item.request)
    source = Source(
        filename=item.filename,
        content_type=item.content_type,
        length=item.length,
        sha256=item.sha256,
        etag=f'"{item.object_id.hex}"',
        read=partial(_read_staged_file, item, by=by, now=now),
        still_allowed=partial(_is_still_allowed, access.check_can_read_items, item.request, by),
    )
    return open_source(source, byte_request=byte_request, disposition="inline", start=partial(_record_read, item, by, now))


def _read_staged_file(item: StagedFile, start: int, stop: int, *, by: User, now: datetime) -> Generator[bytes, None, None]:
    return read_verified(
        partial(staged_content, item),
        start,
        stop,
        sha256=item.sha256,
        missing=partial(_report_damage, "egress.item_missing", item, by, now),
        corrupt=partial(_report_damage, "egress.item_corrupt", item, by, now),
        etag_changed=lambda etag: None,  # AES-GCM authenticates every segment, and the package job compares the digest.
    )


def _report_damage(action: str, item: StagedFile, by: User, now: datetime, error: Exception) -> None:
    log.error(action, extra={"request": str(item.request_id), "item": item.number, "error": str(error)})
    with transaction.atomic():
        _record(action, item.request, by, now, item=item.number, error=type(error).__name__)


def _record_read(item: StagedFile, by: User, now: datetime, first: int, count: int) -> None:
    """Adds a receipt for each reviewer and file, an audit event for each full read, and at most one per interval for parts."""
    _, is_new = ReadReceipt.objects.get_or_create(item=item, by=by, defaults={"by_name": by.username, "first_at": now})
    if is_new or count == item.length or not _was_recorded_recently("egress.read", item, by, now):
        _record("egress.read", item.request, by, now, item=item.number, file=str(item.file_uuid), first=first, count=count)


def _was_recorded_recently(action: str, item: StagedFile, by: User, now: datetime) -> bool:
    return audit.has_event(action, by=by, target=item.request, since=now - RANGE_AUDIT_INTERVAL)


# --- The package ---


def open_package(request: EgressRequest, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    """The package: starts a new download, or resumes an interrupted one if the request has a suitable Range header.

    Raises: DownloadsUsed, PackageGone, PreconditionFailed, RangeNotSatisfiable, Refused, TransfersFull, WrongState.
    """
    access.check_can_fetch(actor_of(by), request)
    package = _package_of(request)
    resumed = _resumable(request.downloads.filter(by=by), package, byte_request)
    return _open(request, package, resumed, by=by, byte_request=byte_request, now=now)


def mint_link(request: EgressRequest, *, by: User, now: datetime) -> str:
    """Creates a one-off link to the package and returns its token. The download is counted when the link is used.

    Raises: DownloadsUsed, PackageGone, Refused, WrongState.
    """
    access.check_can_download(actor_of(by), request)
    package = _package_of(request)
    return links.mint_unchecked(collection=package.collection, file=package, by=by, now=now)


def open_link(link: DownloadLink, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    """Answers a one-off link to a package. A used link can resume its download until `RESUME_WINDOW` has passed.

    Raises: DownloadsUsed, NotFound, PackageGone, PreconditionFailed, RangeNotSatisfiable, TransfersFull.
    """
    request = EgressRequest.objects.select_related("tenant").filter(package_collection=link.collection_id).first()
    if request is None or not access.can(access.check_can_fetch, actor_of(by), request):
        raise NotFound
    package = _package_of(request)
    resumed = None
    if link.claimed_at is not None:
        resumed = _resumable(request.downloads.filter(link=link), package, byte_request)
        if resumed is None or link.claimed_at + RESUME_WINDOW < now:
            raise NotFound
    elif link.expires_at <= now:
        raise NotFound
    return _open(request, package, resumed, by=by, byte_request=byte_request, now=now, link=link)


def _resumable(downloads: QuerySet[Download], package: StoredFile, byte_request: ByteRequest) -> Download | None:
    """The newest of these downloads with enough budget for the requested range, or at least for `RESERVATION_BYTES` bytes of it.

    None for a range that covers the whole package: that is a new download.
    """
    count = links.requested_length(byte_request, etag=package.etag, length=package.length)
    if count is None or count == package.length:
        return None
    return downloads.filter(bytes_left__gte=min(count, RESERVATION_BYTES)).order_by("-granted_at").first()


def _open(
    request: EgressRequest,
    package: StoredFile,
    resumed: Download | None,
    *,
    by: User,
    byte_request: ByteRequest,
    now: datetime,
    link: DownloadLink | None = None,
) -> ByteResponse:
    if resumed is None and not byte_request.head and request.downloads_left <= 0:
        raise errors.DownloadsUsed
    download = resumed or Download(request=request, by=by, by_name=by.username, link=link, granted_at=now, touched_at=now)
    source = file_source(package, by=by, still_allowed=partial(_is_still_allowed, access.check_can_fetch, request, by), now=now)
    start = partial(_record_resume if resumed else _start_download, download, package, by, now)
    return open_source(source, byte_request=byte_request, disposition="attachment", start=start, meter=DownloadBudget(download))


def download_budget(length: int) -> int:
    """The byte budget of a download of `length` bytes. The excess covers bytes that were in buffers when a transfer broke."""
    return length + min(length, RESUME_ALLOWANCE)


def bytes_taken(download: Download) -> int:
    """An upper bound of the bytes that were sent. Includes bytes that are reserved but not yet sent."""
    return download_budget(download.request.package_length or 0) - download.bytes_left


class DownloadBudget(Budget):
    """The byte budget of a download. A download of which no byte was sent is not counted (F-05)."""

    def __init__(self, download: Download) -> None:
        super().__init__(Download.objects.filter(pk=download.pk))
        self._download, self._is_new, self._is_used = download, download._state.adding, False
        self._touched = time.monotonic()

    def reserve(self, count: int, *, left: int) -> None:
        super().reserve(count, left=left)
        self._is_used = True
        if time.monotonic() - self._touched > TOUCH_INTERVAL_SECONDS:
            self._touch()  # prevents that the request is closed during a long transfer

    def refund(self) -> None:
        super().refund()
        if self._is_used:
            self._touch()
        elif self._is_new and not self._download._state.adding:
            _void_unused(self._download)

    def _touch(self) -> None:
        self._touched = time.monotonic()
        self.row.update(touched_at=timezone.now())


def _start_download(download: Download, package: StoredFile, by: User, now: datetime, first: int, count: int) -> None:
    """Counts a new download, in the transaction before the first byte. Locks the request first and the audit trail last."""
    # The other contenders are all other downloads of this package, a revocation, and the end of its window (INV-09).
    there = EgressRequest.objects.filter(pk=download.request_id, status=State.RELEASED, available_until__gt=now)
    if there.filter(download_count__lt=F("max_downloads")).update(download_count=F("download_count") + 1) != 1:
        raise errors.DownloadsUsed if there.exists() else errors.PackageGone
    download.bytes_left = download_budget(package.length)
    download.save(force_insert=True)
    if download.link is not None:
        links.claim(download.link, package, by=by, now=now)
    _record("egress.download", download.request, by, now, download=str(download.pk), first=first, count=count)


def _record_resume(download: Download, package: StoredFile, by: User, now: datetime, first: int, count: int) -> None:
    if not audit.has_event("egress.download_resume", by=by, target=download.request, since=now - RANGE_AUDIT_INTERVAL):
        _record("egress.download_resume", download.request, by, now, download=str(download.pk), first=first, count=count)


@retry_on_deadlock
def _void_unused(download: Download) -> None:
    with transaction.atomic():
        # The other contender is a Range request for the same download. If it has reserved bytes, the download stays counted.
        untouched = Download.objects.filter(pk=download.pk, bytes_left=download.bytes_left)
        if untouched.delete()[0]:
            EgressRequest.objects.filter(pk=download.request_id).update(download_count=F("download_count") - 1)
            by = User.objects.filter(pk=download.by_id).first()
            _record("egress.download_void", download.request, by, timezone.now(), download=str(download.pk))


def _package_of(request: EgressRequest) -> StoredFile:
    package = StoredFile.objects.select_related("collection__key", "collection__tenant").filter(
        collection__package_of=request, collection__status=Collection.Status.OPEN
    )
    found = package.first()
    if found is None:
        raise errors.PackageGone
    return found


def _is_still_allowed(check: Callable[[Actor, EgressRequest], None], request: EgressRequest, by: User) -> bool:
    """Whether a running stream may continue: the check must pass for the current request, in the same round."""
    now = EgressRequest.objects.select_related("tenant").filter(pk=request.pk, round=request.round).first()
    return now is not None and access.can(check, actor_of(by), now)


def _record(action: str, request: EgressRequest, by: User | None, now: datetime, **facts: str | int) -> None:
    audit.record(action, by=by, tenant=request.tenant, target=request, now=now, **facts)


links.register(Collection.Kind.RELEASE, open_link)
