"""JSON bodies that mean nothing, too much, or two things at once (F-41)."""

import json
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import Collection, DownloadLink, StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.vault import WatchedStore


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
MEBIBYTE = 1024**2
ENDPOINTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "create-collection": ("post", lambda _: paths.COLLECTIONS),
    "update-collection": ("patch", paths.collection),
    "put-file": ("put", lambda slug: paths.file(slug, "a.csv")),
    "patch-file": ("patch", lambda slug: paths.file(slug, "a.csv")),
    "mint-link": ("post", lambda slug: paths.download(slug, "a.csv")),
    "mint-archive": ("post", paths.archive_link),
}


@pytest.fixture
def slug(alice: User, november: str, put: Put, api: Api) -> str:
    """A collection with a.csv in it."""
    put(api(alice), november, "a.csv", b"1")
    return november


def state() -> Any:
    """All that a request could have changed."""
    return (
        list(Collection.objects.values_list("display_name", "purge_at", "status")),
        list(StoredFile.objects.values_list("filename", "notes", "content_type")),
        DownloadLink.objects.count(),
        audited(),
    )


def object_of(value: str) -> bytes:
    """A body that would be welcome, with one member more."""
    return f'{{"display_name": "New", "notes": "new", "x": {value}}}'.encode()


BAD: dict[str, bytes] = {
    "no-json": b"hello",
    "cut": b'{"notes": "a"',
    "single-quotes": b"{'notes': 'a'}",
    "comma-at-the-end": b'{"notes": "a",}',
    "comment": b'{"notes": "a"} // b',
    "two-documents": b'{"notes": "a"}{"notes": "b"}',
    "two-lines": b'{"notes": "a"}\n{"notes": "b"}',
    "name-without-quotes": b'{notes: "a"}',
    "line-feed-in-text": b'{"notes": "a\nb"}',
    "nul-byte": b'{"notes": "a\x00b"}',
    "nul-before": b'\x00{"notes": "a"}',
    "a-list": b'[{"notes": "a"}]',
    "a-text": b'"notes"',
    "a-number": b"1",
    "null": b"null",
    "true": b"true",
    "only-spaces": b"   ",
    "byte-order-mark": b'\xef\xbb\xbf{"notes": "a"}',
    "utf-16": '{"notes": "a"}'.encode("utf-16"),
    "utf-16-little": '{"notes": "a"}'.encode("utf-16-le"),
    "utf-16-big": '{"notes": "a"}'.encode("utf-16-be"),
    "utf-32": '{"notes": "a"}'.encode("utf-32"),
    "latin-1": '{"notes": "ä"}'.encode("latin-1"),
    "overlong": b'{"notes": "\xc0\xaf"}',
    "surrogate-bytes": b'{"notes": "\xed\xa0\x80"}',
    "nul-escape": object_of('"\\u0000"'),
    "nul-in-a-name": b'{"a\\u0000": 1}',
    "surrogate-escape": object_of('"\\ud800"'),
    "surrogate-in-a-name": b'{"\\udfff": 1}',
    "surrogates-in-the-wrong-order": object_of('"\\udc00\\ud800"'),
    "surrogate-deep-within": object_of('[[{"a": "\\ud800"}]]'),
    "nan": object_of("NaN"),
    "infinity": object_of("Infinity"),
    "minus-infinity": object_of("-Infinity"),
    "beyond-floats": object_of("1e400"),
    "beyond-floats-below": object_of("-1e400"),
    "five-thousand-digits": object_of("9" * 5000),
    "leading-zero": object_of("01"),
    "hexadecimal": object_of("0x1"),
    "plus": object_of("+1"),
    "name-twice": b'{"notes": "a", "display_name": "x", "notes": "b"}',
    "name-twice-escaped": b'{"notes": "a", "n\\u006ftes": "b"}',
    "name-twice-within": object_of('{"a": 1, "a": 1}'),
    "deep-51": object_of("[" * 51 + "]" * 51),
    "deep-100000": object_of("[" * 100_000 + "]" * 100_000),
    "deep-100000-open": b"[" * 100_000,
    "deep-objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_json_that_is_not_acceptable_is_400_everywhere_and_changes_nothing(alice: User, slug: str, api: Api, body: bytes) -> None:
    client, before = api(alice), state()
    for name, (method, address) in ENDPOINTS.items():
        started = time.process_time()
        answer = getattr(client, method)(address(slug), body, content_type="application/json")
        assert time.process_time() - started < 1, name
        told = problem(answer, 400, "parse_error")
        assert len(told["detail"]) < 200
    assert state() == before


BIG: dict[str, bytes] = {
    "1-MiB-and-a-byte": b'{"x": "' + b"a" * MEBIBYTE + b'"}',
    "10-MB-of-text": b'{"notes": "' + b"a" * 10_000_000 + b'"}',
    "10-MB-of-spaces": b" " * 10_000_000 + b"{}",
    "a-million-names": b"{" + b",".join(b'"%d":0' % number for number in range(1_000_000)) + b"}",
}


@pytest.mark.parametrize("body", BIG.values(), ids=BIG)
def test_json_that_is_too_large_is_413_everywhere_and_changes_nothing(alice: User, slug: str, api: Api, body: bytes) -> None:
    client, before = api(alice), state()
    for method, address in ENDPOINTS.values():
        started = time.process_time()
        answer = getattr(client, method)(address(slug), body, content_type="application/json")
        assert time.process_time() - started < 1
        problem(answer, 413, "body_too_large")
    assert state() == before


GOOD: dict[str, bytes] = {
    "mebibyte": b'{"notes": "new", "x": "' + b"a" * (MEBIBYTE - 25) + b'"}',
    "hundred-thousand-names": b'{"notes": "new", ' + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}",
    "deep-48": object_of("[" * 48 + "]" * 48),
    "surrogate-pair": object_of('"\\ud83d\\ude42"'),
    "four-thousand-digits": object_of("9" * 4000),
    "small-number": object_of("1e-400"),
    "minus-zero": object_of("-0.0"),
    "spaces-around": b' \r\n\t{"notes": "new"}\n ',
    "same-name-in-two-objects": object_of('[{"a": 1}, {"a": 1}]'),
}


