"""Fuzzes our parsers against other implementations: the same result or a documented refusal, within a time limit.

`tests/unit` and `tests/api` compare each parser with the examples of its RFC.
"""

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
import multipart
import pytest
import werkzeug.http
from hypothesis import HealthCheck
from hypothesis import strategies as st
from rest_framework.exceptions import ParseError
from rest_framework.test import APIClient
from urllib3.filepost import encode_multipart_formdata

from config.parsers import StrictJSONParser
from files.errors import BadBody, TooLarge, UnsupportedBody
from files.filenames import check_filename
from files.http import form_data, headers
from tenants.models import User
from tests.api import paths
from tests.factories import make_key
from tests.unit.objects import AAD, MATERIAL, sealed
from vault import crypto, keyring


Check = Callable[[Any], object]
MAX_CPU_SECONDS = 5
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
# RFC 2183 parses a final backslash, before the closing quote, as an escaped quote in the name. The server refuses both names.
FORM_NAMES = NAMES.filter(lambda name: not name.endswith("\\"))


# --- Header fields ---


def range_agrees_with_werkzeug(case: tuple[str, int]) -> None:
    field, length = case
    try:
        ours = headers.parse_range(field, length)
    except headers.Unsatisfiable:
        ours = None
    if ours is None or (field.strip(" \t")[6] == "-" and ours.start == 0):
        return  # a suffix longer than the content: the whole content in RFC 9110, 14.1.2; unsatisfiable in werkzeug
    theirs = werkzeug.http.parse_range_header(field.strip(" \t"))
    assert theirs is not None
    assert theirs.range_for_length(length) == (ours.start, ours.stop)
    content = bytes(length)
    assert len(content[ours.start : ours.stop]) == ours.stop - ours.start > 0


def range_of_werkzeug_is_accepted(case: tuple[int, int | None, int]) -> None:
    first, last, length = case
    first = max(first, -length)  # avoids the difference described above
    field = f"bytes={first}-{'' if last is None else last}" if first >= 0 else f"bytes={first}"
    theirs = werkzeug.http.parse_range_header(field)
    expected = theirs and theirs.range_for_length(length)
    try:
        ours = headers.parse_range(field, length)
    except headers.Unsatisfiable:
        assert expected is None
    else:
        assert (ours and (ours.start, ours.stop)) == expected


def conditions_agree_with_werkzeug(tags: list[tuple[bool, str]]) -> None:
    field = ", ".join(f'{"W/" if is_weak else ""}"{value}"' for is_weak, value in tags)
    theirs = werkzeug.http.parse_etags(field)
    for value in {value for _, value in tags} | {"xyzzy"}:
        assert headers.if_match(field, f'"{value}"') == theirs.contains(value)
        assert headers.if_none_match(field, f'"{value}"') == (not theirs.contains_weak(value))
        assert headers.if_range(field, f'"{value}"') == (tags == [(False, value)])


def disposition_round_trips(name: str) -> None:
    try:
        check_filename(name)
    except ValueError:
        return
    kind, options = werkzeug.http.parse_options_header(headers.content_disposition("attachment", name))
    assert (kind, options["filename"]) == ("attachment", name)
    _, plain = multipart.parse_options_header(headers.content_disposition("inline", name).partition("; filename*")[0])
    assert plain["filename"].isascii()


def last_digest_of_an_algorithm_applies(members: list[tuple[str, bytes]]) -> None:
    field = ",".join(f" {name}=:{base64.b64encode(value).decode()}:\t" for name, value in members)
    named = [value for name, value in members if name == "sha-256"]
    try:
        assert headers.parse_digest(field) == (named[-1] if named else None)
    except ValueError:
        assert any(len(value) != 32 for value in named)


# --- Bodies ---


def json_agrees_with_python(raw: bytes) -> None:
    try:
        ours = StrictJSONParser().parse(io.BytesIO(raw))
    except (ParseError, TooLarge):
        return
    assert ours == json.loads(raw)
    assert "\\u0000" not in json.dumps(ours)


def json_of_python_is_accepted(value: dict[str, Any]) -> None:
    assert StrictJSONParser().parse(io.BytesIO(json.dumps(value).encode())) == value
    with pytest.raises(ParseError):
        StrictJSONParser().parse(io.BytesIO(json.dumps([value]).encode()))


