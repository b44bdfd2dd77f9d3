"""Sharing: who was given what, what that opens, and what it does not (F-49, F-50, INV-01, INV-14, INV-16)."""

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from files.models import Collection, Grant, Level, StoredFile
from tenants import services
from tenants.models import AuditEvent, Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import Case
from tests.api.worlds import SHARED_NAMES as NAMES
from tests.api.worlds import make_private
from tests.factories import make_member, make_tenant
from tests.worlds import provides_world


Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]


@pytest.fixture
def acme(db: None) -> Tenant:
    return Tenant.objects.filter(slug="acme").first() or make_tenant("acme", new_collections="private")


@pytest.fixture
@provides_world(make_private)
def filled(november: str) -> str:
    return november


def give(client: APIClient, slug: str, filename: str | None = None, *, level: str = "viewer", **subject: Any) -> Any:
    address = paths.grants(slug) if filename is None else paths.file_grants(slug, filename)
    return client.post(address, {**(subject or {"user": "carol"}), "level": level})


def names_of(client: APIClient, slug: str) -> list[str]:
    return sorted(file["filename"] for file in client.get(paths.files(slug)).json()["results"])


# --- What is not shared ---


def test_a_new_collection_is_its_creators_and_the_admins_alone(alice: User, bob: User, carol: User, api: Api, vault: Any) -> None:
    slug = api(bob).post(paths.COLLECTIONS, {"display_name": "Mine"}).json()["id"]
    assert [api(user).get(paths.collection(slug)).json()["my_level"] for user in (alice, bob)] == ["manager"] * 2
    problem(api(carol).get(paths.collection(slug)), 404, "not_found")
    assert api(carol).get(paths.COLLECTIONS).json()["results"] == []


def test_a_tenant_may_share_new_collections_with_all_members(
    alice: User, carol: User, acme: Tenant, api: Api, put: Put, case: Case
) -> None:
    for setting, status in [("viewer", 403), ("editor", 201)]:
        with case(setting, status):
            before = api(alice).post(paths.COLLECTIONS, {"display_name": "Before"}).json()["id"]
            Tenant.objects.update(new_collections=setting)
            slug = api(alice).post(paths.COLLECTIONS, {"display_name": "After"}).json()["id"]
            put(api(alice), slug, "later.csv", b"added later")
            assert api(carol).get(paths.collection(slug)).json()["my_level"] == setting
            assert b"".join(api(carol).get(paths.content(slug, "later.csv"))) == b"added later"
            assert put(api(carol), slug, "mine.csv").status_code == status
            problem(api(carol).get(paths.collection(before)), 404, "not_found")


# --- A collection ---


def test_a_grant_on_a_collection_opens_all_of_it_on_its_level(
    alice: User, carol: User, filled: str, api: Api, case: Case
) -> None:
    for level, actions in [
        ("viewer", ["archive"]),
        ("editor", ["archive", "upload"]),
        ("manager", ["archive", "upload", "update", "share", "delete"]),
    ]:
        with case(level, actions):
            given = give(api(alice), filled, level=level)
            assert given.status_code == 201
            grant = given.json()
            assert {name: grant[name] for name in grant if name not in {"id", "created_at"}} == {
                "collection": filled,
                "file": None,
                "user": "carol",
                "everyone": False,
                "is_external": False,
                "level": level,
                "created_by": "alice",
            }
            assert api(alice).get(given["Location"]).json() == grant
            shown = api(carol).get(paths.collection(filled)).json()
            assert (shown["my_level"], shown["allowed_actions"], shown["file_count"]) == (level, actions, 3)
            assert [each["id"] for each in api(carol).get(paths.COLLECTIONS).json()["results"]] == [filled]
            assert names_of(api(carol), filled) == sorted(NAMES)
            assert audited("grant.create") == [("grant.create", "alice")]
            facts = json.loads(AuditEvent.objects.get(action="grant.create").body)["facts"]
            expected = {"grant": grant["id"], "subject": "carol", "level": level, "before": None, "is_external": False}
            assert facts == expected


def test_a_grant_given_again_is_changed(alice: User, carol: User, filled: str, api: Api) -> None:
    first = give(api(alice), filled, level="manager")
    again = give(api(alice), filled, level="viewer")
    assert (first.status_code, again.status_code, again.json()["id"]) == (201, 200, first.json()["id"])
    assert api(carol).get(paths.collection(filled)).json()["my_level"] == "viewer"
    assert give(api(alice), filled, level="viewer").status_code == 200
    assert audited("grant.update") == [("grant.update", "alice")]  # what changes nothing is no event


