"""The S3 client that all stores of one endpoint and identity share in a process, and its errors as the port's."""

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp
from urllib3.exceptions import HTTPError

from vault.stores import ObjectChanged, StoreError, StoreRefused, StoreUnavailable


if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


PARTS_IN_FLIGHT: Final = 8  # in a process, besides the part that each upload may send on its own thread
PATIENCE: Final = 10  # seconds for a free connection
PART_PATIENCE: Final = 120  # a part is worth waiting for: on a slow line all connections may be busy with other parts for so long
CONNECT_TIMEOUT: Final = 3  # seconds
READ_TIMEOUT: Final = 15
NO_IDENTITY: Final = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.ProfileNotFound,
    boto.NoAuthTokenError,
)


class UploadGone(StoreRefused):
    """Somebody completed or aborted this multipart upload."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom to ask, as whom, and how. Without keys boto3's own chain finds some, and renews what expires."""

    url: str | None
    region: str | None
    addressing_style: str
    verify: str | bool | None
    checksums: str
    max_connections: int
    profile: str | None
    access_key: str | None
    secret_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)


class Service:
    """One client: it costs 15 MiB and 200 ms, so that neither each store nor each thread has its own (T-13)."""

    def __init__(self, endpoint: Endpoint) -> None:
        core = botocore.session.Session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment)
        session = boto3.Session(
            botocore_session=core,
            profile_name=endpoint.profile,
            aws_access_key_id=endpoint.access_key,
            aws_secret_access_key=endpoint.secret_key,
            aws_session_token=endpoint.session_token,
        )
        checksums: Any = endpoint.checksums
        options: Any = {
            "addressing_style": endpoint.addressing_style,
            # TLS protects a body on its way. Without it the server compares the SHA-256 that the signature covers.
            "payload_signing_enabled": (endpoint.url or "https:").startswith("http:"),
        }
        self.client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint.url,
            region_name=endpoint.region,
            verify=endpoint.verify,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 4},
                max_pool_connections=endpoint.max_connections,
                s3=options,
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
            ),
        )
        events: Any = self.client.meta.events  # typed as if nobody listened to what a handler returns
        events.register_first("needs-retry.s3", give_up_on_silence)
        events.register("before-call.s3.DeleteObjects", add_content_md5)
        # urllib3's pool opens more connections when it is empty; nothing but this makes anybody wait.
        self._connections = threading.Semaphore(endpoint.max_connections)
        self.parts = threading.Semaphore(PARTS_IN_FLIGHT)
        self.threads = ThreadPoolExecutor(PARTS_IN_FLIGHT, "s3-part")

    @contextmanager
    def request(self, operation: str, *, patience: float | None = None) -> Iterator["S3Client"]:
        """The client for one request, in our errors."""
        self.take_connection(operation, patience=patience)
        try:
            with translated(operation):
                yield self.client
        finally:
            self.return_connection()

    def take_connection(self, operation: str, *, patience: float | None = None) -> None:
        if not self._connections.acquire(timeout=PATIENCE if patience is None else patience):
            raise StoreUnavailable(f"{operation}: no connection became free")

    def return_connection(self) -> None:
        self._connections.release()


_services: dict[Endpoint, Service] = {}
_building = threading.Lock()


def service_of(endpoint: Endpoint) -> Service:
    with _building:
        if endpoint not in _services:
            _services[endpoint] = Service(endpoint)
        return _services[endpoint]


def _forget_services() -> None:
    """A forked child must not talk on its parent's connections, nor wait for threads that it does not have."""
    global _building
    _building = threading.Lock()
    _services.clear()


os.register_at_fork(after_in_child=_forget_services)


def give_up_on_silence(*, attempts: int, caught_exception: Exception | None, **_: Any) -> bool | None:
    """Retries a timeout once only: four times 15 s would hold a web thread for a minute (F-04). None = as botocore decides."""
    is_silence = isinstance(caught_exception, boto.ConnectTimeoutError | boto.ReadTimeoutError)
    return False if is_silence and attempts >= 2 else None


def moment(value: Any) -> datetime:
    """A time of an answer. botocore tries every format that there is, which was half of what reading a listing cost."""
    return datetime.fromisoformat(value) if str(value).endswith("Z") else parse_timestamp(value)


def add_content_md5(*, params: dict[str, Any], **_: Any) -> None:
    """Servers from before CRC checksums demand it for a batch delete, and botocore no longer sends it (S-1)."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """What botocore raises, as what the port raises."""
    try:
        yield
    except boto.ClientError as error:
        raise meaning(operation, error.response) from error
    except boto.ParamValidationError:
        raise  # our own mistake
    except NO_IDENTITY as error:
        raise StoreRefused(f"{operation}: {type(error).__name__}") from error
    except (boto.BotoCoreError, ResponseParserError, HTTPError) as error:
        raise StoreUnavailable(f"{operation}: {type(error).__name__}") from error


def meaning(operation: str, response: Any) -> StoreError | FileNotFoundError | FileExistsError:
    """The error of the port for an error response. A HEAD has no body, so that its code is only the status."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = response.get("Error", {}).get("Code") or str(status)
    text = f"{operation}: {code}"
    if code in {"NoSuchKey", "NoSuchVersion", "NotFound", "404"}:
        return FileNotFoundError(text)
    if code == "NoSuchUpload":
        return UploadGone(text)
    if code == "BucketAlreadyOwnedByYou":
        return FileExistsError(text)
    if status in {412, 416}:
        return ObjectChanged(text)
    if status in {408, 409, 429} or status >= 500 or code == "RequestTimeout":
        return StoreUnavailable(text)
    return StoreRefused(text)


def sent_at(response: Any) -> datetime | None:
    """The Date of an answer (RFC 9110, 6.6.1); None if it has none that can be read."""
    try:
        moment = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return None
    return moment if moment.tzinfo else None


class BufferFile:
    """A bytearray as the file that botocore wants to read, more than once if it retries; io.BytesIO would copy it."""

    def __init__(self, data: bytearray) -> None:
        self._view = memoryview(data)
        self._at = 0

    def read(self, size: int = -1) -> memoryview:
        stop = len(self._view) if size is None or size < 0 else self._at + size
        piece = self._view[self._at : stop]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
