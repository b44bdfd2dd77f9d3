"""Objects in a bucket of any S3. django-storages brings the options of an alias; its ways to read and write stay unused (T-3)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError
from django.conf import settings
from storages.backends.s3 import S3Storage

from tenants.retries import pause
from vault.stores import (
    Entry,
    Failure,
    NotEncrypted,
    ObjectStore,
    Stat,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    ThroughPort,
    check_key,
)
from vault.stores.s3_client import PART_PATIENCE, BufferFile, Endpoint, Service, UploadGone, sent_at, service_of, translated


if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, ObjectIdentifierTypeDef


MIB: Final = 1024**2
MAX_PARTS: Final = 10_000
PARTS_PER_STEP: Final = 2500  # the size of a part doubles three times on the way to MAX_PARTS: 293 GiB of unknown size
ERASE_BATCH: Final = 1000  # S3's limit; moto takes more, so it is enforced here
GONE: Final = {"NoSuchKey", "NoSuchVersion"}
PASSING: Final = {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"}

logger = logging.getLogger(__name__)


class S3Store(ThroughPort, S3Storage):  # type: ignore[misc]  # django-storages is untyped
    """A bucket as an ObjectStore."""

    part_bytes = 8 * MIB  # also the largest object that is one PUT
    copy_bytes = 256 * MIB  # CopyObject takes 5 GiB, but is silent until it is done: this much is done before a read times out

    def get_default_settings(self) -> dict[str, Any]:
        """Options of an alias that its STORAGES entry leaves out."""
        return {
            **super().get_default_settings(),
            "endpoint_url": settings.S3_ENDPOINT_URL,
            "addressing_style": settings.S3_ADDRESSING_STYLE,
            "access_key": None,
            "secret_key": None,
            "security_token": None,
        }

    @property
    def connection(self) -> None:
        """Everything inherited that would reach for the bucket ends here."""
        raise NotImplementedError("objects are reached through vault.stores only")

    @property
    def service(self) -> Service:
        return service_of(
            Endpoint(
                url=self.endpoint_url,
                region=self.region_name,
                addressing_style=self.addressing_style,
                verify=self.verify,
                checksums=settings.S3_CHECKSUMS,
                max_connections=settings.S3_MAX_CONNECTIONS,
                profile=self.session_profile,
                access_key=self.access_key,
                secret_key=self.secret_key,
                session_token=self.security_token,
            )
        )

    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> "S3Writer":
        return S3Writer(self, check_key(key), size, encryption=settings.S3_RELEASE_SSE if encrypt else "none")

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, "S3Body"]:
        check_key(key)
        service = self.service
        match: Any = {} if etag is None else {"IfMatch": f'"{etag}"'}
        service.take_connection("GetObject")
        try:
            with translated("GetObject"):
                found = service.client.get_object(
                    Bucket=self.bucket_name, Key=key, Range=f"bytes={start}-{start + length - 1}", **match
                )
            size = whole_size(found.get("ContentRange", ""), start=start, length=length)
            if size is None:
                found["Body"].close()
                raise StoreUnavailable("GetObject: the answer is not the range that was asked for")
        except BaseException:
            service.return_connection()
            raise
        body = S3Body(found["Body"], length=min(length, size - start), on_close=service.return_connection)
        return Stat(size, bare(found.get("ETag", ""))), body

    def stat(self, key: str) -> Stat:
        try:
            return self.head(check_key(key))
        except FileNotFoundError:
            self.check()  # a HEAD says 404 for a missing bucket as well, which must not pass for a lost object
            raise

    def copy(self, source_key: str, key: str, *, source: ObjectStore) -> Stat:
        check_key(key)
        if not isinstance(source, S3Store) or source.endpoint_url != self.endpoint_url:
            raise TypeError("only buckets of one endpoint are copied into each other")
        original = source.stat(source_key)
        self.refuse_taken(key)
        origin = {
            "CopySource": {"Bucket": source.bucket_name, "Key": source_key},
            "CopySourceIfMatch": f'"{original.etag}"',
        }
        if original.size > self.copy_bytes:
            return self._copy_in_parts(origin, original.size, key)
        trouble = None
        try:
            with self.service.request("CopyObject") as client:
                client.copy_object(Bucket=self.bucket_name, Key=key, **origin)  # type: ignore[arg-type]
        except StoreUnavailable as error:
            trouble = error
        return self.settle(key, original.size, trouble)

    def entries(self, prefix: str) -> Iterator[Entry]:
        # Uploads first: one that is completed in between is then seen twice rather than never.
        for read_page in (self._uploads, self._versions):
            held: list[Entry] = []
            position: dict[str, str] | None = {}
            while position is not None:
                page, following = read_page(prefix, position)
                # Only now: whoever erases what it is given would else erase the entry that this page starts behind.
                yield from held
                if following == position or following == {}:
                    raise StoreUnavailable("listing: there is more, but no way to it")
                position = following
                found = [entry for entry in page if entry.key.startswith(prefix)]
                last = (position or {}).get("KeyMarker")
                held = [entry for entry in found if entry.key == last]
                yield from (entry for entry in found if entry.key != last)
            yield from held

    def erase(self, entries: Iterable[Entry]) -> list[Failure]:
        failures, rest = [], iter(entries)
        while batch := list(islice(rest, ERASE_BATCH)):
            failures += self._erase_objects([entry for entry in batch if entry.kind != "upload"])
            for entry in batch:
                if entry.kind == "upload":
                    failures += self._erase_upload(entry)
        return failures

    def warm_up(self) -> None:
        _ = self.service

    def check(self) -> None:
        if not self._has_bucket():
            raise StoreRefused("HeadBucket: there is no such bucket")

    def clock(self) -> datetime | None:
        with self.service.request("HeadBucket") as client:
            try:
                return sent_at(client.head_bucket(Bucket=self.bucket_name))
            except ClientError as error:  # a clock that is far off is a reason to refuse, and the refusal is dated, too
                return sent_at(error.response)

    def prepare(self, *, create: bool) -> None:
        if create and not self._has_bucket():
            with suppress(FileExistsError), self.service.request("CreateBucket") as client:  # another process was faster
                region = client.meta.region_name
                if self.endpoint_url or region in {"us-east-1", "aws-global"}:
                    client.create_bucket(Bucket=self.bucket_name)
                else:
                    place: Any = {"LocationConstraint": region}
                    client.create_bucket(Bucket=self.bucket_name, CreateBucketConfiguration=place)
        self.check()

    # --- What writing and copying share ---

    def head(self, key: str) -> Stat:
        """As `stat`, but a missing bucket looks like a missing object."""
        with self.service.request("HeadObject") as client:
            found = client.head_object(Bucket=self.bucket_name, Key=key)
        if not found.get("ETag"):
            raise StoreUnavailable("HeadObject: the answer is not about an object")  # but a proxy's page with status 200 (F-06)
        return Stat(found["ContentLength"], bare(found["ETag"]))

    def refuse_taken(self, key: str) -> None:
        """FileExistsError if there is such an object. A conditional write would be one request, but Ceph ignores it (S-4)."""
        with suppress(FileNotFoundError):
            self.head(key)
            raise FileExistsError("the key is taken")

    def settle(self, key: str, size: int, trouble: StoreError | None) -> Stat:
        """Looks whether an object came to be, whatever the answer to its last request was, and raises the trouble if not.

        An answer may be lost, come as 200 with an error, or be NoSuchUpload because an unheard attempt worked (S-4). The
        key was free a moment ago, so an object of this size is ours.
        """
        try:
            found = self.head(key)
        except (FileNotFoundError, StoreError) as error:
            raise trouble or StoreUnavailable("HeadObject: an acknowledged object cannot be found") from error
        if found.size != size:
            raise trouble or StoreUnavailable("HeadObject: an acknowledged object has another size")
        return found

    # --- Inside ---

    def _has_bucket(self) -> bool:
        try:
            with self.service.request("HeadBucket") as client:
                client.head_bucket(Bucket=self.bucket_name)
        except FileNotFoundError:
            return False
        return True

    def _copy_in_parts(self, origin: dict[str, Any], size: int, key: str) -> Stat:
        step = max(self.copy_bytes, -(-size // MAX_PARTS))
        upload = Multipart(self, key)
        try:
            for start in range(0, size, step):
                upload.copy_part(origin, start, min(start + step, size))
            return upload.complete(size)
        except BaseException:
            upload.abort()
            raise

    def _uploads(self, prefix: str, position: dict[str, str]) -> tuple[list[Entry], dict[str, str] | None]:
        with self.service.request("ListMultipartUploads") as client:
            page = client.list_multipart_uploads(Bucket=self.bucket_name, Prefix=prefix, **position)  # type: ignore[arg-type]
        found = [Entry("upload", item["Key"], item["UploadId"], 0, item["Initiated"]) for item in page.get("Uploads", ())]
        return found, following(page, KeyMarker="NextKeyMarker", UploadIdMarker="NextUploadIdMarker")

    def _versions(self, prefix: str, position: dict[str, str]) -> tuple[list[Entry], dict[str, str] | None]:
        with self.service.request("ListObjectVersions") as client:
            page = client.list_object_versions(Bucket=self.bucket_name, Prefix=prefix, **position)  # type: ignore[arg-type]
        found = [
            Entry("object" if item["IsLatest"] else "version", item["Key"], item["VersionId"], item["Size"], item["LastModified"])
            for item in page.get("Versions", ())
        ]
        found += [
            Entry("marker", item["Key"], item["VersionId"], 0, item["LastModified"]) for item in page.get("DeleteMarkers", ())
        ]
        return found, following(page, KeyMarker="NextKeyMarker", VersionIdMarker="NextVersionIdMarker")

    def _erase_objects(self, entries: list[Entry]) -> list[Failure]:
        failures = self._delete(entries)
        for attempt in range(3):
            passing = {failure.entry for failure in failures if failure.may_pass}
            if not passing:
                break
            pause(attempt)
            failures = [failure for failure in failures if failure.entry not in passing] + self._delete(list(passing))
        return failures

    def _delete(self, entries: list[Entry]) -> list[Failure]:
        """Always by version, "null" in a bucket without: otherwise a delete only hides what it should destroy (S-2)."""
        if not entries:
            return []
        objects: list[ObjectIdentifierTypeDef] = [{"Key": entry.key, "VersionId": entry.version} for entry in entries]
        try:
            with self.service.request("DeleteObjects") as client:
                answer = client.delete_objects(Bucket=self.bucket_name, Delete={"Objects": objects, "Quiet": True})
        except StoreRefused as error:
            return [Failure(entry, str(error)) for entry in entries]
        failures = []
        for problem in answer.get("Errors", ()):
            code, key, version = problem.get("Code", ""), problem.get("Key"), problem.get("VersionId")
            if code not in GONE:
                # An error that names none of ours leaves all of them in doubt.
                meant = [entry for entry in entries if entry.key == key and version in {entry.version, None, ""}] or entries
                reason = f"{code}: {problem.get('Message') or 'no message'}"
                failures += [Failure(entry, reason, may_pass=code in PASSING) for entry in meant]
        return failures

    def _erase_upload(self, entry: Entry) -> list[Failure]:
        try:
            with self.service.request("AbortMultipartUpload") as client:
                client.abort_multipart_upload(Bucket=self.bucket_name, Key=entry.key, UploadId=entry.version)
        except UploadGone:
            return []
        except StoreRefused as error:
            return [Failure(entry, str(error))]
        return []


class Multipart:
    """One multipart upload. Its parts come one after the other. NotEncrypted unless the store encrypts it as it was asked."""

    def __init__(self, store: S3Store, key: str, *, encryption: str = "none") -> None:
        self._store = store
        self._parts: list[CompletedPartTypeDef] = []
        self._place: dict[str, Any] = {"Bucket": store.bucket_name, "Key": key}
        wish: Any = {} if encryption == "none" else {"ServerSideEncryption": encryption}
        try:
            with store.service.request("CreateMultipartUpload") as client:
                answer = client.create_multipart_upload(**self._place, **wish, ContentType=store.default_content_type)
        except StoreRefused as error:
            if wish:
                raise NotEncrypted(str(error)) from error
            raise
        self._place["UploadId"] = answer["UploadId"]
        self._may_have_others = answer["ResponseMetadata"]["RetryAttempts"] > 0
        if wish and answer.get("ServerSideEncryption") != encryption:
            self.abort()
            raise NotEncrypted("CreateMultipartUpload: the answer says nothing of an encryption")

    def upload_part(self, data: bytearray) -> int:
        """Stores the next part and returns its size."""
        body: Any = BufferFile(data)
        with self._store.service.request("UploadPart", patience=PART_PATIENCE) as client:
            answer = client.upload_part(**self._place, PartNumber=len(self._parts) + 1, Body=body)
        self._add(answer.get("ETag"))
        return len(data)

    def copy_part(self, origin: dict[str, Any], start: int, stop: int) -> None:
        with self._store.service.request("UploadPartCopy") as client:
            answer = client.upload_part_copy(
                **self._place, **origin, PartNumber=len(self._parts) + 1, CopySourceRange=f"bytes={start}-{stop - 1}"
            )
        self._add(answer.get("CopyPartResult", {}).get("ETag"))

    def complete(self, size: int) -> Stat:
        trouble = None
        try:
            with self._store.service.request("CompleteMultipartUpload") as client:
                client.complete_multipart_upload(**self._place, MultipartUpload={"Parts": self._parts})
        except (StoreUnavailable, UploadGone) as error:
            trouble = error
        stat = self._store.settle(self._place["Key"], size, trouble)
        if self._may_have_others:
            self._abort_others()
        return stat

    def abort(self) -> None:
        try:
            with self._store.service.request("AbortMultipartUpload") as client:
                client.abort_multipart_upload(**self._place)
        except UploadGone:
            pass
        except StoreError as error:
            logger.warning("an upload could not be aborted and waits for the sweep: %s", error)

    def _abort_others(self) -> None:
        """An attempt to start that was not heard may have started another upload, and nobody else will look for it."""
        try:
            entries = self._store.entries(self._place["Key"])
            for failure in self._store.erase([entry for entry in entries if entry.kind == "upload"]):
                logger.warning("an upload could not be aborted and waits for the sweep: %s", failure.reason)
        except StoreError as error:
            logger.warning("uploads could not be listed and wait for the sweep: %s", error)

    def _add(self, etag: str | None) -> None:
        if not etag:
            raise StoreUnavailable("UploadPart: the answer has no ETag")
        self._parts.append({"PartNumber": len(self._parts) + 1, "ETag": etag})


class S3Writer:
    """Holds one part that is being filled, and one on its way if the process has a thread for it."""

    def __init__(self, store: S3Store, key: str, size: int | None, *, encryption: str = "none") -> None:
        self.bytes_stored = 0
        self.has_begun = False
        self._store = store
        self._key = key
        self._encryption = encryption
        self._expected = size or 0
        self._total = 0
        self._buffer = bytearray()
        self._room = store.part_bytes
        self._parts = 0
        self._upload: Multipart | None = None
        self._on_its_way: Future[int] | None = None
        self._is_settled = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        self._total += len(rest)
        while rest:
            if len(self._buffer) == self._room:
                self._send_part()
            taken = rest[: self._room - len(self._buffer)]
            self._buffer += taken
            rest = rest[len(taken) :]

    def commit(self) -> Stat:
        if self._upload is None and self._encryption == "none":
            self._store.refuse_taken(self._key)
            stat = self._put()
        else:
            upload = self._send_part()  # also what would fit one PUT, if the store is to say first that it encrypts
            self._await_part()
            self._store.refuse_taken(self._key)
            stat = upload.complete(self._total)
        self._is_settled = True
        self.bytes_stored = self._total
        return stat

    def abort(self) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        self._buffer = bytearray()
        if self._on_its_way is not None:
            wait([self._on_its_way])  # a part that arrives after the abort would stay
        if self._upload is not None:
            self._upload.abort()

    def _put(self) -> Stat:
        body: Any = BufferFile(self._buffer)
        kind = self._store.default_content_type
        self.has_begun = True
        try:
            with self._store.service.request("PutObject") as client:
                answer = client.put_object(Bucket=self._store.bucket_name, Key=self._key, Body=body, ContentType=kind)
        except StoreUnavailable as error:
            return self._store.settle(self._key, self._total, error)
        if not answer.get("ETag"):
            return self._store.settle(self._key, self._total, None)
        return Stat(self._total, bare(answer["ETag"]))

    def _send_part(self) -> Multipart:
        if self._upload is None:
            self.has_begun = True
            self._upload = Multipart(self._store, self._key, encryption=self._encryption)
        self._await_part()
        data, self._buffer = self._buffer, bytearray()
        self._parts += 1
        self._room = part_size(self._parts + 1, smallest=self._store.part_bytes, expected=self._expected)
        service = self._store.service
        if service.parts.acquire(blocking=False):
            try:
                self._on_its_way = service.threads.submit(self._upload.upload_part, data)
            except RuntimeError as error:  # the system has no thread left
                service.parts.release()
                raise StoreUnavailable(f"UploadPart: {error}") from error
            self._on_its_way.add_done_callback(lambda _: service.parts.release())
        else:
            self.bytes_stored += self._upload.upload_part(data)
        return self._upload

    def _await_part(self) -> None:
        if self._on_its_way is not None:
            self.bytes_stored += self._on_its_way.result()
            self._on_its_way = None


class S3Body:
    def __init__(self, stream: "StreamingBody", *, length: int, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._rest = length
        self._on_close: Callable[[], None] | None = on_close

    def read(self, size: int) -> bytes:
        wanted = min(size, self._rest)
        if wanted == 0:
            return b""
        with translated("GetObject"):
            data: bytes = self._stream.read(wanted)
        if len(data) < wanted:
            raise StoreUnavailable("GetObject: the body ended early")
        self._rest -= wanted
        return data

    def close(self) -> None:
        """Returns the connection: to the pool if everything was read, else it is closed, since what is on its way must go."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            self._stream.close()
            on_close()

    def __del__(self) -> None:
        self.close()  # a generator that nobody finished leaves its connection to us


def part_size(number: int, *, smallest: int, expected: int) -> int:
    """Bytes of part `number`, counted from 1, so that an object of any size has at most 10,000 and a small one small ones."""
    if number > MAX_PARTS + 1:
        raise StoreRefused(f"UploadPart: an object has at most {MAX_PARTS} parts")
    if expected:
        return max(smallest, -(-expected // MAX_PARTS))
    return smallest << min((number - 1) // PARTS_PER_STEP, 3)


def whole_size(content_range: str, *, start: int, length: int) -> int | None:
    """Size of the object from the Content-Range of exactly this range. A proxy's error page with status 200 has none (F-06)."""
    span, _, total = content_range.removeprefix("bytes ").partition("/")
    if not total.isdecimal() or span != f"{start}-{min(start + length, int(total)) - 1}":
        return None
    return int(total)


def following(page: Any, **markers: str) -> dict[str, str] | None:
    """Where the next page of a listing starts, None after the last. Empty if the page does not say."""
    if page.get("IsTruncated") is False:
        return None
    return {argument: page[name] for argument, name in markers.items() if page.get(name)}


def bare(etag: str) -> str:
    return etag.strip('"')
