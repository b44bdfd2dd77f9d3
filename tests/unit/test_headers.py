"""HTTP fields of byte responses, against independent parsers and the tables of their RFCs."""

import base64
import hashlib
import re
import time
from email.message import Message
from itertools import product
from typing import Literal
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from files.filenames import UNSAFE, check_filename
from files.http.headers import (
    Range,
    Unsatisfiable,
    content_disposition,
    if_match,
    if_none_match,
    if_range,
    parse_digest,
    parse_range,
    repr_digest,
)
from tests.unit.test_names import ACCEPTED, REFUSED


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=300)
BIG = 10**15


# --- Content-Disposition ---


def parameters(field: str) -> tuple[str, dict[str, str]]:
    """A strict reader of RFC 6266 and RFC 8187: quoted strings without escapes, percent-encoded attr-chars, nothing else."""
    match = re.fullmatch(
        r'(attachment|inline); filename="([\x20\x21\x23-\x5b\x5d-\x7e]+)"; '
        r"filename\*=UTF-8''((?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-F]{2})+)",
        field,
    )
    assert match, field
    return match[1], {"filename": match[2], "filename*": unquote_to_bytes(match[3]).decode()}


def test_content_disposition_of_accepted_name() -> None:
    kinds: list[Literal["attachment", "inline"]] = ["attachment", "inline"]
    for kind, name in product(kinds, ACCEPTED.values()):
        read, names = parameters(content_disposition(kind, name))
        assert (read, names["filename*"]) == (kind, name)


@given(ANY_TEXT)
@example("'\"><svg onload=alert(1)>")
def test_content_disposition_round_trips_every_accepted_name(name: str) -> None:
    try:
        check_filename(name)
    except ValueError:
        return
    _, names = parameters(content_disposition("attachment", name))
    message = Message()
    message["Content-Disposition"] = content_disposition("attachment", name).replace("filename=", "other=")

    assert names["filename*"] == name
    assert message.get_filename() == name  # the standard library's reader of RFC 2231
    assert len(names["filename"]) <= 255


@given(ANY_TEXT)
def test_content_disposition_of_anything(name: str) -> None:
    """Whatever a row holds, only harmless bytes leave."""
    _, names = parameters(content_disposition("attachment", name))

    assert not UNSAFE.search(names["filename*"])
    assert names["filename*"] not in {"", ".", ".."}
    assert re.fullmatch(r"[A-Za-z0-9 !#$&()+,.=@^_{}~\[\]-]+", names["filename"])
    assert names["filename"][0] not in ".-"


def test_content_disposition_of_refused_name() -> None:
    """They cannot be stored; a name that got there by other means is served with its teeth drawn."""
    for case, name in REFUSED.items():
        _, names = parameters(content_disposition("attachment", name))
        assert not UNSAFE.search(names["filename*"]), case


def test_content_disposition() -> None:
    for name, ascii_name, encoded in [
        ("report.csv", "report.csv", "report.csv"),
        ("a b.txt", "a b.txt", "a%20b.txt"),
        ("Résumé naïve.pdf", "Resume naive.pdf", "R%C3%A9sum%C3%A9%20na%C3%AFve.pdf"),
        ("€ rates.pdf", "_ rates.pdf", "%E2%82%AC%20rates.pdf"),  # RFC 6266, section 5
        ('"quoted".txt', "_quoted_.txt", "%22quoted%22.txt"),
        ("50%41.txt", "50_41.txt", "50%2541.txt"),
        ("a;b='c'.txt", "a_b=_c_.txt", "a%3Bb%3D%27c%27.txt"),
        (".bashrc", "_bashrc", ".bashrc"),
        ("-rf", "_rf", "-rf"),
        ("..x", "_.x", "..x"),
        ("(1) [a]{b}*.txt", "(1) [a]{b}_.txt", "%281%29%20%5Ba%5D%7Bb%7D%2A.txt"),
        ("\u0301", "_", "%CC%81"),
        ("a/b\\c\r\nd", "a_b_c__d", "a_b_c__d"),
        (".", "_", "_"),
        ("..", "_", "_"),
        ("", "_", "_"),
    ]:
        expected = f"inline; filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}"
        assert content_disposition("inline", name) == expected


# --- Range ---


def answer(header: str | None, length: int) -> Range | int:
    """The range of a 206, or the status where there is none."""
    try:
        return parse_range(header, length) or 200
    except Unsatisfiable:
        return 416