def test_a_grant_to_everyone_is_for_members_alone(
    alice: User, carol: User, erin: User, rita: User, mallory: User, filled: str, api: Api
) -> None:
    assert give(api(alice), filled, everyone=True, level="editor").json()["everyone"] is True
    levels = [api(user).get(paths.collection(filled)).json().get("my_level") for user in (carol, erin, rita, mallory)]
    assert levels == ["editor", "metadata", None, None]


def test_the_highest_level_wins_and_no_grant_takes_away(alice: User, carol: User, filled: str, api: Api) -> None:
    give(api(alice), filled, everyone=True, level="editor")
    give(api(alice), filled, level="viewer")
    give(api(alice), filled, NAMES[0], level="manager")
    give(api(alice), filled, NAMES[1], level="viewer")
    assert api(carol).get(paths.collection(filled)).json()["my_level"] == "editor"
    shown = {file["filename"]: file["my_level"] for file in api(carol).get(paths.files(filled)).json()["results"]}
    assert shown == {NAMES[0]: "manager", NAMES[1]: "editor", NAMES[2]: "editor"}
    assert api(carol).get(paths.file(filled, NAMES[0])).json()["allowed_actions"] == ["download", "update", "delete", "share"]


def test_a_revoked_grant_opens_nothing_from_the_next_request_on(alice: User, carol: User, filled: str, api: Api) -> None:
    client, grant = api(carol), give(api(alice), filled)
    link = client.post(paths.download(filled, NAMES[0])).json()["url"]
    assert client.get(paths.collection(filled)).status_code == 200
    assert api(alice).delete(grant["Location"]).status_code == 204
    problem(client.get(paths.collection(filled)), 404, "not_found")
    problem(client.get(link), 404, "not_found")
    problem(api(alice).delete(grant["Location"]), 404, "not_found")
    assert audited("grant.revoke") == [("grant.revoke", "alice")]


def test_a_manager_shares_and_an_editor_does_not(alice: User, bob: User, carol: User, filled: str, api: Api) -> None:
    give(api(alice), filled, user="bob", level="editor")
    problem(give(api(bob), filled), 403, "refused")
    problem(api(bob).get(paths.grants(filled)), 403, "refused")
    give(api(alice), filled, user="bob", level="manager")
    assert give(api(bob), filled).status_code == 201
    assert [grant["user"] for grant in api(bob).get(paths.grants(filled)).json()["results"]] == ["carol", "bob", "alice"]


# --- One file ---


def test_a_grant_on_a_file_shows_the_name_of_its_collection_and_that_file_alone(
    alice: User, carol: User, filled: str, api: Api, put: Put
) -> None:
    give(api(alice), filled, NAMES[0], level="editor")
    client = api(carol)
    shown = client.get(paths.collection(filled)).json()
    assert (shown["display_name"], shown["my_level"], shown["allowed_actions"]) == ("November 2012", "name", [])
    hidden = ["file_count", "total_length", "created_by", "purge_at", "egress_status"]
    assert [shown[name] for name in hidden] == [None] * 5
    assert client.get(paths.COLLECTIONS).json()["results"] == [shown]
    assert names_of(client, filled) == [NAMES[0]]
    problem(client.get(paths.file(filled, NAMES[1])), 404, "not_found")
    with zipfile.ZipFile(io.BytesIO(b"".join(client.get(paths.archive(filled))))) as archive:
        assert archive.namelist() == [NAMES[0]]
    problem(client.get(f"{paths.archive(filled)}?file={NAMES[0]}&file={NAMES[1]}"), 404, "not_found")
    link = client.post(paths.archive_link(filled)).json()["url"]
    with zipfile.ZipFile(io.BytesIO(b"".join(client.get(link)))) as archive:
        assert archive.namelist() == [NAMES[0]]


