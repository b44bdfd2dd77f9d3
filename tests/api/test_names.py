"""Filenames by address, by form and by rename (F-40): a clear 400, or exactly the name that was given wherever it shows again."""

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import pytest
from django.urls import Resolver404, resolve
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import problem
from tests.api.vault import WatchedStore


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
CONTENT = b"what is in it"

REFUSED = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "parent": "../x",
    "parent-of-windows": "..\\x",
    "absolute": "/etc/passwd",
    "drive": "C:\\x",
    "share": "\\\\server\\x",
    "slash": "a/b",
    "backslash": "a\\b",
    "slash-at-the-end": "a/",
    "space": " ",
    "space-first": " a",
    "space-last": "a ",
    "no-break-space-last": "a\u00a0",
    "tab": "a\tb",
    "line-feed": "a\nb",
    "header": "a\r\nSet-Cookie: b=c",
    "escape": "\x1b[31mred",
    "delete": "a\x7f",
    "c1": "a\x9b31m",
    "right-to-left": "exe.\u202etxt",
    "left-to-right-mark": "a\u200e",
    "isolate": "\u2066a\u2069",
    "256-bytes": "a" * 256,
    "256-bytes-of-two": "ü" * 128,
    "1000-emoji": "🙂" * 1000,
    "line-separator-last": "a\u2028",
}
KEPT = {
    "plain": "report.csv",
    "dots-within": "a..b",
    "three-dots": "...",
    "hidden": ".bashrc",
    "option": "-rf",
    "dot-last": "name.",
    "device": "CON",
    "device-with-suffix": "aux.txt",
    "null-device": "NUL",
    "colon": "a:b",
    "stream": "a.txt:stream:$DATA",
    "zero-width-space": "a\u200bb",
    "byte-order-mark": "\ufeffa",
    "line-separator": "a\u2028b",
    "nfc": "\u00fcbung",
    "nfd": "u\u0308bung",
    "sharp-s": "straße",
    "dotted-i": "\u0130stanbul",
    "ligature": "ﬁle",
    "shell": ";rm -rf $HOME `id` $(id) | & > <",
    "quotes": "'\"><svg onload=alert(1)>",
    "formula": "=cmd|' calc'!A1",
    "percent-encoded": "%2e%2e%2f",
    "percent": "100 %",
    "percent-of-a-slash": "a%2Fb",
    "percent-of-a-percent": "a%252Fb",
    "half-percent": "%",
    "question-mark": "a?b=c",
    "hash": "a#b",
    "ampersand": "a&b",
    "semicolon": "a;b=c.csv",
    "comma": "a,b",
    "plus": "a+b c",
    "tilde": "~root",
    "star": "*",
    "equals": "filename*=UTF-8''x",
    "separators-to-the-eye": "a\u2215b\uff0fc\u2044d",
    "chinese": "報告書.txt",
    "arabic": "تقرير.txt",
    "emoji": "👩‍💻.txt",
    "combining": "e" + "\u0301" * 20,
    "255-bytes": "a" * 255,
    "255-bytes-of-three": "あ" * 85,
    "beyond-the-first-plane": "\U0001d4b3" * 60,
    "private": "\ue000",
    "unassigned": "\U000e0041",
    "one-letter": "x",
    "archive": "archive.zip",
    "content": "content",
}


def part(filename: str) -> bytes:
    escaped = filename.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")  # as WHATWG says, and browsers do
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{escaped}"\r\n\r\n'.encode()
    return head + CONTENT + b"\r\n--b--\r\n"


def by_address(client: APIClient, slug: str, filename: str) -> Any:
    return client.put(paths.content(slug, filename), CONTENT, content_type="text/csv")


def by_form(client: APIClient, slug: str, filename: str) -> Any:
    return client.post(paths.files(slug), part(filename), content_type="multipart/form-data; boundary=b")


def by_rename(client: APIClient, slug: str, filename: str) -> Any:
    assert client.put(paths.content(slug, "before"), CONTENT, content_type="text/csv").status_code == 201
    return client.patch(paths.file(slug, "before"), {"filename": filename})


WAYS = [by_address, by_form, by_rename]