def environ_of(body: bytes, kind: str, *, is_chunked: bool) -> dict[str, Any]:
    length = {"wsgi.input_terminated": True} if is_chunked else {"CONTENT_LENGTH": str(len(body))}
    return {"wsgi.input": io.BytesIO(body), "CONTENT_TYPE": kind, **length}


def parts_of(environ: dict[str, Any]) -> list[tuple[str, str | None, bytes]]:
    return [(part.name, part.filename, b"".join(map(bytes, part.data))) for part in form_data.read_form(environ)]


def form_of_urllib3_is_accepted(case: tuple[list[tuple[str, bytes]], bool]) -> None:
    files, is_chunked = case
    body, kind = encode_multipart_formdata([("file", (name, content, "text/csv")) for name, content in files], boundary="cut")
    # Browsers percent-encode these characters in a quoted name (HTML, 4.10.21.8), and the server decodes them.
    read = [(name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n"), content) for name, content in files]
    assert parts_of(environ_of(body, kind, is_chunked=is_chunked)) == [("file", name, content) for name, content in read]


def form_is_parsed_or_refused(case: tuple[list[bytes], str, bool]) -> None:
    pieces, kind, is_chunked = case
    body = b"".join(pieces)
    try:
        parts = parts_of(environ_of(body, kind, is_chunked=is_chunked))
    except (BadBody, TooLarge, UnsupportedBody):
        return
    assert all(content in body for _, _, content in parts)


# --- Keys and objects ---


def keyring_round_trips(case: tuple[list[tuple[str, bytes]], str, str]) -> None:
    entries, gap, comment = case
    text = f"{comment}\n".join(f"{gap}{name} {gap}{base64.b64encode(key).decode()}" for name, key in entries)
    ring = keyring.parse(text)
    assert ring.active == entries[-1]
    assert all(ring.key(name) == key for name, key in entries)


def only_encrypted_segments_decrypt(case: tuple[int, int, bytes, bytes, int]) -> None:
    segment_size, length, header, segment, index = case
    layout = crypto.Layout(length, segment_size)
    assert layout.object_range(0, layout.segments) == (0, layout.object_size)
    assert layout.offset_of(layout.segments) == length
    start, stop = layout.object_range(index % layout.segments, index % layout.segments + 1)
    fitting = (segment * (stop - start))[: stop - start]  # of the right size, so that only the tag is wrong
    for given in (header, bytes([crypto.HEADER_SIZE]) + header[1:]):
        try:
            decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=given, layout=layout)
        except crypto.CorruptObject:
            continue
        for number, piece in ((index, segment), (index % layout.segments, fitting), (layout.segments, fitting)):
            with pytest.raises(crypto.CorruptObject):
                decryptor.decrypt(number, memoryview(piece))


def segments_decrypt_only_at_their_own_position(case: tuple[int, bytes, int]) -> None:
    segment_size, content, index = case
    stored = sealed(content, segment_size=segment_size)
    layout = crypto.Layout(len(content), segment_size)
    decryptor = crypto.AesGcmDecryptor(MATERIAL, aad=AAD, header=stored[: crypto.HEADER_SIZE], layout=layout)
    for number in range(layout.segments):
        start, stop = layout.object_range(number, number + 1)
        expected = content[layout.offset_of(number) : layout.offset_of(number + 1)]
        assert decryptor.decrypt(number, memoryview(stored)[start:stop]) == expected
        if index != number:
            with pytest.raises(crypto.CorruptObject):
                decryptor.decrypt(index, memoryview(stored)[start:stop])


KEY_NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
JSON_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXT, inner, max_size=4),
)
JSON_WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"a"',
    b":",
    b",",
    b"1",
    b"-",
    b"1e400",
    b"NaN",
    b"null",
    b"\\u0000",
    b'"\\ud800"',
    b"\xff",
    b" ",
]
FORM_WORDS = [
    b"--cut", b"--", b"\r\n", b"\n", b"\r", b"Content-Disposition: form-data", b'; name="file"', b'; filename="a"', b'"', b"\\",
    b"; filename=", b"Content-Type: text/csv", b"Content-Transfer-Encoding: base64", b"x" * 5000, b"\x00", b"\xff", b": ", b";",
]  # fmt: skip
FORM_KIND = st.sampled_from(["multipart/form-data; boundary=cut", 'multipart/form-data; boundary="cut"', "multipart/form-data"])
PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Check]] = {
    "range": (st.tuples(st.text("bytes=0123456789-, \t", max_size=30) | st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,3}"),
                        st.integers(0, 999)), range_agrees_with_werkzeug),
    "werkzeug's range": (st.tuples(st.integers(-999, 999), st.none() | st.integers(0, 999), st.integers(1, 999)),
                         range_of_werkzeug_is_accepted),
    "conditions": (st.lists(st.tuples(st.booleans(), st.text("xyz,*W/ab", min_size=1, max_size=6)), min_size=1, max_size=5),
                   conditions_agree_with_werkzeug),
    "disposition": (NAMES, disposition_round_trips),
    "digest": (st.lists(st.tuples(st.sampled_from(["sha-256", "md5"]), st.binary(min_size=31, max_size=33)), min_size=1),
               last_digest_of_an_algorithm_applies),
    "json": (st.binary(max_size=50) | st.lists(st.sampled_from(JSON_WORDS)).map(lambda words: b"{" + b"".join(words)),
             json_agrees_with_python),
    "python's json": (st.dictionaries(JSON_TEXT, JSON_VALUE, max_size=5), json_of_python_is_accepted),
    "urllib3's form": (st.tuples(st.lists(st.tuples(FORM_NAMES, st.binary(max_size=200)), min_size=1, max_size=4), st.booleans()),
                       form_of_urllib3_is_accepted),
    "form": (st.tuples(st.lists(st.sampled_from(FORM_WORDS) | st.binary(max_size=9), max_size=30),
                       FORM_KIND | st.text(max_size=40), st.booleans()), form_is_parsed_or_refused),
    "keyring": (st.tuples(st.lists(st.tuples(KEY_NAME, st.binary(min_size=32, max_size=32)), min_size=1, max_size=5,
                                   unique_by=(lambda entry: entry[0], lambda entry: entry[1])),
                          st.text(" \t", max_size=3), st.sampled_from(["", "  # comment", "\r", "\n\n"])), keyring_round_trips),
    "no object": (st.tuples(st.integers(57, 200), st.integers(0, 2000), st.binary(min_size=40, max_size=40),
                            st.binary(min_size=1, max_size=200), st.integers(0, 2**33)), only_encrypted_segments_decrypt),
    "object": (st.tuples(st.integers(57, 200), st.binary(max_size=500), st.integers(0, 2**33)),
               segments_decrypt_only_at_their_own_position),
}  # fmt: skip
EXAMPLES = pytest.mark.parametrize("examples", [20, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])