def test_who_edits_a_file_replaces_it_and_learns_no_other_name(alice: User, carol: User, filled: str, api: Api, put: Put) -> None:
    give(api(alice), filled, NAMES[0], level="editor")
    client = api(carol)
    etag = client.get(paths.file(filled, NAMES[0]))["ETag"]
    assert put(client, filled, NAMES[0], b"corrected", if_match=etag).json()["my_level"] == "editor"
    assert client.patch(paths.file(filled, NAMES[0]), {"notes": "corrected"}).status_code == 200
    taken, free = (put(client, filled, name, b"x") for name in (NAMES[1], "free.csv"))
    assert (taken.status_code, taken.content) == (403, free.content)
    for name in (NAMES[1], "free.csv"):
        problem(client.patch(paths.file(filled, NAMES[0]), {"filename": name}), 403, "refused")
    problem(client.post(paths.files(filled), {"file": io.BytesIO(b"x")}, format="multipart"), 403, "refused")
    assert StoredFile.objects.count() == 3


def test_who_manages_a_file_shares_it_and_nothing_else(alice: User, bob: User, carol: User, filled: str, api: Api) -> None:
    give(api(alice), filled, NAMES[0], user="bob", level="manager")
    given = give(api(bob), filled, NAMES[0])
    assert given.status_code == 201
    assert names_of(api(carol), filled) == [NAMES[0]]
    problem(give(api(bob), filled), 403, "refused")
    problem(give(api(bob), filled, NAMES[1]), 404, "not_found")
    on_all = give(api(alice), filled).json()["id"]
    problem(api(bob).delete(paths.file_grants(filled, NAMES[0]) + f"{on_all}/"), 404, "not_found")
    assert api(bob).delete(given["Location"]).status_code == 204


def test_grants_stay_with_a_file_that_is_replaced_and_go_with_one_that_is_deleted(
    alice: User, carol: User, filled: str, api: Api, put: Put
) -> None:
    give(api(alice), filled, NAMES[0])
    put(api(alice), filled, NAMES[0], b"replaced", if_match=api(alice).get(paths.file(filled, NAMES[0]))["ETag"])
    assert b"".join(api(carol).get(paths.content(filled, NAMES[0]))) == b"replaced"
    api(alice).delete(paths.file(filled, NAMES[0]))
    put(api(alice), filled, NAMES[0], b"another of the name")
    problem(api(carol).get(paths.content(filled, NAMES[0])), 404, "not_found")
    problem(api(carol).get(paths.collection(filled)), 404, "not_found")


# --- To whom ---


def test_somebody_of_another_tenant_is_as_unknown_as_somebody_who_is_not(
    alice: User, mallory: User, filled: str, api: Api
) -> None:
    make_member(Tenant.objects.get(slug="acme"), "ivan", "member")
    User.objects.filter(username="ivan").update(is_active=False)
    unknown = give(api(alice), filled, user="nobody")
    assert list(problem(unknown, 400, "unknown_user")["errors"]) == ["user"]
    assert [give(api(alice), filled, user=name).content for name in ("mallory", "ivan", "root")] == [unknown.content] * 3
    assert Grant.objects.count() == 1
    assert audited("grant.create") == []


def test_a_role_without_access_is_granted_none(erin: User, rita: User, alice: User, filled: str, api: Api, case: Case) -> None:
    for who in (erin, rita):
        with case(who.username):
            problem(give(api(alice), filled, user=who.username), 400, "role_without_access")


def test_a_grant_that_makes_no_sense_is_400(alice: User, carol: User, filled: str, api: Api, case: Case) -> None:
    for body, field in [
        ({"level": "viewer"}, "user"),
        ({"user": "carol", "everyone": True, "level": "viewer"}, "user"),
        ({"everyone": False, "level": "viewer"}, "user"),
        ({"user": "carol"}, "level"),
        ({"user": "carol", "level": "name"}, "level"),
        ({"user": "carol", "level": "metadata"}, "level"),
        ({"user": "carol", "level": 5}, "level"),
        ({"user": "carol", "level": None}, "level"),
        ({"user": ["carol"], "level": "viewer"}, "user"),
        ({"user": "", "level": "viewer"}, "user"),
        ({"user": "c" * 151, "level": "viewer"}, "user"),
    ]:
        with case(body, field):
            answer = api(alice).post(paths.grants(filled), body)
            assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])


def test_a_member_who_left_has_nothing_and_gets_nothing_back(
    alice: User, carol: User, acme: Tenant, filled: str, api: Api
) -> None:
    """Not even where the tenant shares with others: what was given to a member goes with the membership."""
    Tenant.objects.update(allow_external_sharing=True)
    give(api(alice), filled)
    give(api(alice), filled, NAMES[0])
    membership, now = Membership.objects.get(user=carol), timezone.now()
    services.remove_member(membership=membership, by=alice, now=now)
    problem(api(carol).get(paths.collection(filled)), 404, "not_found")
    services.add_member(tenant=acme, user=carol, roles=["member"], by=alice, now=now)
    problem(api(carol).get(paths.collection(filled)), 404, "not_found")


