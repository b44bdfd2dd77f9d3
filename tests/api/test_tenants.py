"""tenants/: who sees which, who changes what of them, and what they keep."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from files.models import Collection, Upload
from tenants import audit
from tenants.models import CIPHERS, AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.factories import make_member
from tests.races import race
from vault.models import Cipher


TENANTS, ACME = "/api/v1/tenants/", "/api/v1/tenants/acme/"
Api = Callable[[User | None], APIClient]
PLATFORM_SETTINGS = {"is_active": False, "quota_bytes": 10, "quota_files": 10, "allowed_ciphers": ["NONE"]}


def slugs(client: APIClient, query: str = "") -> list[str]:
    return [tenant["slug"] for tenant in client.get(TENANTS + query).json()["results"]]


# --- Seeing ---


def test_tenant_is_shown_whole_to_a_member(bob: User, acme: Tenant, api: Api) -> None:
    assert api(bob).get(ACME).json() == {
        "slug": "acme",
        "name": "Acme",
        "is_active": True,
        "quota_bytes": None,
        "quota_files": None,
        "default_retention_days": None,
        "allowed_ciphers": ["AES-GCM"],
        "new_collections": "editor",
        "allow_external_sharing": False,
        "created_at": acme.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "my_roles": ["member"],
        "allowed_actions": [],
    }


@pytest.mark.parametrize(
    ("actor", "roles", "actions"),
    [
        ("alice", ["admin"], ["update", "manage_members", "list_members"]),
        ("bob", ["member"], []),
        ("erin", ["auditor"], ["list_members"]),
        ("rita", ["research_it"], []),
        ("root", [], ["update", "manage_members", "list_members", "set_limits"]),
    ],
)
def test_tenant_tells_what_the_reader_is_and_may_do(
    request: pytest.FixtureRequest, acme: Tenant, api: Api, actor: str, roles: list[str], actions: list[str]
) -> None:
    """The same actions are tried for real in the access matrix."""
    shown = api(request.getfixturevalue(actor)).get(ACME).json()
    assert (shown["my_roles"], shown["allowed_actions"]) == (roles, actions)


def test_tenants_are_those_that_i_am_in(bob: User, mallory: User, globex: Tenant, root: User, api: Api) -> None:
    """INV-01."""
    assert slugs(api(bob)) == ["acme"]
    assert slugs(api(mallory)) == ["globex"]
    Membership.objects.create(user=bob, tenant=globex, roles=["auditor"], created_at=datetime.now(UTC))
    assert sorted(slugs(api(bob))) == ["acme", "globex"]
    assert sorted(slugs(api(root))) == ["acme", "globex"]


def test_suspended_tenant_is_there_for_a_superuser_alone(alice: User, bob: User, root: User, api: Api) -> None:
    Tenant.objects.update(is_active=False)
    for person in (alice, bob):
        assert slugs(api(person)) == []
        assert api(person).get(ACME).status_code == 404
        assert api(person).patch(ACME, {"name": "x"}).status_code == 404
    assert slugs(api(root)) == ["acme"]
    shown = api(root).get(ACME).json()
    assert (shown["is_active"], shown["allowed_actions"]) == (False, ["update", "set_limits"])
    for path in ("members/", "invitations/", "usage/"):
        assert api(root).get(ACME + path).status_code == 404


def test_tenants_come_in_pages_at_a_fixed_cost(
    bob: User, acme: Tenant, api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    client, now = api(bob), datetime.now(UTC)
    for number in range(5):
        tenant = Tenant.objects.create(slug=f"t{number}", name="T", created_at=now + timedelta(seconds=number))
        Membership.objects.create(user=bob, tenant=tenant, roles=["member"], created_at=now)
    with django_assert_num_queries(4):  # who asks; what they are, twice; the page
        page = client.get(TENANTS + "?page_size=4").json()
    assert [tenant["slug"] for tenant in page["results"]] == ["t4", "t3", "t2", "t1"]
    assert [tenant["slug"] for tenant in client.get(page["next"]).json()["results"]] == ["t0", "acme"]
    problem(client.get(TENANTS + "?page_size=x"), 400, "invalid")


# --- Creating ---


def test_create_by_a_superuser(root: User, api: Api) -> None:
    client = api(root)
    response = client.post(TENANTS, {"slug": "initech", "name": "Initech Ltd", "quota_files": 7, "new_collections": "viewer"})
    assert response.status_code == 201
    assert response["Location"] == "http://testserver/api/v1/tenants/initech/"
    assert client.get(response["Location"]).json() == response.json()
    assert response.json().items() >= {"slug": "initech", "name": "Initech Ltd", "quota_files": 7, "is_active": True}.items()
    assert audited() == [("tenant.create", "root")]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"slug": "Initech"}, "slug"),
        ({"slug": "a--b"}, "slug"),
        ({"slug": "a\nb"}, "slug"),
        ({"slug": "a" * 51}, "slug"),
        ({"slug": None}, "slug"),
        ({"slug": "acme"}, "slug"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"name": None}, "name"),
        ({"quota_bytes": -1}, "quota_bytes"),
        ({"quota_bytes": 2**63}, "quota_bytes"),
        ({"quota_files": "many"}, "quota_files"),
        ({"default_retention_days": 0}, "default_retention_days"),
        ({"default_retention_days": 10**9}, "default_retention_days"),
        ({"allowed_ciphers": []}, "allowed_ciphers"),
        ({"allowed_ciphers": "NONE"}, "allowed_ciphers"),
        ({"allowed_ciphers": None}, "allowed_ciphers"),
        ({"new_collections": "secret"}, "new_collections"),
        ({"new_collections": None}, "new_collections"),
        ({"allow_external_sharing": None}, "allow_external_sharing"),
        ({"is_active": "perhaps"}, "is_active"),
    ],
)
def test_create_and_update_with_a_bad_value_name_the_field(
    root: User, acme: Tenant, api: Api, changes: dict[str, Any], field: str
) -> None:
    responses = [api(root).post(TENANTS, {"slug": "initech", "name": "Initech", **changes})]
    if field != "slug":  # which a change ignores: it is for ever
        responses.append(api(root).patch(ACME, changes))
    for response in responses:
        assert response.status_code == 400
        assert list(response.json()["errors"]) == [field]
    assert list(Tenant.objects.values_list("name", flat=True)) == ["Acme"]
    assert audited() == []


@pytest.mark.django_db(transaction=True)
def test_create_of_one_slug_at_once_is_one_201(root: User, api: Api) -> None:
    answers = race([partial(api(root).post, TENANTS, {"slug": "initech", "name": "Initech"})] * 4)
    assert sorted(answer.status_code for answer in answers) == [201, 400, 400, 400]
    assert {"slug"} == {field for answer in answers if answer.status_code == 400 for field in answer.json()["errors"]}
    assert audited() == [("tenant.create", "root")]


def test_ciphers_are_those_that_files_knows() -> None:
    assert list(CIPHERS) == Cipher.values


# --- Changing ---


def test_update_by_an_admin(alice: User, acme: Tenant, api: Api) -> None:
    wish = {"name": "Acme Ltd", "default_retention_days": 90, "new_collections": "editor", "allow_external_sharing": True}
    response = api(alice).patch(ACME, wish)
    assert response.status_code == 200
    assert response.json().items() >= wish.items()
    assert api(alice).get(ACME).json() == response.json()
    assert audited() == [("tenant.update", "alice")]
    assert api(alice).patch(ACME, {"default_retention_days": None}).json()["default_retention_days"] is None


def test_update_of_nothing_changes_and_records_nothing(alice: User, acme: Tenant, api: Api) -> None:
    """INV-20."""
    for wish in ({}, {"name": "Acme"}, {"slug": "other", "vault_alias": "release", "id": "0", "created_at": None}):
        assert api(alice).patch(ACME, wish).status_code == 200
    acme.refresh_from_db()
    assert (acme.slug, acme.vault_alias) == ("acme", "vault")
    assert audited() == []


@pytest.mark.parametrize("field", PLATFORM_SETTINGS)
def test_update_of_what_the_platform_decides_is_a_superusers(alice: User, root: User, acme: Tenant, api: Api, field: str) -> None:
    wish = {field: PLATFORM_SETTINGS[field], "name": "Acme Ltd"}
    body = problem(api(alice).patch(ACME, wish), 403, "refused")
    assert field in body["detail"]
    assert Tenant.objects.get().name == "Acme"
    response = api(root).patch(ACME, wish)
    assert response.status_code == 200
    assert response.json()[field] == PLATFORM_SETTINGS[field]
    assert audited() == [("tenant.update", "root")]


def test_suspending_a_tenant_shuts_it_at_once_and_resuming_opens_it(bob: User, root: User, acme: Tenant, api: Api) -> None:
    """INV-16."""
    bobs = api(bob)
    for is_active, expected in ((False, 404), (True, 200)):
        assert api(root).patch(ACME, {"is_active": is_active}).status_code == 200
        assert bobs.get(ACME).status_code == expected
        assert (bobs.get(paths.COLLECTIONS).status_code, bobs.get("/api/v1/me/").status_code) == (200, 200)


def test_update_by_who_was_demoted_since_they_asked_is_refused(alice: User, acme: Tenant, api: Api) -> None:
    """INV-16: what counts is the moment of the change."""
    client = api(alice)
    Membership.objects.filter(user=alice).update(roles=["member"])
    problem(client.patch(ACME, {"name": "x"}), 403, "refused")
    Membership.objects.filter(user=alice).delete()
    problem(client.patch(ACME, {"name": "x"}), 404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_updates_of_different_settings_at_once_are_all_kept(alice: User, root: User, acme: Tenant, api: Api) -> None:
    wishes = [(alice, {"name": "Acme Ltd"}), (alice, {"default_retention_days": 9}), (root, {"quota_files": 3})]
    answers = race([partial(api(person).patch, ACME, wish) for person, wish in wishes])
    assert [answer.status_code for answer in answers] == [200] * 3
    acme.refresh_from_db()
    assert (acme.name, acme.default_retention_days, acme.quota_files) == ("Acme Ltd", 9, 3)
    assert AuditEvent.objects.filter(action="tenant.update").count() == 3
    assert list(audit.verify()) == []


# --- Usage ---


def test_usage_counts_what_the_quota_counts(
    alice: User, bob: User, mallory: User, acme: Tenant, november: str, put: Callable[..., Any], api: Api
) -> None:
    """INV-18: a deleted collection counts until its objects are gone."""
    alices = api(alice)
    put(alices, november, "a.csv", b"12345")
    gone = alices.post(paths.COLLECTIONS, {"display_name": "Gone"}).json()["id"]
    put(alices, gone, "b.csv", b"123")
    alices.delete(paths.collection(gone))
    foreign = api(mallory).post(paths.COLLECTIONS, {"display_name": "Theirs"}).json()["id"]
    put(api(mallory), foreign, "c.csv", b"1234567")
    Tenant.objects.filter(pk=acme.pk).update(quota_bytes=100)

    shown = alices.get(ACME + "usage/").json()

    assert shown == {
        "collections": 2,
        "file_count": 2,
        "quota_files": None,
        "total_length": 8,
        "quota_bytes": 100,
        "uploads": 0,
    }


def test_usage_counts_uploads_in_progress(alice: User, erin: User, mallory: User, november: str, now: datetime, api: Api) -> None:
    collection = Collection.objects.get(slug=november)
    upload = Upload.objects.create(
        collection=collection,
        store="vault",
        object_id=collection.uuid,
        object_key="k",
        started_by=alice,
        started_at=now,
        heartbeat_at=now,
    )
    assert api(erin).get(ACME + "usage/").json()["uploads"] == 1
    upload.delete()


def test_usage_of_an_empty_tenant_is_zero(root: User, acme: Tenant, api: Api) -> None:
    shown = api(root).get(ACME + "usage/").json()
    assert (shown["collections"], shown["file_count"], shown["total_length"]) == (0, 0, 0)


def test_usage_is_not_for_members(bob: User, api: Api) -> None:
    problem(api(bob).get(ACME + "usage/"), 403, "refused")


def test_member_of_two_tenants_is_an_admin_where_they_are_one(alice: User, globex: Tenant, api: Api) -> None:
    """INV-01: a role in one says nothing of the other."""
    make_member(globex, "boss", "admin")
    Membership.objects.create(user=alice, tenant=globex, roles=["member"], created_at=datetime.now(UTC))
    assert api(alice).patch("/api/v1/tenants/globex/", {"name": "x"}).status_code == 403
    assert api(alice).get("/api/v1/tenants/globex/members/").status_code == 403
