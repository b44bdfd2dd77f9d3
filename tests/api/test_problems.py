"""Every error is a problem document (RFC 9457), whatever it was that went wrong, and headers that mean harm (F-44)."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as current
from django.test import Client
from pytest_django import Settings
from rest_framework.test import APIClient

from files.models import StoredFile
from tenants.models import User
from tests.api import paths
from tests.api.answers import problem
from tests.api.cases import Case
from tests.api.worlds import CONTENT, make_one_file
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]


@pytest.fixture
@provides_world(make_one_file)
def slug(november: str) -> str:
    """A collection with a.csv in it."""
    return november


# --- Addresses ---


UNKNOWN = [
    "/nothing",
    "/api",
    "/api/",
    "/api/v1",
    "/api/v1/",
    "/api/v2/collections/",
    "/api/v1/nothing/",
    "/api/v1/collections",
    "/api/v1/collections//",
    "/api/v1/collections/a/b/c/d/e/",
    "/api/v1//collections/",
    "/api/v1/collections/x/content/",
    "/api/v1/collections/x/content/a.csv/",
    "/api/v1/me",
    "/downloads",
    "/downloads/",
    "/downloads/a/b",
    "/favicon.ico",
    "/robots.txt",
    "/.env",
    "/static/../../etc/passwd",
    "/api/v1/collections/%2e%2e/../",
    "/" + "a" * 5000,
    "/%F0%9F%99%82",
]


def test_an_unknown_address_is_a_problem_whatever_is_asked_of_it(bob: User, api: Api, case: Case) -> None:
    for method in ["get", "post", "put", "patch", "delete", "head", "options"]:
        with case(method):
            for address in UNKNOWN:
                for client in (api(bob), api(None)):
                    answer = getattr(client, method)(address)
                    assert answer.status_code == 404, address
                    if method != "head":
                        assert problem(answer, 404, "not_found")["detail"] == "Not found."
                    assert answer["X-Request-ID"]
                    assert "Location" not in answer


def test_a_write_is_never_redirected(bob: User, november: str, api: Api, case: Case) -> None:
    for method in ["post", "put", "patch", "delete"]:
        with case(method):
            for address in (paths.COLLECTIONS, paths.collection(november), paths.file(november, "a.csv")):
                problem(getattr(api(bob), method)(address.rstrip("/"), {}), 404, "not_found")


def test_an_error_page_is_json_for_browsers_too() -> None:
    answer = Client().get("/nothing", headers={"Accept": "text/html,application/xhtml+xml"})
    problem(answer, 404, "not_found")


# --- Methods ---


METHODS: dict[str, tuple[Callable[[str], str], set[str]]] = {
    "collections": (lambda _: paths.COLLECTIONS, {"GET", "HEAD", "POST"}),
    "collection": (paths.collection, {"GET", "HEAD", "PATCH", "DELETE"}),
    "restore": (paths.restore, {"POST"}),
    "files": (paths.files, {"GET", "HEAD", "POST"}),
    "file": (lambda slug: paths.file(slug, "a.csv"), {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
    "content": (lambda slug: paths.content(slug, "a.csv"), {"GET", "HEAD", "PUT"}),
    "preview": (lambda slug: paths.preview(slug, "a.csv"), {"GET", "HEAD"}),
    "download": (lambda slug: paths.download(slug, "a.csv"), {"GET", "HEAD", "POST"}),
    "archive": (paths.archive, {"GET", "HEAD"}),
    "archive-link": (paths.archive_link, {"POST"}),
    "upload-by-name": (lambda _: paths.FILES, {"POST"}),
    "one-off-link": (lambda _: "/downloads/" + "x" * 43, {"GET", "HEAD"}),
}


def test_another_method_is_405_and_says_which_there_are(bob: User, slug: str, api: Api, case: Case) -> None:
    for name_of_case, (address, methods) in METHODS.items():
        with case(name_of_case):
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - methods:
                answer = api(bob).generic(method, address(slug))
                problem(answer, 405, "method_not_allowed")
                assert {name.strip() for name in answer["Allow"].split(",")} - {"OPTIONS"} == methods
            assert StoredFile.objects.get().length == len(CONTENT)


@pytest.mark.parametrize("address", ["/healthz", "/readyz"])
def test_another_method_on_a_probe_is_405(db: None, address: str) -> None:
    answer = Client().post(address)
    problem(answer, 405, "method_not_allowed")
    assert answer["Allow"] == "GET, HEAD"


def test_no_header_makes_another_method(bob: User, slug: str, api: Api, case: Case) -> None:
    for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]:
        with case(name):
            assert api(bob).post(paths.download(slug, "a.csv"), {}, headers={name: "DELETE"}).status_code == 201
            problem(
                api(bob).post(paths.file(slug, "a.csv"), {"_method": "DELETE"}, headers={name: "DELETE"}),
                405,
                "method_not_allowed",
            )
            assert StoredFile.objects.exists()


# --- Headers ---


def test_another_host_is_400(bob: User, api: Api, case: Case) -> None:
    for host in [
        "evil.example.org",
        "testserver.evil.org",
        "testserver:80@evil.org",
        "a b",
        "",
        "[::1",
        "testserver:x",
        "téstserver",
    ]:
        for address in [paths.COLLECTIONS, "/nothing", "/downloads/x"]:
            with case(host, address):
                answer = api(bob).get(address, HTTP_HOST=host)
                told = problem(answer, 400, "bad_request")
                assert not host or host not in json.dumps(told)


def test_a_forwarded_host_or_scheme_is_nobodys_business(bob: User, slug: str, api: Api) -> None:
    headers = {"X-Forwarded-Host": "evil.example.org", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.example.org"}
    answer = api(bob).get(paths.file(slug, "a.csv"), headers=headers)
    assert answer.json()["links"]["self"].startswith("http://testserver/")


ACCEPTS = [
    "text/html",
    "application/xml",
    "image/*;q=0.5",
    "garbage",
    "",
    "*",
    "application/json;v=99",
    ",,,",
    "a/b" * 1000,
    "\x00",
]


def test_accept_changes_nothing(bob: User, slug: str, api: Api, case: Case) -> None:
    for accept in ACCEPTS:
        with case(accept):
            client, headers = api(bob), {"Accept": accept}
            answer = client.get(paths.file(slug, "a.csv"), headers=headers)
            assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
            assert b"".join(client.get(paths.content(slug, "a.csv"), headers=headers)) == CONTENT
            problem(client.get(paths.file(slug, "b.csv"), headers=headers), 404, "not_found")


def test_no_query_makes_another_format(bob: User, slug: str, api: Api, case: Case) -> None:
    for query in ["format=html", "format=api", "format=xml", "_accept=text/html"]:
        with case(query):
            answer = api(bob).get(f"{paths.file(slug, 'a.csv')}?{query}")
            assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")


def test_many_and_long_headers_are_no_matter(bob: User, slug: str, api: Api) -> None:
    """How many a server takes at most is its own: tests/faults/test_server.py."""
    headers = {f"X-Header-{number}": "v" for number in range(1000)} | {"X-Long": "v" * 65_536, "Cookie": "a=" + "b" * 60_000}
    assert api(bob).get(paths.file(slug, "a.csv"), headers=headers).status_code == 200


def test_long_conditions_are_answered_soon(bob: User, slug: str, api: Api, case: Case) -> None:
    for value in ["*", '"' + "x" * 60_000 + '"', ", " * 30_000, 'W/"' * 20_000, '"a", ' * 12_000]:
        for name in ["If-Match", "If-None-Match", "If-Range", "Range", "Content-Digest"]:
            with case(value, name):
                answer = api(bob).get(paths.content(slug, "a.csv"), headers={name: value})
                b"".join(answer)
                assert answer.status_code in {200, 304, 412}
                assert api(bob).put(paths.content(slug, "b.csv"), b"1", headers={name: value}).status_code in {201, 400, 412}


def test_bytes_in_headers_that_nobody_expects_are_no_500(bob: User, slug: str, api: Api, case: Case) -> None:
    for name in ["If-Match", "If-None-Match", "If-Range", "Range", "Repr-Digest", "Authorization", "X"]:
        for value in ["\xff\xfe", "\x00", "é", "\x1b[31m"]:
            with case(name, value):
                environ: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": value}
                answer = api(bob).get(paths.content(slug, "a.csv"), **environ)
                b"".join(answer)
                assert answer.status_code in {200, 401, 412}


def test_answers_name_their_request_and_take_no_name_from_it(bob: User, slug: str, api: Api) -> None:
    names = {
        api(bob).get(paths.file(slug, filename), headers={"X-Request-ID": "mine"})["X-Request-ID"]
        for filename in ("a.csv", "b.csv")
    }
    assert len(names) == 2
    assert all(len(name) == 32 and name.isalnum() for name in names)


def test_answers_keep_browsers_from_guessing_and_from_telling(bob: User, slug: str, api: Api) -> None:
    for address in (paths.file(slug, "a.csv"), paths.file(slug, "b.csv"), "/nothing"):
        answer = api(bob).get(address)
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Referrer-Policy"] == "same-origin"
        assert answer["X-Frame-Options"] == "DENY"
        assert "Server" not in answer
        assert "Set-Cookie" not in answer


# --- What goes wrong inside ---


def test_a_bug_is_a_500_that_tells_nothing(
    bob: User, slug: str, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("SELECT secret FROM /srv/path")

    monkeypatch.setattr("files.access.get_file", broken)
    client = api(bob)
    client.raise_request_exception = False
    answer = client.get(paths.file(slug, "a.csv"))
    told = problem(answer, 500, "error")
    assert not {"SELECT", "secret", "/work", "RuntimeError", "Traceback"} & set(json.dumps(told).split())
    assert answer["X-Request-ID"]
    monkeypatch.undo()
    assert client.get(paths.file(slug, "a.csv")).status_code == 200


def test_a_storage_that_is_not_there_is_503_and_says_when_to_try_again(
    bob: User, slug: str, put: Put, api: Api, settings: Settings
) -> None:
    there = settings.STORAGES
    settings.STORAGES = there | {
        "vault": {"BACKEND": "vault.stores.local.LocalStore", "OPTIONS": {"location": "/nonexistent/strongroom"}}
    }
    for answer in (api(bob).get(paths.content(slug, "a.csv")), put(api(bob), slug, "b.csv", b"1")):
        told = problem(answer, 503, "storage_unavailable")
        assert int(answer["Retry-After"]) > 0
        assert "nonexistent" not in json.dumps(told)
    settings.STORAGES = there
    assert b"".join(api(bob).get(paths.content(slug, "a.csv"))) == CONTENT


def test_errors_of_several_fields_are_told_together(bob: User, november: str, api: Api) -> None:
    answer = api(bob).post(paths.COLLECTIONS, {"display_name": "", "purge_at": "x", "cipher": "y"})
    told = problem(answer, 400, "invalid")
    assert set(told["errors"]) == {"display_name", "purge_at", "cipher"}
    for entries in told["errors"].values():
        assert [set(entry) for entry in entries] == [{"detail", "code"}]
    assert told["errors"]["cipher"][0]["code"] == "invalid_choice"


def test_debug_is_off() -> None:
    assert current.DEBUG is False
