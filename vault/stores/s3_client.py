"""The S3 client that all stores with the same endpoint and identity share in a process, and the translation of its errors."""

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


PARTS_IN_FLIGHT: Final = 8  # in a process, besides the part that each upload may send in its own thread
CONNECTION_WAIT: Final = 10  # seconds to wait for a free connection
PART_CONNECTION_WAIT: Final = 120  # for a part: on a slow network, other parts may occupy all connections for that long
CONNECT_TIMEOUT: Final = 3  # seconds
READ_TIMEOUT: Final = 15
CREDENTIAL_ERRORS: Final = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.ProfileNotFound,
    boto.NoAuthTokenError,
)


class UploadGone(StoreRefused):
    """This multipart upload was completed or aborted."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address, identity and options of a client. If no keys are set, boto3's credential chain provides and renews them."""

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


class SharedClient:
    """One boto3 client with its limits. It costs 15 MiB and 200 ms, so stores and threads share it (T-13)."""

    def __init__(self, endpoint: Endpoint) -> None:
        core = botocore.session.Session()
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
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
            # TLS protects a body in transit. Without TLS, the server compares the SHA-256 that the signature covers.
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
        events: Any = self.client.meta.events  # its type says that a handler returns nothing
        events.register_first("needs-retry.s3", stop_after_timeouts)
        events.register("before-call.s3.DeleteObjects", add_content_md5)
        # An empty pool of urllib3 opens more connections. Only this semaphore limits them.
        self._connections = threading.Semaphore(endpoint.max_connections)
        self.parts = threading.Semaphore(PARTS_IN_FLIGHT)
        self.threads = ThreadPoolExecutor(PARTS_IN_FLIGHT, "s3-part")

    @contextmanager
    def request(self, operation: str, *, timeout: float | None = None) -> Iterator["S3Client"]:
        """Lends the client for one request, and translates its errors into errors of the port.

        Raises: FileNotFoundError, FileExistsError, ObjectChanged, StoreUnavailable, StoreRefused, UploadGone.
        """
        self.take_connection(operation, timeout=timeout)
        try:
            with port_errors(operation):
                yield self.client
        finally:
            self.return_connection()

    def take_connection(self, operation: str, *, timeout: float | None = None) -> None:
        """Waits at most `timeout` seconds for a connection. The caller must call `return_connection` afterwards.

        Raises: StoreUnavailable.
        """
        if not self._connections.acquire(timeout=CONNECTION_WAIT if timeout is None else timeout):
            raise StoreUnavailable(f"{operation}: no connection became free")

    def return_connection(self) -> None:
        self._connections.release()


_clients: dict[Endpoint, SharedClient] = {}
_creating = threading.Lock()


def client_for(endpoint: Endpoint) -> SharedClient:
    with _creating:
        if endpoint not in _clients:
            _clients[endpoint] = SharedClient(endpoint)
        return _clients[endpoint]


def _drop_clients() -> None:
    """A forked child must neither use its parent's connections nor wait for threads that it does not have."""
    global _creating
    _creating = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_drop_clients)


def stop_after_timeouts(*, attempts: int, caught_exception: Exception | None, **_: Any) -> bool | None:
    """Retries a timeout only once: four times 15 s would block a web thread for a minute (F-04). None: botocore decides."""
    is_timeout = isinstance(caught_exception, boto.ConnectTimeoutError | boto.ReadTimeoutError)
    return False if is_timeout and attempts >= 2 else None


def parse_time(value: Any) -> datetime:
    """Parses a time in a response. botocore tries all formats, which took half of the time of a listing."""
    return datetime.fromisoformat(value) if str(value).endswith("Z") else parse_timestamp(value)


def add_content_md5(*, params: dict[str, Any], **_: Any) -> None:
    """Adds the digest that servers without CRC checksums require for a batch delete. botocore no longer sends it (S-1)."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@contextmanager
def port_errors(operation: str) -> Iterator[None]:
    """Translates errors of botocore into errors of the port.

    Raises: FileNotFoundError, FileExistsError, ObjectChanged, StoreUnavailable, StoreRefused, UploadGone.
    """
    try:
        yield
    except boto.ClientError as error:
        raise port_error(operation, error.response) from error
    except boto.ParamValidationError:
        raise  # a bug in our code
    except CREDENTIAL_ERRORS as error:
        raise StoreRefused(f"{operation}: {type(error).__name__}") from error
    except (boto.BotoCoreError, ResponseParserError, HTTPError) as error:
        raise StoreUnavailable(f"{operation}: {type(error).__name__}") from error


def port_error(operation: str, response: Any) -> StoreError | FileNotFoundError | FileExistsError:
    """Returns the error of the port for an error response. The response to a HEAD has no body, so its code is the status."""
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
    """Returns the Date of a response (RFC 9110, 6.6.1); None if it is missing or invalid."""
    try:
        date = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return None
    return date if date.tzinfo else None


class BufferFile:
    """A bytearray as a file for botocore, which reads it again for a retry. io.BytesIO would copy it."""

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