def test_parse_range() -> None:
    for header, expected in [
        (None, 200),
        ("bytes=0-", Range(0, 100)),
        ("bytes=0-0", Range(0, 1)),
        ("bytes=0-99", Range(0, 100)),
        ("bytes=0-98", Range(0, 99)),
        ("bytes=99-99", Range(99, 100)),
        ("bytes=99-", Range(99, 100)),
        ("bytes=99-100", Range(99, 100)),
        ("bytes=5-5", Range(5, 6)),
        ("bytes=10-19", Range(10, 20)),
        ("bytes=0-100", Range(0, 100)),
        ("bytes=0-18446744073709551615", Range(0, 100)),
        ("bytes=007-0000000009", Range(7, 10)),
        ("bytes=-1", Range(99, 100)),
        ("bytes=-100", Range(0, 100)),
        ("bytes=-101", Range(0, 100)),
        ("bytes=-99999999999999999999", Range(0, 100)),
        ("Bytes=1-2", Range(1, 3)),
        ("BYTES=1-2", Range(1, 3)),
        (" bytes=1-2\t", Range(1, 3)),
        ("bytes=-0", 416),
        ("bytes=-000", 416),
        ("bytes=100-", 416),
        ("bytes=100-100", 416),
        ("bytes=100-200", 416),
        ("bytes=99999999999999999999-", 416),
        # The field is ignored: not understood, or understood and more than one range.
        ("bytes=5-2", 200),
        ("bytes=5-4", 200),
        ("bytes=200-100", 200),
        ("bytes=1-0", 200),
        ("bytes=", 200),
        ("bytes=-", 200),
        ("bytes", 200),
        ("", 200),
        ("=0-1", 200),
        ("0-1", 200),
        ("bytes=a-b", 200),
        ("bytes=--1", 200),
        ("bytes=-1-2", 200),
        ("bytes=0--1", 200),
        ("bytes=+1-2", 200),
        ("bytes=1.0-2", 200),
        ("bytes=1-2-3", 200),
        ("bytes=0x1-2", 200),
        ("bytes=1_0-20", 200),
        ("bytes= 1-2", 200),
        ("bytes =1-2", 200),
        ("bytes=1 -2", 200),
        ("bytes=1- 2", 200),
        ("bytes=1-2\n", 200),
        ("bytes=1-2X", 200),
        ("Xbytes=1-2", 200),
        ("bytes=\u0661-\u0662", 200),
        ("bytes=¹-²", 200),
        ("b\u0131tes=1-2", 200),
        ("byte\u017f=1-2", 200),  # folds to an s
        ("items=0-1", 200),
        ("seconds=1-2", 200),
        ("none", 200),
        ("bytes=0-0,2-2", 200),
        ("bytes=0-0, 2-2", 200),
        ("bytes=0-0,", 200),
        ("bytes=,0-0", 200),
        ("bytes=0-,-1", 200),
        ("bytes=0-1,bytes=2-3", 200),
        ("bytes=" + "0-0," * 1000 + "2-2", 200),
        ("bytes=0-" + "9" * 5000, 200),
        ("bytes=" + "9" * 21 + "-", 200),
    ]:
        assert answer(header, 100) == expected, ascii(header)[:40]


def test_parse_range_of_empty_content() -> None:
    unsatisfiable = ["bytes=0-", "bytes=0-0", "bytes=1-", "bytes=-0"]
    ignored = ["bytes=-1", "bytes=5-2"]

    assert [answer(header, 0) for header in unsatisfiable] == [416] * 4
    assert [answer(header, 0) for header in ignored] == [200] * 2


@given(st.integers(0, BIG), st.none() | st.integers(0, BIG), st.integers(0, BIG))
def test_parse_range_against_slices(start: int, last: int | None, length: int) -> None:
    result = answer(f"bytes={start}-{'' if last is None else last}", length)

    if last is not None and last < start:
        assert result == 200
    elif start >= length:
        assert result == 416
    else:
        expected = range(length)[start:] if last is None else range(length)[start : last + 1]
        assert result == Range(expected.start, expected.stop)


@given(st.integers(1, BIG), st.integers(1, BIG))
def test_parse_range_of_suffix_against_slices(suffix: int, length: int) -> None:
    expected = range(length)[-suffix:]

    assert answer(f"bytes=-{suffix}", length) == Range(expected.start, expected.stop)


@given(
    ANY_TEXT
    | st.text("bytes=0123456789-, \t", max_size=60)
    | st.text("0123456789-,", max_size=60).map("bytes={}".format)
    | st.from_regex(r"bytes=[0-9]{0,25}-[0-9]{0,25}(,[0-9]{0,5}-[0-9]{0,5})*"),
    st.integers(0, BIG),
)
def test_parse_range_of_anything(header: str, length: int) -> None:
    """No other error than Unsatisfiable, and no byte that the content does not have."""
    result = answer(header, length)

    if isinstance(result, Range):
        assert 0 <= result.start < result.stop <= length


