"""One-off links: each allows one download of one file or archive without any other credential.

A link is claimed by one conditional update after the first segment is verified. After that, an interrupted transfer can be
resumed with Range for ten minutes and within a byte budget. Links that are used, expired, revoked or unknown get the same
response.

Another app can register a handler for links to its own kind of collection.
"""

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, Protocol

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet

from files import access, downloads
from files.downloads import StartCallback
from files.errors import LinkInvalid
from files.http.headers import Unsatisfiable, if_range, parse_range
from files.http.responses import ByteRequest, ByteResponse
from files.http.streaming import TransferEnded
from files.models import Collection, DownloadLink, StoredFile
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


RESUME_WINDOW: Final = timedelta(minutes=10)
# Bytes that can be sent twice: those lost in buffers when a transfer breaks, and those that a killed process had reserved.
RESUME_ALLOWANCE: Final = 16 * 1024**2
RESERVATION_BYTES: Final = 8 * 1024**2  # size of a reservation, so that the row is not updated for every piece


class LinkHandler(Protocol):
    """Responds to a link. `open_link` reports its NotFound as LinkInvalid."""

    def __call__(self, link: DownloadLink, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse: ...


_handlers: dict[str, LinkHandler] = {}


def register(kind: str, handler: LinkHandler) -> None:
    """Registers the handler of links to collections of this kind. It must check the access of the user who minted the link."""
    _handlers[kind] = handler


def mint(
    *,
    collection: Collection,
    by: User,
    now: datetime,
    file: StoredFile | None = None,
    filenames: Iterable[str] = (),
    disposition: str = DownloadLink.Disposition.ATTACHMENT,
) -> str:
    """Creates a link to `file`, or to an archive of the named files or of all files that `by` can read. Returns its token.

    The caller got `collection` and `file` from `access`.

    Raises: NotFound, Refused.
    """
    selection = []
    if file is not None:
        access.check_can_read(file)
    else:
        readable = access.get_readable_files(by, collection, filenames := list(filenames))
        selection = [str(uuid) for uuid in readable.values_list("uuid", flat=True)] if filenames else []
    return mint_unchecked(collection=collection, file=file, selection=selection, disposition=disposition, by=by, now=now)


@retry_on_deadlock
def mint_unchecked(
    *,
    collection: Collection,
    by: User,
    now: datetime,
    file: StoredFile | None = None,
    selection: Sequence[str] = (),
    disposition: str = DownloadLink.Disposition.ATTACHMENT,
) -> str:
    """Creates a link and returns its token. The caller has checked access."""
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        DownloadLink.objects.create(
            token_hash=_token_hash(token),
            collection=collection,
            file=file,
            selection=list(selection),
            disposition=disposition,
            minted_by=by,
            minted_with=by.key,
            minted_at=now,
            expires_at=now + timedelta(seconds=settings.FILES_DOWNLOAD_EXPIRY_SECONDS),
        )
        audit.record("link.mint", by=by, tenant=collection.tenant, target=file or collection, now=now)
    return token


def open_link(token: str, *, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    """Responds to a GET or HEAD request for a link, with the current access of the user who minted it. HEAD does not claim it.

    Raises: LinkInvalid.
    """
    links = DownloadLink.objects.select_related("collection", "file", "minted_by", "minted_with")
    link = links.filter(token_hash=_token_hash(token)).first()
    if link is None:
        raise LinkInvalid
    by = link.minted_by
    by.key = link.minted_with
    handler = _handlers.get(link.collection.kind, _open)
    try:
        return handler(link, by=by, byte_request=byte_request, now=now)
    except NotFound:
        raise LinkInvalid from None


def _open(link: DownloadLink, *, by: User, byte_request: ByteRequest, now: datetime) -> ByteResponse:
    collection = access.get_collection(by, link.collection.slug)
    if link.file is None:
        return _open_archive(link, collection, by=by, byte_request=byte_request, now=now)
    file = access.get_file(by, collection.slug, link.file.filename)
    start = claim_or_resume(link, file, by=by, byte_request=byte_request, now=now)
    budget = Budget(DownloadLink.objects.filter(pk=link.pk))
    return downloads.open_file(
        file, by=by, byte_request=byte_request, disposition=link.disposition, now=now, start=start, meter=budget
    )


def claim_or_resume(link: DownloadLink, file: StoredFile, *, by: User, byte_request: ByteRequest, now: datetime) -> StartCallback:
    """Returns a callback that claims the link, or that records a resumed transfer if the link was claimed before.

    Raises: LinkInvalid.
    """
    if link.claimed_at is not None and requested_length(byte_request, etag=file.etag, length=file.length) is not None:
        is_expired = link.claimed_at + RESUME_WINDOW < now
        if is_expired or link.object_id != file.object_id or link.bytes_left == 0:
            raise LinkInvalid
        return lambda first, count: _resume(link, file, by, now)
    if link.claimed_at is not None or link.expires_at <= now:
        raise LinkInvalid
    return lambda first, count: claim(link, file, by=by, now=now)


def requested_length(byte_request: ByteRequest, *, etag: str, length: int) -> int | None:
    """The number of bytes that a valid Range requests, or None if the response is the whole content (RFC 9110, 14.2)."""
    if byte_request.head or not if_range(byte_request.if_range, etag):
        return None
    try:
        part = parse_range(byte_request.range, length)
    except Unsatisfiable:
        return 0
    return part.stop - part.start if part else None


def _open_archive(
    link: DownloadLink, collection: Collection, *, by: User, byte_request: ByteRequest, now: datetime
) -> ByteResponse:
    if link.claimed_at is not None or link.expires_at <= now:
        raise LinkInvalid
    chosen = access.readable_files(by, collection).filter(uuid__in=link.selection) if link.selection else None
    if chosen is not None and chosen.count() != len(link.selection):
        raise LinkInvalid
    names = chosen.values_list("filename", flat=True) if chosen is not None else []
    start = partial(claim, link, None, by=by, now=now)
    return downloads.open_archive(collection, by=by, filenames=names, head=byte_request.head, now=now, start=start)


def claim(link: DownloadLink, file: StoredFile | None, *, by: User, now: datetime) -> None:
    """Claims the link in the caller's transaction. `file` is None for an archive.

    Raises: LinkInvalid.
    """
    budget = file.length + RESUME_ALLOWANCE if file else 0
    # The other contenders are all other requests for this link: exactly one of them finds it unclaimed (INV-09).
    unclaimed = DownloadLink.objects.filter(pk=link.pk, claimed_at=None, expires_at__gt=now)
    if unclaimed.update(claimed_at=now, object_id=file.object_id if file else None, bytes_left=budget) != 1:
        raise LinkInvalid
    audit.record("link.claim", by=by, tenant=link.collection.tenant, target=file or link.collection, now=now)


def _resume(link: DownloadLink, file: StoredFile, by: User, now: datetime) -> None:
    if not audit.has_event("link.resume", by=by, target=file, since=now - downloads.RANGE_AUDIT_INTERVAL):
        audit.record("link.resume", by=by, tenant=link.collection.tenant, target=file, now=now)


class Budget:
    """Reserves bytes of the `bytes_left` of one row in advance, so that parallel transfers cannot overdraw it.

    A subclass may update other columns of the row through `row`, a queryset that selects only this row.
    """

    def __init__(self, row: QuerySet[Any]) -> None:
        self.row = row
        self._reserved = 0

    def reserve(self, count: int, *, left: int) -> None:
        missing = count - self._reserved
        # Do not reserve more than this transfer can send: parallel transfers of other ranges share the budget.
        advance = max(missing, min(RESERVATION_BYTES, left - self._reserved))
        if missing > 0 and not (self._take(advance) or self._take(missing)):
            raise TransferEnded("the budget is used up")
        self._reserved -= count

    def refund(self) -> None:
        if self._reserved:
            self.row.update(bytes_left=F("bytes_left") + self._reserved)
            self._reserved = 0

    def _take(self, count: int) -> bool:
        # The other contenders are resumed transfers of the same grant.
        if self.row.filter(bytes_left__gte=count).update(bytes_left=F("bytes_left") - count) != 1:
            return False
        self._reserved += count
        return True


def _token_hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
