"""Uploads: content is encrypted segment by segment on its way to the store, and becomes a file once all of it is there.

`begin` checks the request and writes an `Upload` row. `UploadSession.write` takes the bytes without a database connection, and
`commit` creates the file in one transaction. If anything fails before that, `abandon` removes everything; a tick removes what a
killed process leaves.
"""

import mimetypes
import re
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Self

from django.conf import settings
from django.core.files.uploadhandler import FileUploadHandler
from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.db.models import F
from django.utils import timezone

from files import errors, holds, quota
from files.access import check_can_upload
from files.cleanup import erase_object
from files.filenames import check_filename, unique_key
from files.http.headers import if_match, if_none_match
from files.http.streaming import SLOTS, Slots, return_connection
from files.models import Collection, PendingDeletion, StoredFile, Upload
from tenants import audit
from tenants.errors import Invalid
from tenants.models import Tenant, User
from tenants.work.deadlocks import retry_on_deadlock
from vault import content, identity
from vault.content import ContentWriter
from vault.errors import StorageUnavailable
from vault.stores import ObjectStore, StoreError, get_store


HEARTBEAT_SECONDS: Final = 30
REPLACED_GRACE_SECONDS: Final = 3600  # downloads that started before a replacement can read the old object for this long
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,63}/[A-Za-z0-9!#$&^_.+-]{1,63}")
# Defaults of clients, which say nothing about the content.
_GENERIC_TYPES: Final = {"", "application/octet-stream", "application/x-www-form-urlencoded"}


class RefuseUpload(FileUploadHandler):
    """The only handler in FILE_UPLOAD_HANDLERS. Without it, any access to request.FILES writes plaintext to disk (A-5)."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        raise errors.UnsupportedBody("Files are not accepted here.")

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        raise errors.UnsupportedBody("Files are not accepted here.")

    def file_complete(self, file_size: int) -> None:
        raise errors.UnsupportedBody("Files are not accepted here.")


@dataclass(frozen=True)
class Conditions:
    """The conditional headers of a PUT request (RFC 9110, section 13)."""

    if_match: str | None
    if_none_match: str | None

    def check(self, existing: StoredFile | None) -> None:
        """Checks the conditions against the file that the request would replace, if any.

        Raises: PreconditionFailed, PreconditionRequired.
        """
        if existing is None:
            if self.if_match is not None:
                raise errors.PreconditionFailed
            return
        if not if_none_match(self.if_none_match, existing.etag):
            raise errors.PreconditionFailed
        if self.if_match is None:
            raise errors.PreconditionRequired
        if not if_match(self.if_match, existing.etag):
            raise errors.PreconditionFailed


class UploadSession:
    """One upload: call `write` for each piece, then `commit`. Leaving the `with` block without a commit abandons the upload.

    This class is for uploads of users. A subclass can create another kind of file, with other limits, for a worker.
    """

    slots: ClassVar[Slots] = SLOTS  # shared by all web requests; a subclass for workers has its own

    def __init__(
        self,
        *,
        upload: Upload,
        writer: ContentWriter,
        draft: StoredFile,
        replaces: StoredFile | None,
        store: ObjectStore,
    ) -> None:
        self.upload = upload
        self.draft = draft  # the unsaved row; `commit` adds its lengths and digests
        self._writer, self._store, self._replaces = writer, store, replaces
        self._last_heartbeat = time.monotonic()
        self._slots: Slots | None = self.slots  # taken by `receive`
        self._is_committing = False

    @classmethod
    def start(
        cls,
        draft: StoredFile,
        *,
        by: User | None,
        size: int | None,
        now: datetime,
        replaces: StoredFile | None = None,
        encrypt: bool = False,
    ) -> Self:
        """Starts an upload of the content of `draft`, an unsaved row with an object key. Creates an `Upload` row. Checks nothing.

        `size` is the announced number of plaintext bytes, or None. `by` is None for the system. `encrypt` asks the store to
        encrypt the object.
        """
        encryptor = content.encryptor_for(draft)
        expected = StoredFile(length=size or 0, cipher=draft.cipher, segment_size=draft.segment_size).layout.object_size
        cls.slots.take()
        try:
            upload = Upload.objects.create(
                store=draft.store,
                object_id=draft.object_id,
                object_key=draft.object_key,
                collection=draft.collection,
                started_by=by,
                started_at=now,
                heartbeat_at=now,
            )
            try:
                store = get_store(draft.store)
                writer = store.create(draft.object_key, size=None if size is None else expected, encrypt=encrypt)
            except BaseException:
                upload.delete()  # nothing has reached the store
                raise
        except BaseException:
            cls.slots.release()
            raise
        return_connection()  # an upload can take hours and must not hold a database connection
        return cls(upload=upload, writer=ContentWriter(encryptor, writer), draft=draft, replaces=replaces, store=store)

    @property
    def limit(self) -> int | None:
        """The maximum number of plaintext bytes, or None."""
        return settings.FILES_MAX_UPLOAD_BYTES

    @property
    def length(self) -> int:
        """The number of plaintext bytes received so far."""
        return self._writer.length

    @property
    def is_replacement(self) -> bool:
        return self._replaces is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and stores the next piece of plaintext."""
        if self.limit is not None and self.length + len(data) > self.limit:
            raise errors.TooLarge
        self._writer.write(data)
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._heartbeat()

    def commit(self, *, by: User | None, now: datetime, notes: str | None = None, digest: bytes | None = None) -> StoredFile:
        """Completes the upload and returns the new or replaced file. After an error, `abandon` removes the stored bytes.

        `digest` is the SHA-256 that the client announced, if any.
        """
        if digest is not None and digest != self._writer.sha256:
            raise errors.DigestMismatch
        file = self.draft
        file.length, file.sha256 = self.length, self._writer.sha256.hex()
        if notes is not None:
            file.notes = notes
        stat = self._writer.commit()
        if stat.size != file.layout.object_size:
            raise StorageUnavailable("The storage reports a wrong size for the stored object. Send the file again.")
        file.object_size, file.object_etag = stat.size, stat.etag
        try:
            file = self._create_file(by=by, now=now)
        except (OperationalError, InterfaceError) as error:
            if not self._is_committing:
                raise  # the transaction was certainly rolled back
            self._finish()  # the file may exist, so only the clean-up, which checks for the row, may delete its object
            file = self._read_back(error)
        self._finish()
        return file

    def abandon(self) -> None:
        """Deletes the parts, the object and the `Upload` row. Does nothing if the file exists or may exist."""
        if self._slots is None:
            return
        self._finish()
        return_connection()
        try:
            self._writer.abort()
            if StoredFile.objects.filter(object_id=self.upload.object_id).exists():
                return  # a bug must not cause data loss
            if self._writer.has_begun:
                # Needed even if the clean-up has deleted the row, because bytes may have been written after that.
                erase_object(self._store, self.upload.object_key)
            Upload.objects.filter(pk=self.upload.pk).delete()
        except (StoreError, OperationalError, InterfaceError):
            return  # the row still exists, so the tick cleans up

    def _finish(self) -> None:
        """Releases the slot. After this, `abandon` does nothing."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None

    def _heartbeat(self) -> None:
        self._last_heartbeat = time.monotonic()
        try:
            # The other contender is the clean-up, which ends uploads without a heartbeat.
            active = Upload.objects.filter(pk=self.upload.pk, collection__status=Collection.Status.OPEN)
            is_active = active.update(heartbeat_at=timezone.now()) == 1
            is_lost = not is_active and not Upload.objects.filter(pk=self.upload.pk).exists()
        except (OperationalError, InterfaceError):
            return  # one missed heartbeat does no harm, and the commit checks the row again
        finally:
            return_connection()
        if is_lost:
            raise errors.UploadLost
        if not is_active:
            raise errors.NotOpen  # the commit would fail anyway, and a purge waits for this upload

    @retry_on_deadlock
    def _create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        self._is_committing = False
        with transaction.atomic():
            file = self.create_file(by=by, now=now)
            self._is_committing = True  # an error before this line has changed nothing
        return file

    def create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        """A hook for subclasses. Saves `self.draft`, whose lengths and digests are set, and returns the saved row.

        `commit` calls it in a transaction and calls it again after a deadlock. An override must delete the `Upload` row in that
        transaction, and must raise an error if another process has deleted it: that process has claimed the object.
        """
        assert by is not None  # noqa: S101  for the type checker: only a subclass creates files for the system
        file = self.draft
        collection = _lock_collection(file.collection_id)
        file.my_level = check_can_upload(by, collection, self._replaces)  # access may have changed since `begin`
        if collection.status != Collection.Status.OPEN:
            raise errors.NotOpen
        # The other contenders are the clean-up and a second commit. The one that deletes the row owns the object.
        if not Upload.objects.filter(pk=self.upload.pk).delete()[0]:
            raise errors.UploadLost
        replaced = self._lock_replaced()
        if replaced:
            holds.check_not_held(collection, replaced)
        quota.check_quota(
            collection, more_files=0 if replaced else 1, more_bytes=file.length - (replaced.length if replaced else 0)
        )
        file.updated_at, file.updated_by = now, by
        if replaced:
            file.pk, file.created_at, file.created_by = replaced.pk, replaced.created_at, replaced.created_by
            file.filename, file.name_key, file.keep_until = replaced.filename, replaced.name_key, replaced.keep_until
            file.notes = replaced.notes
            queue_deletion(replaced, due_after=REPLACED_GRACE_SECONDS, now=now)
            file.save(force_update=True)
        else:
            file.created_at, file.created_by = now, by
            try:
                with transaction.atomic():
                    file.save(force_insert=True)
            except IntegrityError:  # another upload of this name committed first
                raise errors.NameTaken from None
        Collection.objects.filter(pk=collection.pk).update(
            file_count=F("file_count") + (0 if replaced else 1),
            total_length=F("total_length") + file.length - (replaced.length if replaced else 0),
        )
        audit.record(
            "file.replace" if replaced else "file.create",
            by=by,
            tenant=collection.tenant,
            target=file,
            now=now,
            collection=str(collection.uuid),
            filename=file.filename,
            length=file.length,
            sha256=file.sha256,
            cipher=file.cipher,
        )
        file.is_held = holds.holds_on(collection, file).exists()
        return file

    def _lock_replaced(self) -> StoredFile | None:
        if self._replaces is None:
            return None
        replaced = StoredFile.objects.select_for_update().filter(pk=self._replaces.pk).first()
        if replaced is None or replaced.object_id != self._replaces.object_id:
            raise errors.PreconditionFailed
        return replaced

    def _read_back(self, error: Exception) -> StoredFile:
        """Looks for the row when the outcome of the commit is unknown. Deletes nothing: the row may still appear."""
        for pause in (0, 0.5, 2):
            time.sleep(pause)
            return_connection()
            try:
                if file := StoredFile.objects.filter(object_id=self.upload.object_id).first():
                    file.my_level = self.draft.my_level
                    return file
            except (OperationalError, InterfaceError):
                continue
        raise OutcomeUnknown from error


class OutcomeUnknown(StorageUnavailable):
    default_detail = (
        "The database connection broke while the file was saved. Check whether the file exists before you send it again."
    )
    default_code = "outcome_unknown"


def begin(
    *,
    by: User,
    collection: Collection,
    filename: str,
    content_type: str,
    notes: str,
    size: int | None,
    conditions: Conditions | None,
    now: datetime,
) -> UploadSession:
    """Starts an upload after all checks that do not need the content. `size` is the announced number of plaintext bytes, or None.

    Without `conditions` (a form), a file with the same name is a conflict. With `conditions` (PUT), If-Match must match its ETag.

    Raises: DatabaseRestored, ForeignVault, Held, Invalid, KeyUnavailable, NameTaken, NotFound, PreconditionFailed,
    PreconditionRequired, QuotaExceeded, Refused, StorageUnavailable, StoreRefused, StoreUnavailable, TooLarge.
    """
    try:
        check_filename(filename)
    except ValueError as error:
        raise Invalid("filename", str(error), code="bad_filename") from None
    identity.check(now=now)
    existing = collection.files.filter(name_key=unique_key(filename)).first()
    check_can_upload(by, collection, existing)
    if conditions is None:
        if existing:
            raise errors.NameTaken
    else:
        conditions.check(existing)
    if existing:
        holds.check_not_held(collection, existing)
    if size is not None and size > settings.FILES_MAX_UPLOAD_BYTES:
        raise errors.TooLarge
    quota.check_quota(collection, more_files=0 if existing else 1, more_bytes=(size or 0) - (existing.length if existing else 0))
    draft = StoredFile(
        collection=collection,
        uuid=existing.uuid if existing else uuid.uuid4(),
        filename=filename,
        name_key=unique_key(filename),
        content_type=choose_media_type(content_type, filename),
        notes=notes,
        cipher=collection.cipher,
        segment_size=settings.FILES_SEGMENT_SIZE,
        object_id=uuid.uuid4(),
        store=collection.tenant.vault_alias,
    )
    draft.object_key = collection.object_key(draft.object_id)
    return UploadSession.start(draft, by=by, size=size, now=now, replaces=existing)


def choose_media_type(content_type: str, filename: str) -> str:
    """The media type that the client sent, without parameters. If it is generic or invalid, the type is guessed from the name."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _GENERIC_TYPES or not is_media_type(kind):
        kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    return kind


def is_media_type(value: str) -> bool:
    """Whether the value is a media type without parameters."""
    return bool(_MEDIA_TYPE.fullmatch(value))


def queue_deletion(file: StoredFile, *, due_after: int, now: datetime) -> None:
    """Queues the object of a file for deletion in `due_after` seconds, in the transaction that deletes or changes the row."""
    PendingDeletion.objects.create(
        store=file.store,
        object_key=file.object_key,
        due_at=now + timedelta(seconds=due_after),
        requested_at=now,
    )


def _lock_collection(pk: int) -> Collection:
    collection = Collection.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=pk)
    if quota.has_quota(collection.tenant):
        # The other contenders are commits into other collections of the tenant: each must see the counts of the previous one.
        Tenant.objects.select_for_update(no_key=True).get(pk=collection.tenant_id)
    return collection
