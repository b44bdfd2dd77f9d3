"""Filenames by address, by form and by rename (F-40): a clear 400, or exactly the name that was given wherever it shows again."""

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import pytest
from django.urls import Resolver404, resolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from files.models import StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]
Way = Callable[[APIClient, str, str], Any]
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
MOST_DIFFERENT = ["hidden", "nfd", "quotes", "percent-of-a-slash", "255-bytes-of-three"]


def part(filename: str) -> bytes:
    escaped = filename.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")  # as WHATWG says, and browsers do
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{escaped}"\r\n\r\n'.encode()
    return head + CONTENT + b"\r\n--b--\r\n"


def by_address(client: APIClient, slug: str, filename: str) -> Any:
    return client.put(paths.content(slug, filename), CONTENT, content_type="text/csv")


def by_form(client: APIClient, slug: str, filename: str) -> Any:
    return client.post(paths.files(slug), part(filename), content_type="multipart/form-data; boundary=b")


def rename(client: APIClient, slug: str, filename: str) -> Any:
    return client.patch(paths.file(slug, "before"), {"filename": filename})


def by_rename(client: APIClient, slug: str, filename: str) -> Any:
    assert client.put(paths.content(slug, "before"), CONTENT, content_type="text/csv").status_code == 201
    return rename(client, slug, filename)


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


def test_a_name_that_is_refused_is_400_and_keeps_nothing(
    bob: User, november: str, api: Api, vault: WatchedStore, case: Case
) -> None:
    client = api(bob)
    client.put(paths.content(november, "before"), CONTENT, content_type="text/csv")
    for way in (by_address, by_form, rename):
        for name, filename in REFUSED.items():
            with case(way, name):
                answer = way(client, november, filename)
                if way is by_address and ("/" in filename or filename == ""):
                    problem(answer, 404, "not_found")  # another address
                else:
                    told = problem(answer, 400, answer.json()["code"])
                    assert list(told["errors"]) == ["filename"]
                    assert len(filename) < 3 or filename not in str(told)
                assert [file.filename for file in StoredFile.objects.all()] == ["before"]
                assert len(vault.keys()) == 1


def check_is_kept(client: APIClient, slug: str, way: Way, filename: str) -> None:
    answer = way(client, slug, filename)
    assert answer.status_code in {200, 201}, answer.json()
    assert answer.json()["filename"] == filename
    answer = client.get(paths.content(slug, filename))
    assert disposition_name(answer["Content-Disposition"]) == filename
    assert b"".join(answer) == CONTENT


def test_a_name_that_is_kept_is_kept_exactly(bob: User, november: str, api: Api, subtests: pytest.Subtests) -> None:
    client = api(bob)
    files = {name: filename for name, filename in KEPT.items() if name != "nfd"}  # which is the same file as "nfc"
    for name, filename in files.items():
        with subtests.test(name):
            answer = by_address(client, november, filename)
            assert (answer.status_code, answer.json()["filename"]) == (201, filename)
            assert disposition_name(client.head(paths.content(november, filename))["Content-Disposition"]) == filename
    listed = client.get(paths.files(november), {"page_size": 100}).json()["results"]
    assert {file["filename"] for file in listed} == {*files.values()}


@pytest.mark.parametrize("names", [MOST_DIFFERENT, pytest.param(list(KEPT), marks=pytest.mark.long)], ids=["some", "all"])
def test_a_name_shows_everywhere_and_comes_by_every_way(bob: User, november: str, api: Api, case: Case, names: list[str]) -> None:
    client = api(bob)
    for name in names:
        filename = KEPT[name]
        with case(by_address, name):
            assert by_address(client, november, filename).status_code == 201
            assert_shows_everywhere(client, november, filename)
        for way in (by_form, by_rename):
            with case(way, name):
                check_is_kept(client, november, way, filename)


# What a client may send though nothing of it is a name: bytes that are no UTF-8, and NUL.


def test_an_address_that_is_not_utf8_is_400(
    bob: User, november: str, serve: Callable[..., Any], vault: WatchedStore, case: Case
) -> None:
    """Django would take the percent signs for the name's own, so that two names became one."""
    for raw in [b"\xff", b"a\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xc3", b"\xf5\x80\x80\x80", b"a\x80b"]:
        for method, where, end in [("PUT", b"content/", b""), ("GET", b"content/", b""), ("DELETE", b"files/", b"/")]:
            with case(raw, method, where, end):
                answer = serve(bob, method, paths.collection(november).encode() + where + raw + end, b"x")
                problem(answer, 400, "bad_request")
                answer.close()
                assert vault.keys() == set()


def test_nul_is_400(bob: User, november: str, api: Api, vault: WatchedStore, case: Case) -> None:
    for way in [by_address, by_form]:
        with case(way):
            assert way(api(bob), november, "a\x00b").status_code == 400
            assert vault.keys() == set()


def test_dots_are_400_in_any_spelling(bob: User, november: str, api: Api, case: Case) -> None:
    for raw in ["%2E%2E", "%2e%2E", "..", "%2E"]:
        with case(raw):
            answer = api(bob).put(f"{paths.collection(november)}content/{raw}", b"x", content_type="text/csv")
            problem(answer, 400, "bad_filename")


def test_slashes_are_other_addresses_in_any_spelling(bob: User, november: str, api: Api, case: Case) -> None:
    for raw in ["a%2Fb", "..%2Fa", "%2Fetc%2Fpasswd", "a/b", "//a"]:
        with case(raw):
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


def test_names_that_differ_in_case_or_form_only_are_the_same(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    client = api(bob)
    put(client, november, "before", CONTENT)
    for first, second in TWINS:
        with case(first, second):
            put(client, november, first, CONTENT)
            problem(by_address(client, november, second), 428, "precondition_required")
            for way in (by_form, rename):
                problem(way(client, november, second), 409, "name_taken")
            assert client.get(paths.file(november, second)).json()["filename"] == first


def test_names_that_differ_otherwise_are_different(bob: User, november: str, put: Put, api: Api, case: Case) -> None:
    for first, second in [("a", "a."), ("\u0131", "i"), ("a\u2215b", "a\uff0fb"), ("①", "1"), ("a", "\uff41"), ("o", "\u043e")]:
        with case(first, second):
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


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.long)])
def test_any_name_is_refused_or_kept_exactly(bob: User, november: str, api: Api, examples: int) -> None:
    @settings(max_examples=examples)
    @given(filename=ANY_NAME, way=st.sampled_from([by_address, by_form]))
    @example(filename="%00", way=by_address)
    @example(filename="%0D%0A", way=by_address)
    @example(filename="a\\", way=by_form)
    def check(filename: str, way: Any) -> None:
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

    check()


def test_names_are_written_in_addresses_in_one_way(bob: User, november: str, put: Put, api: Api) -> None:
    made = put(api(bob), november, "a b;c?d#e%f", b"1").json()
    assert made["links"]["content"].endswith("/content/" + quote("a b;c?d#e%f", safe=";"))
