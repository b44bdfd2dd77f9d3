"""One-off links: the right to fetch one file, or one archive, once, without any other credential.

A link is a grant of one content's bytes. It is claimed by one conditional update after the first segment is verified; from then
on a transfer that broke may be resumed, by Range, for ten minutes and within a budget. Used, expired, unknown and foreign ones
look alike.
"""

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import F

from files import access, downloads
from files.downloads import Answer, Wanted
from files.errors import LinkDead
from files.headers import Unsatisfiable, if_range, parse_range
from files.models import Collection, DownloadLink, StoredFile
from files.transfers import TransferEnded
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.retries import retried


RESUME_WINDOW: Final = timedelta(minutes=10)
RESUME_EXTRA: Final = 16 * 1024**2  # what lay in buffers when the transfer broke, and what a killed process had paid in advance
PAID_IN_ADVANCE: Final = 8 * 1024**2


@retried
def mint(
    *,
    collection: Collection,
    by: User,
    now: datetime,
    file: StoredFile | None = None,
    filenames: Iterable[str] = (),
    disposition: str = DownloadLink.Disposition.ATTACHMENT,
) -> str:
    """A token for `file`, or for an archive of the named files or of all that `by` can read. `access` has just given the two."""
    selection = []
    if file is not None:
        access.check_can_read(file)
    else:
        readable = access.get_readable_files(by, collection, filenames := list(filenames))
        selection = [str(uuid) for uuid in readable.values_list("uuid", flat=True)] if filenames else []
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        DownloadLink.objects.create(
            token_hash=_hash(token),
            collection=collection,
            file=file,
            selection=selection,
            disposition=disposition,
            minted_by=by,
            minted_with=by.key,
            minted_at=now,
            expires_at=now + timedelta(seconds=settings.FILES_DOWNLOAD_EXPIRY_SECONDS),
        )
        audit.record("link.mint", by=by, tenant=collection.tenant, target=file or collection, now=now)
    return token


def open_link(token: str, *, wanted: Wanted, now: datetime) -> Answer:
    """The answer to a GET or HEAD of a link. HEAD consumes nothing. Raises LinkDead for everything that is not to be had."""
    links = DownloadLink.objects.select_related("collection", "file", "minted_by", "minted_with")
    link = links.filter(token_hash=_hash(token)).first()
    if link is None:
        raise LinkDead
    by = link.minted_by
    by.key = link.minted_with
    try:
        collection = access.get_collection(by, link.collection.slug)  # the minter's access, as it is now
        if link.file is None:
            return _open_archive(link, collection, by=by, wanted=wanted, now=now)
        return _open_file(link, access.get_file(by, collection.slug, link.file.filename), by=by, wanted=wanted, now=now)
    except NotFound:
        raise LinkDead from None


def _open_file(link: DownloadLink, file: StoredFile, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    is_resumed = link.claimed_at is not None and _asks_for_a_part(wanted, file)
    if is_resumed:
        is_over = link.claimed_at + RESUME_WINDOW < now  # type: ignore[operator]
        if is_over or link.object_id != file.object_id or link.bytes_left == 0:
            raise LinkDead
    elif link.claimed_at is not None or link.expires_at <= now:
        raise LinkDead
    start = partial(_resume, link, file, by, now) if is_resumed else partial(_claim, link, file, by, now)
    return downloads.open_file(
        file, by=by, wanted=wanted, disposition=link.disposition, now=now, start=start, meter=_Budget(link)
    )


def _asks_for_a_part(wanted: Wanted, file: StoredFile) -> bool:
    """Whether Range counts. One that is ignored (RFC 9110, 14.2) would bring the whole file once more."""
    if wanted.head or not if_range(wanted.if_range, file.etag):
        return False
    try:
        return parse_range(wanted.range, file.length) is not None
    except Unsatisfiable:
        return True


def _open_archive(link: DownloadLink, collection: Collection, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    if link.claimed_at is not None or link.expires_at <= now:
        raise LinkDead
    chosen = access.readable_files(by, collection).filter(uuid__in=link.selection) if link.selection else None
    if chosen is not None and chosen.count() != len(link.selection):
        raise LinkDead
    names = chosen.values_list("filename", flat=True) if chosen is not None else []
    start = partial(_claim, link, None, by, now)
    return downloads.open_archive(collection, by=by, filenames=names, head=wanted.head, now=now, start=start)


def _claim(link: DownloadLink, file: StoredFile | None, by: User, now: datetime) -> None:
    budget = file.length + RESUME_EXTRA if file else 0
    # The other contenders are all other requests for this link: exactly one of them finds it unclaimed (INV-09).
    unclaimed = DownloadLink.objects.filter(pk=link.pk, claimed_at=None, expires_at__gt=now)
    if unclaimed.update(claimed_at=now, object_id=file.object_id if file else None, bytes_left=budget) != 1:
        raise LinkDead
    audit.record("link.claim", by=by, tenant=link.collection.tenant, target=file or link.collection, now=now)


def _resume(link: DownloadLink, file: StoredFile, by: User, now: datetime) -> None:
    if not audit.seen("link.resume", by=by, target=file, since=now - downloads.AUDIT_RANGES_EVERY):
        audit.record("link.resume", by=by, tenant=link.collection.tenant, target=file, now=now)


class _Budget:
    """Pays a link's bytes in advance, a slice at a time, so that parallel transfers cannot overdraw it."""

    def __init__(self, link: DownloadLink) -> None:
        self._link = DownloadLink.objects.filter(pk=link.pk)
        self._paid = 0

    def pay(self, count: int) -> None:
        missing = count - self._paid
        if missing > 0 and not (self._take(max(missing, PAID_IN_ADVANCE)) or self._take(missing)):
            raise TransferEnded("the link's budget is used up")
        self._paid -= count

    def settle(self) -> None:
        if self._paid:
            self._link.update(bytes_left=F("bytes_left") + self._paid)
            self._paid = 0

    def _take(self, count: int) -> bool:
        # The other contenders are resumed transfers of the same link.
        if self._link.filter(bytes_left__gte=count).update(bytes_left=F("bytes_left") - count) != 1:
            return False
        self._paid += count
        return True


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
