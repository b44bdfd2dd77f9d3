"""Only staff can sign in to the admin site."""

import re

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import get_resolver

from tests.meta.access_world import World, make_world, send
from tests.meta.url_routes import patterns
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, starts_from(make_world)]


def admin_pages() -> list[str]:
    """Returns the path of every admin page except the login, with arguments filled in."""
    pages = []
    for path, _ in patterns(get_resolver()):
        if path.startswith("/admin/") and path != "/admin/login/":
            path = re.sub(r"{\w+}|<id>", "1", path)
            path = re.sub(r"\^?\(\?P<app_label>(\w+).*?\)", r"\1", path).replace("(?P<url>.*)$", "no/such/page")
            pages.append(path.replace("^", "").rstrip("$"))
    return pages


def test_admin_pages_cover_the_site() -> None:
    assert len(admin_pages()) > 5 * len(admin.site._registry)
    assert not [path for path in admin_pages() if re.search(r"[{}()<>?*\\]", path)]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_admin_page_redirects_users_without_staff_status_to_the_login(method: str, world: World) -> None:
    pages = admin_pages()
    for who in ("anonymous", "admin", "auditor"):
        client = Client()
        if user := world.people[who]:
            client.force_login(user)
        for path in pages:
            status, content, headers = send(client, method, path)
            assert status == 302, (who, path)
            assert headers["Location"].startswith("/admin/" if path == "/admin/logout/" else "/admin/login/?next="), (who, path)
            assert content == b"", (who, path)
    for path in pages:
        status, _, _ = send(world.clients["root"], method, path)  # a staff user with a token, but without a session
        assert status == 302, path