def disposition_name(disposition: str) -> str:
    """What a client saves: RFC 6266 prefers the extended parameter."""
    match = re.fullmatch(r"attachment; filename=\"[ -~]*\"; filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]*)", disposition)
    assert match, disposition
    return unquote(match[1], errors="strict")


def assert_shows_everywhere(client: APIClient, slug: str, filename: str) -> None:
    listed = client.get(paths.files(slug)).json()["results"]
    assert [file["filename"] for file in listed] == [filename]
    assert client.get(listed[0]["links"]["self"]).json() == listed[0]
    assert client.get(paths.file(slug, filename)).json() == listed[0]
    for address in (paths.content(slug, filename), listed[0]["links"]["content"]):
        answer = client.get(address)
        assert b"".join(answer) == CONTENT
        assert disposition_name(answer["Content-Disposition"]) == filename
        plain = re.search(r'filename="([^"]*)"', answer["Content-Disposition"])
        assert plain
        assert not set(plain[1]) & set('/\\"%;*?<>|:')
        assert not plain[1].startswith((".", "-"))
    assert b"".join(client.get(listed[0]["links"]["preview"])) == CONTENT
    minted = client.get(listed[0]["links"]["enclosure"])
    assert minted.status_code == 303
    assert b"".join(APIClient().get(minted["Location"])) == CONTENT
    archive = zipfile.ZipFile(io.BytesIO(b"".join(client.get(paths.archive(slug), {"file": filename}))))
    assert archive.namelist() == [filename]
    assert archive.read(filename) == CONTENT


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("filename", REFUSED.values(), ids=REFUSED)
def test_a_name_that_is_refused_is_400_and_keeps_nothing(
    bob: User, november: str, api: Api, vault: WatchedStore, way: Any, filename: str
) -> None:
    client = api(bob)
    answer = way(client, november, filename)
    if way is by_address and ("/" in filename or filename == ""):
        problem(answer, 404, "not_found")  # another address
    else:
        told = problem(answer, 400, answer.json()["code"])
        assert list(told["errors"]) == ["filename"]
        assert len(filename) < 3 or filename not in str(told)
    kept = ["before"] if way is by_rename else []
    assert [file["filename"] for file in client.get(paths.files(november)).json()["results"]] == kept
    assert len(vault.keys()) == len(kept)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("filename", KEPT.values(), ids=KEPT)
def test_a_name_that_is_kept_is_kept_exactly(bob: User, november: str, api: Api, way: Any, filename: str) -> None:
    client = api(bob)
    answer = way(client, november, filename)
    assert answer.status_code in {200, 201}, answer.json()
    assert answer.json()["filename"] == filename
    if way is by_address:
        assert_shows_everywhere(client, november, filename)
    else:
        assert b"".join(client.get(paths.content(november, filename))) == CONTENT


# What a client may send though nothing of it is a name: bytes that are no UTF-8, and NUL.


@pytest.mark.parametrize("raw", [b"\xff", b"a\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xc3", b"\xf5\x80\x80\x80", b"a\x80b"])
@pytest.mark.parametrize(
    ("method", "where", "end"), [("PUT", b"content/", b""), ("GET", b"content/", b""), ("DELETE", b"files/", b"/")]
)
def test_an_address_that_is_not_utf8_is_400(
    bob: User, november: str, serve: Callable[..., Any], vault: WatchedStore, raw: bytes, method: str, where: bytes, end: bytes
) -> None:
    """Django would take the percent signs for the name's own, so that two names became one."""
    answer = serve(bob, method, paths.collection(november).encode() + where + raw + end, b"x")
    problem(answer, 400, "bad_request")
    answer.close()
    assert vault.keys() == set()


@pytest.mark.parametrize("way", [by_address, by_form])
def test_nul_is_400(bob: User, november: str, api: Api, vault: WatchedStore, way: Any) -> None:
    assert way(api(bob), november, "a\x00b").status_code == 400
    assert vault.keys() == set()


@pytest.mark.parametrize("raw", ["%2E%2E", "%2e%2E", "..", "%2E"])
def test_dots_are_400_in_any_spelling(bob: User, november: str, api: Api, raw: str) -> None:
    answer = api(bob).put(f"{paths.collection(november)}content/{raw}", b"x", content_type="text/csv")
    problem(answer, 400, "bad_filename")