def fuzz(strategy: st.SearchStrategy[Any], check: Check, *, examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples, derandomize=examples <= 100, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(strategy)
    def run(value: Any) -> None:
        before = time.thread_time()
        check(value)
        assert time.thread_time() - before < MAX_CPU_SECONDS

    run()


@EXAMPLES
@pytest.mark.parametrize("name", PROPERTIES)
def test_parser_agrees_with_another_implementation_or_refuses(name: str, examples: int) -> None:
    strategy, check = PROPERTIES[name]
    fuzz(strategy, check, examples=examples)


CURSOR = st.text(max_size=30) | st.builds(
    lambda fields: base64.b64encode(urlencode(fields).encode()).decode(),
    st.dictionaries(
        st.sampled_from("orp"),
        st.text(max_size=20)
        | st.integers(-(10**30), 10**30).map(str)
        | st.datetimes().map(str)
        | st.sampled_from(["9999-12-31T23:59:59.999999+23:59", "1e400", "NaN", "\x00", "0001-01-01 00:00:00-23:59"]),
    ),
)


@EXAMPLES
@pytest.mark.both_databases
@pytest.mark.django_db(transaction=True)  # PostgreSQL rejects some timestamps, which aborts the transaction
def test_any_cursor_is_a_page_or_400(bob: User, api: Callable[[User | str | None], APIClient], examples: int) -> None:
    client = api(make_key(bob))  # a token would expire on a busy machine
    for title in ("One", "Two"):
        client.post(paths.COLLECTIONS, {"display_name": title})

    def check(case: tuple[str, str]) -> None:
        answer = client.get(f"{paths.COLLECTIONS}?page_size=1&cursor={quote(case[0], safe='', errors='replace')}")
        assert answer.status_code in {200, 400}, answer.content
        answer = client.get(f"{paths.files('unknown')}?ordering={case[1]}&cursor={quote(case[0], safe='', errors='replace')}")
        assert answer.status_code in {400, 404}, answer.content

    fuzz(st.tuples(CURSOR, st.sampled_from(["filename", "-length", "created_at"])), check, examples=min(examples, 3000))
