"""One-off links: the right to fetch one file, or one archive, once, without any other credential.

A link is a grant of one content's bytes. It is claimed by one conditional update after the first segment is verified; from then
on a transfer that broke may be resumed, by Range, for ten minutes and within a budget. Used, expired, unknown and foreign ones
look alike.

What a link to a collection of another kind opens, and for whom, says the app that registered the kind.
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
from files.downloads import Start
from files.errors import LinkDead
from files.http.headers import Unsatisfiable, if_range, parse_range
from files.http.responses import Answer, Wanted
from files.http.streaming import TransferEnded
from files.models import Collection, DownloadLink, StoredFile
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock


RESUME_WINDOW: Final = timedelta(minutes=10)
RESUME_EXTRA: Final = 16 * 1024**2  # what lay in buffers when the transfer broke, and what a killed process had paid in advance
PAID_IN_ADVANCE: Final = 8 * 1024**2


class Opener(Protocol):
    """The answer to a link. NotFound is the same to whoever holds the link as if there were none."""

    def __call__(self, link: DownloadLink, *, by: User, wanted: Wanted, now: datetime) -> Answer: ...


_openers: dict[str, Opener] = {}


def register(kind: str, opener: Opener) -> None:
    """`opener` answers for links into collections of this kind; nothing else is checked of who minted them."""
    _openers[kind] = opener


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
    return issue(collection=collection, file=file, selection=selection, disposition=disposition, by=by, now=now)


@retry_on_deadlock
def issue(
    *,
    collection: Collection,
    by: User,
    now: datetime,
    file: StoredFile | None = None,
    selection: Sequence[str] = (),
    disposition: str = DownloadLink.Disposition.ATTACHMENT,
) -> str:
    """A token, for whoever has just been found to be allowed it."""
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        DownloadLink.objects.create(
            token_hash=_hash(token),
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


def open_link(token: str, *, wanted: Wanted, now: datetime) -> Answer:
    """The answer to a GET or HEAD of a link. HEAD consumes nothing. Raises LinkDead for everything that is not to be had."""
    links = DownloadLink.objects.select_related("collection", "file", "minted_by", "minted_with")
    link = links.filter(token_hash=_hash(token)).first()
    if link is None:
        raise LinkDead
    by = link.minted_by
    by.key = link.minted_with
    opener = _openers.get(link.collection.kind, _open)
    try:
        return opener(link, by=by, wanted=wanted, now=now)
    except NotFound:
        raise LinkDead from None


def _open(link: DownloadLink, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    collection = access.get_collection(by, link.collection.slug)  # the minter's access, as it is now
    if link.file is None:
        return _open_archive(link, collection, by=by, wanted=wanted, now=now)
    file = access.get_file(by, collection.slug, link.file.filename)
    start = start_of(link, file, by=by, wanted=wanted, now=now)
    budget = Budget(DownloadLink.objects.filter(pk=link.pk))
    return downloads.open_file(file, by=by, wanted=wanted, disposition=link.disposition, now=now, start=start, meter=budget)


def start_of(link: DownloadLink, file: StoredFile, *, by: User, wanted: Wanted, now: datetime) -> Start:
    """What claims the link when its bytes start, or says on record that they are resumed. LinkDead if neither is to be had."""
    if link.claimed_at is not None and part_of(wanted, etag=file.etag, length=file.length) is not None:
        is_over = link.claimed_at + RESUME_WINDOW < now
        if is_over or link.object_id != file.object_id or link.bytes_left == 0:
            raise LinkDead
        return lambda first, count: _resume(link, file, by, now)
    if link.claimed_at is not None or link.expires_at <= now:
        raise LinkDead
    return lambda first, count: claim(link, file, by=by, now=now)


def part_of(wanted: Wanted, *, etag: str, length: int) -> int | None:
    """How many bytes Range asks for, if it counts. One that is ignored (RFC 9110, 14.2) would bring the whole file once more."""
    if wanted.head or not if_range(wanted.if_range, etag):
        return None
    try:
        part = parse_range(wanted.range, length)
    except Unsatisfiable:
        return 0
    return part.stop - part.start if part else None


def _open_archive(link: DownloadLink, collection: Collection, *, by: User, wanted: Wanted, now: datetime) -> Answer:
    if link.claimed_at is not None or link.expires_at <= now:
        raise LinkDead
    chosen = access.readable_files(by, collection).filter(uuid__in=link.selection) if link.selection else None
    if chosen is not None and chosen.count() != len(link.selection):
        raise LinkDead
    names = chosen.values_list("filename", flat=True) if chosen is not None else []
    start = partial(claim, link, None, by=by, now=now)
    return downloads.open_archive(collection, by=by, filenames=names, head=wanted.head, now=now, start=start)


def claim(link: DownloadLink, file: StoredFile | None, *, by: User, now: datetime) -> None:
    """Uses it up, in the caller's transaction. Raises LinkDead if somebody else did."""
    budget = file.length + RESUME_EXTRA if file else 0
    # The other contenders are all other requests for this link: exactly one of them finds it unclaimed (INV-09).
    unclaimed = DownloadLink.objects.filter(pk=link.pk, claimed_at=None, expires_at__gt=now)
    if unclaimed.update(claimed_at=now, object_id=file.object_id if file else None, bytes_left=budget) != 1:
        raise LinkDead
    audit.record("link.claim", by=by, tenant=link.collection.tenant, target=file or link.collection, now=now)


def _resume(link: DownloadLink, file: StoredFile, by: User, now: datetime) -> None:
    if not audit.seen("link.resume", by=by, target=file, since=now - downloads.AUDIT_RANGES_EVERY):
        audit.record("link.resume", by=by, tenant=link.collection.tenant, target=file, now=now)


class Budget:
    """Reserves bytes of the `bytes_left` of one row in advance, so that parallel transfers cannot overdraw it.

    A subclass may update other columns of the row through `row`, a queryset that selects only this row.
    """

    def __init__(self, row: QuerySet[Any]) -> None:
        self.row = row
        self._paid = 0

    def reserve(self, count: int, *, left: int) -> None:
        missing = count - self._paid
        # Never for bytes that do not come: they are other transfers', when a client fetches many parts at once.
        advance = max(missing, min(PAID_IN_ADVANCE, left - self._paid))
        if missing > 0 and not (self._take(advance) or self._take(missing)):
            raise TransferEnded("the budget is used up")
        self._paid -= count

    def refund(self) -> None:
        if self._paid:
            self.row.update(bytes_left=F("bytes_left") + self._paid)
            self._paid = 0

    def _take(self, count: int) -> bool:
        # The other contenders are resumed transfers of the same grant.
        if self.row.filter(bytes_left__gte=count).update(bytes_left=F("bytes_left") - count) != 1:
            return False
        self._paid += count
        return True


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