def test_grants_sleep_while_their_holder_is_no_member_by_role(alice: User, carol: User, filled: str, api: Api) -> None:
    give(api(alice), filled)
    Membership.objects.filter(user=carol).update(roles=["research_it"])
    problem(api(carol).get(paths.collection(filled)), 404, "not_found")
    Membership.objects.filter(user=carol).update(roles=["research_it", "member"])
    assert api(carol).get(paths.collection(filled)).status_code == 200


# --- Across tenants ---


@pytest.fixture
def shared(alice: User, mallory: User, filled: str, api: Api) -> str:
    """The address of mallory's grant."""
    Tenant.objects.filter(slug="acme").update(allow_external_sharing=True)
    given = give(api(alice), filled, user="mallory")
    assert (given.status_code, given.json()["is_external"]) == (201, True)
    return str(given["Location"])


def test_a_tenant_may_share_with_people_of_others(mallory: User, erin: User, filled: str, shared: str, api: Api) -> None:
    client = api(mallory)
    assert client.get(paths.collection(filled)).json()["my_level"] == "viewer"
    assert b"".join(client.get(paths.content(filled, NAMES[0]))) == NAMES[0].encode()
    listed = api(erin).get("/api/v1/tenants/acme/grants/?external=true").json()["results"]
    assert [(grant["user"], grant["collection"], grant["level"]) for grant in listed] == [("mallory", filled, "viewer")]
    assert json.loads(AuditEvent.objects.get(action="grant.create").body)["facts"]["is_external"] is True
    assert AuditEvent.objects.get(action="file.download").actor == "mallory"
    problem(client.get("/api/v1/tenants/acme/grants/"), 404, "not_found")
    problem(client.post(paths.COLLECTIONS, {"display_name": "Here", "tenant": "acme"}), 400, "unknown_tenant")


def test_access_from_another_tenant_ends_when_the_owner_says_so(
    mallory: User, filled: str, shared: str, api: Api, case: Case
) -> None:
    for change in [{"allow_external_sharing": False}, {"is_active": False}]:
        with case(change):
            link = api(mallory).post(paths.download(filled, NAMES[0])).json()["url"]
            Tenant.objects.filter(slug="acme").update(**change)
            problem(api(mallory).get(paths.collection(filled)), 404, "not_found")
            problem(api(mallory).get(link), 404, "not_found")
            assert api(mallory).get(paths.COLLECTIONS).json()["results"] == []


def test_access_from_another_tenant_ends_with_its_grant(alice: User, mallory: User, filled: str, shared: str, api: Api) -> None:
    assert api(alice).delete(shared).status_code == 204
    problem(api(mallory).get(paths.collection(filled)), 404, "not_found")


def test_what_is_given_to_everyone_is_for_nobody_of_another_tenant(alice: User, mallory: User, filled: str, api: Api) -> None:
    Tenant.objects.update(allow_external_sharing=True)
    give(api(alice), filled, everyone=True)
    problem(api(mallory).get(paths.collection(filled)), 404, "not_found")


def test_who_is_here_for_decisions_alone_is_granted_nothing_from_outside(
    alice: User, mallory: User, acme: Tenant, filled: str, shared: str, api: Api
) -> None:
    """A stage role and access to collections stay apart, whichever came first."""
    services.add_member(tenant=acme, user=mallory, roles=["research_it"], by=alice, now=timezone.now())
    problem(api(mallory).get(paths.collection(filled)), 404, "not_found")


# --- Auditors ---


def test_an_auditor_sees_everything_but_bytes(alice: User, erin: User, filled: str, api: Api) -> None:
    client = api(erin)
    shown = client.get(paths.collection(filled)).json()
    assert (shown["my_level"], shown["allowed_actions"], shown["file_count"]) == ("metadata", [], 3)
    assert names_of(client, filled) == sorted(NAMES)
    assert [grant["user"] for grant in client.get(paths.grants(filled)).json()["results"]] == ["alice"]
    for answer in (
        client.get(paths.content(filled, NAMES[0])),
        client.head(paths.content(filled, NAMES[0])),
        client.get(paths.preview(filled, NAMES[0])),
        client.post(paths.download(filled, NAMES[0])),
        client.get(paths.archive(filled)),
        client.get(f"{paths.archive(filled)}?file={NAMES[0]}"),
        client.post(paths.archive_link(filled)),
    ):
        assert answer.status_code == 403
    assert audited("file.download") == []


