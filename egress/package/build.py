"""From the last approval to the release: everybody and every byte once more, then one zip, encrypted on its way to its bucket.

Nothing of a package exists for anybody before the transaction that releases it. Killed anywhere before that, the next worker
begins anew and comes to the same bytes; what the first left is cleared away like any upload that stalled (F-27, INV-13).
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
from egress.package.manifest import NAME, SIGNATURE, Manifest, digest_of, listed, make
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
    """What was approved cannot be released as it is. The text says why, and is for the people concerned."""


class ApproverUnauthorized(Exception):
    """Somebody who approved may not approve any more: the next attempt sends the request back to their stage."""


def build(request: EgressRequest, *, now: datetime) -> None:
    """The package of a claimed request. Raises LeaseLost, and StoreError where it may pass; what may not fails the request."""
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
    """The hidden collection that is to hold the package. None if the request went back to review."""
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.APPROVED)
        if _void_unauthorized(locked, now=now):
            return None
        _check_requester(locked)
        cipher = Cipher.NONE if locked.policy["release_format"] == EgressPolicy.Format.PLAIN else Cipher.AES_GCM
        if cipher == Cipher.NONE and cipher not in locked.tenant.allowed_ciphers:
            raise Unreleasable("The tenant allows no files without encryption any more, and the package would be one.")
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
    """Sends the request back to the first stage whose approver may not approve any more. True if there is one."""
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
        reason=f"May not approve any more: {names}.",
        stage=min(decision.stage for decision in unauthorized),
    )
    return True


def _unauthorized_decisions(locked: EgressRequest) -> list[Decision]:
    return [decision for decision in access.valid_decisions(locked) if not access.is_still_authorized(decision, locked)]


def _check_requester(locked: EgressRequest) -> None:
    """Whoever asked has to be there still, and able to read what they asked for."""
    requester = User.objects.filter(pk=locked.requester_id).first()
    if requester is None or not access.actor_of(requester).roles_in(locked):
        raise Unreleasable("The requester is no active member of the tenant any more.")
    try:
        collection = file_access.get_collection(requester, locked.collection_slug)
    except NotFound:
        raise Unreleasable("The requester cannot read the collection any more.") from None
    pinned = locked.items.filter(round=locked.round).values("file")
    if file_access.readable_files(requester, collection).filter(pk__in=pinned).count() != locked.file_count:
        raise Unreleasable("The requester cannot read all of these files any more.")


# --- The bytes ---


def _build(request: EgressRequest, release: Collection, *, now: datetime) -> None:
    items = list(request.items.filter(round=request.round).select_related("file__collection__key").order_by("number"))
    if digest_of(listed(items)) != request.content_sha256:
        raise Unreleasable("The request names other files than were decided on.")
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
    # Nobody but the bucket encrypts a plain package.
    with Package.receive(draft, by=None, size=None, now=now, encrypt=release.cipher == Cipher.NONE) as package:
        package.request, package.manifest = request, manifest
        try:
            _write(package, items, manifest)
            package.commit(by=None, now=timezone.now())
        except StorageUnavailable as error:
            if not isinstance(error.__cause__, NotEncrypted):
                raise
            log.error("the release bucket does not encrypt a plain package", extra={"error": str(error.__cause__)})
            raise Unreleasable("The package is to be plain, and its bucket does not encrypt it by itself.") from error


class Package(uploads.UploadSession):
    """A zip on its way to the release bucket, which becomes a file in the transaction that releases it."""

    slots = Slots(64)  # a worker's own; there is a setting for how many packages are built at once
    limit = None  # what was approved may be as large as it is
    request: EgressRequest
    manifest: Manifest
    _last_heartbeat = 0.0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            heartbeat(self.request, State.APPROVED, packed=self.length)

    def create_file(self, *, by: User | None, now: datetime) -> StoredFile:
        """The release. Whoever unauthorized a right while the bytes were written is found here (F-49)."""
        package = self.draft
        locked = lock_request(self.request)
        check_claim(self.request, locked, State.APPROVED)
        if _unauthorized_decisions(locked):
            raise ApproverUnauthorized
        _check_requester(locked)
        # The other contender is the clean-up, which takes an upload without a heartbeat for dead.
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
    """What `zipfile` takes for a file that can only be written to."""

    def __init__(self, package: Package) -> None:
        self._package = package

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._package.write(data)
        return len(data)


def _write(package: Package, items: list[StagedFile], manifest: Manifest) -> None:
    """The files in their order, and then what says that they are these."""
    with zipfile.ZipFile(ZipSink(package), "w") as archive:
        for item in items:
            with archive.open(new_member(item.filename, item.length), "w") as member:
                for piece in _verified(item):
                    member.write(piece)
        for name, text in ((NAME, manifest.text), (SIGNATURE, manifest.signature)):
            archive.writestr(new_member(name, len(text)), text)


def _verified(item: StagedFile) -> Iterator[bytes]:
    """Plaintext of the copy in staging. Raises Unreleasable, if only behind its last piece, unless it is what was pinned.

    The digest tells (INV-11), and no ETag: a copy that an operator put back has another.
    """
    digest, length = hashlib.sha256(), 0
    try:
        for piece in replace(staged_content(item), etag="").read(0, item.length, is_internal=True):
            digest.update(piece)
            length += len(piece)
            yield piece
    except (FileNotFoundError, ObjectChanged, CorruptObject, WrongKey) as error:
        log.error("a staged copy is damaged", extra={"item": item.pk, "error": str(error)})
        raise Unreleasable(f"The copy of file {item.number} is not what was approved.") from error
    if (length, digest.hexdigest()) != (item.length, item.sha256):
        raise Unreleasable(f"File {item.number} is not what was approved.")


def staged_content(item: StagedFile) -> Content:
    """The bytes of a copy, and the key to them. FileNotFoundError if the content that was pinned is not there any more."""
    file = item.file
    if file is None or file.object_id != item.object_id:
        raise FileNotFoundError("the pinned content is not there any more")
    return copied_content(file, store=item.store, key=item.object_key, etag=item.object_etag)


# --- When it does not come to that ---


@retry_on_deadlock
def _fail(request: EgressRequest, problem: str, *, now: datetime) -> None:
    with transaction.atomic():
        locked = lock_request(request)
        check_claim(request, locked, State.APPROVED)
        move(locked, State.FAILED, by=None, now=now, reason=problem, action="egress.fail", problem=problem[:500])