@pytest.mark.parametrize("raw", ["a%2Fb", "..%2Fa", "%2Fetc%2Fpasswd", "a/b", "//a"])
def test_slashes_are_other_addresses_in_any_spelling(bob: User, november: str, api: Api, raw: str) -> None:
    answer = api(bob).put(f"{paths.collection(november)}content/{raw}", b"x", content_type="text/csv")
    problem(answer, 404, "not_found")


TWINS = [
    ("report.csv", "REPORT.csv"),
    ("\u00fcber", "u\u0308ber"),
    ("\u00dcBER", "u\u0308ber"),
    ("straße", "STRASSE"),
    ("ﬁle", "FIle"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("\u212bngstr\u00f6m", "a\u030angstrom\u0308".replace("strom\u0308", "stro\u0308m")),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("first", "second"), TWINS)
def test_names_that_differ_in_case_or_form_only_are_the_same(
    bob: User, november: str, put: Put, api: Api, way: Any, first: str, second: str
) -> None:
    client = api(bob)
    put(client, november, first, CONTENT)
    answer = way(client, november, second)
    if way is by_address:
        problem(answer, 428, "precondition_required")
    else:
        problem(answer, 409, "name_taken")
    assert client.get(paths.file(november, second)).json()["filename"] == first


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a."), ("\u0131", "i"), ("a\u2215b", "a\uff0fb"), ("①", "1"), ("a", "\uff41"), ("o", "\u043e")]
)
def test_names_that_differ_otherwise_are_different(bob: User, november: str, put: Put, api: Api, first: str, second: str) -> None:
    put(api(bob), november, first, b"1")
    assert put(api(bob), november, second, b"2").status_code == 201
    assert b"".join(api(bob).get(paths.content(november, first))) == b"1"
    archive = zipfile.ZipFile(io.BytesIO(b"".join(api(bob).get(paths.archive(november)))))
    assert sorted(archive.namelist()) == sorted([first, second])


def test_the_same_name_in_two_collections_is_two_files(bob: User, november: str, put: Put, api: Api) -> None:
    other = api(bob).post(paths.COLLECTIONS, {"display_name": "Other"}).json()["id"]
    put(api(bob), november, "a", b"1")
    put(api(bob), other, "a", b"2")
    assert b"".join(api(bob).get(paths.content(november, "a"))) == b"1"
    assert b"".join(api(bob).get(paths.content(other, "a"))) == b"2"


ANY_NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    st.sampled_from("a.%/\\ \"';:?#&=+~\n\t\x00\u202e\u00fc\u0308ß🙂"), max_size=12
)


@given(filename=ANY_NAME, way=st.sampled_from([by_address, by_form]))
@example(filename="%00", way=by_address)
@example(filename="%0D%0A", way=by_address)
@example(filename="a\\", way=by_form)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_refused_or_kept_exactly(bob: User, november: str, api: Api, filename: str, way: Any) -> None:
    client = api(bob)
    answer = way(client, november, filename)
    if answer.status_code == 201:
        assert answer.json()["filename"] == filename
        assert_shows_everywhere(client, november, filename)
        assert client.delete(paths.file(november, filename)).status_code == 204
    else:
        assert answer.status_code in {400, 404}
        told = problem(answer, answer.status_code, answer.json()["code"])
        if answer.status_code == 404:
            assert way is by_address
            with pytest.raises(Resolver404):
                resolve(unquote(paths.content(november, filename)))
        elif "\x00" not in filename:
            # A backslash before the closing quote may mean that there is no closing quote, and so no filename.
            assert list(told["errors"]) in ([["filename"], ["file"]] if "\\" in filename else [["filename"]])
    assert not StoredFile.objects.exists()


def test_names_are_written_in_addresses_in_one_way(bob: User, november: str, put: Put, api: Api) -> None:
    made = put(api(bob), november, "a b;c?d#e%f", b"1").json()
    assert made["links"]["content"].endswith("/content/" + quote("a b;c?d#e%f", safe=";"))
