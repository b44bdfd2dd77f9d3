"""What an API key needs for each address: a key with every other scope is refused, and one with this alone is let in."""

from collections.abc import Callable
from typing import Final

import pytest
from rest_framework.permissions import AllowAny
from rest_framework.test import APIClient

from tenants.auth.permissions import Authenticated, scope_of
from tenants.models import Scope, User
from tests.factories import make_key
from tests.meta import matrix
from tests.meta.url_routes import routes, views


Api = Callable[[User | str | None], APIClient]
WITHOUT: Final = "-"  # no key opens it
PUBLIC: Final = {row.path for row in matrix.ROWS if row.scope == "public"}
ROWS: Final = sorted({(row.method, row.path, row.scope) for row in matrix.ROWS if row.path not in PUBLIC})


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


def test_key_with_every_other_scope_is_refused(api: Api, alice: User, subtests: pytest.Subtests) -> None:
    """RFC 6750, 3.1. Before anything is looked for, so that the answer tells nothing of it."""
    clients = {
        scope: api(make_key(alice, *(other for other in Scope.values if other != scope))) for scope in (*Scope.values, WITHOUT)
    }
    for method, path, scope in ROWS:
        with subtests.test(f"{method} {path}"):
            client, address = clients[scope], at(path)
            refused = client.generic(method, address)
            assert refused.status_code == 403
            assert method != "GET" or client.head(address).status_code == 403
            if scope == WITHOUT:
                assert refused.json()["code"] == "people_only"
                continue
            assert (refused.json()["code"], scope in refused.json()["detail"]) == ("insufficient_scope", True)
            assert refused["WWW-Authenticate"] == f'Bearer realm="strongroom", error="insufficient_scope", scope="{scope}"'


def test_key_with_this_scope_alone_is_let_in(api: Api, alice: User, subtests: pytest.Subtests) -> None:
    clients = {scope: api(make_key(alice, scope)) for scope in Scope.values}
    for method, path, scope in ROWS:
        if scope != WITHOUT:
            with subtests.test(f"{method} {path}"):
                answer = clients[scope].generic(method, at(path))
                assert answer.status_code != 401
                assert answer.status_code == 200 or answer.json()["code"] not in {"insufficient_scope", "people_only"}