@pytest.mark.parametrize("body", GOOD.values(), ids=GOOD)
def test_json_at_the_edge_is_taken(alice: User, slug: str, api: Api, body: bytes) -> None:
    answer = api(alice).patch(paths.file(slug, "a.csv"), body, content_type="application/json")
    assert answer.status_code == 200, answer.json()
    assert answer.json()["notes"] == "new"


def test_text_comes_back_as_it_was_sent(alice: User, slug: str, api: Api) -> None:
    for notes in ("🙂\u2028\u2029", "</script>", "a\tb\r\nc", "\u200b\ufeff", '"\\', "\x7f\x01"):
        body = json.dumps({"notes": notes}, ensure_ascii=False).encode()
        assert api(alice).patch(paths.file(slug, "a.csv"), body, content_type="application/json").json()["notes"] == notes


# --- Media types ---


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "text/plain",
        "text/json",
        "application/xml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/octet-stream",
        "json",
        "*/*",
        "application/*",
        ";;;",
        "\u00e9",
        "application/json\x00",
    ],
)
def test_a_body_of_another_kind_is_415_everywhere_and_changes_nothing(alice: User, slug: str, api: Api, kind: str) -> None:
    client, before = api(alice), state()
    body = b'{"notes": "new", "display_name": "New"}'
    for method, address in ENDPOINTS.values():
        environ: dict[str, Any] = {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": kind}
        problem(getattr(client, method)(address(slug), **environ), 415, "unsupported_media_type")
    assert state() == before


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;a=b"]
)
def test_a_body_of_json_by_any_spelling(alice: User, slug: str, api: Api, kind: str) -> None:
    assert api(alice).patch(paths.file(slug, "a.csv"), b'{"notes": "new"}', content_type=kind).json()["notes"] == "new"


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_no_body_is_an_empty_object(alice: User, slug: str, api: Api, kind: str) -> None:
    assert api(alice).patch(paths.file(slug, "a.csv"), b"", content_type=kind).status_code == 200
    answer = api(alice).post(paths.COLLECTIONS, b"", content_type=kind)
    assert list(problem(answer, 400, "required")["errors"]) == ["display_name"]


