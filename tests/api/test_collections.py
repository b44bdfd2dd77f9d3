"""GET and POST collections/, GET, PATCH and DELETE collections/{id}/, POST …/restore/."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from files.models import Collection
from tenants import services
from tenants.models import Membership, Tenant, User
from tests.api import paths
from tests.api.answers import audited, problem
from tests.api.cases import Case
from tests.api.vault import WatchedStore
from tests.factories import make_member


pytestmark = pytest.mark.usefixtures("vault")
Api = Callable[[User | None], APIClient]
Put = Callable[..., Any]


def create(client: APIClient, display_name: str, **fields: Any) -> Any:
    return client.post(paths.COLLECTIONS, {"display_name": display_name, **fields})


def names(client: APIClient, **query: str) -> list[str]:
    answer = client.get(paths.COLLECTIONS, query)
    assert answer.status_code == 200, answer.json()
    return [found["display_name"] for found in answer.json()["results"]]


# --- Create ---


def test_create_answers_with_the_collection_and_its_location(alice: User, api: Api) -> None:
    answer = create(api(alice), "November 2012", tenant="acme", purge_at="2099-01-01T00:00:00Z")

    assert answer.status_code == 201
    made = answer.json()
    base = f"http://testserver/api/v1/collections/{made['id']}/"
    assert answer["Location"] == base
    assert made["id"].startswith("november-2012-")
    assert made["links"] == {"self": base, "files": f"{base}files/", "archive": f"{base}archive.zip"}
    assert abs(datetime.fromisoformat(made["created_at"]) - timezone.now()) < timedelta(minutes=1)
    assert {name: made[name] for name in made if name not in {"id", "links", "created_at"}} == {
        "tenant": "acme",
        "display_name": "November 2012",
        "status": "open",
        "egress_status": "none",
        "cipher": "AES-GCM",
        "purge_at": "2099-01-01T00:00:00.000000Z",
        "created_by": "alice",
        "deleted_at": None,
        "file_count": 0,
        "total_length": 0,
        "is_held": False,
        "my_level": "manager",
        "allowed_actions": ["archive", "upload", "update", "share", "delete"],
    }
    assert api(alice).get(paths.collection(made["id"])).json() == made
    assert audited() == [("collection.create", "alice")]


def test_create_by_a_member_makes_a_collection_that_they_and_the_admin_manage(bob: User, alice: User, api: Api) -> None:
    made = create(api(bob), "Mine").json()
    assert (made["my_level"], made["created_by"]) == ("manager", "bob")
    assert api(alice).get(paths.collection(made["id"])).json()["my_level"] == "manager"


def test_create_without_a_tenant_by_who_is_in_several_is_400(alice: User, globex: Tenant, api: Api) -> None:
    Membership.objects.create(user=alice, tenant=globex, roles=["member"], created_at=timezone.now())
    refused = problem(create(api(alice), "November"), 400, "required")
    assert list(refused["errors"]) == ["tenant"]
    assert create(api(alice), "November", tenant="globex").json()["tenant"] == "globex"


def test_create_by_somebody_whose_role_keeps_no_files_is_403(erin: User, rita: User, api: Api, case: Case) -> None:
    for who in (erin, rita):
        with case(who.username):
            problem(create(api(who), "November", tenant="acme"), 403, "refused")
            assert not Collection.objects.exists()
            assert audited() == []


def test_create_by_a_superuser_without_a_role_is_403(root: User, acme: Tenant, api: Api) -> None:
    problem(create(api(root), "November", tenant="acme"), 403, "refused")
    problem(create(api(root), "November"), 400, "required")


def test_create_in_a_foreign_tenant_is_what_it_is_in_an_unknown_one(mallory: User, acme: Tenant, api: Api) -> None:
    foreign = create(api(mallory), "November", tenant="acme")
    unknown = create(api(mallory), "November", tenant="nobody")
    problem(foreign, 400, "unknown_tenant")
    assert foreign.content == unknown.content


def test_create_in_a_suspended_tenant_is_what_it_is_in_an_unknown_one(alice: User, acme: Tenant, api: Api) -> None:
    client = api(alice)
    acme.is_active = False
    acme.save()
    assert create(client, "November", tenant="acme").content == create(client, "November", tenant="nobody").content


def test_create_with_a_taken_name_is_409_in_the_tenant_alone(alice: User, mallory: User, api: Api) -> None:
    create(api(alice), "November")
    problem(create(api(alice), "November"), 409, "name_taken")
    assert create(api(mallory), "November").status_code == 201
    assert sorted(audited()) == [("collection.create", "alice"), ("collection.create", "mallory")]


def test_create_with_the_name_of_a_deleted_collection_is_409(alice: User, november: str, api: Api) -> None:
    api(alice).delete(paths.collection(november))
    problem(create(api(alice), "November 2012"), 409, "name_taken")


def test_create_takes_the_retention_of_the_tenant_unless_it_is_told(alice: User, acme: Tenant, api: Api) -> None:
    acme.default_retention_days = 30
    acme.save()
    kept = datetime.fromisoformat(create(api(alice), "Kept").json()["purge_at"])
    assert abs(kept - timezone.now() - timedelta(days=30)) < timedelta(minutes=1)
    told = create(api(alice), "Told", purge_at="2050-01-01T00:00:00Z").json()
    assert told["purge_at"] == "2050-01-01T00:00:00.000000Z"


def test_create_takes_the_ciphers_that_the_tenant_allows(alice: User, acme: Tenant, api: Api, case: Case) -> None:
    for default in ["AES-GCM", "NONE"]:
        with case(default):
            refused = problem(create(api(alice), "Plain", cipher="NONE"), 400, "cipher_not_allowed")
            assert list(refused["errors"]) == ["cipher"]
            acme.allowed_ciphers = ["AES-GCM", "NONE"]
            acme.save()
            assert create(api(alice), "Chosen", cipher=default).json()["cipher"] == default


PAST = "2020-01-01T00:00:00Z"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no-name": ({}, "display_name"),
    "name-null": ({"display_name": None}, "display_name"),
    "name-empty": ({"display_name": ""}, "display_name"),
    "name-of-spaces": ({"display_name": "   "}, "display_name"),
    "name-too-long": ({"display_name": "x" * 201}, "display_name"),
    "name-of-two-lines": ({"display_name": "a\nb"}, "display_name"),
    "name-with-escape": ({"display_name": "\x1b[31mred"}, "display_name"),
    "name-that-turns-the-text-around": ({"display_name": "a\u202eb"}, "display_name"),
    "name-a-list": ({"display_name": ["a"]}, "display_name"),
    "name-an-object": ({"display_name": {}}, "display_name"),
    "name-true": ({"display_name": True}, "display_name"),
    "tenant-null": ({"display_name": "a", "tenant": None}, "tenant"),
    "tenant-empty": ({"display_name": "a", "tenant": ""}, "tenant"),
    "tenant-a-list": ({"display_name": "a", "tenant": ["acme"]}, "tenant"),
    "tenant-too-long": ({"display_name": "a", "tenant": "a" * 51}, "tenant"),
    "cipher-unknown": ({"display_name": "a", "cipher": "ROT13"}, "cipher"),
    "cipher-null": ({"display_name": "a", "cipher": None}, "cipher"),
    "cipher-a-list": ({"display_name": "a", "cipher": ["AES-GCM"]}, "cipher"),
    "purge-at-past": ({"display_name": "a", "purge_at": PAST}, "purge_at"),
    "purge-at-a-word": ({"display_name": "a", "purge_at": "tomorrow"}, "purge_at"),
    "purge-at-a-number": ({"display_name": "a", "purge_at": 4070908800}, "purge_at"),
    "purge-at-no-day": ({"display_name": "a", "purge_at": "2099-02-30T00:00:00Z"}, "purge_at"),
    "purge-at-before-years": ({"display_name": "a", "purge_at": "0001-01-01T00:00:00+14:00"}, "purge_at"),
    "purge-at-after-years": ({"display_name": "a", "purge_at": "9999-12-31T23:59:59-14:00"}, "purge_at"),
}


def test_create_with_a_bad_value_is_400_and_names_the_field(alice: User, api: Api, case: Case) -> None:
    for name_of_case, (body, field) in BAD.items():
        with case(name_of_case):
            answer = api(alice).post(paths.COLLECTIONS, body)
            assert answer.status_code == 400
            assert list(problem(answer, 400, answer.json()["code"])["errors"]) == [field]
            assert not Collection.objects.exists()


def test_create_keeps_a_name_as_it_is_and_makes_an_id_of_what_addresses_hold(alice: User, api: Api, case: Case) -> None:
    for name in ["Zoë's Übung: 50 %", "名前", "🙂🙂", "-", "a/b", "<script>", "x" * 200, "'; drop table"]:
        with case(name):
            made = create(api(alice), name).json()
            assert made["display_name"] == name
            assert made["id"].replace("-", "").isalnum()
            assert made["id"].isascii()
            assert len(made["id"]) <= 80
            assert api(alice).get(made["links"]["self"]).json()["display_name"] == name


def test_create_ignores_what_the_server_decides(alice: User, api: Api) -> None:
    body = {"id": "mine", "slug": "mine", "uuid": "0" * 32, "status": "purging", "file_count": 7, "created_by": "root"}
    made = create(api(alice), "November", **body).json()
    assert made["id"].startswith("november-")
    assert (made["status"], made["file_count"], made["created_by"]) == ("open", 0, "alice")


def test_create_draws_another_id_when_a_foreign_collection_has_it(
    alice: User, mallory: User, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("2222" + "2222" + "3333")
    monkeypatch.setattr("secrets.choice", lambda _: next(drawn))
    assert create(api(alice), "November").json()["id"] == "november-2222"
    assert create(api(mallory), "November").json()["id"] == "november-3333"
    monkeypatch.setattr("secrets.choice", lambda _: "2")
    problem(create(api(mallory), "November!"), 503, "unavailable")
    problem(create(api(mallory), "November"), 409, "name_taken")


# --- List ---


def test_list_shows_what_i_can_read_newest_first(
    alice: User, bob: User, erin: User, rita: User, mallory: User, root: User, api: Api
) -> None:
    create(api(alice), "First")
    create(api(bob), "Second")
    create(api(mallory), "Theirs")
    assert names(api(alice)) == names(api(bob)) == names(api(erin)) == ["Second", "First"]
    assert names(api(mallory)) == ["Theirs"]
    assert names(api(rita)) == names(api(root)) == []
    problem(api(None).get(paths.COLLECTIONS), 401, "not_authenticated")


def test_list_shows_my_level_in_each_tenant(alice: User, globex: Tenant, mallory: User, api: Api) -> None:
    create(api(alice), "Here")
    create(api(mallory), "There")
    Membership.objects.create(user=alice, tenant=globex, roles=["member", "auditor"], created_at=timezone.now())
    found = api(alice).get(paths.COLLECTIONS).json()["results"]
    assert {each["display_name"]: each["my_level"] for each in found} == {"Here": "manager", "There": "editor"}


def test_list_leaves_out_deleted_collections(alice: User, november: str, api: Api) -> None:
    api(alice).delete(paths.collection(november))
    assert names(api(alice)) == []
    api(alice).post(paths.restore(november))
    assert names(api(alice)) == ["November 2012"]


def test_list_takes_as_many_queries_for_many(
    alice: User, api: Api, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client = api(alice)
    for number in range(10):
        create(client, f"Collection {number}")
    with django_assert_max_num_queries(4):
        assert len(names(client)) == 10


def test_list_pages_through_everything_once_in_both_directions(alice: User, november: str, api: Api) -> None:
    client = api(alice)
    for number in range(6):
        create(client, f"Collection {number}")
    pages, address = [], f"{paths.COLLECTIONS}?page_size=3"
    while address:
        page = client.get(address).json()
        assert set(page) == {"next", "previous", "results"}
        pages.append(page)
        address = page["next"]
    assert [len(page["results"]) for page in pages] == [3, 3, 1]
    assert [found["display_name"] for page in pages for found in page["results"]] == names(client)
    assert pages[0]["previous"] is None
    back = client.get(pages[2]["previous"]).json()
    assert back["results"] == pages[1]["results"]


def test_list_shows_nothing_of_a_tenant_that_i_left_between_two_pages(bob: User, alice: User, api: Api) -> None:
    for number in range(4):
        create(api(alice), f"Collection {number}")
    client = api(bob)
    following = client.get(paths.COLLECTIONS, {"page_size": "2"}).json()["next"]
    services.remove_member(membership=Membership.objects.get(user=bob), by=None, now=timezone.now())
    assert client.get(following).json()["results"] == []


# --- Details ---


def test_details_show_count_and_length_of_the_files(bob: User, november: str, put: Put, api: Api) -> None:
    client = api(bob)
    put(client, november, "a.txt", b"12345")
    put(client, november, "b.txt", b"")
    shown = client.get(paths.collection(november)).json()
    assert (shown["file_count"], shown["total_length"]) == (2, 5)


def test_a_collection_that_is_not_mine_looks_like_one_that_is_not_there(
    mallory: User, rita: User, root: User, november: str, api: Api, case: Case
) -> None:
    for method in ["get", "head", "patch", "delete"]:
        for who in (mallory, rita, root):
            with case(method, who.username):
                client = api(who)
                foreign = getattr(client, method)(paths.collection(november))
                unknown = getattr(client, method)(paths.collection("november-2012-zzzz"))
                assert foreign.status_code == 404
                assert foreign.content == unknown.content
                assert {name: value for name, value in foreign.items() if name != "X-Request-ID"} == {
                    name: value for name, value in unknown.items() if name != "X-Request-ID"
                }
                assert Collection.objects.get().status == "open"


def test_a_collection_of_a_suspended_tenant_looks_like_one_that_is_not_there(
    alice: User, acme: Tenant, november: str, api: Api
) -> None:
    client = api(alice)
    assert client.get(paths.collection(november)).status_code == 200
    acme.is_active = False
    acme.save()
    assert client.get(paths.collection(november)).content == client.get(paths.collection("nothing")).content
    assert names(client) == []
    acme.is_active = True
    acme.save()
    assert client.get(paths.collection(november)).status_code == 200


def test_a_collection_is_401_without_a_token_whether_it_is_there_or_not(november: str, api: Api, case: Case) -> None:
    for method in ["get", "patch", "delete"]:
        with case(method):
            there = getattr(api(None), method)(paths.collection(november))
            problem(there, 401, "not_authenticated")
            assert there["WWW-Authenticate"] == 'Bearer realm="strongroom"'
            assert there.content == getattr(api(None), method)(paths.collection("nothing")).content


def test_a_collection_is_401_to_who_was_deactivated(bob: User, november: str, api: Api) -> None:
    client = api(bob)
    assert client.get(paths.collection(november)).status_code == 200
    bob.is_active = False
    services.update(bob, changed=["is_active"], by=None, now=timezone.now())
    problem(client.get(paths.collection(november)), 401, "invalid_token")


def test_a_change_of_roles_counts_on_the_next_request(bob: User, november: str, api: Api) -> None:
    client, membership, now = api(bob), Membership.objects.get(user=bob), timezone.now()

    def level() -> str | None:
        answer = client.get(paths.collection(november))
        return answer.json()["my_level"] if answer.status_code == 200 else None

    assert level() == "editor"
    services.set_roles(membership=membership, roles=["admin"], by=None, now=now)
    assert level() == "manager"
    services.set_roles(membership=membership, roles=["auditor"], by=None, now=now)
    assert level() == "metadata"
    services.set_roles(membership=membership, roles=["research_it"], by=None, now=now)
    assert level() is None
    services.set_roles(membership=membership, roles=["auditor", "member"], by=None, now=now)
    assert level() == "editor"
    services.remove_member(membership=membership, by=None, now=now)
    assert level() is None


# --- Update ---


def test_update_changes_name_and_date_and_leaves_the_rest(alice: User, november: str, api: Api) -> None:
    client = api(alice)
    before = client.get(paths.collection(november)).json()
    changed = client.patch(paths.collection(november), {"display_name": "December"})
    assert changed.status_code == 200
    assert changed.json() == {**before, "display_name": "December"}
    dated = client.patch(paths.collection(november), {"purge_at": "2099-01-01T00:00:00+02:00"}).json()
    assert dated == {**before, "display_name": "December", "purge_at": "2098-12-31T22:00:00.000000Z"}
    assert client.patch(paths.collection(november), {"purge_at": None}).json()["purge_at"] is None
    assert audited("collection.update") == [("collection.update", "alice")] * 3


def test_update_that_changes_nothing_is_not_audited(alice: User, november: str, api: Api, case: Case) -> None:
    for body in [{}, {"display_name": "November 2012"}, {"status": "deleted"}, {"id": "mine", "cipher": "NONE"}]:
        with case(body):
            before = api(alice).get(paths.collection(november)).json()
            assert api(alice).patch(paths.collection(november), body).json() == before
            assert audited("collection.update") == []


def test_update_with_a_bad_value_is_400(alice: User, november: str, api: Api, case: Case) -> None:
    for body, field in [
        ({"display_name": ""}, "display_name"),
        ({"display_name": None}, "display_name"),
        ({"display_name": "a\x07"}, "display_name"),
        ({"purge_at": PAST}, "purge_at"),
        ({"purge_at": "soon"}, "purge_at"),
    ]:
        with case(body, field):
            answer = api(alice).patch(paths.collection(november), body)
            assert list(problem(answer, 400, answer.json()["code"])["errors"]) == [field]


def test_update_to_a_taken_name_is_409(alice: User, november: str, api: Api) -> None:
    create(api(alice), "December")
    problem(api(alice).patch(paths.collection(november), {"display_name": "December"}), 409, "name_taken")
    assert names(api(alice)) == ["December", "November 2012"]


def test_update_by_an_editor_is_403_and_changes_nothing(bob: User, november: str, api: Api) -> None:
    problem(api(bob).patch(paths.collection(november), {"display_name": "December"}), 403, "refused")
    assert names(api(bob)) == ["November 2012"]
    assert audited("collection.update") == []


# --- Delete and restore ---


def test_delete_makes_everything_unreadable_at_once(alice: User, bob: User, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "a.txt", b"12345")
    deleted = api(alice).delete(paths.collection(november))
    assert deleted.status_code == 202
    shown = deleted.json()
    assert (shown["status"], shown["allowed_actions"]) == ("deleted", ["restore"])
    assert shown["deleted_at"]
    assert api(alice).get(paths.collection(november)).json() == shown
    problem(api(bob).get(paths.collection(november)), 404, "not_found")
    for client in (api(alice), api(bob)):
        for address in (
            paths.files(november),
            paths.file(november, "a.txt"),
            paths.content(november, "a.txt"),
            paths.preview(november, "a.txt"),
            paths.download(november, "a.txt"),
            paths.archive(november),
        ):
            problem(client.get(address), 404, "not_found")
        problem(put(client, november, "b.txt", b"1"), 404, "not_found")
        problem(client.delete(paths.file(november, "a.txt")), 404, "not_found")
    assert audited("collection.delete") == [("collection.delete", "alice")]


def test_delete_of_a_deleted_collection_is_409(alice: User, november: str, api: Api) -> None:
    api(alice).delete(paths.collection(november))
    problem(api(alice).delete(paths.collection(november)), 409, "collection_not_open")
    problem(api(alice).patch(paths.collection(november), {"display_name": "x"}), 409, "collection_not_open")
    assert audited("collection.delete") == [("collection.delete", "alice")]


def test_restore_brings_everything_back(alice: User, bob: User, november: str, put: Put, api: Api) -> None:
    put(api(bob), november, "a.txt", b"12345")
    before = api(alice).get(paths.collection(november)).json()
    api(alice).delete(paths.collection(november))
    restored = api(alice).post(paths.restore(november))
    assert restored.status_code == 200
    assert restored.json() == before
    assert b"".join(api(bob).get(paths.content(november, "a.txt"))) == b"12345"
    assert audited("collection.restore") == [("collection.restore", "alice")]


def test_restore_of_an_open_collection_is_409(alice: User, november: str, api: Api) -> None:
    problem(api(alice).post(paths.restore(november)), 409, "collection_not_deleted")


def test_delete_and_restore_are_the_admins(alice: User, bob: User, mallory: User, november: str, api: Api) -> None:
    problem(api(bob).delete(paths.collection(november)), 403, "refused")
    problem(api(bob).post(paths.restore(november)), 403, "refused")
    api(alice).delete(paths.collection(november))
    for stranger in (bob, mallory):
        foreign = api(stranger).post(paths.restore(november))
        problem(foreign, 404, "not_found")
        assert foreign.content == api(stranger).post(paths.restore("nothing")).content
    assert Collection.objects.get().status == "deleted"
    assert audited("collection.delete", "collection.restore") == [("collection.delete", "alice")]


def test_a_collection_that_is_being_destroyed_is_nobodys(alice: User, november: str, api: Api, case: Case) -> None:
    for status in ["purging", "blocked"]:
        with case(status):
            Collection.objects.update(status=status)
            for answer in (
                api(alice).get(paths.collection(november)),
                api(alice).patch(paths.collection(november), {"display_name": "x"}),
                api(alice).delete(paths.collection(november)),
                api(alice).post(paths.restore(november)),
                api(alice).get(paths.files(november)),
            ):
                problem(answer, 404, "not_found")
            assert names(api(alice)) == []


def test_a_hidden_collection_of_a_package_is_nobodys(alice: User, november: str, api: Api) -> None:
    Collection.objects.update(kind="release")
    problem(api(alice).get(paths.collection(november)), 404, "not_found")
    assert names(api(alice)) == []


def test_a_second_admin_manages_what_the_first_created(acme: Tenant, november: str, api: Api, vault: WatchedStore) -> None:
    dana = make_member(acme, "dana", "admin", "research_it")
    assert api(dana).get(paths.collection(november)).json()["my_level"] == "manager"
    assert api(dana).delete(paths.collection(november)).status_code == 202
    assert Collection.objects.get().deleted_at <= datetime.now(UTC)  # type: ignore[operator]
