"""Writes one object to an S3 bucket: one PUT if it fits, else a multipart upload with parts of growing size."""

import logging
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Final

from vault.stores import NotEncrypted, Stat, StoreError, StoreRefused, StoreUnavailable
from vault.stores.s3_bucket import S3Bucket, unquoted
from vault.stores.s3_client import PART_CONNECTION_WAIT, BufferFile, UploadGone


if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef


MAX_PARTS: Final = 10_000
PARTS_PER_STEP: Final = 2500  # the part size doubles three times up to MAX_PARTS: 293 GiB for an object of unknown size

log = logging.getLogger(__name__)


class MultipartUpload:
    """One multipart upload. Its parts are sent one after another. Refuses a store that does not confirm the encryption."""

    def __init__(self, bucket: S3Bucket, key: str, *, encryption: str = "none") -> None:
        self._bucket = bucket
        self._parts: list[CompletedPartTypeDef] = []
        self._place: dict[str, Any] = {"Bucket": bucket.bucket_name, "Key": key}
        wanted: Any = {} if encryption == "none" else {"ServerSideEncryption": encryption}
        try:
            with bucket.shared_client.request("CreateMultipartUpload") as client:
                answer = client.create_multipart_upload(**self._place, **wanted, ContentType=bucket.default_content_type)
        except StoreRefused as error:
            if wanted:
                raise NotEncrypted(str(error)) from error
            raise
        self._place["UploadId"] = answer["UploadId"]
        self._may_have_others = answer["ResponseMetadata"]["RetryAttempts"] > 0
        if wanted and answer.get("ServerSideEncryption") != encryption:
            self.abort()
            raise NotEncrypted("CreateMultipartUpload: the response does not confirm the encryption")

    def upload_part(self, data: bytearray) -> int:
        """Stores the next part and returns its size.

        Raises: StoreUnavailable, StoreRefused.
        """
        body: Any = BufferFile(data)
        with self._bucket.shared_client.request("UploadPart", timeout=PART_CONNECTION_WAIT) as client:
            answer = client.upload_part(**self._place, PartNumber=len(self._parts) + 1, Body=body)
        self._add(answer.get("ETag"))
        return len(data)

    def copy_part(self, origin: dict[str, Any], start: int, stop: int) -> None:
        """Copies bytes [start, stop) of another object as the next part.

        Raises: FileNotFoundError, ObjectChanged, StoreUnavailable, StoreRefused.
        """
        with self._bucket.shared_client.request("UploadPartCopy") as client:
            answer = client.upload_part_copy(
                **self._place, **origin, PartNumber=len(self._parts) + 1, CopySourceRange=f"bytes={start}-{stop - 1}"
            )
        self._add(answer.get("CopyPartResult", {}).get("ETag"))

    def complete(self, size: int) -> Stat:
        """Creates the object of `size` bytes from the parts.

        Raises: StoreUnavailable, StoreRefused.
        """
        problem = None
        try:
            with self._bucket.shared_client.request("CompleteMultipartUpload") as client:
                client.complete_multipart_upload(**self._place, MultipartUpload={"Parts": self._parts})
        except (StoreUnavailable, UploadGone) as error:
            problem = error
        stat = self._bucket.confirm(self._place["Key"], size, problem)
        if self._may_have_others:
            self._abort_others()
        return stat

    def abort(self) -> None:
        """Removes the parts. Never raises a StoreError: the sweep finds what remains."""
        try:
            with self._bucket.shared_client.request("AbortMultipartUpload") as client:
                client.abort_multipart_upload(**self._place)
        except UploadGone:
            pass
        except StoreError as error:
            log.warning("an upload could not be aborted; the sweep will remove it: %s", error)

    def _abort_others(self) -> None:
        """Aborts a second upload that a retried request may have created. Its response was lost, so its id is unknown."""
        try:
            entries = self._bucket.entries(self._place["Key"])
            for failure in self._bucket.erase([entry for entry in entries if entry.kind == "upload"]):
                log.warning("an upload could not be aborted; the sweep will remove it: %s", failure.reason)
        except StoreError as error:
            log.warning("unfinished uploads of an object could not be listed: %s", error)

    def _add(self, etag: str | None) -> None:
        if not etag:
            raise StoreUnavailable("UploadPart: the response has no ETag")
        self._parts.append({"PartNumber": len(self._parts) + 1, "ETag": etag})


class S3Writer:
    """An `ObjectWriter`. Buffers one part, and sends another one at the same time if the process has a free thread."""

    def __init__(self, bucket: S3Bucket, key: str, size: int | None, *, encryption: str = "none") -> None:
        self.bytes_stored = 0
        self.has_begun = False
        self._bucket = bucket
        self._key = key
        self._encryption = encryption
        self._expected = size or 0
        self._total = 0
        self._buffer = bytearray()
        self._room = bucket.part_bytes
        self._parts = 0
        self._upload: MultipartUpload | None = None
        self._in_transit: Future[int] | None = None
        self._is_done = False

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
            self._bucket.check_key_is_free(self._key)
            stat = self._put()
        else:
            upload = self._send_part()  # even if one PUT would suffice: the store must confirm the encryption first
            self._await_part()
            self._bucket.check_key_is_free(self._key)
            stat = upload.complete(self._total)
        self._is_done = True
        self.bytes_stored = self._total
        return stat

    def abort(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        self._buffer = bytearray()
        if self._in_transit is not None:
            wait([self._in_transit])  # a part that arrives after the abort would remain
        if self._upload is not None:
            self._upload.abort()

    def _put(self) -> Stat:
        body: Any = BufferFile(self._buffer)
        kind = self._bucket.default_content_type
        self.has_begun = True
        try:
            with self._bucket.shared_client.request("PutObject") as client:
                answer = client.put_object(Bucket=self._bucket.bucket_name, Key=self._key, Body=body, ContentType=kind)
        except StoreUnavailable as error:
            return self._bucket.confirm(self._key, self._total, error)
        if not answer.get("ETag"):
            return self._bucket.confirm(self._key, self._total, None)
        return Stat(self._total, unquoted(answer["ETag"]))

    def _send_part(self) -> MultipartUpload:
        if self._upload is None:
            self.has_begun = True
            self._upload = MultipartUpload(self._bucket, self._key, encryption=self._encryption)
        self._await_part()
        data, self._buffer = self._buffer, bytearray()
        self._parts += 1
        self._room = part_size(self._parts + 1, smallest=self._bucket.part_bytes, expected=self._expected)
        shared = self._bucket.shared_client
        if shared.parts.acquire(blocking=False):
            try:
                self._in_transit = shared.threads.submit(self._upload.upload_part, data)
            except RuntimeError as error:  # the system has no thread left
                shared.parts.release()
                raise StoreUnavailable(f"UploadPart: {error}") from error
            self._in_transit.add_done_callback(lambda _: shared.parts.release())
        else:
            self.bytes_stored += self._upload.upload_part(data)
        return self._upload

    def _await_part(self) -> None:
        if self._in_transit is not None:
            self.bytes_stored += self._in_transit.result()
            self._in_transit = None


def part_size(number: int, *, smallest: int, expected: int) -> int:
    """Returns the size of part `number`, counted from 1. Small objects have small parts; no object has more than 10,000 parts.

    Raises: StoreRefused.
    """
    if number > MAX_PARTS + 1:
        raise StoreRefused(f"UploadPart: an object has at most {MAX_PARTS} parts")
    if expected:
        return max(smallest, -(-expected // MAX_PARTS))
    return smallest << min((number - 1) // PARTS_PER_STEP, 3)
