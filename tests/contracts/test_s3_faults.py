"""Faults between the server and S3, with moto behind fault-injecting middleware and with unreachable endpoints."""

import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pytest_django import Settings

from tests import stores
from tests.live.waiting import within
from vault.stores import StoreEntry, StoreRefused, StoreUnavailable, s3_client
from vault.stores.s3 import S3Store


if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MIB = 1024**2
SMALLEST_PART = 5 * MIB  # that S3 accepts
BIG = bytes(SMALLEST_PART + MIB)


@pytest.fixture
def faults() -> stores.Faults:
    return stores.moto_server()[1]


@pytest.fixture
def vault() -> Iterator[S3Store]:
    with stores.buckets(stores.moto(), 1) as (name,):
        store = stores.moto().store(name)
        store.part_bytes = SMALLEST_PART
        yield store


def put(store: S3Store, key: str, content: bytes) -> None:
    writer = store.create(key, size=None)
    try:
        writer.write(content)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def kinds(store: S3Store) -> list[tuple[str, str]]:
    return [(entry.kind, entry.key) for entry in store.entries("")]


def read_and_respond(environ: "WSGIEnvironment", start: "StartResponse", status: str, body: bytes, **headers: str) -> list[bytes]:
    """Reads the request and responds instead of moto."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return respond(start, status, body, **headers)


def respond(start: "StartResponse", status: str, body: bytes, **headers: str) -> list[bytes]:
    start(status, [("Content-Length", str(len(body))), *((name.replace("_", "-"), value) for name, value in headers.items())])
    return [body]


def s3_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()


def failing(
    method: str, query: str, *, times: int = 10**6, status: str = "503 Slow Down", code: str = "SlowDown"
) -> Callable[..., Any]:
    """Makes a fault: the first `times` requests of a kind get an error."""
    left = iter(range(times))

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, method, query) or next(left, None) is None:
            return None
        return read_and_respond(environ, start, status, s3_error(code))

    return fault


def response_lost(
    method: str, query: str, *, times: int = 1, status: str = "500 Internal Server Error", code: str = "InternalError"
) -> Callable[..., Any]:
    """Makes a fault: moto performs the first `times` requests of a kind, but the response is an error."""
    left = iter(range(times))

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, method, query) or next(left, None) is None:
            return None
        b"".join(application(environ, lambda *_: lambda _: None))
        return respond(start, status, s3_error(code))

    return fault


def responding(method: str, query: str, status: str, body: bytes, **headers: str) -> Callable[..., Any]:
    """Makes a fault: all requests of a kind get this response."""

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        return read_and_respond(environ, start, status, body, **headers) if is_request(environ, method, query) else None

    return fault


def is_request(environ: "WSGIEnvironment", method: str, query: str) -> bool:
    return bool(environ["REQUEST_METHOD"] == method and re.search(query, environ["QUERY_STRING"]))


PUT, PART, COMPLETE = ("PUT", "^$"), ("PUT", "partNumber"), ("POST", "^uploadId")


# --- Writing ---


@pytest.mark.parametrize("request_kind", [PUT, PART, COMPLETE], ids=["put", "part", "complete"])
def test_write_retries_a_throttled_request(
    vault: S3Store, faults: stores.Faults, monkeypatch: pytest.MonkeyPatch, request_kind: tuple[str, str]
) -> None:
    content = b"1" if request_kind == PUT else BIG
    with faults.during(failing(*request_kind, times=2)):
        put(vault, "a", content)
    assert kinds(vault) == [("object", "a")]
    assert vault.stat("a").size == len(content)


@within(30)
@pytest.mark.parametrize("request_kind", [PUT, PART, COMPLETE, ("POST", "^uploads")], ids=["put", "part", "complete", "start"])
def test_write_to_a_failing_store_fails_in_time_and_leaves_no_data(
    vault: S3Store, faults: stores.Faults, request_kind: tuple[str, str], seconds: float
) -> None:
    """F-01, F-12."""
    began = time.monotonic()
    with faults.during(failing(*request_kind)) as seen, pytest.raises(StoreUnavailable, match="SlowDown"):
        put(vault, "a", b"1" if request_kind == PUT else BIG)
    assert time.monotonic() - began < seconds
    assert sum(is_request(environ, *request_kind) for environ in seen) == 4  # one attempt and three retries
    assert kinds(vault) == []


@pytest.mark.parametrize("times", [1, 4])
def test_put_with_lost_response_makes_one_object(vault: S3Store, faults: stores.Faults, times: int) -> None:
    """F-02: even if every response is lost, a check finds the object."""
    with faults.during(response_lost(*PUT, times=times)):
        put(vault, "a", b"123")
    assert kinds(vault) == [("object", "a")]


@pytest.mark.parametrize(
    "fault",
    [
        response_lost(*COMPLETE),
        response_lost(*COMPLETE, times=4),
        response_lost(*COMPLETE, status="404 Not Found", code="NoSuchUpload"),  # the response of AWS to a retry after a success
    ],
    ids=["once", "always", "gone"],
)
def test_complete_with_lost_response_makes_one_object(vault: S3Store, faults: stores.Faults, fault: Callable[..., Any]) -> None:
    """F-13."""
    with faults.during(fault):
        put(vault, "a", BIG)
    assert kinds(vault) == [("object", "a")]
    assert vault.stat("a").size == len(BIG)


def test_complete_with_status_200_and_an_error_fails(vault: S3Store, faults: stores.Faults) -> None:
    """F-13; the upload is aborted."""
    with faults.during(responding(*COMPLETE, "200 OK", s3_error("InternalError"))), pytest.raises(StoreUnavailable):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_complete_with_status_200_and_no_object_fails(vault: S3Store, faults: stores.Faults) -> None:
    body = b"<CompleteMultipartUploadResult><ETag>&quot;1-2&quot;</ETag></CompleteMultipartUploadResult>"
    with faults.during(responding(*COMPLETE, "200 OK", body)), pytest.raises(StoreUnavailable):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_part_with_a_wrong_etag_fails_the_upload(vault: S3Store, faults: stores.Faults) -> None:
    """F-12."""

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, *PART):
            return None

        def with_wrong_etag(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            return start(status, [(name, '"0"' if name.lower() == "etag" else value) for name, value in headers])

        return application(environ, with_wrong_etag)

    with faults.during(fault), pytest.raises(StoreRefused, match="InvalidPart"):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_put_with_the_response_of_a_proxy_fails(vault: S3Store, faults: stores.Faults) -> None:
    with faults.during(responding(*PUT, "200 OK", b"<html>maintenance</html>")), pytest.raises(StoreUnavailable):
        put(vault, "a", b"1")
    assert kinds(vault) == []


def test_abort_that_fails_is_left_to_the_sweep(
    vault: S3Store, faults: stores.Faults, caplog: pytest.LogCaptureFixture, settings: Settings
) -> None:
    writer = vault.create("a", size=None)
    writer.write(BIG)
    with faults.during(failing("DELETE", "uploadId")):
        writer.abort()
    assert "the sweep will remove it" in caplog.text
    assert kinds(vault) == [("upload", "a")]


def test_write_fills_a_part_while_another_is_in_flight(vault: S3Store, faults: stores.Faults) -> None:
    """Makes more uploads than there are threads for parts, so that each upload must release its thread."""
    for number in range(s3_client.PARTS_IN_FLIGHT + 1):
        may_answer = threading.Event()

        def slowly(environ: "WSGIEnvironment", *_: Any, event: threading.Event = may_answer) -> None:
            if is_request(environ, *PART) and not event.wait(10):
                raise TimeoutError

        writer = vault.create(f"{number}", size=None)
        with faults.during(slowly):
            writer.write(bytes(2 * SMALLEST_PART - 1))  # a part, and most of the next
            assert writer.bytes_stored == 0
            may_answer.set()
            assert writer.commit().size == 2 * SMALLEST_PART - 1


def test_abort_waits_for_a_part_in_flight(vault: S3Store, faults: stores.Faults) -> None:
    """S3 stores a part that arrives after the abort of its upload."""
    order = []

    def slowly(environ: "WSGIEnvironment", *_: Any) -> None:
        if is_request(environ, *PART):
            time.sleep(0.3)
            order.append("part")
        elif is_request(environ, "DELETE", "uploadId"):
            order.append("abort")

    with faults.during(slowly):
        writer = vault.create("a", size=None)
        writer.write(BIG)
        writer.abort()
    assert order == ["part", "abort"]


def test_write_buffers_at_most_two_parts(vault: S3Store, faults: stores.Faults) -> None:
    """The memory that an upload uses does not depend on its size."""
    segment = bytes(128 * 1024)
    vault.part_bytes = S3Store.part_bytes
    with faults.during(responding(*PART, "200 OK", b"", ETag='"1"')):
        writer = vault.create("a", size=None)
        writer.write(bytes(9 * MIB))  # one-time initialisation
        tracemalloc.start()
        try:
            for _ in range(100 * MIB // len(segment)):
                writer.write(segment)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            writer.abort()
    # Two parts, the over-allocation of a growing buffer, and what moto in this process reads at a time.
    assert peak < 2 * 9.5 * MIB + 8 * MIB
    assert writer.bytes_stored >= 90 * MIB


# --- Reading ---


def cut(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
    """A fault: the response ends after five of ten bytes."""
    if environ["REQUEST_METHOD"] != "GET":
        return None
    start(
        "206 Partial Content",
        [("Content-Length", "10"), ("Content-Range", "bytes 0-9/10"), ("ETag", '"1"'), ("Connection", "close")],
    )
    return [b"12345"]


def test_body_that_ends_early_is_unavailable(vault: S3Store, faults: stores.Faults, settings: Settings) -> None:
    """F-05; it never looks complete, and it returns its connection, the only one."""
    settings.S3_MAX_CONNECTIONS = 1
    with faults.during(cut):
        for _ in range(2):
            _, body = vault.open("a", start=0, length=10, etag=None)
            assert body.read(5) == b"12345"
            with pytest.raises(StoreUnavailable):
                body.read(5)
            body.close()
        _, body = vault.open("a", start=0, length=10, etag=None)
        with pytest.raises(StoreUnavailable):
            body.read(10)
        body.close()
    vault.check()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", {}),
        ("200 OK", {"ETag": '"1"'}),
        ("206 Partial Content", {"Content_Range": "bytes 1-10/20"}),
        ("206 Partial Content", {"Content_Range": "bytes 0-8/20"}),
        ("206 Partial Content", {"Content_Range": "bytes 0-9/*"}),
    ],
)
def test_open_accepts_only_the_requested_range(
    vault: S3Store, faults: stores.Faults, settings: Settings, status: str, headers: dict[str, str]
) -> None:
    """F-06: for example an error page with status 200, or a server that does not support ranges."""
    settings.S3_MAX_CONNECTIONS = 1
    with faults.during(responding("GET", "^$", status, b"<html></html>", **headers)):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                vault.open("a", start=0, length=10, etag=None)
    vault.check()


def test_stat_refuses_an_html_page(vault: S3Store, faults: stores.Faults) -> None:
    with faults.during(responding("HEAD", "^$", "200 OK", b"<html></html>")):
        with pytest.raises(StoreUnavailable):
            vault.stat("a")
        with pytest.raises(StoreUnavailable):
            put(vault, "a", b"1")
    assert kinds(vault) == []


def test_open_is_one_request(vault: S3Store, faults: stores.Faults) -> None:
    put(vault, "a", b"0123456789")
    with faults.during(lambda *_: None) as seen:
        _, body = vault.open("a", start=2, length=3, etag=vault.stat("a").etag)
        assert body.read(10) == b"234"
        body.close()
    (get,) = [environ for environ in seen if environ["REQUEST_METHOD"] == "GET"]
    assert get["HTTP_RANGE"] == "bytes=2-4"
    assert get["HTTP_IF_MATCH"]


def test_refused_request_is_not_repeated(vault: S3Store, faults: stores.Faults) -> None:
    """F-11."""
    for code in ("AccessDenied", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "ExpiredToken"):
        with (
            faults.during(failing("GET", "^$", status="403 Forbidden", code=code)) as seen,
            pytest.raises(StoreRefused, match=code),
        ):
            vault.open("a", start=0, length=1, etag=None)
        assert len(seen) == 1


def test_open_without_free_connection_times_out(vault: S3Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.S3_MAX_CONNECTIONS = 2
    monkeypatch.setattr(s3_client, "CONNECTION_WAIT", 0.2)
    put(vault, "a", b"0123456789")
    bodies = [vault.open("a", start=0, length=10, etag=None)[1] for _ in range(2)]
    with pytest.raises(StoreUnavailable, match="no connection"):
        vault.open("a", start=0, length=10, etag=None)
    bodies[0].close()
    assert vault.stat("a").size == 10
    bodies[1].close()


# --- Listing and erasing ---


@pytest.mark.parametrize("listing", ["uploads", "versions"])
@pytest.mark.parametrize(
    "page",
    [
        b"<ListResult><IsTruncated>true</IsTruncated></ListResult>",
        b"<ListResult><IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker></ListResult>",
        b"<ListResult></ListResult>",
        b"<html><p>maintenance</html>",
        b"<html></html>",
        b"",
    ],
    ids=["no-marker", "same-marker", "unsaid", "broken-page", "page", "empty"],
)
def test_incomplete_listing_is_an_error(vault: S3Store, faults: stores.Faults, listing: str, page: bytes) -> None:
    """F-19: a deletion must never take a partial listing as complete."""
    put(vault, "a", b"1")
    with faults.during(responding("GET", listing, "200 OK", page)), pytest.raises(StoreUnavailable):
        list(vault.entries(""))


def test_listing_that_is_throttled_midway_is_an_error(vault: S3Store, faults: stores.Faults) -> None:
    page = b"""<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>b</NextKeyMarker></ListVersionsResult>"""
    with ExitStack() as stack:
        stack.enter_context(
            faults.during(
                lambda *request: failing("GET", "key-marker")(*request) or responding("GET", "versions", "200 OK", page)(*request)
            )
        )
        stack.enter_context(pytest.raises(StoreUnavailable, match="SlowDown"))
        list(vault.entries(""))


def test_erase_repeats_a_throttled_key(vault: S3Store, faults: stores.Faults) -> None:
    """F-17: status 200 with a temporary error for one key is neither a success nor final."""
    for key in "abc":
        put(vault, key, b"1")
    entries = list(vault.entries(""))
    body = b"<DeleteResult><Error><Key>b</Key><VersionId>null</VersionId><Code>SlowDown</Code></Error></DeleteResult>"
    first = iter([responding("POST", "delete", "200 OK", body)])
    with faults.during(
        lambda *request: next(first, lambda *_: None)(*request) if request[0]["REQUEST_METHOD"] == "POST" else None
    ) as seen:
        assert vault.erase(entries) == []
    assert len(seen) == 2
    assert [key for _, key in kinds(vault)] == ["a", "c"]  # the injected response reports these as deleted


@pytest.mark.parametrize("code", ["NoSuchKey", "NoSuchVersion"])
def test_erase_of_a_missing_key_succeeds(vault: S3Store, faults: stores.Faults, code: str) -> None:
    put(vault, "a", b"1")
    body = f"<DeleteResult><Error><Key>a</Key><VersionId>null</VersionId><Code>{code}</Code></Error></DeleteResult>".encode()
    with faults.during(responding("POST", "delete", "200 OK", body)):
        assert vault.erase(vault.entries("")) == []


def test_erase_applies_an_error_without_a_key_to_all_entries(vault: S3Store, faults: stores.Faults) -> None:
    put(vault, "a", b"1")
    entries = list(vault.entries(""))
    body = b"<DeleteResult><Error><Code>InvalidRequest</Code></Error></DeleteResult>"
    with faults.during(responding("POST", "delete", "200 OK", body)):
        (failure,) = vault.erase(entries)
    assert failure.entry == entries[0]
    assert failure.reason.startswith("InvalidRequest")


def test_erase_that_is_refused_returns_every_entry(vault: S3Store, faults: stores.Faults) -> None:
    put(vault, "a", b"1")
    writer = vault.create("b", size=None)
    writer.write(BIG)
    entries = list(vault.entries(""))
    with faults.during(
        lambda *request: (
            failing("POST", "delete", status="403 Forbidden", code="AccessDenied")(*request)
            or failing("DELETE", "uploadId", status="403 Forbidden", code="AccessDenied")(*request)
        )
    ):
        failures = vault.erase(entries)
    assert {failure.entry for failure in failures} == set(entries)
    assert all("AccessDenied" in failure.reason for failure in failures)
    writer.abort()


def test_erase_sends_at_most_a_thousand_keys_with_a_digest(vault: S3Store, faults: stores.Faults) -> None:
    """Unlike moto, real servers accept at most a thousand keys and, if they are old, require Content-MD5."""
    (template,) = _one_entry(vault)
    entries = [StoreEntry("object", str(number), "null", 1, template.modified) for number in range(2001)]
    with faults.during(responding("POST", "delete", "200 OK", b"<DeleteResult></DeleteResult>")) as seen:
        assert vault.erase(iter(entries)) == []
    assert len(seen) == 3
    assert all(environ["HTTP_CONTENT_MD5"] for environ in seen)


def _one_entry(vault: S3Store) -> list[StoreEntry]:
    put(vault, "a", b"1")
    return list(vault.entries(""))


# --- Unreachable endpoints ---


def store_at(url: str) -> S3Store:
    return S3Store(bucket_name="b", endpoint_url=url, access_key="a", secret_key="b", region_name="us-east-1")


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@within(20)
def test_refused_connection_is_unavailable_in_time(seconds: float) -> None:
    """F-03."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        store_at(closed_port()).open("a", start=0, length=1, etag=None)
    assert time.monotonic() - began < seconds


