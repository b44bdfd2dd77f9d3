"""S3 servers and buckets for tests: moto in this process, and the real server at S3_TEST_ENDPOINT_URL (`.ci/ceph up`).

boto3 and moto are imported at first use, because most processes that collect tests never need them.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from tests import needs


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from mypy_boto3_s3 import S3Client
    from pytest_django import Settings
    from werkzeug.serving import BaseWSGIServer

    from vault.stores.s3 import S3Store

ALIASES = ("vault", "staging", "release")


@dataclass(frozen=True)
class Endpoint:
    """The address of an S3 server and credentials for it."""

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    @property
    def client(self) -> "S3Client":
        """A client that is independent of our stores, for set-up and checks."""
        return _client(self)

    def options(self, bucket: str) -> dict[str, Any]:
        """Returns the OPTIONS of a STORAGES alias for one bucket."""
        return {
            "bucket_name": bucket,
            "endpoint_url": self.url,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "region_name": "us-east-1",
            "addressing_style": "path",
        }

    def store(self, bucket: str) -> "S3Store":
        from vault.stores.s3 import S3Store

        return S3Store(**self.options(bucket))

    def environment(self, bucket: str) -> dict[str, str]:
        """Returns the environment of a server process that stores its objects here. It creates its own buckets."""
        return {
            "S3_ENDPOINT_URL": self.url,
            "S3_BUCKET": bucket,
            "S3_CREATE_BUCKETS": "1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@cache
def _client(endpoint: Endpoint) -> "S3Client":
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


class Faults:
    """WSGI middleware in front of moto: records requests and injects faults.

    A fault is a function of the environ, `start_response` and the application. It returns a WSGI body as the response, or None
    to pass the request to moto.
    """

    def __init__(self, application: "WSGIApplication") -> None:
        self.requests: list[dict[str, Any]] = []
        self.fault: Callable[[WSGIEnvironment, StartResponse, WSGIApplication], Iterable[bytes] | None] | None = None
        self._application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        self.requests.append(dict(environ))
        if self.fault is not None:
            answer = self.fault(environ, start_response, self._application)
            if answer is not None:
                return answer
        return self._application(environ, start_response)

    @contextmanager
    def during(self, fault: Callable[..., Iterable[bytes] | None]) -> Iterator[list[dict[str, Any]]]:
        """Injects a fault inside the block. At its end, the yielded list receives the requests that arrived meanwhile."""
        before, self.fault = len(self.requests), fault
        seen: list[dict[str, Any]] = []
        try:
            yield seen
        finally:
            self.fault = None
            seen += self.requests[before:]


def serve(application: "WSGIApplication", **options: Any) -> "BaseWSGIServer":
    """Serves moto on loopback, in a thread of this process."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    class QuietHandler(MotoRequestHandler):
        def log_request(self, *_: object, **__: object) -> None:
            """Suppresses the line on stderr for each request."""

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=QuietHandler, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@cache
def moto_server() -> tuple[Endpoint, Faults]:
    """Starts one moto server per test process."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    return Endpoint(f"http://127.0.0.1:{serve(faults).port}", "moto", "moto"), faults


def moto() -> Endpoint:
    return moto_server()[0]


def ceph() -> Endpoint:
    """Returns the real S3 server."""
    return Endpoint(needs.address("ceph"), os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])


SERVERS = {"moto": moto, "ceph": ceph}
CEPH = pytest.param("ceph", marks=pytest.mark.needs("ceph"))
SERVER_PARAMS = ["moto", CEPH]


@contextmanager
def buckets(endpoint: Endpoint, count: int, **options: Any) -> Iterator[list[str]]:
    """Creates buckets, and empties and removes them afterwards: Ceph limits a user to 1,000 buckets."""
    names = [f"test-{uuid.uuid4().hex}" for _ in range(count)]
    client = endpoint.client
    for name in names:
        client.create_bucket(Bucket=name, **options)
    try:
        yield names
    finally:
        for name in names:
            client.delete_bucket_policy(Bucket=name)
            _empty(client, name)
            client.delete_bucket(Bucket=name)


@contextmanager
def use_new_buckets(endpoint: Endpoint, settings: "Settings") -> Iterator[dict[str, str]]:
    """Points `settings.STORAGES` at new buckets of a server; yields a mapping of alias to bucket."""
    with buckets(endpoint, len(ALIASES)) as names:
        by_alias = dict(zip(ALIASES, names, strict=True))
        settings.STORAGES = settings.STORAGES | {
            alias: {"BACKEND": "vault.stores.s3.S3Store", "OPTIONS": endpoint.options(bucket)}
            for alias, bucket in {**by_alias, "default": by_alias["vault"]}.items()
        }
        yield by_alias


def _empty(client: "S3Client", bucket: str) -> None:
    """Deletes all contents without our own store, which is under test and does not bypass retention."""
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    while True:
        page = client.list_object_versions(Bucket=bucket)
        found: list[Any] = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        if not found:
            return
        objects: Any = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in found]
        client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}, BypassGovernanceRetention=True)