def test_a_file_in_a_form_is_refused_where_json_is_expected(alice: User, slug: str, api: Api) -> None:
    """Nothing here makes Django read a form, which it would write to the disk (A-5)."""
    upload = BytesIO(b"x" * 3_000_000)
    upload.name = "a.bin"
    for method, address in ENDPOINTS.values():
        upload.seek(0)
        problem(getattr(api(alice), method)(address(slug), {"file": upload}, format="multipart"), 415, "unsupported_media_type")


# --- Bodies that do not come as they were announced ---


@pytest.mark.parametrize("name", ENDPOINTS)
def test_json_in_chunks_is_411_rather_than_nothing(alice: User, slug: str, api: Api, name: str) -> None:
    """T-14: Django reads a chunked body as an empty one, and the change would be answered as if it were made."""
    method, address = ENDPOINTS[name]
    client, before = api(alice), state()
    body = b'{"notes": "new", "display_name": "New"}'
    environ: dict[str, Any] = {"wsgi.input": BytesIO(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    problem(getattr(client, method)(address(slug), CONTENT_TYPE="application/json", **environ), 411, "length_required")
    assert state() == before


@pytest.mark.parametrize("sent", [0, 5, 14])
def test_json_that_ends_before_its_length_is_400(alice: User, slug: str, api: Api, sent: int) -> None:
    body = b'{"notes": "new"}'
    environ: dict[str, Any] = {"wsgi.input": BytesIO(body[:sent]), "CONTENT_LENGTH": str(len(body))}
    answer = api(alice).patch(paths.file(slug, "a.csv"), CONTENT_TYPE="application/json", **environ)
    problem(answer, 400, "parse_error")
    assert StoredFile.objects.get().notes == ""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(ConnectionResetError(), 400, "bad_body"), (OSError("x"), 400, "bad_body"), (TimeoutError(), 408, "body_timeout")],
)
def test_json_that_breaks_off_is_a_problem(alice: User, slug: str, api: Api, error: Exception, status: int, code: str) -> None:
    class Breaking(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    environ: dict[str, Any] = {"wsgi.input": Breaking(), "CONTENT_LENGTH": "100"}
    problem(api(alice).patch(paths.file(slug, "a.csv"), CONTENT_TYPE="application/json", **environ), status, code)


# --- Any values ---


ODD = st.sampled_from(["", "a" * 300, "\x00", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["display_name", "tenant", "cipher", "purge_at", "filename", "content_type", "notes", "disposition", "file", "id"]


@given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), name=st.sampled_from(list(ENDPOINTS)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_of_any_fields_are_taken_or_refused(
    alice: User, slug: str, api: Api, body: dict[str, Any], name: str, vault: WatchedStore
) -> None:
    method, address = ENDPOINTS[name]
    before = StoredFile.objects.get()
    answer = getattr(api(alice), method)(address(slug), json.dumps(body).encode(), content_type="application/json")
    if answer.status_code >= 300:
        assert answer.status_code in {400, 404, 409}
        told = problem(answer, answer.status_code, answer.json()["code"])
        assert {field.partition(".")[0] for field in told.get("errors", {})} <= set(FIELDS)
    after = StoredFile.objects.get()
    assert (after.object_id, after.length, after.status) == (before.object_id, before.length, before.status)
    StoredFile.objects.update(filename="a.csv", name_key="a.csv")
