"""Downloads: streams a file, a range of a file or a zip of files, and decrypts while it streams (RFC 9110).

The first segment is fetched and verified before the response starts. A missing or altered object is therefore reported as an
error document and not as a broken download. After a later failure the response is shorter than its Content-Length (INV-02).
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
from files.http.responses import ByteRequest, ByteResponse, byte_headers
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

RANGE_AUDIT_INTERVAL: Final = timedelta(minutes=15)
MAX_ARCHIVE_FILES: Final = 100_000


@dataclass(frozen=True)
class Source:
    """Content that can be streamed. The caller that creates it must check access first."""

    filename: str
    content_type: str
    length: int  # plaintext bytes
    sha256: str  # of the plaintext, hex
    etag: str
    read: Callable[[int, int], Generator[bytes, None, None]]  # plaintext [start, stop); fetches nothing before the first `next`
    still_allowed: Callable[[], bool]  # called every few seconds while the stream runs


StartCallback = Callable[[int, int], None]  # takes the offset of the first byte and the number of bytes to send


def open_file(
    file: StoredFile,
    *,
    by: User,
    byte_request: ByteRequest,
    disposition: str,
    now: datetime,
    start: StartCallback | None = None,
    meter: Meter | None = None,
) -> ByteResponse:
    """Responds to a GET or HEAD request for `file`, which came from `access`. By default `start` records the download.

    Raises: PreconditionFailed, RangeNotSatisfiable, Refused, TransfersFull.
    """
    access.check_can_read(file)
    still_allowed = partial(access.can_read, by, file.collection_id, file.pk)
    source = file_source(file, by=by, still_allowed=still_allowed, now=now)
    start = start or partial(_record_download, file, by, now)
    return open_source(source, byte_request=byte_request, disposition=disposition, start=start, meter=meter)


def file_source(file: StoredFile, *, by: User, still_allowed: Callable[[], bool], now: datetime) -> Source:
    """The source of a stored file. Does not check access."""
    return Source(
        filename=file.filename,
        content_type=file.content_type,
        length=file.length,
        sha256=file.sha256,
        etag=file.etag,
        read=partial(read_file, file, by=by, now=now),
        still_allowed=still_allowed,
    )


def open_source(
    source: Source, *, byte_request: ByteRequest, disposition: str, start: StartCallback, meter: Meter | None = None
) -> ByteResponse:
    """Responds to a GET or HEAD request for `source`.

    `start` runs in its own transaction after the first segment is verified and before the first byte is sent.

    Raises: PreconditionFailed, RangeNotSatisfiable, TransfersFull.
    """
    if not if_match(byte_request.if_match, source.etag):
        raise errors.PreconditionFailed
    headers = byte_headers(disposition, source.filename, source.content_type) | {
        "ETag": source.etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(source.sha256),
    }
    if not if_none_match(byte_request.if_none_match, source.etag):
        # A 304 repeats the Content-Length of the 200 response (RFC 9110, 8.6). Django would set it to 0.
        unchanged = {name: headers[name] for name in ("ETag", "Cache-Control")}
        return ByteResponse(HTTPStatus.NOT_MODIFIED, unchanged | {"Content-Length": str(source.length)})
    first, stop, status = 0, source.length, HTTPStatus.OK
    if not byte_request.head and if_range(byte_request.if_range, source.etag):
        try:
            part = parse_range(byte_request.range, source.length)
        except Unsatisfiable:
            raise errors.RangeNotSatisfiable(length=source.length) from None
        if part:
            first, stop, status = part.start, part.stop, HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = part.content_range(source.length)
    headers["Content-Length"] = str(stop - first)
    if byte_request.head:
        return ByteResponse(status, headers)
    body = Transfer(source.read(first, stop), length=stop - first, still_allowed=source.still_allowed, slots=SLOTS, meter=meter)
    start_transfer(body, partial(start, first, stop - first))
    return ByteResponse(status, headers, body)


def open_archive(
    collection: Collection,
    *,
    by: User,
    filenames: Iterable[str],
    head: bool,
    now: datetime,
    start: Callable[[], None] | None = None,
) -> ByteResponse:
    """Streams an uncompressed zip of the named files, or of all files that `by` can read. Its length is known in advance.

    Raises: Invalid, NotFound, ObjectMissing, Refused, TransfersFull.
    """
    files = access.get_readable_files(by, collection, filenames).order_by("filename", "id")
    members = list(files.values_list("pk", "filename", "length", "object_id")[: MAX_ARCHIVE_FILES + 1])
    if lost := files.filter(status=StoredFile.Status.MISSING).first():
        raise errors.ObjectMissing(f"The storage has lost the object of {lost.filename}. Select the files that you need by name.")
    if len(members) > MAX_ARCHIVE_FILES:
        raise Invalid("file", f"An archive can have at most {MAX_ARCHIVE_FILES} files. Select the files that you need by name.")
    # With access to the whole collection, one check covers all files. With grants on single files, each file needs its own check.
    is_whole = access.level_of(collection) >= Level.VIEWER
    streams = [_ArchiveMember(pk, object_id, by=by, now=now, is_checked=not is_whole) for pk, _, _, object_id in members]
    archive = ZipStream(sized=True)
    for pieces, (_, filename, length, _) in zip(streams, members, strict=True):
        archive.add(pieces, filename, size=length)
    headers = byte_headers("attachment", f"{collection.slug}.zip", "application/zip") | {"Content-Length": str(len(archive))}
    if head:
        return ByteResponse(HTTPStatus.OK, headers)

    def still_allowed() -> bool:
        if is_whole:
            return access.can_read(by, collection.pk)
        return all(access.can_read(by, collection.pk, member.pk) for member in streams if member.is_open)

    body = Transfer(_stream_zip(archive, streams), length=len(archive), still_allowed=still_allowed, slots=SLOTS)
    start_transfer(body, start or partial(_record_archive, collection, by, now, len(members)))
    return ByteResponse(HTTPStatus.OK, headers, body)


def start_transfer(body: Transfer, record: Callable[[], None]) -> None:
    """Runs `record` in a transaction before the first byte is sent. Closes the transfer if that fails."""
    try:
        retry_on_deadlock(transaction.atomic(record))()
    except BaseException:
        body.close()
        raise
    return_connection()  # the stream must not hold a database connection (T-15)


def read_file(file: StoredFile, start: int, stop: int, *, by: User | None, now: datetime) -> Generator[bytes, None, None]:
    """Yields the plaintext bytes [start, stop) of a file. Records a missing or corrupt object in the audit trail.

    A missing object also changes the status of the row. See `read_verified` for the errors.

    Raises: ObjectCorrupt, ObjectMissing, StorageUnavailable.
    """
    pieces = read_verified(
        partial(stored_content, file),
        start,
        stop,
        sha256=file.sha256,
        missing=partial(mark_missing, file, by, now),
        corrupt=partial(_report_damage, "file.corrupt", file, by, now),
        etag_changed=partial(_record_etag, file, by, now),
    )
    with closing(pieces):
        first = next(pieces)
        if file.status == StoredFile.Status.MISSING:
            _mark_found(file, by, now)
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
    """Yields the plaintext bytes [start, stop) of the content. Translates errors of the store and of the cipher to API errors.

    `missing` and `corrupt` record the damage before the error is raised. `etag_changed` receives the current ETag of an object
    that was restored from a copy.

    Raises: ObjectCorrupt, ObjectMissing, StorageUnavailable.
    """
    try:
        stored = content()
        is_plain = isinstance(stored.decryptor, crypto.PassThroughDecryptor)
        is_whole_plain = is_plain and (start, stop) == (0, stored.decryptor.layout.length)
        with closing(_read_any_etag(stored, start, stop, etag_changed)) as pieces:
            yield from _verify_digest(pieces, sha256) if is_whole_plain else pieces
    except FileNotFoundError as error:
        missing(error)
        raise errors.ObjectMissing from error
    except (crypto.CorruptObject, crypto.WrongKey, ObjectChanged) as error:
        corrupt(error)
        raise errors.ObjectCorrupt from error
    except StoreError as error:
        raise StorageUnavailable from error


def _read_any_etag(content: Content, start: int, stop: int, etag_changed: Callable[[str], None]) -> Generator[bytes, None, None]:
    """Like `content.read`, but also reads an object that was restored from a copy and therefore has another ETag."""
    pieces = content.read(start, stop)
    try:
        first = next(pieces)
    except ObjectChanged:
        if isinstance(content.decryptor, crypto.PassThroughDecryptor):
            raise  # without a cipher, only the ETag shows that a range is unaltered
        # The size and the authentication tags prove every byte. From here on the ETag only has to stay the same.
        content = replace(content, etag=content.store.stat(content.key).etag)
        pieces = content.read(start, stop)
        first = next(pieces)
        etag_changed(content.etag)
    with closing(pieces):
        yield first
        yield from pieces


def mark_missing(file: StoredFile, by: User | None, now: datetime, error: Exception) -> None:
    """Sets the status of a file whose object is missing from the store, and records that.

    Raises: NotFound.
    """
    with transaction.atomic():
        row = StoredFile.objects.filter(pk=file.pk, object_id=file.object_id)
        if not row.update(status=StoredFile.Status.MISSING):
            raise NotFound from error  # deleted or replaced since the row was read
        _report_damage("file.missing", file, by, now, error)


def _record_etag(file: StoredFile, by: User | None, now: datetime, etag: str) -> None:
    with transaction.atomic():
        if StoredFile.objects.filter(pk=file.pk, object_id=file.object_id).exclude(object_etag=etag).update(object_etag=etag):
            audit.record("file.etag", by=by, tenant=file.collection.tenant, target=file, now=now, object=str(file.object_id))


def _verify_digest(pieces: Iterator[bytes], sha256_hex: str) -> Iterator[bytes]:
    """Passes the pieces on and compares their digest before the last one (INV-02): `NONE` content has no authentication tags."""
    digest, pending = sha256(), next(pieces)
    digest.update(pending)
    for piece in pieces:
        yield pending
        digest.update(piece)
        pending = piece
    if digest.hexdigest() != sha256_hex:
        raise crypto.CorruptObject("the SHA-256 of the content differs from the row")
    yield pending


def _mark_found(file: StoredFile, by: User | None, now: datetime) -> None:
    with transaction.atomic():
        if StoredFile.objects.filter(pk=file.pk, status=StoredFile.Status.MISSING).update(status=StoredFile.Status.READY):
            audit.record("file.found", by=by, tenant=file.collection.tenant, target=file, now=now, object=str(file.object_id))


def _report_damage(action: str, file: StoredFile, by: User | None, now: datetime, error: Exception) -> None:
    log.error(action, extra={"file": str(file.uuid), "object": str(file.object_id), "error": str(error)})
    facts = {"object": str(file.object_id), "error": type(error).__name__}
    with transaction.atomic():
        audit.record(action, by=by, tenant=file.collection.tenant, target=file, now=now, **facts)


def _record_download(file: StoredFile, by: User, now: datetime, first: int, count: int) -> None:
    """Records a whole download each time, and range requests at most once per user, file and 15 minutes."""
    tenant = file.collection.tenant
    if count == file.length:
        audit.record("file.download", by=by, tenant=tenant, target=file, now=now, object=str(file.object_id))
    elif not audit.has_event("file.download_range", by=by, target=file, since=now - RANGE_AUDIT_INTERVAL):
        facts: dict[str, str | int] = {"object": str(file.object_id), "first": first, "count": count}
        audit.record("file.download_range", by=by, tenant=tenant, target=file, now=now, **facts)


def _record_archive(collection: Collection, by: User, now: datetime, count: int) -> None:
    audit.record("collection.archive", by=by, tenant=collection.tenant, target=collection, now=now, files=count)


class _ArchiveMember:
    """One file of an archive. It is opened when the archive reaches it, and must still have the content that was announced."""

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
        if self._is_checked and not access.can_read(self._by, file.collection_id, self.pk):
            raise TransferEnded("access to a file of the archive was revoked")
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


def _stream_zip(archive: ZipStream, members: list[_ArchiveMember]) -> Generator[bytes, None, None]:
    try:
        if members:
            members[0].open()
        yield from archive
    finally:
        for member in members:
            member.close()
