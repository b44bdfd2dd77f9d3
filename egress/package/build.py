"""Builds the package of an approved request: checks all approvals and files again, then streams one zip to the release bucket.

The package becomes visible in the transaction that releases the request. If a worker is killed before that, the next worker
starts again and produces the same bytes. The clean-up of stalled uploads removes the incomplete upload (F-27, INV-13).
"""

import hashlib
import io
import logging
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from egress import access
from egress.models import Decision, EgressPolicy, EgressRequest, StagedFile
from egress.package.manifest import NAME, SIGNATURE, Manifest, digest_of, entries, make
from egress.package.zip_format import new_member
from egress.staging import HEARTBEAT_SECONDS, check_claim, heartbeat
from egress.states import State
from egress.transitions import lock_request, move
from files import access as file_access
from files import uploads
from files.filenames import unique_key
from files.http.streaming import Slots
from files.locks import lock_collection
from files.models import Collection, StoredFile, Upload
from tenants import audit
from tenants.errors import NotFound
from tenants.models import User
from tenants.work.deadlocks import retry_on_deadlock
from tenants.work.leases import LeaseLost
from vault import keys
from vault.content import copied_content
from vault.content_reader import Content
from vault.crypto import CorruptObject, WrongKey
from vault.errors import StorageUnavailable
from vault.models import Cipher
from vault.stores import NotEncrypted, ObjectChanged


log = logging.getLogger(__name__)

RELEASE: Final = "release"  # STORAGES alias
MAX_ATTEMPTS: Final = 5


class Unreleasable(Exception):
    """The approved files cannot be released. The message gives the reason and is shown to users."""


class ApproverUnauthorized(Exception):
    """An approver is no longer authorized. The request goes back to the stage of that approver."""


def build(request: EgressRequest, *, now: datetime) -> None:
    """Builds and releases the package of a leased request. A permanent error moves the request to `failed`.

    Other errors of the stores are raised, and the caller tries again later.

    Raises: DatabaseRestored, ForeignVault, KeyUnavailable, LeaseLost, NotFound, StorageUnavailable, StoreRefused,
    StoreUnavailable, Unreleasable, WrongKey, WrongState.
    """
    try:
        if request.attempts - request.attempts_before > MAX_ATTEMPTS:
            raise Unreleasable(f"The package could not be built in {MAX_ATTEMPTS} attempts. {request.problem}".strip())
        release = _prepare(request, now=now)
        if release is not None:
            _build(request, release, now=now)
    except ApproverUnauthorized:
        _prepare(request, now=timezone.now())
    except Unreleasable as error:
        _fail(request, str(error), now=timezone.now())


@retry_on_deadlock
def _prepare(request: EgressRequest, *, now: datetime) -> Collection | None:
    """The hidden collection for the package. None if the request went back to review."""
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.APPROVED)
        if _void_unauthorized(locked, now=now):
            return None
        _check_requester(locked)
        cipher = Cipher.NONE if locked.policy["release_format"] == EgressPolicy.Format.PLAIN else Cipher.AES_GCM
        if cipher == Cipher.NONE and cipher not in locked.tenant.allowed_ciphers:
            raise Unreleasable("The tenant no longer allows unencrypted files, and the package would be unencrypted.")
        if locked.package_collection is not None:
            return locked.package_collection
        release = Collection(
            uuid=uuid4(),
            tenant=locked.tenant,
            kind=Collection.Kind.RELEASE,
            cipher=cipher,
            created_at=now,
        )
        release.slug = f"release-{release.uuid.hex}"
        release.display_name = f"Release {release.uuid}"
        release.key = keys.create_data_key(release, now=now)
        release.save(force_insert=True)
        locked.package_collection = release
        locked.save(update_fields=["package_collection"])
        audit.record("egress.package", by=None, tenant=locked.tenant, target=locked, now=now, release=str(release.uuid))
    return release


def _void_unauthorized(locked: EgressRequest, *, now: datetime) -> bool:
    """Moves the request back to the first stage whose approver is no longer authorized. Returns False if all are authorized."""
    unauthorized = _unauthorized_decisions(locked)
    if not unauthorized:
        return False
    Decision.objects.filter(pk__in=[decision.pk for decision in unauthorized]).update(voided_at=now)
    names = ", ".join(f"{decision.by_name} ({decision.role})" for decision in unauthorized)
    move(
        locked,
        State.IN_REVIEW,
        by=None,
        now=now,
        action="egress.void",
        reason=f"No longer authorized to approve: {names}.",
        stage=min(decision.stage for decision in unauthorized),
    )
    return True


def _unauthorized_decisions(locked: EgressRequest) -> list[Decision]:
    return [decision for decision in access.valid_decisions(locked) if not access.is_still_authorized(decision, locked)]


def _check_requester(locked: EgressRequest) -> None:
    """Raises Unreleasable unless the requester is an active member who can read all requested files."""
    requester = User.objects.filter(pk=locked.requester_id).first()
    if requester is None or not access.actor_of(requester).roles_in(locked):
        raise Unreleasable("The requester is no longer an active member of the tenant.")
    try:
        collection = file_access.get_collection(requester, locked.collection_slug)
    except NotFound:
        raise Unreleasable("The requester can no longer read the collection.") from None
    pinned = locked.items.filter(round=locked.round).values("file")
    if file_access.readable_files(requester, collection).filter(pk__in=pinned).count() != locked.file_count:
        raise Unreleasable("The requester can no longer read all of these files.")


