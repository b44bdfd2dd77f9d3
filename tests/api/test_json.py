"""JSON bodies that mean nothing, too much, or two things at once (F-41)."""

import json
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import Collection, DownloadLink, StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore
from tests.api.worlds import make_one_file
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
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
@provides_world(make_one_file)
def slug(november: str) -> str:
    """A collection with a.csv in it."""
    return november


def state() -> Any:
    """All that a request could have changed."""
    return (
        list(Collection.objects.values_list("display_name", "purge_at", "status")),
        list(StoredFile.objects.values_list("filename", "notes", "content_type")),
        DownloadLink.objects.count(),
        audited(),
    )


EVERYWHERE = pytest.mark.parametrize(
    "is_everywhere", [False, pytest.param(True, marks=pytest.mark.long)], ids=["in-turn", "everywhere"]
)


def endpoints(turn: int, *, is_everywhere: bool) -> list[tuple[str, Callable[[str], str]]]:
    """Every endpoint, or one for each case in turn. (The first case is for all of them.)"""
    found = list(ENDPOINTS.values())
    return found if is_everywhere or turn == 0 else [found[turn % len(found)]]


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


@EVERYWHERE
def test_json_that_is_not_acceptable_is_400_and_changes_nothing(
    alice: User, slug: str, api: Api, case: Case, *, is_everywhere: bool
) -> None:
    client, before = api(alice), state()
    for turn, (name, body) in enumerate(BAD.items()):
        with case(name):
            for method, address in endpoints(turn, is_everywhere=is_everywhere):
                started = time.process_time()
                answer = getattr(client, method)(address(slug), body, content_type="application/json")
                assert time.process_time() - started < 1
                told = problem(answer, 400, "parse_error")
                assert len(told["detail"]) < 200
            assert state() == before


BIG: dict[str, Callable[[], bytes]] = {
    "1-MiB-and-a-byte": lambda: b'{"x": "' + b"a" * MEBIBYTE + b'"}',
    "10-MB-of-text": lambda: b'{"notes": "' + b"a" * 10_000_000 + b'"}',
    "10-MB-of-spaces": lambda: b" " * 10_000_000 + b"{}",
    "a-million-names": lambda: b"{" + b",".join(b'"%d":0' % number for number in range(1_000_000)) + b"}",
}


@EVERYWHERE
def test_json_that_is_too_large_is_413_and_changes_nothing(
    alice: User, slug: str, api: Api, case: Case, *, is_everywhere: bool
) -> None:
    client, before = api(alice), state()
    for turn, (name, make_body) in enumerate(BIG.items()):
        with case(name):
            body = make_body()
            for method, address in endpoints(turn, is_everywhere=is_everywhere):
                started = time.process_time()
                answer = getattr(client, method)(address(slug), body, content_type="application/json")
                assert time.process_time() - started < 1
                problem(answer, 413, "body_too_large")
            assert state() == before


GOOD: dict[str, Callable[[], bytes]] = {
    "mebibyte": lambda: b'{"notes": "new", "x": "' + b"a" * (MEBIBYTE - 25) + b'"}',
    "hundred-thousand-names": lambda: b'{"notes": "new", ' + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}",
    "deep-48": lambda: object_of("[" * 48 + "]" * 48),
    "surrogate-pair": lambda: object_of('"\\ud83d\\ude42"'),
    "four-thousand-digits": lambda: object_of("9" * 4000),
    "small-number": lambda: object_of("1e-400"),
    "minus-zero": lambda: object_of("-0.0"),
    "spaces-around": lambda: b' \r\n\t{"notes": "new"}\n ',
    "same-name-in-two-objects": lambda: object_of('[{"a": 1}, {"a": 1}]'),
}


def test_json_at_the_edge_is_taken(alice: User, slug: str, api: Api, case: Case) -> None:
    for name, make_body in GOOD.items():
        with case(name):
            answer = api(alice).patch(paths.file(slug, "a.csv"), make_body(), content_type="application/json")
            assert answer.status_code == 200, answer.json()
            assert answer.json()["notes"] == "new"


