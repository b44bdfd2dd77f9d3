"""What goes wrong between us and S3, and what each fault leads to: moto behind a door that answers for it, and dead endpoints."""

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
SMALLEST_PART = 5 * MIB  # the smallest that S3 takes
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


def answer(environ: "WSGIEnvironment", start: "StartResponse", status: str, body: bytes, **headers: str) -> list[bytes]:
    """An answer instead of moto's, after the request was read."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return reply(start, status, body, **headers)


def reply(start: "StartResponse", status: str, body: bytes, **headers: str) -> list[bytes]:
    start(status, [("Content-Length", str(len(body))), *((name.replace("_", "-"), value) for name, value in headers.items())])
    return [body]


def s3_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()


def failing(
    method: str, query: str, *, times: int = 10**6, status: str = "503 Slow Down", code: str = "SlowDown"
) -> Callable[..., Any]:
    """A fault: the first `times` requests of a kind get an error."""
    left = iter(range(times))

    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, method, query) or next(left, None) is None:
            return None
        return answer(environ, start, status, s3_error(code))

    return fault


def unheard(
    method: str, query: str, *, times: int = 1, status: str = "500 Internal Server Error", code: str = "InternalError"
) -> Callable[..., Any]:
    """A fault: the first `times` requests of a kind are done, and the answer is another one."""
    left = iter(range(times))

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, method, query) or next(left, None) is None:
            return None
        b"".join(application(environ, lambda *_: lambda _: None))
        return reply(start, status, s3_error(code))

    return fault


def answering(method: str, query: str, status: str, body: bytes, **headers: str) -> Callable[..., Any]:
    def fault(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
        return answer(environ, start, status, body, **headers) if is_request(environ, method, query) else None

    return fault


def is_request(environ: "WSGIEnvironment", method: str, query: str) -> bool:
    return bool(environ["REQUEST_METHOD"] == method and re.search(query, environ["QUERY_STRING"]))


PUT, PART, COMPLETE = ("PUT", "^$"), ("PUT", "partNumber"), ("POST", "^uploadId")


# --- Writing ---


@pytest.mark.parametrize("request_kind", [PUT, PART, COMPLETE], ids=["put", "part", "complete"])
def test_write_survives_a_throttled_request(
    vault: S3Store, faults: stores.Faults, monkeypatch: pytest.MonkeyPatch, request_kind: tuple[str, str]
) -> None:
    content = b"1" if request_kind == PUT else BIG
    with faults.during(failing(*request_kind, times=2)):
        put(vault, "a", content)
    assert kinds(vault) == [("object", "a")]
    assert vault.stat("a").size == len(content)


@within(30)
@pytest.mark.parametrize("request_kind", [PUT, PART, COMPLETE, ("POST", "^uploads")], ids=["put", "part", "complete", "start"])
def test_write_against_a_failing_store_ends_in_time_and_leaves_nothing(
    vault: S3Store, faults: stores.Faults, request_kind: tuple[str, str], seconds: float
) -> None:
    """F-01, F-12."""
    began = time.monotonic()
    with faults.during(failing(*request_kind)) as seen, pytest.raises(StoreUnavailable, match="SlowDown"):
        put(vault, "a", b"1" if request_kind == PUT else BIG)
    assert time.monotonic() - began < seconds
    assert sum(is_request(environ, *request_kind) for environ in seen) == 4  # bounded: one and three retries
    assert kinds(vault) == []


@pytest.mark.parametrize("times", [1, 4])
def test_put_whose_answer_is_lost_is_one_object(vault: S3Store, faults: stores.Faults, times: int) -> None:
    """F-02: even if every attempt is unheard, a look tells that it worked."""
    with faults.during(unheard(*PUT, times=times)):
        put(vault, "a", b"123")
    assert kinds(vault) == [("object", "a")]


@pytest.mark.parametrize(
    "fault",
    [
        unheard(*COMPLETE),
        unheard(*COMPLETE, times=4),
        unheard(*COMPLETE, status="404 Not Found", code="NoSuchUpload"),  # what AWS says to a retry of what worked
    ],
    ids=["once", "always", "gone"],
)
def test_complete_whose_answer_is_lost_is_one_object(vault: S3Store, faults: stores.Faults, fault: Callable[..., Any]) -> None:
    """F-13."""
    with faults.during(fault):
        put(vault, "a", BIG)
    assert kinds(vault) == [("object", "a")]
    assert vault.stat("a").size == len(BIG)


def test_complete_that_answers_200_with_an_error_is_an_error(vault: S3Store, faults: stores.Faults) -> None:
    """F-13: and nothing is left of it."""
    with faults.during(answering(*COMPLETE, "200 OK", s3_error("InternalError"))), pytest.raises(StoreUnavailable):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_complete_that_answers_200_without_an_object_is_an_error(vault: S3Store, faults: stores.Faults) -> None:
    body = b"<CompleteMultipartUploadResult><ETag>&quot;1-2&quot;</ETag></CompleteMultipartUploadResult>"
    with faults.during(answering(*COMPLETE, "200 OK", body)), pytest.raises(StoreUnavailable):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_part_that_the_store_knows_by_another_etag_fails_the_upload(vault: S3Store, faults: stores.Faults) -> None:
    """F-12."""

    def fault(environ: "WSGIEnvironment", start: "StartResponse", application: "WSGIApplication") -> Iterable[bytes] | None:
        if not is_request(environ, *PART):
            return None

        def misname(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            return start(status, [(name, '"0"' if name.lower() == "etag" else value) for name, value in headers])

        return application(environ, misname)

    with faults.during(fault), pytest.raises(StoreRefused, match="InvalidPart"):
        put(vault, "a", BIG)
    assert kinds(vault) == []


def test_put_that_a_proxy_answers_is_an_error(vault: S3Store, faults: stores.Faults) -> None:
    with faults.during(answering(*PUT, "200 OK", b"<html>maintenance</html>")), pytest.raises(StoreUnavailable):
        put(vault, "a", b"1")
    assert kinds(vault) == []


def test_abort_that_fails_waits_for_the_sweep(
    vault: S3Store, faults: stores.Faults, caplog: pytest.LogCaptureFixture, settings: Settings
) -> None:
    writer = vault.create("a", size=None)
    writer.write(BIG)
    with faults.during(failing("DELETE", "uploadId")):
        writer.abort()
    assert "the sweep will remove it" in caplog.text
    assert kinds(vault) == [("upload", "a")]


def test_write_fills_a_part_while_another_is_on_its_way(vault: S3Store, faults: stores.Faults) -> None:
    """More often than there are threads for parts, so that each upload must have given its thread back."""
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


def test_abort_waits_for_a_part_on_its_way(vault: S3Store, faults: stores.Faults) -> None:
    """S3 keeps a part that arrives after the abort of its upload."""
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


def test_write_holds_two_parts_at_most(vault: S3Store, faults: stores.Faults) -> None:
    """The memory of an upload does not depend on its size."""
    segment = bytes(128 * 1024)
    vault.part_bytes = S3Store.part_bytes
    with faults.during(answering(*PART, "200 OK", b"", ETag='"1"')):
        writer = vault.create("a", size=None)
        writer.write(bytes(9 * MIB))  # whatever happens once has happened
        tracemalloc.start()
        try:
            for _ in range(100 * MIB // len(segment)):
                writer.write(segment)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            writer.abort()
    # Two parts of ours, the over-allocation of a growing buffer, and what the server of this process reads at once.
    assert peak < 2 * 9.5 * MIB + 8 * MIB
    assert writer.bytes_stored >= 90 * MIB


# --- Reading ---


def cut(environ: "WSGIEnvironment", start: "StartResponse", _: "WSGIApplication") -> Iterable[bytes] | None:
    """A fault: half of ten bytes."""
    if environ["REQUEST_METHOD"] != "GET":
        return None
    start(
        "206 Partial Content",
        [("Content-Length", "10"), ("Content-Range", "bytes 0-9/10"), ("ETag", '"1"'), ("Connection", "close")],
    )
    return [b"12345"]


def test_body_that_breaks_off_is_unavailable(vault: S3Store, faults: stores.Faults, settings: Settings) -> None:
    """F-05, and never a clean end. The connection comes back: there is only one."""
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
def test_open_refuses_anything_but_the_range(
    vault: S3Store, faults: stores.Faults, settings: Settings, status: str, headers: dict[str, str]
) -> None:
    """F-06: an error page with status 200, a server without ranges."""
    settings.S3_MAX_CONNECTIONS = 1
    with faults.during(answering("GET", "^$", status, b"<html></html>", **headers)):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                vault.open("a", start=0, length=10, etag=None)
    vault.check()


def test_stat_refuses_a_page_for_an_object(vault: S3Store, faults: stores.Faults) -> None:
    with faults.during(answering("HEAD", "^$", "200 OK", b"<html></html>")):
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


def test_refusal_is_not_repeated(vault: S3Store, faults: stores.Faults) -> None:
    """F-11."""
    for code in ("AccessDenied", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "ExpiredToken"):
        with (
            faults.during(failing("GET", "^$", status="403 Forbidden", code=code)) as seen,
            pytest.raises(StoreRefused, match=code),
        ):
            vault.open("a", start=0, length=1, etag=None)
        assert len(seen) == 1


def test_open_waits_for_a_connection_and_gives_up(vault: S3Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """F-19: whoever deletes by a listing must never take a part of it for all."""
    put(vault, "a", b"1")
    with faults.during(answering("GET", listing, "200 OK", page)), pytest.raises(StoreUnavailable):
        list(vault.entries(""))


def test_listing_that_is_throttled_midway_is_an_error(vault: S3Store, faults: stores.Faults) -> None:
    page = b"""<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>b</NextKeyMarker></ListVersionsResult>"""
    with ExitStack() as stack:
        stack.enter_context(
            faults.during(
                lambda *request: failing("GET", "key-marker")(*request) or answering("GET", "versions", "200 OK", page)(*request)
            )
        )
        stack.enter_context(pytest.raises(StoreUnavailable, match="SlowDown"))
        list(vault.entries(""))


def test_erase_repeats_a_key_that_was_throttled(vault: S3Store, faults: stores.Faults) -> None:
    """F-17: 200 with an error for one key is neither success nor the end."""
    for key in "abc":
        put(vault, key, b"1")
    entries = list(vault.entries(""))
    body = b"<DeleteResult><Error><Key>b</Key><VersionId>null</VersionId><Code>SlowDown</Code></Error></DeleteResult>"
    first = iter([answering("POST", "delete", "200 OK", body)])
    with faults.during(
        lambda *request: next(first, lambda *_: None)(*request) if request[0]["REQUEST_METHOD"] == "POST" else None
    ) as seen:
        assert vault.erase(entries) == []
    assert len(seen) == 2
    assert [key for _, key in kinds(vault)] == ["a", "c"]  # the fault said that these were done


@pytest.mark.parametrize("code", ["NoSuchKey", "NoSuchVersion"])
def test_erase_takes_an_error_about_what_is_gone_for_success(vault: S3Store, faults: stores.Faults, code: str) -> None:
    put(vault, "a", b"1")
    body = f"<DeleteResult><Error><Key>a</Key><VersionId>null</VersionId><Code>{code}</Code></Error></DeleteResult>".encode()
    with faults.during(answering("POST", "delete", "200 OK", body)):
        assert vault.erase(vault.entries("")) == []


def test_erase_takes_an_error_that_names_nothing_for_all_of_them(vault: S3Store, faults: stores.Faults) -> None:
    put(vault, "a", b"1")
    entries = list(vault.entries(""))
    body = b"<DeleteResult><Error><Code>InvalidRequest</Code></Error></DeleteResult>"
    with faults.during(answering("POST", "delete", "200 OK", body)):
        (failure,) = vault.erase(entries)
    assert failure.entry == entries[0]
    assert failure.reason.startswith("InvalidRequest")


def test_erase_that_is_refused_as_a_whole_names_every_entry(vault: S3Store, faults: stores.Faults) -> None:
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


def test_erase_asks_for_a_thousand_at_most_and_signs_them_as_old_servers_want(vault: S3Store, faults: stores.Faults) -> None:
    """S-1, S-3: moto takes more than a thousand and needs no digest, real servers do not and do."""
    (template,) = _one_entry(vault)
    entries = [StoreEntry("object", str(number), "null", 1, template.modified) for number in range(2001)]
    with faults.during(answering("POST", "delete", "200 OK", b"<DeleteResult></DeleteResult>")) as seen:
        assert vault.erase(iter(entries)) == []
    assert len(seen) == 3
    assert all(environ["HTTP_CONTENT_MD5"] for environ in seen)


def _one_entry(vault: S3Store) -> list[StoreEntry]:
    put(vault, "a", b"1")
    return list(vault.entries(""))


# --- Endpoints that are not there ---


def dead(url: str) -> S3Store:
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
        dead(closed_port()).open("a", start=0, length=1, etag=None)
    assert time.monotonic() - began < seconds


@within(20)
def test_endpoint_that_swallows_connections_is_unavailable_in_time(seconds: float) -> None:
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):  # fill its backlog: the kernel drops every further attempt
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(deaf.getsockname())
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="ConnectTimeoutError"):
            dead(f"http://127.0.0.1:{deaf.getsockname()[1]}").check()
        assert time.monotonic() - began < seconds


def test_server_that_never_answers_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """F-04: twice 15 s and a pause, not four times."""
    monkeypatch.setattr(s3_client, "READ_TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        with pytest.raises(StoreUnavailable, match="ReadTimeoutError"):
            dead(f"http://127.0.0.1:{silent.getsockname()[1]}").open("a", start=0, length=1, etag=None)
        silent.settimeout(0)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that only itself vouches for, and its key."""
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
    """The same moto behind TLS."""
    return f"https://127.0.0.1:{stores.serve(stores.moto_server()[1], ssl_context=certificate).port}"


@within(20)
def test_certificate_that_nobody_vouches_for_is_unavailable_in_time(vault: S3Store, tls_url: str, seconds: float) -> None:
    """F-03: verification is never off."""
    store = S3Store(**stores.moto().options(vault.bucket_name) | {"endpoint_url": tls_url})
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="SSLError"):
        store.check()
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_tls_protects_the_body_and_without_it_the_signature_does(
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