def test_parse_range_costs_nothing_however_long() -> None:
    """A CVE of others: quadratic merging of ranges, and int() of a million digits."""
    for header in [
        "bytes=" + "9" * 10**6,
        "bytes=" + "9" * 10**6 + "-",
        "bytes=0-" + "9" * 10**6,
        "bytes=-" + "9" * 10**6,
        "bytes=" + "0-0," * 250_000,
        "bytes=" + "-" * 10**6,
        "bytes" * 200_000,
        " " * 10**6 + "bytes=0-0x",
    ]:
        started = time.process_time()
        for _ in range(10):
            answer(header, 100)
        assert time.process_time() - started < 1, header[:12]  # what is not linear takes minutes


def test_content_range() -> None:
    assert Range(0, 1).content_range(100) == "bytes 0-0/100"
    assert Range(42, 100).content_range(100) == "bytes 42-99/100"


# --- Conditions: RFC 9110, sections 8.8.3.2 and 13.1 ---

TAG = '"xyzzy"'
CONDITIONS = [
    # field, If-Match holds, If-None-Match holds
    (None, True, True),
    ('"xyzzy"', True, False),
    ('W/"xyzzy"', False, False),
    ('"r2d2xxxx"', False, True),
    ('W/"r2d2xxxx"', False, True),
    ("*", True, False),
    (" * ", True, False),
    ('"xyzzy", "r2d2xxxx", "c3piozzzz"', True, False),
    ('"r2d2xxxx", "xyzzy"', True, False),
    ('"r2d2xxxx","c3piozzzz"', False, True),
    ('"r2d2xxxx",W/"xyzzy"', False, False),
    ('W/"xyzzy", "xyzzy"', True, False),
    ('W/"r2d2xxxx", "xyzzy"', True, False),
    (' ,\t, "xyzzy" , ', True, False),
    ('"r2d2xxxx" ,, "xyzzy"', True, False),
    ('"a,b", "xyzzy"', True, False),
    ('"a,"xyzzy"', False, True),
    # Not lists of entity tags: If-Match guards a write and does not hold, If-None-Match saves bytes and does.
    ("", False, True),
    ("xyzzy", False, True),
    ('"xyzzy', False, True),
    ('xyzzy"', False, True),
    ('"xyzzy" "xyzzy"', False, True),
    ('"xyzzy"x', False, True),
    ('x, "xyzzy"', False, True),
    ('w/"xyzzy"', False, True),
    ('W/ "xyzzy"', False, True),
    ("'xyzzy'", False, True),
    ('"XYZZY"', False, True),
    ('" xyzzy"', False, True),
    ('"a b", "xyzzy"', False, True),
    ('"*"', False, True),
    ("**", False, True),
    ("*X", False, True),
    ('"xyzzy\x00"', False, True),
    ('""', False, True),
    (",", False, True),
]


def test_conditions() -> None:
    assert [(header, if_match(header, TAG), if_none_match(header, TAG)) for header, _, _ in CONDITIONS] == CONDITIONS


def test_conditions_on_what_does_not_exist() -> None:
    """RFC 9110, 13.1.1 and 13.1.2: without a representation no If-Match holds, and every If-None-Match does."""
    for header in [header for header, _, _ in CONDITIONS if header is not None]:
        assert if_match(header, None) is False, header
        assert if_none_match(header, None) is True, header


def test_conditions_not_sent_on_what_does_not_exist() -> None:
    assert if_match(None, None) is True
    assert if_none_match(None, None) is True


def test_if_range() -> None:
    fields = {
        None: True,
        '"xyzzy"': True,
        ' "xyzzy"': True,
        'W/"xyzzy"': False,
        '"r2d2xxxx"': False,
        '"xyzzy", "r2d2xxxx"': False,
        "xyzzy": False,
        '"xyzzy"X': False,
        "*": False,
        "": False,
        "Sat, 29 Oct 1994 19:43:31 GMT": False,
    }
    assert {header: if_range(header, TAG) for header in fields} == fields


@given(ANY_TEXT | st.text('W/"*, \txyz', max_size=60))
def test_conditions_of_anything(header: str) -> None:
    if if_match(header, TAG):
        assert TAG in header or header.strip(" \t") == "*"
    if not if_none_match(header, TAG):
        assert TAG in header or header.strip(" \t") == "*"
    if if_range(header, TAG):
        assert header.strip(" \t") == TAG


