"""One bucket of an S3 service: HEAD, listing and deletion. `vault.stores.s3` adds reading, writing and copying."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from storages.backends.s3 import S3Storage

from tenants.work.deadlocks import pause
from vault.stores import EraseFailure, PortOnly, Stat, StoreEntry, StoreError, StoreRefused, StoreUnavailable
from vault.stores.s3_client import Endpoint, SharedClient, UploadGone, client_for


if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef


MIB: Final = 1024**2
ERASE_BATCH: Final = 1000  # S3's limit; moto accepts more, so it is enforced here (S-3)
GONE: Final = {"NoSuchKey", "NoSuchVersion"}
TRANSIENT: Final = {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"}


class S3Bucket(PortOnly, S3Storage):  # type: ignore[misc]  # django-storages is untyped
    """django-storages provides the options of a STORAGES alias. Its methods for reading and writing are not used (T-3)."""

    part_bytes = 8 * MIB  # also the size of the largest object that is written by one PUT
    copy_bytes = 256 * MIB  # CopyObject accepts 5 GiB, but does not answer until it is done: this takes less than a read timeout

    def get_default_settings(self) -> dict[str, Any]:
        """Options that the STORAGES entry of an alias omits."""
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
        """Disabled, so that no inherited method can access the bucket."""
        raise NotImplementedError("objects are accessed through vault.stores only")

    @property
    def shared_client(self) -> SharedClient:
        return client_for(
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

    # --- HEAD ---

    def has_bucket(self) -> bool:
        try:
            with self.shared_client.request("HeadBucket") as client:
                client.head_bucket(Bucket=self.bucket_name)
        except FileNotFoundError:
            return False
        return True

    def head(self, key: str) -> Stat:
        """Like `ObjectStore.stat`, but does not distinguish a missing bucket from a missing object.

        Raises: FileNotFoundError, StoreUnavailable, StoreRefused.
        """
        with self.shared_client.request("HeadObject") as client:
            found = client.head_object(Bucket=self.bucket_name, Key=key)
        if not found.get("ETag"):
            raise StoreUnavailable("HeadObject: the response is not about an object")  # a proxy's page with status 200 (F-06)
        return Stat(found["ContentLength"], unquoted(found["ETag"]))

    def check_key_is_free(self, key: str) -> None:
        """Checks with a HEAD that no object has this key. A conditional write would save the request, but Ceph ignores it (S-4).

        Raises: FileExistsError, StoreUnavailable, StoreRefused.
        """
        with suppress(FileNotFoundError):
            self.head(key)
            raise FileExistsError("the key is taken")

    def confirm(self, key: str, size: int, error: StoreError | None) -> Stat:
        """Checks whether an object was created, independently of the last response. Raises `error` if it was not.

        A response may be lost, have the status 200 and contain an error, or be NoSuchUpload because an earlier attempt succeeded
        (S-4). The key was free before, so an object of this size is the one that was written.

        Raises: StoreUnavailable, StoreRefused.
        """
        try:
            found = self.head(key)
        except (FileNotFoundError, StoreError) as problem:
            raise error or StoreUnavailable("HeadObject: an acknowledged object cannot be found") from problem
        if found.size != size:
            raise error or StoreUnavailable("HeadObject: an acknowledged object has another size")
        return found

    # --- Listing ---

    def entries(self, prefix: str) -> Iterator[StoreEntry]:
        # Uploads first: an upload that is completed meanwhile is then listed twice, not omitted.
        for read_page in (self._uploads, self._versions):
            withheld: list[StoreEntry] = []
            position: dict[str, str] | None = {}
            while position is not None:
                page, next_position = read_page(prefix, position)
                # Not earlier: a caller that erases each entry would erase the marker entry from which this page starts.
                yield from withheld
                if next_position == position or next_position == {}:
                    raise StoreUnavailable("listing: there are more pages, but no marker for the next one")
                position = next_position
                found = [entry for entry in page if entry.key.startswith(prefix)]
                last = (position or {}).get("KeyMarker")
                withheld = [entry for entry in found if entry.key == last]
                yield from (entry for entry in found if entry.key != last)
            yield from withheld

    def _uploads(self, prefix: str, position: dict[str, str]) -> tuple[list[StoreEntry], dict[str, str] | None]:
        with self.shared_client.request("ListMultipartUploads") as client:
            page = client.list_multipart_uploads(Bucket=self.bucket_name, Prefix=prefix, **position)  # type: ignore[arg-type]
        uploads = page.get("Uploads", ())
        found = [StoreEntry("upload", item["Key"], item["UploadId"], 0, item["Initiated"]) for item in uploads]
        return found, next_markers(page, KeyMarker="NextKeyMarker", UploadIdMarker="NextUploadIdMarker")

    def _versions(self, prefix: str, position: dict[str, str]) -> tuple[list[StoreEntry], dict[str, str] | None]:
        with self.shared_client.request("ListObjectVersions") as client:
            page = client.list_object_versions(Bucket=self.bucket_name, Prefix=prefix, **position)  # type: ignore[arg-type]
        found = [
            StoreEntry(
                "object" if item["IsLatest"] else "version", item["Key"], item["VersionId"], item["Size"], item["LastModified"]
            )
            for item in page.get("Versions", ())
        ]
        markers = page.get("DeleteMarkers", ())
        found += [StoreEntry("marker", item["Key"], item["VersionId"], 0, item["LastModified"]) for item in markers]
        return found, next_markers(page, KeyMarker="NextKeyMarker", VersionIdMarker="NextVersionIdMarker")

    # --- Deletion ---

    def erase(self, entries: Iterable[StoreEntry]) -> list[EraseFailure]:
        failures, rest = [], iter(entries)
        while batch := list(islice(rest, ERASE_BATCH)):
            failures += self._erase_objects([entry for entry in batch if entry.kind != "upload"])
            for entry in batch:
                if entry.kind == "upload":
                    failures += self._erase_upload(entry)
        return failures

    def _erase_objects(self, entries: list[StoreEntry]) -> list[EraseFailure]:
        failures = self._delete(entries)
        for attempt in range(3):
            transient = {failure.entry for failure in failures if failure.is_transient}
            if not transient:
                break
            pause(attempt)
            failures = [failure for failure in failures if failure.entry not in transient] + self._delete(list(transient))
        return failures

    def _delete(self, entries: list[StoreEntry]) -> list[EraseFailure]:
        """Deletes by version id, which is "null" in an unversioned bucket. Without it, a delete only hides the object (S-2)."""
        if not entries:
            return []
        objects: list[ObjectIdentifierTypeDef] = [{"Key": entry.key, "VersionId": entry.version} for entry in entries]
        try:
            with self.shared_client.request("DeleteObjects") as client:
                answer = client.delete_objects(Bucket=self.bucket_name, Delete={"Objects": objects, "Quiet": True})
        except StoreRefused as error:
            return [EraseFailure(entry, str(error)) for entry in entries]
        failures = []
        for problem in answer.get("Errors", ()):
            code, key, version = problem.get("Code", ""), problem.get("Key"), problem.get("VersionId")
            if code not in GONE:
                # An error that names none of the entries may be about any of them.
                meant = [entry for entry in entries if entry.key == key and version in {entry.version, None, ""}] or entries
                reason = f"{code}: {problem.get('Message') or 'no message'}"
                failures += [EraseFailure(entry, reason, is_transient=code in TRANSIENT) for entry in meant]
        return failures

    def _erase_upload(self, entry: StoreEntry) -> list[EraseFailure]:
        try:
            with self.shared_client.request("AbortMultipartUpload") as client:
                client.abort_multipart_upload(Bucket=self.bucket_name, Key=entry.key, UploadId=entry.version)
        except UploadGone:
            return []
        except StoreRefused as error:
            return [EraseFailure(entry, str(error))]
        return []


def next_markers(page: Any, **markers: str) -> dict[str, str] | None:
    """Returns the markers of the next page of a listing; None after the last page; empty if the page does not state them."""
    if page.get("IsTruncated") is False:
        return None
    return {argument: page[name] for argument, name in markers.items() if page.get(name)}


def unquoted(etag: str) -> str:
    return etag.strip('"')
