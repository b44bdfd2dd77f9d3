"""Implements the object store port for a bucket of any S3 service."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from django.conf import settings

from vault.stores import ObjectStore, Stat, StoreRefused, StoreUnavailable, check_key
from vault.stores.s3_bucket import S3Bucket, unquoted
from vault.stores.s3_client import port_errors, sent_at
from vault.stores.s3_writer import MAX_PARTS, MultipartUpload, S3Writer


if TYPE_CHECKING:
    from botocore.response import StreamingBody


class S3Store(S3Bucket):
    """A bucket as an ObjectStore."""

    def create(self, key: str, *, size: int | None, encrypt: bool = False) -> S3Writer:
        return S3Writer(self, check_key(key), size, encryption=settings.S3_RELEASE_SSE if encrypt else "none")

    def open(self, key: str, *, start: int, length: int, etag: str | None) -> tuple[Stat, "S3Body"]:
        check_key(key)
        shared = self.shared_client
        match: Any = {} if etag is None else {"IfMatch": f'"{etag}"'}
        shared.take_connection("GetObject")
        try:
            with port_errors("GetObject"):
                found = shared.client.get_object(
                    Bucket=self.bucket_name, Key=key, Range=f"bytes={start}-{start + length - 1}", **match
                )
            size = object_size(found.get("ContentRange", ""), start=start, length=length)
            if size is None:
                found["Body"].close()
                raise StoreUnavailable("GetObject: the response is not the requested range")
        except BaseException:
            shared.return_connection()
            raise
        body = S3Body(found["Body"], length=min(length, size - start), on_close=shared.return_connection)
        return Stat(size, unquoted(found.get("ETag", ""))), body

    def stat(self, key: str) -> Stat:
        try:
            return self.head(check_key(key))
        except FileNotFoundError:
            self.check()  # a HEAD also returns 404 for a missing bucket, which must not look like a missing object
            raise

    def copy(self, source_key: str, key: str, *, source: ObjectStore) -> Stat:
        check_key(key)
        if not isinstance(source, S3Store) or source.endpoint_url != self.endpoint_url:
            raise TypeError("objects are copied only between buckets of the same endpoint")
        original = source.stat(source_key)
        self.check_key_is_free(key)
        origin = {
            "CopySource": {"Bucket": source.bucket_name, "Key": source_key},
            "CopySourceIfMatch": f'"{original.etag}"',
        }
        if original.size > self.copy_bytes:
            return self._copy_in_parts(origin, original.size, key)
        problem = None
        try:
            with self.shared_client.request("CopyObject") as client:
                client.copy_object(Bucket=self.bucket_name, Key=key, **origin)  # type: ignore[arg-type]
        except StoreUnavailable as error:
            problem = error
        return self.confirm(key, original.size, problem)

    def _copy_in_parts(self, origin: dict[str, Any], size: int, key: str) -> Stat:
        step = max(self.copy_bytes, -(-size // MAX_PARTS))
        upload = MultipartUpload(self, key)
        try:
            for start in range(0, size, step):
                upload.copy_part(origin, start, min(start + step, size))
            return upload.complete(size)
        except BaseException:
            upload.abort()
            raise

    def warm_up(self) -> None:
        _ = self.shared_client

    def check(self) -> None:
        if not self.has_bucket():
            raise StoreRefused("HeadBucket: no such bucket")

    def clock(self) -> datetime | None:
        with self.shared_client.request("HeadBucket") as client:
            try:
                return sent_at(client.head_bucket(Bucket=self.bucket_name))
            except ClientError as error:  # S3 refuses a large clock skew, but its response also has a date
                return sent_at(error.response)

    def prepare(self, *, create: bool) -> None:
        if create and not self.has_bucket():
            with suppress(FileExistsError), self.shared_client.request("CreateBucket") as client:  # it may exist by now
                region = client.meta.region_name
                if self.endpoint_url or region in {"us-east-1", "aws-global"}:
                    client.create_bucket(Bucket=self.bucket_name)
                else:
                    place: Any = {"LocationConstraint": region}
                    client.create_bucket(Bucket=self.bucket_name, CreateBucketConfiguration=place)
        self.check()


class S3Body:
    """An `ObjectBody`."""

    def __init__(self, stream: "StreamingBody", *, length: int, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._rest = length
        self._on_close: Callable[[], None] | None = on_close

    def read(self, size: int) -> bytes:
        wanted = min(size, self._rest)
        if wanted == 0:
            return b""
        with port_errors("GetObject"):
            data: bytes = self._stream.read(wanted)
        if len(data) < wanted:
            raise StoreUnavailable("GetObject: the body ended early")
        self._rest -= wanted
        return data

    def close(self) -> None:
        """Returns the connection to the pool if everything was read. Otherwise closes it, because more bytes are in transit."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            self._stream.close()
            on_close()

    def __del__(self) -> None:
        self.close()  # for a generator that was not run to its end


def object_size(content_range: str, *, start: int, length: int) -> int | None:
    """Returns the object's size from the Content-Range of this range; None for another range. The error page of a proxy with
    status 200 has no Content-Range (F-06)."""
    span, _, total = content_range.removeprefix("bytes ").partition("/")
    if not total.isdecimal() or span != f"{start}-{min(start + length, int(total)) - 1}":
        return None
    return int(total)