def test_text_comes_back_as_it_was_sent(alice: User, slug: str, api: Api) -> None:
    for notes in ("🙂\u2028\u2029", "</script>", "a\tb\r\nc", "\u200b\ufeff", '"\\', "\x7f\x01"):
        body = json.dumps({"notes": notes}, ensure_ascii=False).encode()
        assert api(alice).patch(paths.file(slug, "a.csv"), body, content_type="application/json").json()["notes"] == notes


# --- Media types ---


KINDS = [
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
]


@EVERYWHERE
def test_a_body_of_another_kind_is_415_and_changes_nothing(
    alice: User, slug: str, api: Api, case: Case, *, is_everywhere: bool
) -> None:
    for turn, kind in enumerate(KINDS):
        with case(kind):
            client, before = api(alice), state()
            body = b'{"notes": "new", "display_name": "New"}'
            for method, address in endpoints(turn, is_everywhere=is_everywhere):
                environ: dict[str, Any] = {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": kind}
                problem(getattr(client, method)(address(slug), **environ), 415, "unsupported_media_type")
            assert state() == before


def test_a_body_of_json_by_any_spelling(alice: User, slug: str, api: Api, case: Case) -> None:
    for kind in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;a=b"]:
        with case(kind):
            assert api(alice).patch(paths.file(slug, "a.csv"), b'{"notes": "new"}', content_type=kind).json()["notes"] == "new"


def test_no_body_is_an_empty_object(alice: User, slug: str, api: Api, case: Case) -> None:
    for kind in ["application/json", "text/plain"]:
        with case(kind):
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


def test_json_in_chunks_is_411_rather_than_nothing(alice: User, slug: str, api: Api, case: Case) -> None:
    """T-14: Django reads a chunked body as an empty one, and the change would be answered as if it were made."""
    for name in ENDPOINTS:
        with case(name):
            method, address = ENDPOINTS[name]
            client, before = api(alice), state()
            body = b'{"notes": "new", "display_name": "New"}'
            environ: dict[str, Any] = {
                "wsgi.input": BytesIO(body),
                "wsgi.input_terminated": True,
                "HTTP_TRANSFER_ENCODING": "chunked",
            }
            problem(getattr(client, method)(address(slug), CONTENT_TYPE="application/json", **environ), 411, "length_required")
            assert state() == before


def test_json_that_ends_before_its_length_is_400(alice: User, slug: str, api: Api, case: Case) -> None:
    for sent in [0, 5, 14]:
        with case(sent):
            body = b'{"notes": "new"}'
            environ: dict[str, Any] = {"wsgi.input": BytesIO(body[:sent]), "CONTENT_LENGTH": str(len(body))}
            answer = api(alice).patch(paths.file(slug, "a.csv"), CONTENT_TYPE="application/json", **environ)
            problem(answer, 400, "parse_error")
            assert StoredFile.objects.get().notes == ""


class Breaking(BytesIO):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        raise self.error


def test_json_that_breaks_off_is_a_problem(alice: User, slug: str, api: Api, case: Case) -> None:
    for error, status, code in [
        (ConnectionResetError(), 400, "bad_body"),
        (OSError("x"), 400, "bad_body"),
        (TimeoutError(), 408, "body_timeout"),
    ]:
        with case(error, status, code):
            environ: dict[str, Any] = {"wsgi.input": Breaking(error), "CONTENT_LENGTH": "100"}
            problem(api(alice).patch(paths.file(slug, "a.csv"), CONTENT_TYPE="application/json", **environ), status, code)


# --- Any values ---


ODD = st.sampled_from(["", "a" * 300, "\x00", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["display_name", "tenant", "cipher", "purge_at", "filename", "content_type", "notes", "disposition", "file", "id"]


@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.long)])
def test_any_values_of_any_fields_are_taken_or_refused(
    alice: User, slug: str, api: Api, vault: WatchedStore, examples: int
) -> None:
    @settings(max_examples=examples)
    @given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), name=st.sampled_from(list(ENDPOINTS)))
    def check(body: dict[str, Any], name: str) -> None:
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

    check()