@given(
    st.lists(
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters='"\x7f', exclude_categories=["Cc"]))
    )
)
def test_conditions_find_each_tag_of_a_list(values: list[str]) -> None:
    header = ", ".join(f'"{value}"' for value in values)

    for value in values:
        assert if_match(header, f'"{value}"')
        assert not if_none_match(header, f'"{value}"')


def test_conditions_cost_grows_no_faster_than_the_field() -> None:
    for header in [
        '"a",' * 50_000,
        "," * 200_000,
        " " * 200_000,
        " ," * 100_000,
        '"' + "a" * 200_000,
        'W/"' * 60_000,
        ", " * 100_000 + "x",
    ]:
        started = time.process_time()
        if_match(header, TAG)
        if_none_match(header, TAG)
        assert time.process_time() - started < 2, header[:5]


# --- Digests: RFC 9530 ---

DIGEST = hashlib.sha256(b"hello").digest()
DIGEST_TEXT = base64.b64encode(DIGEST).decode()


def test_repr_digest() -> None:
    """The example of RFC 9530, appendix B.1, computed by others."""
    digest = hashlib.sha256(b'{"hello": "world"}\n').hexdigest()

    assert repr_digest(digest) == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


@given(st.binary(min_size=32, max_size=32))
def test_parse_digest_of_repr_digest(digest: bytes) -> None:
    assert parse_digest(repr_digest(digest.hex())) == digest


def test_parse_digest() -> None:
    fields = {
        None: None,
        "": None,
        " ": None,
        f"sha-256=:{DIGEST_TEXT}:": DIGEST,
        f"  sha-256=:{DIGEST_TEXT}:\t": DIGEST,
        f"sha-256=:{DIGEST_TEXT.rstrip('=')}:": DIGEST,
        f"sha-512=:{'A' * 86}==:": None,
        f"sha-512=:{'A' * 86}==:, sha-256=:{DIGEST_TEXT}:": DIGEST,
        f"sha-256=:{DIGEST_TEXT}:,sha-512=:{'A' * 86}==:": DIGEST,
        f"md5=:AAAA:,sha-256=:{DIGEST_TEXT}:": DIGEST,
        f"sha-256=:{base64.b64encode(bytes(32)).decode()}:, sha-256=:{DIGEST_TEXT}:": DIGEST,  # RFC 8941: the last wins
    }
    assert {header: parse_digest(header) for header in fields} == fields


def test_parse_digest_that_cannot_be_read(subtests: pytest.Subtests) -> None:
    for header in [
        DIGEST_TEXT,
        f"sha-256={DIGEST_TEXT}",
        f"sha-256=:{DIGEST_TEXT}",
        f"sha-256={DIGEST_TEXT}:",
        f'sha-256="{DIGEST_TEXT}"',
        f"SHA-256=:{DIGEST_TEXT}:",
        f"SHA-256={DIGEST_TEXT}",  # RFC 3230, obsolete
        f"sha-256 =:{DIGEST_TEXT}:",
        f"sha-256= :{DIGEST_TEXT}:",
        f"sha-256=:{DIGEST_TEXT}:,",
        f",sha-256=:{DIGEST_TEXT}:",
        f"sha-256=:{DIGEST_TEXT}: sha-512=:AAAA:",
        f"sha-256=:{DIGEST.hex()}:",
        "sha-256=::",
        "sha-256",
        "sha-256=:AAAA:",
        f"sha-256=:{base64.b64encode(DIGEST + b'x').decode()}:",
        f"sha-256=:{base64.b64encode(DIGEST[:31]).decode()}:",
        f"sha-256=:{DIGEST_TEXT[:-2]}:",
        f"sha-256=:AAAA:, sha-256=:{DIGEST_TEXT}:",
        f"sha-256=:{DIGEST_TEXT[:-2]}!=:",
        f"sha-256=:{DIGEST_TEXT[:-2]}ä=:",
        f"sha-256=:{base64.urlsafe_b64encode(bytes([255]) * 32).decode()}:",
        f"sha-256=:{DIGEST_TEXT}:\n",
        f"sha-256=:{DIGEST_TEXT}:X",
        f"sha-256=:{DIGEST_TEXT}====:",
        "X",
        "sha-256=?1",
        "sha-256=5",
        "=:AAAA:",
    ]:
        with subtests.test(header=header):
            with pytest.raises(ValueError, match="digest") as caught:
                parse_digest(header)
            assert type(caught.value) is ValueError


@given(ANY_TEXT | st.text("sha-256=:A,", max_size=80))
def test_parse_digest_of_anything(header: str) -> None:
    try:
        digest = parse_digest(header)
    except ValueError:
        return
    assert digest is None or len(digest) == 32
