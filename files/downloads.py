"""Bytes going out: one file or part of one, or a zip of several, decrypted on the way (RFC 9110 for ranges and conditions).

The first segment needed is fetched and verified before there is a response, so that a missing or altered object is an error
document and not a broken download. What fails later ends the response visibly short of its Content-Length (INV-02).
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import Final
from uuid import UUID

from django.db import transaction
from zipstream import ZipStream

from files import access, errors
from files.http.headers import Unsatisfiable, if_match, if_none_match, if_range, parse_range, repr_digest
from files.http.responses import Answer, Wanted, byte_headers
from files.http.streaming import SLOTS, Meter, Transfer, TransferEnded, return_connection
from files.models import Collection, Level, StoredFile
from tenants import audit
from tenants.errors import Invalid, NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock
from vault import crypto
from vault.content import stored_content
from vault.content_reader import Content
from vault.errors import StorageUnavailable
from vault.stores import ObjectChanged, StoreError


log = logging.getLogger(__name__)

AUDIT_RANGES_EVERY: Final = timedelta(minutes=15)
MAX_ARCHIVE_FILES: Final = 100_000


@dataclass(frozen=True)
class Source:
    """One content that can be streamed. Whoever makes it has checked that the reader may begin."""

    filename: str
    content_type: str
    length: int  # plaintext bytes
    sha256: str  # of the plaintext, hex
    etag: str
    read: Callable[[int, int], Generator[bytes, None, None]]  # plaintext [start, stop), of which nothing is fetched before `next`
    still_allowed: Callable[[], bool]  # asked every few seconds


Start = Callable[[int, int], None]  # takes the first byte and the number of bytes that are about to leave


def open_file(
    file: StoredFile,
    *,
    by: User,
    wanted: Wanted,
    disposition: str,
    now: datetime,
    start: Start | None = None,
    meter: Meter | None = None,
) -> Answer:
    """The answer to a GET or HEAD for `file`, which came from `access`. By default `start` writes the audit row."""
    access.check_can_read(file)
    still_allowed = partial(access.may_read, by, file.collection_id, file.pk)
    source = source_of(file, by=by, still_allowed=still_allowed, now=now)
    start = start or partial(_record_download, file, by, now)
    return open_source(source, wanted=wanted, disposition=disposition, start=start, meter=meter)


def source_of(file: StoredFile, *, by: User, still_allowed: Callable[[], bool], now: datetime) -> Source:
    return Source(
        filename=file.filename,
        content_type=file.content_type,
        length=file.length,
        sha256=file.sha256,
        etag=file.etag,
        read=partial(read_file, file, by=by, now=now),
        still_allowed=still_allowed,
    )


def open_source(source: Source, *, wanted: Wanted, disposition: str, start: Start, meter: Meter | None = None) -> Answer:
    """The answer to a GET or HEAD for `source`.

    `start` runs in a transaction of its own once the first segment is verified and before a byte leaves.
    """
    if not if_match(wanted.if_match, source.etag):
        raise errors.PreconditionFailed
    headers = byte_headers(disposition, source.filename, source.content_type) | {
        "ETag": source.etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(source.sha256),
    }
    if not if_none_match(wanted.if_none_match, source.etag):
        # The length that 200 would have, or none at all (RFC 9110, 8.6); Django would write 0.
        kept = {name: headers[name] for name in ("ETag", "Cache-Control")}
        return Answer(HTTPStatus.NOT_MODIFIED, kept | {"Content-Length": str(source.length)})
    first, stop, status = 0, source.length, HTTPStatus.OK
    if not wanted.head and if_range(wanted.if_range, source.etag):
        try:
            part = parse_range(wanted.range, source.length)
        except Unsatisfiable:
            raise errors.RangeNotSatisfiable(length=source.length) from None
        if part:
            first, stop, status = part.start, part.stop, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = part.content_range(source.length)
    headers["Content-Length"] = str(stop - first)
    if wanted.head:
        return Answer(status, headers)
    body = Transfer(source.read(first, stop), length=stop - first, still_allowed=source.still_allowed, slots=SLOTS, meter=meter)
    begin(body, partial(start, first, stop - first))
    return Answer(status, headers, body)


def open_archive(
    collection: Collection,
    *,
    by: User,
    filenames: Iterable[str],
    head: bool,
    now: datetime,
    start: Callable[[], None] | None = None,
) -> Answer:
    """A zip of what `by` can read in a collection, or of the named files: stored, streamed, its exact length known beforehand."""
    files = access.get_readable_files(by, collection, filenames).order_by("filename", "id")
    members = list(files.values_list("pk", "filename", "length", "object_id")[: MAX_ARCHIVE_FILES + 1])
    if lost := files.filter(status=StoredFile.Status.MISSING).first():
        raise errors.ObjectMissing(f"The storage has lost the object of {lost.filename}. Name the files that you need.")
    if len(members) > MAX_ARCHIVE_FILES:
        raise Invalid("file", f"An archive holds at most {MAX_ARCHIVE_FILES} files; name those you need.")
    # Who can read the collection may go on while that holds; to who was granted single files, each of them has to be still.
    is_whole = access.level_of(collection) >= Level.VIEWER
    opened = [_Member(pk, object_id, by=by, now=now, is_checked=not is_whole) for pk, _, _, object_id in members]
    archive = ZipStream(sized=True)
    for pieces, (_, filename, length, _) in zip(opened, members, strict=True):
        archive.add(pieces, filename, size=length)
    headers = byte_headers("attachment", f"{collection.slug}.zip", "application/zip") | {"Content-Length": str(len(archive))}
    if head:
        return Answer(HTTPStatus.OK, headers)

    def still_allowed() -> bool:
        if is_whole:
            return access.may_read(by, collection.pk)
        return all(access.may_read(by, collection.pk, member.pk) for member in opened if member.is_open)

    body = Transfer(_zip(archive, opened), length=len(archive), still_allowed=still_allowed, slots=SLOTS)
    begin(body, start or partial(_record_archive, collection, by, now, len(members)))
    return Answer(HTTPStatus.OK, headers, body)


def begin(body: Transfer, record: Callable[[], None]) -> None:
    """What has to be on record before the first byte leaves."""
    try:
        retry_on_deadlock(transaction.atomic(record))()
    except BaseException:
        body.close()
        raise
    return_connection()  # the stream takes no database connection with it (T-15)


def read_file(file: StoredFile, start: int, stop: int, *, by: User | None, now: datetime) -> Generator[bytes, None, None]:
    """Plaintext [start, stop) of a file, as `read_verified`. What is wrong with its object is written on its row."""
    pieces = read_verified(
        partial(stored_content, file),
        start,
        stop,
        sha256=file.sha256,
        missing=partial(note_missing, file, by, now),
        corrupt=partial(_alarm, "file.corrupt", file, by, now),
        etag_changed=partial(_note_etag, file, by, now),
    )
    with closing(pieces):
        first = next(pieces)
        if file.status == StoredFile.Status.MISSING:
            _found_again(file, by, now)
        yield first
        yield from pieces


def read_verified(
    content: Callable[[], Content],
    start: int,
    stop: int,
    *,
    sha256: str,
    missing: Callable[[Exception], None],
    corrupt: Callable[[Exception], None],
    etag_changed: Callable[[str], None],
) -> Generator[bytes, None, None]:
    """Plaintext [start, stop) of a content. What the store and the cipher say of it becomes a problem.

    `missing` and `corrupt` put that on record before anybody hears of it; `etag_changed` is told what ETag the object has by now.
    """
    try:
        opened = content()
        is_plain = isinstance(opened.decryptor, crypto.PassThroughDecryptor)
        is_whole_plain = is_plain and (start, stop) == (0, opened.decryptor.layout.length)
        with closing(_first_segment_verified(opened, start, stop, etag_changed)) as pieces:
            yield from _matching(pieces, sha256) if is_whole_plain else pieces
    except FileNotFoundError as error:
        missing(error)
        raise errors.ObjectMissing from error
    except (crypto.CorruptObject, crypto.WrongKey, ObjectChanged) as error:
        corrupt(error)
        raise errors.ObjectCorrupt from error
    except StoreError as error:
        raise StorageUnavailable from error


def _first_segment_verified(
    content: Content, start: int, stop: int, etag_changed: Callable[[str], None]
) -> Generator[bytes, None, None]:
    """As `content.read`, and also of an object that was restored by copying, which gave it another ETag."""
    pieces = content.read(start, stop)
    try:
        first = next(pieces)
    except ObjectChanged:
        if isinstance(content.decryptor, crypto.PassThroughDecryptor):
            raise  # nothing else proves a part of it
        # Its size and its tags prove every byte of it. The ETag only has to stay the same from here on.
        content = replace(content, etag=content.store.stat(content.key).etag)
        pieces = content.read(start, stop)
        first = next(pieces)
        etag_changed(content.etag)
    with closing(pieces):
        yield first
        yield from pieces


def note_missing(file: StoredFile, by: User | None, now: datetime, error: Exception) -> None:
    """The store has lost its object: the row stays, and says so. Raises NotFound if the row is not there any more."""
    with transaction.atomic():
        row = StoredFile.objects.filter(pk=file.pk, object_id=file.object_id)
        if not row.update(status=StoredFile.Status.MISSING):
            raise NotFound from error  # deleted or replaced since the row was read
        _alarm("file.missing", file, by, now, error)


def _note_etag(file: StoredFile, by: User | None, now: datetime, etag: str) -> None:
    with transaction.atomic():
        if StoredFile.objects.filter(pk=file.pk, object_id=file.object_id).exclude(object_etag=etag).update(object_etag=etag):
            audit.record("file.etag", by=by, tenant=file.collection.tenant, target=file, now=now, object=str(file.object_id))


def _matching(pieces: Iterator[bytes], sha256_hex: str) -> Iterator[bytes]:
    """A `NONE` content has no tags: its digest is compared before the last piece leaves (INV-02)."""
    digest, held = sha256(), next(pieces)
    digest.update(held)
    for piece in pieces:
        yield held
        digest.update(piece)
        held = piece
    if digest.hexdigest() != sha256_hex:
        raise crypto.CorruptObject("the content has another SHA-256 than the row")
    yield held


def _found_again(file: StoredFile, by: User | None, now: datetime) -> None:
    with transaction.atomic():
        if StoredFile.objects.filter(pk=file.pk, status=StoredFile.Status.MISSING).update(status=StoredFile.Status.READY):
            audit.record("file.found", by=by, tenant=file.collection.tenant, target=file, now=now, object=str(file.object_id))


def _alarm(action: str, file: StoredFile, by: User | None, now: datetime, error: Exception) -> None:
    log.error(action, extra={"file": str(file.uuid), "object": str(file.object_id), "error": str(error)})
    facts = {"object": str(file.object_id), "error": type(error).__name__}
    with transaction.atomic():
        audit.record(action, by=by, tenant=file.collection.tenant, target=file, now=now, **facts)


def _record_download(file: StoredFile, by: User, now: datetime, first: int, count: int) -> None:
    """One row per download; one per person, file and quarter of an hour for the ranges of a client that fetches in pieces."""
    tenant = file.collection.tenant
    if count == file.length:
        audit.record("file.download", by=by, tenant=tenant, target=file, now=now, object=str(file.object_id))
    elif not audit.seen("file.download_range", by=by, target=file, since=now - AUDIT_RANGES_EVERY):
        facts: dict[str, str | int] = {"object": str(file.object_id), "first": first, "count": count}
        audit.record("file.download_range", by=by, tenant=tenant, target=file, now=now, **facts)


def _record_archive(collection: Collection, by: User, now: datetime, count: int) -> None:
    audit.record("collection.archive", by=by, tenant=collection.tenant, target=collection, now=now, files=count)


class _Member:
    """One file of an archive, opened when its turn comes. It has to be the content whose length the archive announced."""

    def __init__(self, pk: int, object_id: UUID, *, by: User, now: datetime, is_checked: bool) -> None:
        self.pk, self.is_open = pk, False
        self._object_id, self._by, self._now, self._is_checked = object_id, by, now, is_checked
        self._pieces: Generator[bytes, None, None] | None = None
        self._first = b""

    def open(self) -> None:
        """Fetches and verifies the first segment."""
        files = StoredFile.objects.select_related("collection__tenant", "collection__key")
        file = files.filter(pk=self.pk, object_id=self._object_id).first()
        if file is None:
            raise TransferEnded("a file of the archive was replaced or deleted")
        if self._is_checked and not access.may_read(self._by, file.collection_id, self.pk):
            raise TransferEnded("access to a file of the archive was taken away")
        self.is_open = True
        self._pieces = read_file(file, 0, file.length, by=self._by, now=self._now)
        self._first = next(self._pieces)
        return_connection()

    def __iter__(self) -> Iterator[bytes]:
        if self._pieces is None:
            self.open()
        assert self._pieces is not None  # noqa: S101  for the type checker
        yield self._first
        yield from self._pieces
        self.close()

    def close(self) -> None:
        self.is_open = False
        if self._pieces is not None:
            self._pieces.close()


def _zip(archive: ZipStream, members: list[_Member]) -> Generator[bytes, None, None]:
    try:
        if members:
            members[0].open()
        yield from archive
    finally:
        for member in members:
            member.close()