@within(20)
def test_endpoint_that_drops_connections_is_unavailable_in_time(seconds: float) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # fills the backlog, so that the kernel drops further connections
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listener.getsockname())
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="ConnectTimeoutError"):
            store_at(f"http://127.0.0.1:{listener.getsockname()[1]}").check()
        assert time.monotonic() - began < seconds


def test_silent_server_gets_two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """F-04: two timeouts of 15 seconds and a pause, not four."""
    monkeypatch.setattr(s3_client, "READ_TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        with pytest.raises(StoreUnavailable, match="ReadTimeoutError"):
            store_at(f"http://127.0.0.1:{silent.getsockname()[1]}").open("a", start=0, length=1, etag=None)
        silent.settimeout(0)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "certificate").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(folder / "certificate"), str(folder / "key")


@pytest.fixture(scope="module")
def tls_url(certificate: tuple[str, str]) -> str:
    """The URL of the same moto over TLS."""
    return f"https://127.0.0.1:{stores.serve(stores.moto_server()[1], ssl_context=certificate).port}"


@within(20)
def test_untrusted_certificate_is_unavailable_in_time(vault: S3Store, tls_url: str, seconds: float) -> None:
    """F-03: verification is always on."""
    store = S3Store(**stores.moto().options(vault.bucket_name) | {"endpoint_url": tls_url})
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="SSLError"):
        store.check()
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_body_is_protected_by_tls_or_the_signature(
    vault: S3Store, faults: stores.Faults, settings: Settings, certificate: tuple[str, str], tls_url: str, checksums: str
) -> None:
    settings.S3_CHECKSUMS = checksums
    options = stores.moto().options(vault.bucket_name)
    for options_of_this, digest in (
        (options, "[0-9a-f]{64}"),
        (options | {"endpoint_url": tls_url, "verify": certificate[0]}, "UNSIGNED-PAYLOAD|STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
    ):
        store = S3Store(**options_of_this)
        store.part_bytes = SMALLEST_PART
        with faults.during(lambda *_: None) as seen:
            put(store, "a", b"0123456789")
            put(store, "b", BIG)
        sent = [environ for environ in seen if environ["REQUEST_METHOD"] == "PUT"]
        assert len(sent) == 3
        assert all(re.fullmatch(digest, environ["HTTP_X_AMZ_CONTENT_SHA256"]) for environ in sent)
        _, body = store.open("a", start=1, length=4, etag=None)
        assert body.read(9) == b"1234"
        body.close()
        assert store.stat("b").size == len(BIG)
        assert store.erase(store.entries("")) == []