# --- Lists ---


def test_grants_are_listed_newest_first_and_filtered(
    alice: User, bob: User, carol: User, filled: str, api: Api, case: Case
) -> None:
    give(api(alice), filled, user="bob", level="editor")
    give(api(alice), filled, NAMES[0])
    give(api(alice), filled, NAMES[1], everyone=True)
    for query, users in [
        ("", [None, "carol", "bob", "alice"]),
        ("?user=carol", ["carol"]),
        ("?user=nobody", []),
        ("?everyone=true", [None]),
        ("?everyone=false", ["carol", "bob", "alice"]),
        ("?level=editor", ["bob"]),
        ("?external=true", []),
        ("?external=false", [None, "carol", "bob", "alice"]),
    ]:
        with case(query, users):
            for address in (paths.grants(filled), "/api/v1/tenants/acme/grants/"):
                assert [grant["user"] for grant in api(alice).get(address + query).json()["results"]] == users
    page = api(alice).get(f"{paths.grants(filled)}?page_size=3").json()
    assert len(page["results"] + api(alice).get(page["next"]).json()["results"]) == 4
    assert [grant["file"] for grant in api(alice).get(paths.file_grants(filled, NAMES[0])).json()["results"]] == [NAMES[0]]


def test_a_filter_that_means_nothing_is_400(alice: User, filled: str, api: Api, case: Case) -> None:
    for query in ["level=name", "level=5", "everyone=maybe", "external=2", "page_size=0", "cursor=x"]:
        with case(query):
            for address in (paths.grants(filled), "/api/v1/tenants/acme/grants/"):
                answer = api(alice).get(f"{address}?{query}")
                assert (answer.status_code, list(answer.json().get("errors", {}))) == (400, [query.partition("=")[0]])


def test_lists_and_details_take_a_query_more_for_nobody(
    alice: User, carol: User, filled: str, api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    client = api(carol)

    def ask() -> None:
        for address, queries in (
            (paths.COLLECTIONS, 3),
            (paths.files(filled), 5),
            (paths.collection(filled), 4),
            (paths.file(filled, NAMES[0]), 5),
        ):
            with django_assert_num_queries(queries):
                assert client.get(address).status_code == 200

    give(api(alice), filled, NAMES[0])
    ask()
    for number in range(5):
        slug = api(alice).post(paths.COLLECTIONS, {"display_name": f"Number {number}"}).json()["id"]
        give(api(alice), slug)
        give(api(alice), slug, everyone=True)
    for name in NAMES:
        give(api(alice), filled, name, level="editor")
        give(api(alice), filled, name, everyone=True)
    ask()


# --- What the database refuses ---


def test_the_database_keeps_one_grant_for_each_subject_and_target(carol: User, filled: str, case: Case) -> None:
    def insert(user: User | None, file: StoredFile | None) -> None:
        collection, now = Collection.objects.get(), timezone.now()
        Grant.objects.create(
            tenant=collection.tenant, collection=collection, file=file, user=user, level=Level.VIEWER, created_at=now
        )

    for user in (carol, None):
        for file in (None, StoredFile.objects.first()):
            with case(user, file):
                insert(user, file)
                with pytest.raises(IntegrityError), transaction.atomic():
                    insert(user, file)


def test_the_database_refuses_a_grant_that_makes_no_sense(carol: User, filled: str, case: Case) -> None:
    cases: list[dict[str, Any]] = [{"level": Level.NAME}, {"level": 9}, {"of_everyone": True}]
    for wrong in cases:
        with case(wrong):
            membership = Membership.objects.get(user=carol) if wrong.get("of_everyone") else None
            with pytest.raises(IntegrityError), transaction.atomic():
                Grant.objects.create(
                    id=uuid4(),
                    tenant=Tenant.objects.get(slug="acme"),
                    collection=Collection.objects.get(),
                    user=None,
                    membership=membership,
                    level=wrong.get("level", Level.VIEWER),
                    created_at=timezone.now(),
                )
