"""GET me/."""

from collections.abc import Callable
from datetime import UTC, datetime

from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from tenants.models import Membership, Tenant, User


Api = Callable[[User | None], APIClient]


def test_me_shows_my_tenants_and_roles_sorted(bob: User, globex: Tenant, api: Api) -> None:
    Membership.objects.create(user=bob, tenant=globex, roles=["auditor", "research_it"], created_at=datetime.now(UTC))
    response = api(bob).get("/api/v1/me/")
    assert response.status_code == 200
    assert response.json() == {
        "username": "bob",
        "email": "bob@example.org",
        "is_superuser": False,
        "tenants": [
            {"slug": "acme", "name": "Acme", "roles": ["member"]},
            {"slug": "globex", "name": "Globex", "roles": ["auditor", "research_it"]},
        ],
        "key": None,
    }


def test_me_of_a_superuser_shows_no_tenant_that_they_are_no_member_of(root: User, alice: User, api: Api) -> None:
    me = api(root).get("/api/v1/me/").json()
    assert (me["is_superuser"], me["tenants"]) == (True, [])


def test_me_without_a_token_is_401(db: None, api: Api) -> None:
    assert api(None).get("/api/v1/me/").status_code == 401


def test_me_is_read_only(alice: User, api: Api) -> None:
    for method in ("post", "put", "patch", "delete"):
        assert getattr(api(alice), method)("/api/v1/me/", {"is_superuser": True}).status_code == 405


def test_me_takes_as_many_queries_with_many_tenants(
    bob: User, api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    client, now = api(bob), datetime.now(UTC)
    for number in range(5):
        tenant = Tenant.objects.create(slug=f"t{number}", name="T", created_at=now)
        Membership.objects.create(user=bob, tenant=tenant, roles=["member"], created_at=now)
    with django_assert_num_queries(2):
        assert len(client.get("/api/v1/me/").json()["tenants"]) == 6
