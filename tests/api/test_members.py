"""tenants/{tenant}/members/: who belongs to a tenant, as what."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from tenants import audit
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api.answers import audited, problem
from tests.factories import make_member, make_user
from tests.races import race


ACME = "/api/v1/tenants/acme/"
MEMBERS = f"{ACME}members/"
Api = Callable[[User | None], APIClient]


def member(username: str) -> str:
    return f"{MEMBERS}{username}/"


def join(user: User, tenant: Tenant, *roles: str) -> None:
    Membership.objects.create(user=user, tenant=tenant, roles=list(roles), created_at=datetime.now(UTC))


def names(response: Any) -> list[str]:
    assert response.status_code == 200, response.json()
    return sorted(row["username"] for row in response.json()["results"])


@pytest.fixture
def dora(acme: Tenant) -> User:
    """A second admin of acme."""
    return make_member(acme, "dora", "admin")


# --- Listing ---


def test_members_are_shown_to_an_auditor(erin: User, alice: User, acme: Tenant, mallory: User, api: Api) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    robot = make_member(acme, "robot", "member")
    User.objects.filter(pk=robot.pk).update(service_of=acme, password="!")
    shown = {row.pop("username"): row for row in api(erin).get(MEMBERS).json()["results"]}
    created = {"created_at": shown["alice"]["created_at"]}
    assert shown["alice"] == {
        "email": "alice@example.org", "roles": ["admin"], "is_active": False, "is_service_account": False, **created
    }  # fmt: skip
    assert shown["robot"]["is_service_account"] is True
    assert shown["robot"]["is_active"] is True
    assert set(shown) == {"alice", "erin", "robot"}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("role=admin", ["alice"]),
        ("role=auditor", ["erin", "zoe"]),
        ("role=audit", []),
        ("role=research_it", ["rita"]),
        ("role=researchXit", None),
        ("role=Admin", None),
        ("role=%25", None),
        ("search=ALI", ["alice"]),
        ("search=rita@", ["rita"]),
        ("search=%25", []),
        ("search=e&role=auditor", ["erin", "zoe"]),
        ("search=mallory", []),
        ("page_size=0", None),
        ("page_size=9999", None),
        ("cursor=x", None),
    ],
)
def test_members_are_filtered_and_a_bad_filter_is_named(
    alice: User, erin: User, rita: User, acme: Tenant, mallory: User, api: Api, query: str, found: list[str] | None
) -> None:
    make_member(acme, "zoe", "auditor", "member")
    response = api(alice).get(f"{MEMBERS}?{query}")
    if found is None:
        assert response.status_code == 400
        assert list(response.json()["errors"]) == [query.split("=")[0]]
    else:
        assert names(response) == found


def test_members_come_in_pages_at_a_fixed_cost(
    alice: User, acme: Tenant, api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(5):
        make_member(acme, f"m{number}", "member")
        Membership.objects.filter(user__username=f"m{number}").update(created_at=datetime(2030, 1, 1 + number, tzinfo=UTC))
    client = api(alice)
    with django_assert_num_queries(5):  # who asks; what they are, twice; the tenant; the page
        page = client.get(MEMBERS + "?page_size=4").json()
    assert [row["username"] for row in page["results"]] == ["m4", "m3", "m2", "m1"]
    assert [row["username"] for row in client.get(page["next"]).json()["results"]] == ["m0", "alice"]


# --- Adding by name ---


def test_add_somebody_that_the_admin_knows(alice: User, mallory: User, acme: Tenant, globex: Tenant, api: Api) -> None:
    join(alice, globex, "admin")
    response = api(alice).post(MEMBERS, {"username": "mallory", "roles": ["member", "auditor", "member"]})
    assert response.status_code == 201
    assert response.json()["roles"] == ["auditor", "member"]
    assert names(api(alice).get(MEMBERS)) == ["alice", "mallory"]
    assert audited() == [("member.add", "alice")]
    assert api(mallory).get(ACME).status_code == 200


def test_add_anybody_as_a_superuser(root: User, mallory: User, acme: Tenant, api: Api) -> None:
    assert api(root).post(MEMBERS, {"username": "mallory", "roles": ["admin"]}).status_code == 201
    assert api(mallory).get(MEMBERS).status_code == 200


def test_add_a_person_of_another_tenant_is_as_adding_nobody(alice: User, mallory: User, globex: Tenant, api: Api) -> None:
    """INV-01: not even whether there is such a person; nor to a mere member of their tenant."""
    client = api(alice)
    unknown = problem(client.post(MEMBERS, {"username": "nobody", "roles": ["member"]}), 400, "unknown_user")
    assert list(unknown["errors"]) == ["username"]
    assert client.post(MEMBERS, {"username": "mallory", "roles": ["member"]}).json() == unknown
    join(alice, globex, "member", "auditor")
    assert client.post(MEMBERS, {"username": "mallory", "roles": ["member"]}).json() == unknown
    assert audited() == []


@pytest.mark.parametrize("actor", ["alice", "root"])
def test_add_a_service_account_of_another_tenant_is_as_adding_nobody(
    request: pytest.FixtureRequest, alice: User, mallory: User, acme: Tenant, globex: Tenant, api: Api, actor: str
) -> None:
    join(alice, globex, "admin")
    User.objects.filter(pk=mallory.pk).update(service_of=globex, password="!")
    response = api(request.getfixturevalue(actor)).post(MEMBERS, {"username": "mallory", "roles": ["member"]})
    problem(response, 400, "unknown_user")


def test_add_a_member_again_is_a_conflict(alice: User, bob: User, api: Api) -> None:
    for wish in ({"username": "bob"}, {"email": "Bob@example.org"}):
        problem(api(alice).post(MEMBERS, {**wish, "roles": ["admin"]}), 409, "already_member")
    assert Membership.objects.get(user=bob).roles == ["member"]
    assert audited() == []


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"roles": ["member"]}, ["username", "email"]),
        ({"username": "bob", "email": "bob@example.org", "roles": ["member"]}, ["username", "email"]),
        ({"username": "bob"}, ["roles"]),
        ({"username": "bob", "roles": []}, ["roles"]),
        ({"username": "bob", "roles": "admin"}, ["roles"]),
        ({"username": "bob", "roles": None}, ["roles"]),
        ({"username": "bob", "roles": ["Admin"]}, ["roles.0"]),
        ({"username": "bob", "roles": ["member", "a b"]}, ["roles.1"]),
        ({"username": "bob", "roles": [["admin"]]}, ["roles.0"]),
        ({"username": "bob", "roles": ["member\nx"]}, ["roles.0"]),
        ({"username": ["bob"], "roles": ["member"]}, ["username"]),
        ({"username": None, "roles": ["member"]}, ["username"]),
        ({"username": "b" * 151, "roles": ["member"]}, ["username"]),
        ({"email": "bob", "roles": ["member"]}, ["email"]),
        ({"email": None, "roles": ["member"]}, ["email"]),
    ],
)
def test_add_of_a_wrong_shape_names_the_field(alice: User, api: Api, body: dict[str, Any], fields: list[str]) -> None:
    response = api(alice).post(MEMBERS, body)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == fields


@pytest.mark.parametrize("actor", ["bob", "erin", "rita"])
def test_members_are_not_managed_by_others_than_admins(
    request: pytest.FixtureRequest, bob: User, carol: User, api: Api, actor: str
) -> None:
    client = api(request.getfixturevalue(actor))
    problem(client.post(MEMBERS, {"username": "bob", "roles": ["admin"]}), 403, "refused")
    problem(client.patch(member("bob"), {"roles": ["admin"]}), 403, "refused")
    problem(client.delete(member("carol")), 403, "refused")
    assert audited() == []


@pytest.mark.django_db(transaction=True)
def test_add_of_one_person_at_once_is_one_201(root: User, acme: Tenant, api: Api) -> None:
    make_user("dora")
    answers = race([partial(api(root).post, MEMBERS, {"username": "dora", "roles": [role]}) for role in ("admin", "member", "x")])
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    assert len(Membership.objects.get().roles) == 1
    assert audited() == [("member.add", "root")]


# --- Roles ---


def test_roles_are_replaced_and_count_on_the_next_request(alice: User, bob: User, api: Api) -> None:
    """INV-16, upwards and downwards, with the token from before."""
    bobs = api(bob)
    for roles, expected in ((["auditor"], 200), (["member"], 403)):
        response = api(alice).patch(member("bob"), {"roles": roles})
        assert (response.status_code, response.json()["roles"]) == (200, roles)
        assert bobs.get(MEMBERS).status_code == expected
    assert audited() == [("member.update", "alice")] * 2


def test_roles_of_nobody_are_not_found(alice: User, mallory: User, api: Api) -> None:
    for username in ("mallory", "nobody", "BOB"):
        problem(api(alice).patch(member(username), {"roles": ["member"]}), 404, "not_found")
        problem(api(alice).delete(member(username)), 404, "not_found")


@pytest.mark.parametrize("roles", [None, [], "admin", ["Admin"], [7.5]])
def test_roles_of_a_wrong_shape_name_the_field(alice: User, bob: User, api: Api, roles: Any) -> None:
    response = api(alice).patch(member("bob"), {"roles": roles})
    assert response.status_code == 400
    assert next(iter(response.json()["errors"])).startswith("roles")
    assert Membership.objects.get(user=bob).roles == ["member"]


# --- Removing ---


def test_removed_member_is_a_stranger_on_the_next_request(alice: User, bob: User, api: Api) -> None:
    """INV-16."""
    bobs = api(bob)
    assert bobs.get(ACME).status_code == 200
    assert api(alice).delete(member("bob")).status_code == 204
    assert bobs.get(ACME).status_code == 404
    assert bobs.get("/api/v1/me/").json()["tenants"] == []
    assert audited() == [("member.remove", "alice")]
    problem(api(alice).delete(member("bob")), 404, "not_found")


# --- The last admin ---


@pytest.mark.parametrize("actor", ["alice", "root"])
def test_last_admin_is_neither_removed_nor_demoted(
    request: pytest.FixtureRequest, alice: User, bob: User, api: Api, actor: str
) -> None:
    client = api(request.getfixturevalue(actor))
    problem(client.delete(member("alice")), 409, "last_admin")
    problem(client.patch(member("alice"), {"roles": ["member"]}), 409, "last_admin")
    assert client.patch(member("alice"), {"roles": ["admin", "auditor"]}).status_code == 200
    assert Membership.objects.get(user=alice).roles == ["admin", "auditor"]


def test_admin_steps_down_while_another_stays(alice: User, dora: User, api: Api) -> None:
    assert api(alice).patch(member("alice"), {"roles": ["member"]}).status_code == 200
    problem(api(alice).patch(member("alice"), {"roles": ["admin"]}), 403, "refused")
    problem(api(dora).delete(member("dora")), 409, "last_admin")


@pytest.mark.parametrize("changes", [{"is_active": False}, {"service_of": True}], ids=["deactivated", "service account"])
def test_admin_who_cannot_act_is_no_other_admin(alice: User, dora: User, acme: Tenant, api: Api, changes: Any) -> None:
    User.objects.filter(pk=dora.pk).update(**({"service_of": acme, "password": "!"} if "service_of" in changes else changes))
    problem(api(alice).delete(member("alice")), 409, "last_admin")
    assert api(alice).delete(member("dora")).status_code == 204


@pytest.mark.django_db(transaction=True)
def test_two_admins_who_remove_each_other_at_once_leave_one(alice: User, dora: User, api: Api) -> None:
    """Whoever comes second is no admin any more."""
    answers = race([partial(api(alice).delete, member("dora")), partial(api(dora).delete, member("alice"))])
    assert sorted(answer.status_code for answer in answers) == [204, 404]
    assert Membership.objects.filter(roles=["admin"]).count() == 1
    assert AuditEvent.objects.filter(action="member.remove").count() == 1
    assert list(audit.verify()) == []


@pytest.mark.django_db(transaction=True)
def test_admins_who_step_down_at_once_leave_one(alice: User, dora: User, acme: Tenant, api: Api) -> None:
    admins = [alice, dora, make_member(acme, "frank", "admin")]
    answers = race([partial(api(admin).patch, member(admin.username), {"roles": ["member"]}) for admin in admins])
    assert sorted(answer.status_code for answer in answers) == [200, 200, 409]
    assert Membership.objects.filter(roles=["admin"]).count() == 1


@pytest.mark.django_db(transaction=True)
def test_removal_by_several_at_once_is_on_record_once(alice: User, dora: User, bob: User, api: Api) -> None:
    answers = race([partial(api(admin).delete, member("bob")) for admin in (alice, dora)])
    assert sorted(answer.status_code for answer in answers)[0] == 204
    assert {answer.status_code for answer in answers} <= {204, 404, 409}
    assert audited() == [("member.remove", audited()[0][1])]
