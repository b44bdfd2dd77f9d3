"""What an API key needs for each address: a key with every other scope is refused, and one with this alone is let in."""

from collections.abc import Callable
from typing import Final

import pytest
from rest_framework.permissions import AllowAny
from rest_framework.test import APIClient

from tenants.models import Scope, User
from tenants.permissions import Authenticated, scope_of
from tests.factories import make_key
from tests.meta import matrix
from tests.meta.addresses import routes, views


Api = Callable[[User | str | None], APIClient]
WITHOUT: Final = "-"  # no key opens it
PUBLIC: Final = {row.path for row in matrix.ROWS if row.scope == "public"}
ROWS: Final = sorted({(row.method, row.path, row.scope) for row in matrix.ROWS if row.path not in PUBLIC})
EACH = pytest.mark.parametrize(("method", "path", "scope"), ROWS, ids=[f"{method} {path}" for method, path, _ in ROWS])


def at(path: str) -> str:
    """An address of nothing that there is."""
    return path.replace("{number}", "1")


def test_every_view_asks_who_it_is_or_takes_no_token() -> None:
    """A key must not slip past its scopes because a view has a permission of its own."""
    for path, view in views().items():
        if path in PUBLIC:
            assert (path, list(view.authentication_classes)) == (path, [])
            assert set(view.permission_classes) <= {AllowAny}
        else:
            assert (path, list(view.permission_classes)) == (path, [Authenticated])


def test_table_is_what_the_views_say() -> None:
    said = {
        (method, path, scope_of(views()[path], method) or WITHOUT)
        for path, methods in routes().items()
        if path not in PUBLIC
        for method in methods - {"HEAD"}
    }
    assert said == set(ROWS)


@EACH
def test_key_with_every_other_scope_is_refused(api: Api, alice: User, method: str, path: str, scope: str) -> None:
    """RFC 6750, 3.1. Before anything is looked for, so that the answer tells nothing of it."""
    client = api(make_key(alice, *(other for other in Scope.values if other != scope)))

    path = at(path)
    refused = client.generic(method, path)

    assert refused.status_code == 403
    assert method != "GET" or client.head(path).status_code == 403
    if scope == WITHOUT:
        assert refused.json()["code"] == "people_only"
        return
    assert (refused.json()["code"], scope in refused.json()["detail"]) == ("insufficient_scope", True)
    assert refused["WWW-Authenticate"] == f'Bearer realm="strongroom", error="insufficient_scope", scope="{scope}"'


@pytest.mark.parametrize(("method", "path", "scope"), [row for row in ROWS if row[2] != WITHOUT])
def test_key_with_this_scope_alone_is_let_in(api: Api, alice: User, method: str, path: str, scope: str) -> None:
    answer = api(make_key(alice, scope)).generic(method, at(path))
    assert answer.status_code != 401
    assert answer.status_code == 200 or answer.json()["code"] not in {"insufficient_scope", "people_only"}
