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
REPLACED_GRACE_SECONDS: Final = 3600  # downloads that began before a replacement may read the old object for so long
_MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,63}/[A-Za-z0-9!#$&^_.+-]{1,63}")
_GENERIC_TYPES: Final = {"", "application/octet-stream", "application/x-www-form-urlencoded"}  # what clients send when not asked


class RefuseUpload(FileUploadHandler):
    """Stands in FILE_UPLOAD_HANDLERS: whoever touches request.FILES would have Django write plaintext to disk (A-5)."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        raise errors.UnsupportedBody("Files are not accepted here.")

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        raise errors.UnsupportedBody("Files are not accepted here.")

    def file_complete(self, file_size: int) -> None:
        raise errors.UnsupportedBody("Files are not accepted here.")


@dataclass(frozen=True)
class Conditions:
    """The conditional headers of a PUT (RFC 9110, 13)."""

    if_match: str | None
    if_none_match: str | None

    def check(self, existing: StoredFile | None) -> None:
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
    """One content on its way in: `write` as often as needed, then `commit`. Leaving its `with` block without that abandons it.

    This is somebody's upload. What a worker writes is a subclass, which makes another kind of file, in other limits.
    """

    slots: ClassVar[Slots] = SLOTS  # shared by all that comes over the web; a worker's has its own

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
        self.draft = draft  # the row to be, without what only the bytes tell
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
        """The way in for the content of `draft`, a row to be that names its object. Leaves an `Upload` row, and checks nothing.

        `size` is the announced number of plaintext bytes. `by` is None for the system. `encrypt`: the store is to.
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
        return_connection()  # bytes may take hours; they take no database connection with them
        return cls(upload=upload, writer=ContentWriter(encryptor, writer), draft=draft, replaces=replaces, store=store)

    @property
    def limit(self) -> int | None:
        """Plaintext bytes that it may have at most, if anybody minds."""
        return settings.FILES_MAX_UPLOAD_BYTES

    @property
    def length(self) -> int:
        """Plaintext bytes that have arrived."""
        return self._writer.length

    @property
    def is_replacement(self) -> bool:
        return self._replaces is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.limit is not None and self.length + len(data) > self.limit:
            raise errors.TooLarge
        self._writer.write(data)
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._heartbeat()

    def commit(self, *, by: User | None, now: datetime, notes: str | None = None, digest: bytes | None = None) -> StoredFile:
        """The file, new or replaced. Keeps nothing if the digest, access, quota, name or collection do not allow it."""
        if digest is not None and digest != self._writer.sha256:
            raise errors.DigestMismatch
        file = self.draft
        file.length, file.sha256 = self.length, self._writer.sha256.hex()
        if notes is not None:
            file.notes = notes
        stat = self._writer.commit()
        if stat.size != file.layout.object_size:
            raise StorageUnavailable("The storage keeps another number of bytes than it was sent.")
        file.object_size, file.object_etag = stat.size, stat.etag
        try:
            file = self._create_file(by=by, now=now)
        except (OperationalError, InterfaceError) as error:
            if not self._is_committing:
                raise  # rolled back, and known to be
            self._finish()  # the file may exist: only the clean-up, which reads the row, may take its object
            file = self._read_back(error)
        self._finish()
        return file

    def abandon(self) -> None:
        """Leaves nothing behind, neither parts nor an object nor the row; nothing happens once there is a file, or may be one."""
        if self._slots is None:
            return
        self._finish()
        return_connection()
        try:
            self._writer.abort()
            if StoredFile.objects.filter(object_id=self.upload.object_id).exists():
                return  # a bug must not become a loss
            if self._writer.has_begun:
                # Even when the clean-up has taken the row: it may have erased before the last of this object was written.
                erase_object(self._store, self.upload.object_key)
            Upload.objects.filter(pk=self.upload.pk).delete()
        except (StoreError, OperationalError, InterfaceError):
            return  # the row stands, so the tick will do it

    def _finish(self) -> None:
        """From here on there is nothing to abandon."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None

    def _heartbeat(self) -> None:
        self._last_heartbeat = time.monotonic()
        try:
            # The other contender is the clean-up, which takes uploads without a heartbeat for dead.
            wanted = Upload.objects.filter(pk=self.upload.pk, collection__status=Collection.Status.OPEN)
            beating = wanted.update(heartbeat_at=timezone.now())
            is_lost = not beating and not Upload.objects.filter(pk=self.upload.pk).exists()
        except (OperationalError, InterfaceError):
            return  # there are many heartbeats to a life, and the commit needs the row anyway
        finally:
            return_connection()
        if is_lost:
            raise errors.UploadLost
        if not beating:
            raise errors.NotOpen  # it would be refused at its end, and a destruction waits for it

    @retry_on_deadlock
    def _create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        self._is_committing = False
        with transaction.atomic():
            file = self.create_file(by=by, now=now)
            self._is_committing = True  # An error before this line has changed nothing.
        return file

    def create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        """Hook: saves `self.draft`, whose lengths and digests are set, and returns the saved row.

        `commit` calls it in a transaction and calls it again after a deadlock. An override must delete the `Upload` row in that
        transaction, and must raise an error if another process has deleted it: that process has claimed the object.
        """
        assert by is not None  # noqa: S101  for the type checker: only a subclass creates files for the system
        file = self.draft
        collection = _lock_collection(file.collection_id)
        file.my_level = check_can_upload(by, collection, self._replaces)  # as they stand now, not as they stood at first
        if collection.status != Collection.Status.OPEN:
            raise errors.NotOpen
        # The other contenders are the clean-up and a second commit: who deletes the row decides over the object.
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
        """The commit's outcome is unknown: the row tells. If it is not there it may still come, so nothing is deleted here."""
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
    default_detail = "The database went away while the file was being committed. Look for the file before you send it again."
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
    """Checks what can be checked before the bytes, and leaves an `Upload` row. `size` is the announced number of plaintext bytes.

    Without `conditions` (a form) an existing name is a conflict; with them (PUT) it needs an If-Match that fits.
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


def choose_media_type(given: str, filename: str) -> str:
    """What the client said, else what the name suggests. Never more than a media type without parameters."""
    kind = given.partition(";")[0].strip().lower()
    if kind in _GENERIC_TYPES or not is_media_type(kind):
        kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    return kind


def is_media_type(value: str) -> bool:
    return bool(_MEDIA_TYPE.fullmatch(value))


def queue_deletion(file: StoredFile, *, due_after: int, now: datetime) -> None:
    """Queues the object of a content that no row will name any more. To be called in the transaction that unnames it."""
    PendingDeletion.objects.create(
        store=file.store,
        object_key=file.object_key,
        due_at=now + timedelta(seconds=due_after),
        requested_at=now,
    )


def _lock_collection(pk: int) -> Collection:
    collection = Collection.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=pk)
    if quota.has_quota(collection.tenant):
        # The other contenders are commits into the tenant's other collections: what one counts, the next has to see.
        Tenant.objects.select_for_update(no_key=True).get(pk=collection.tenant_id)
    return collection
