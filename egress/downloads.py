"""Bytes of egress: staged_content files for those who decide, and the released package, so often as was approved.

A download is the grant of one package's bytes to one person: counted by one conditional update before the first byte leaves. What
broke is fetched by Range within the grant's budget, so that a cut at 99 % locks nobody out, and nobody gets it twice (F-55).
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
from files.downloads import AUDIT_RANGES_EVERY, Source, open_source, read_verified, source_of
from files.http.responses import Answer, Wanted
from files.links import PAID_IN_ADVANCE, RESUME_EXTRA, RESUME_WINDOW, Budget
from files.models import Collection, DownloadLink, StoredFile
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


log = logging.getLogger(__name__)

TOUCH_INTERVAL_SECONDS: Final = 60.0  # of a download that goes on


# --- Staged files ---


def open_staged_file(item: StagedFile, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    """A staged_content copy, as its reviewers read it: shown in place, and on record with who had it."""
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
    return open_source(source, wanted=wanted, disposition="inline", start=partial(_record_read, item, by, now))


def _read_staged_file(item: StagedFile, start: int, stop: int, *, by: User, now: datetime) -> Generator[bytes, None, None]:
    return read_verified(
        partial(staged_content, item),
        start,
        stop,
        sha256=item.sha256,
        missing=partial(_report_damage, "egress.item_missing", item, by, now),
        corrupt=partial(_report_damage, "egress.item_corrupt", item, by, now),
        etag_changed=lambda etag: None,  # every byte is proven by its tags, and the package compares the whole
    )


def _report_damage(action: str, item: StagedFile, by: User, now: datetime, error: Exception) -> None:
    log.error(action, extra={"request": str(item.request_id), "item": item.number, "error": str(error)})
    with transaction.atomic():
        _record(action, item.request, by, now, item=item.number, error=type(error).__name__)


def _record_read(item: StagedFile, by: User, now: datetime, first: int, count: int) -> None:
    """One row per reviewer and file on the request; in the audit trail one for each time, or quarter of an hour for parts."""
    _, is_new = ReadReceipt.objects.get_or_create(item=item, by=by, defaults={"by_name": by.username, "first_at": now})
    if is_new or count == item.length or not _was_recorded_recently("egress.read", item, by, now):
        _record("egress.read", item.request, by, now, item=item.number, file=str(item.file_uuid), first=first, count=count)


def _was_recorded_recently(action: str, item: StagedFile, by: User, now: datetime) -> bool:
    return audit.seen(action, by=by, target=item.request, since=now - AUDIT_RANGES_EVERY)


# --- The package ---


def open_package(request: EgressRequest, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    """The package itself: a further download, or with Range the rest of one that broke."""
    access.check_can_fetch(actor_of(by), request)
    package = _package_of(request)
    resumed = _resumable(request.downloads.filter(by=by), package, wanted)
    return _open(request, package, resumed, by=by, wanted=wanted, now=now)


def mint_link(request: EgressRequest, *, by: User, now: datetime) -> str:
    """A token for one download, which is counted when it is used."""
    access.check_can_download(actor_of(by), request)
    package = _package_of(request)
    return links.issue(collection=package.collection, file=package, by=by, now=now)


def open_link(link: DownloadLink, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    """What a link to a package opens. Its resuming is that of its download, for as long as links may be resumed."""
    request = EgressRequest.objects.select_related("tenant").filter(package_collection=link.collection_id).first()
    if request is None or not access.can(access.check_can_fetch, actor_of(by), request):
        raise NotFound
    package = _package_of(request)
    resumed = None
    if link.claimed_at is not None:
        resumed = _resumable(request.downloads.filter(link=link), package, wanted)
        if resumed is None or link.claimed_at + RESUME_WINDOW < now:
            raise NotFound
    elif link.expires_at <= now:
        raise NotFound
    return _open(request, package, resumed, by=by, wanted=wanted, now=now, link=link)


def _resumable(downloads: QuerySet[Download], package: StoredFile, wanted: Wanted) -> Download | None:
    """The newest of these downloads that has bytes left for what is asked: all of it, or enough to be download_budget a transfer.

    The whole package is not the rest of it, however it is asked for: that is a further download.
    """
    count = links.part_of(wanted, etag=package.etag, length=package.length)
    if count is None or count == package.length:
        return None
    return downloads.filter(bytes_left__gte=min(count, PAID_IN_ADVANCE)).order_by("-granted_at").first()


def _open(
    request: EgressRequest,
    package: StoredFile,
    resumed: Download | None,
    *,
    by: User,
    wanted: Wanted,
    now: datetime,
    link: DownloadLink | None = None,
) -> Answer:
    if resumed is None and not wanted.head and request.downloads_left <= 0:
        raise errors.DownloadsUsed
    download = resumed or Download(request=request, by=by, by_name=by.username, link=link, granted_at=now, touched_at=now)
    source = source_of(package, by=by, still_allowed=partial(_is_still_allowed, access.check_can_fetch, request, by), now=now)
    start = partial(_record_resume if resumed else _start_download, download, package, by, now)
    return open_source(source, wanted=wanted, disposition="attachment", start=start, meter=DownloadBudget(download))


def download_budget(length: int) -> int:
    """Bytes that a grant pays for: each once, and what lay in buffers when a transfer broke, which may be each once more."""
    return length + min(length, RESUME_EXTRA)


def bytes_taken(download: Download) -> int:
    """At most so many bytes have left: what a transfer has paid for and not sent yet is among them."""
    return download_budget(download.request.package_length or 0) - download.bytes_left


class DownloadBudget(Budget):
    """A download's budget. One of which nothing was ever sent is given back, and counts as none (F-05)."""

    def __init__(self, download: Download) -> None:
        super().__init__(Download.objects.filter(pk=download.pk))
        self._download, self._is_new, self._is_used = download, download._state.adding, False
        self._touched = time.monotonic()

    def reserve(self, count: int, *, left: int) -> None:
        super().reserve(count, left=left)
        self._is_used = True
        if time.monotonic() - self._touched > TOUCH_INTERVAL_SECONDS:
            self._touch()  # a package is not closed under who has fetched it for hours

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
    """In the transaction before the first byte. The request first and the audit trail last, as everybody locks them."""
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
    if not audit.seen("egress.download_resume", by=by, target=download.request, since=now - AUDIT_RANGES_EVERY):
        _record("egress.download_resume", download.request, by, now, download=str(download.pk), first=first, count=count)


@retry_on_deadlock
def _void_unused(download: Download) -> None:
    with transaction.atomic():
        # The other contender is a Range request for the same grant: whatever it has paid stays paid, and counts.
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
    """Whether a stream that was allowed to begin may go on: by the request as it is now, and in the same round."""
    now = EgressRequest.objects.select_related("tenant").filter(pk=request.pk, round=request.round).first()
    return now is not None and access.can(check, actor_of(by), now)


def _record(action: str, request: EgressRequest, by: User | None, now: datetime, **facts: str | int) -> None:
    audit.record(action, by=by, tenant=request.tenant, target=request, now=now, **facts)


links.register(Collection.Kind.RELEASE, open_link)