# --- Content ---


def _build(request: EgressRequest, release: Collection, *, now: datetime) -> None:
    items = list(request.items.filter(round=request.round).select_related("file__collection__key").order_by("number"))
    if digest_of(entries(items)) != request.content_sha256:
        raise Unreleasable("The files of the request differ from the approved files.")
    manifest = make(request, items, now=now)
    filename = f"egress-{request.pk}.zip"
    draft = StoredFile(
        uuid=uuid4(),
        collection=release,
        filename=filename,
        name_key=unique_key(filename),
        content_type="application/zip",
        cipher=release.cipher,
        segment_size=settings.FILES_SEGMENT_SIZE,
        store=RELEASE,
        object_id=uuid4(),
    )
    draft.object_key = release.object_key(draft.object_id)
    # A plain package is encrypted only by the bucket.
    with Package.start(draft, by=None, size=None, now=now, encrypt=release.cipher == Cipher.NONE) as package:
        package.request, package.manifest = request, manifest
        try:
            _write(package, items, manifest)
            package.commit(by=None, now=timezone.now())
        except StorageUnavailable as error:
            if not isinstance(error.__cause__, NotEncrypted):
                raise
            log.error("release bucket does not encrypt a plain package", extra={"error": str(error.__cause__)})
            raise Unreleasable("The policy requires a plain package, but the release bucket does not encrypt it.") from error


class Package(uploads.UploadSession):
    """The upload of a zip to the release bucket. It becomes a file in the transaction that releases the request."""

    slots = Slots(64)  # EGRESS_PACKAGES_AT_ONCE limits how many packages are built in parallel.
    limit = None  # The policy limits the size at submission.
    request: EgressRequest
    manifest: Manifest
    _last_heartbeat = 0.0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            heartbeat(self.request, State.APPROVED, packed=self.length)

    def create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        """Releases the request. Checks the rights again, because they may have changed during the upload (F-49)."""
        package = self.draft
        locked = lock_request(self.request)
        check_claim(self.request, locked, State.APPROVED)
        if _unauthorized_decisions(locked):
            raise ApproverUnauthorized
        _check_requester(locked)
        # The other contender is the clean-up, which removes uploads without a heartbeat.
        if not Upload.objects.filter(pk=self.upload.pk).delete()[0]:
            raise LeaseLost
        release = lock_collection(package.collection)
        until = now + timedelta(days=locked.policy["download_window_days"])
        package.created_at = package.updated_at = now
        package.save(force_insert=True)
        Collection.objects.filter(pk=release.pk).update(file_count=1, total_length=package.length, purge_at=until)
        move(
            locked,
            State.RELEASED,
            by=by,
            now=now,
            action="egress.release",
            released_at=now,
            available_until=until,
            package_length=package.length,
            package_sha256=package.sha256,
            manifest=self.manifest.text,
            signature=self.manifest.signature,
        )
        return package


class ZipSink(io.RawIOBase):
    """A write-only file object for `zipfile`."""

    def __init__(self, package: Package) -> None:
        self._package = package

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._package.write(data)
        return len(data)


def _write(package: Package, items: list[StagedFile], manifest: Manifest) -> None:
    """Writes the files in order, then the manifest and its signature."""
    with zipfile.ZipFile(ZipSink(package), "w") as archive:
        for item in items:
            with archive.open(new_member(item.filename, item.length), "w") as member:
                for piece in _verified(item):
                    member.write(piece)
        for name, text in ((NAME, manifest.text), (SIGNATURE, manifest.signature)):
            archive.writestr(new_member(name, len(text)), text)


def _verified(item: StagedFile) -> Iterator[bytes]:
    """The plaintext of a staged copy. Raises Unreleasable if it differs from the pinned file, possibly only after the last piece.

    Compares the digest (INV-11), not the ETag: a copy that an operator restored has another ETag.
    """
    digest, length = hashlib.sha256(), 0
    try:
        for piece in replace(staged_content(item), etag="").read(0, item.length, is_internal=True):
            digest.update(piece)
            length += len(piece)
            yield piece
    except (FileNotFoundError, ObjectChanged, CorruptObject, WrongKey) as error:
        log.error("staged copy is damaged", extra={"item": item.pk, "error": str(error)})
        raise Unreleasable(f"The copy of file {item.number} differs from the approved file.") from error
    if (length, digest.hexdigest()) != (item.length, item.sha256):
        raise Unreleasable(f"File {item.number} differs from the approved file.")


def staged_content(item: StagedFile) -> Content:
    """The encrypted content of a staged copy with its key. Raises FileNotFoundError if the pinned content was deleted.

    Raises: CorruptObject, DatabaseRestored, ForeignVault, KeyUnavailable, StorageUnavailable, WrongKey.
    """
    file = item.file
    if file is None or file.object_id != item.object_id:
        raise FileNotFoundError("the pinned content no longer exists")
    return copied_content(file, store=item.store, key=item.object_key, etag=item.object_etag)


# --- Failure ---


@retry_on_deadlock
def _fail(request: EgressRequest, problem: str, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.APPROVED)
        move(locked, State.FAILED, by=None, now=now, reason=problem, action="egress.fail", problem=problem[:500])
