"""API keys: who makes, sees and revokes which, and what opens with one (F-49, INV-16)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, OperationalError, connection, transaction
from rest_framework.test import APIClient

from tenants import services
from tenants.auth import api_keys
from tenants.models import ApiKey, AuditEvent, Membership, Tenant, User
from tests.api.answers import audited, facts, problem
from tests.factories import make_key, make_member


Api = Callable[[User | str | None], APIClient]
ME = "/api/v1/me/"
KEYS = "/api/v1/tenants/acme/api-keys/"
MINE = {"name": "nightly", "scopes": ["read"]}

pytestmark = pytest.mark.django_db


@pytest.fixture
def importer(acme: Tenant, alice: User, api: Api) -> User:
    """A service account of acme."""
    made = api(alice).post("/api/v1/tenants/acme/service-accounts/", {"name": "importer", "roles": ["member"]})
    return User.objects.get(username=made.json()["username"])


def refused(response: Any) -> bytes:
    """The body of the one 401 that every bad token gets."""
    problem(response, 401, "invalid_token")
    assert response["WWW-Authenticate"] == 'Bearer realm="strongroom"'
    return bytes(response.content)


# --- POST ---


def test_create_shows_the_key_once(api: Api, bob: User, now: datetime) -> None:
    made = api(bob).post(KEYS, {"name": "nightly", "scopes": ["write", "read", "read"]})

    assert made.status_code == 201
    shown = made.json()
    key = ApiKey.objects.get()
    assert shown == {
        "prefix": key.prefix,
        "name": "nightly",
        "owner": "bob",
        "scopes": ["read", "write"],
        "created_at": shown["created_at"],
        "created_by": "bob",
        "expires_at": shown["expires_at"],
        "last_used_at": None,
        "revoked_at": None,
        "key": shown["key"],
    }
    assert key.expires_at - key.created_at == timedelta(days=365)
    assert api_keys.KEY_PATTERN.fullmatch(shown["key"])
    assert made["Cache-Control"] == "no-store"
    kept = {name: value for name, value in shown.items() if name != "key"}
    assert api(bob).get(made["Location"]).json() == kept
    assert api(bob).get(KEYS).json()["results"] == [kept]
    assert audited("api_key.create") == [("api_key.create", "bob")]
    assert facts("api_key.create") == {
        "prefix": key.prefix,
        "name": "nightly",
        "owner": "bob",
        "scopes": ["read", "write"],
        "expires_at": key.expires_at.isoformat(),
    }


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"name": None}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "read"}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": None}, "scopes"),
        ({"expires_at": None}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"owner": ""}, "owner"),
        ({"owner": None}, "owner"),
    ],
)
def test_create_of_what_is_no_key_names_the_field(api: Api, bob: User, change: dict[str, Any], field: str) -> None:
    answer = api(bob).post(KEYS, MINE | change)

    assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])
    assert not ApiKey.objects.exists()


def test_create_ends_within_the_longest_time_that_is_set(api: Api, bob: User, settings: Any, now: datetime) -> None:
    settings.API_KEY_MAX_DAYS = 30
    with time_machine.travel(now, tick=False):
        longest = api(bob).post(KEYS, MINE | {"expires_at": now + timedelta(days=30)})
        too_long = api(bob).post(KEYS, MINE | {"expires_at": now + timedelta(days=30, seconds=1)})
        unsaid = api(bob).post(KEYS, MINE)

    assert [made.status_code for made in (longest, too_long, unsaid)] == [201, 400, 201]
    assert list(too_long.json()["errors"]) == ["expires_at"]
    assert unsaid.json()["expires_at"] == longest.json()["expires_at"]


def test_create_for_a_service_account_is_its_admins_alone(api: Api, alice: User, bob: User, root: User, importer: User) -> None:
    wish = MINE | {"owner": importer.username}

    assert problem(api(bob).post(KEYS, wish), 403, "refused")
    assert problem(api(root).post(KEYS, wish), 403, "refused")  # no bytes without a role of their own
    made = api(alice).post(KEYS, wish)
    assert (made.status_code, made.json()["owner"], made.json()["created_by"]) == (201, importer.username, "alice")
    assert api(made.json()["key"]).get(ME).json()["username"] == importer.username


@pytest.mark.parametrize("actor", ["alice", "bob", "root"])
def test_create_for_another_person_is_refused_to_everybody(
    request: pytest.FixtureRequest, api: Api, alice: User, bob: User, carol: User, actor: str
) -> None:
    """It would act in their name."""
    problem(api(request.getfixturevalue(actor)).post(KEYS, MINE | {"owner": "carol"}), 403, "refused")
    assert not ApiKey.objects.exists()


def test_create_by_a_member_tells_nothing_of_whom_they_name(api: Api, bob: User, carol: User, mallory: User) -> None:
    answers = [api(bob).post(KEYS, MINE | {"owner": name}) for name in ("carol", "mallory", "nobody")]
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.content for answer in answers}) == 1


def test_create_for_somebody_of_another_tenant_is_as_for_nobody(api: Api, alice: User, mallory: User, globex: Tenant) -> None:
    """INV-01: for a service account there, too."""
    User.objects.create(username="x@globex", email="x@globex.service.invalid", password="!", service_of=globex)
    answers = [api(alice).post(KEYS, MINE | {"owner": name}) for name in ("mallory", "x@globex", "nobody")]

    assert [problem(answer, 400, "unknown_user")["errors"].keys() for answer in answers] == [{"owner"}] * 3
    assert len({answer.content for answer in answers}) == 1


def test_create_has_a_limit_of_live_keys_for_each_owner(
    api: Api, bob: User, carol: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_LIVE_KEYS", 2)
    first = api(bob).post(KEYS, MINE).json()["prefix"]
    assert api(bob).post(KEYS, MINE).status_code == 201

    problem(api(bob).post(KEYS, MINE), 409, "too_many_keys")
    assert api(carol).post(KEYS, MINE).status_code == 201
    assert api(bob).delete(f"{KEYS}{first}/").status_code == 204
    assert api(bob).post(KEYS, MINE).status_code == 201


@pytest.mark.parametrize("broken", [{"scopes": []}, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}], ids=["scopes", "expiry"])
def test_the_database_keeps_no_key_without_scope_or_end(bob: User, broken: dict[str, Any]) -> None:
    make_key(bob)
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.update(**broken)


# --- GET, DELETE ---


def test_list_shows_ones_own_and_to_admins_auditors_and_superusers_all(
    api: Api, acme: Tenant, alice: User, bob: User, carol: User, root: User, mallory: User
) -> None:
    erin = make_member(acme, "erin", "auditor")
    for owner in (alice, bob, mallory):
        make_key(owner)

    seen = {
        who.username: [key["owner"] for key in api(who).get(KEYS).json()["results"]] for who in (alice, bob, carol, erin, root)
    }

    assert seen == {name: ["bob", "alice"] for name in ("alice", "erin", "root")} | {"bob": ["bob"], "carol": []}


def test_list_is_filtered_and_paged(api: Api, alice: User, bob: User, now: datetime) -> None:
    for owner in (alice, bob, bob, bob):
        make_key(owner)
    revoked, expired = ApiKey.objects.filter(owner=bob).order_by("prefix")[:2]
    ApiKey.objects.filter(pk=revoked.pk).update(revoked_at=now)
    ApiKey.objects.filter(pk=expired.pk).update(created_at=now - timedelta(days=9), expires_at=now - timedelta(days=1))

    def listed(query: str) -> set[str]:
        return {key["prefix"] for key in api(alice).get(f"{KEYS}?{query}").json()["results"]}

    assert listed("active=false") == {revoked.prefix, expired.prefix}
    assert len(listed("active=true")) == 2
    assert len(listed("owner=bob")) == 3
    assert len(listed("owner=bob&active=true")) == 1
    assert listed("owner=nobody") == set()
    page = api(alice).get(f"{KEYS}?page_size=3").json()
    assert (len(page["results"]), page["previous"]) == (3, None)
    assert len(api(alice).get(page["next"]).json()["results"]) == 1


@pytest.mark.parametrize("query", ["active=perhaps", "active=1", "owner=" + "x" * 151, "page_size=0", "cursor=x"])
def test_list_by_what_means_nothing_names_the_field(api: Api, alice: User, query: str) -> None:
    answer = api(alice).get(f"{KEYS}?{query}")
    assert (answer.status_code, list(answer.json()["errors"])) == (400, [query.partition("=")[0]])


def test_list_takes_as_many_queries_with_many_keys(api: Api, alice: User, bob: User, django_assert_num_queries: Any) -> None:
    client = api(alice)
    for _ in range(5):
        make_key(bob)
    with django_assert_num_queries(5):  # the token's holder; what they are, and the tenant; what they are, and the keys
        assert len(client.get(KEYS).json()["results"]) == 5


@pytest.mark.parametrize(("actor", "status"), [("alice", 204), ("bob", 204), ("carol", 404), ("erin", 403), ("root", 204)])
def test_revoke_is_the_owners_and_the_admins(
    request: pytest.FixtureRequest, api: Api, acme: Tenant, alice: User, bob: User, actor: str, status: int
) -> None:
    who = make_member(acme, "erin", "auditor") if actor == "erin" else request.getfixturevalue(actor)
    text = make_key(bob)
    path = f"{KEYS}{text.partition('.')[0]}/"

    assert api(who).delete(path).status_code == status

    assert api(text).get(ME).status_code == (401 if status == 204 else 200)
    assert (api(bob).get(path).json()["revoked_at"] is not None) == (status == 204)
    assert audited("api_key.revoke") == ([("api_key.revoke", actor)] if status == 204 else [])


def test_revoke_twice_is_a_conflict(api: Api, bob: User) -> None:
    path = f"{KEYS}{make_key(bob).partition('.')[0]}/"
    assert api(bob).delete(path).status_code == 204
    problem(api(bob).delete(path), 409, "conflict")
    assert len(audited("api_key.revoke")) == 1


def test_key_of_another_tenant_is_as_one_that_never_was(api: Api, alice: User, mallory: User) -> None:
    prefix = make_key(mallory).partition(".")[0]
    for method in ("get", "delete"):
        foreign, unknown = (getattr(api(alice), method)(f"{KEYS}{name}/") for name in (prefix, "sr_00000000"))
        problem(foreign, 404, "not_found")
        assert foreign.content == unknown.content
    assert ApiKey.objects.get().revoked_at is None


# --- What opens with one ---


def test_key_opens_the_api_as_its_owner_in_its_tenant_alone(api: Api, acme: Tenant, globex: Tenant, bob: User) -> None:
    Membership.objects.create(user=bob, tenant=globex, roles=["admin"], created_at=datetime.now(UTC))
    client = api(make_key(bob, tenant=acme))

    me = client.get(ME).json()
    assert (me["username"], [tenant["slug"] for tenant in me["tenants"]]) == ("bob", ["acme"])
    assert client.post("/api/v1/collections/", {"display_name": "November"}).json()["tenant"] == "acme"
    problem(client.post("/api/v1/collections/", {"display_name": "x", "tenant": "globex"}), 400, "unknown_tenant")


def test_me_shows_the_key_that_asks(api: Api, bob: User) -> None:
    text = make_key(bob, "read")
    key = ApiKey.objects.get()
    shown = api(text).get(ME).json()["key"]
    assert shown == {"prefix": key.prefix, "name": "nightly", "scopes": ["read"], "expires_at": shown["expires_at"]}
    assert api(bob).get(ME).json()["key"] is None


def test_key_carries_no_rights_of_a_superuser(api: Api, acme: Tenant, root: User, alice: User) -> None:
    Membership.objects.create(user=root, tenant=acme, roles=["member"], created_at=datetime.now(UTC))
    assert api(make_key(root)).get(ME).json()["is_superuser"] is False
    assert api(root).get(ME).json()["is_superuser"] is True


def expire(bob: User) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    ApiKey.objects.update(created_at=past - timedelta(days=1), expires_at=past)


def expel(bob: User) -> None:
    Membership.objects.filter(user=bob).delete()


ENDS: dict[str, Callable[[User], object]] = {
    "revoked": lambda bob: ApiKey.objects.update(revoked_at=datetime.now(UTC)),
    "expired": expire,
    "deactivated": lambda bob: User.objects.filter(pk=bob.pk).update(is_active=False),
    "expelled": expel,
    "suspended": lambda bob: Tenant.objects.update(is_active=False),
    "deleted": lambda bob: bob.delete(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_key_is_401_on_the_next_request_when_it_or_its_owner_ends(api: Api, bob: User, end: Callable[[User], object]) -> None:
    """INV-16, F-49: and like one that never was."""
    text = make_key(bob)
    assert api(text).get(ME).status_code == 200
    end(bob)
    assert refused(api(text).get(ME)) == refused(api("sr_00000000." + "x" * 43).get(ME))


@pytest.mark.parametrize(
    "bend",
    [
        lambda prefix, secret: f"{prefix}.{secret[:-1]}{'B' if secret[-1] == 'A' else 'A'}",
        lambda prefix, secret: f"{prefix}.{secret[:-1]}",
        lambda prefix, secret: f"{prefix}.{secret}x",
        lambda prefix, secret: f"{prefix}.{secret}.x",
        lambda prefix, secret: f"{prefix}.{secret} ",
        lambda prefix, secret: f"{prefix}.",
        lambda prefix, secret: prefix,
        lambda prefix, secret: f"{prefix}{secret}",
        lambda prefix, secret: f"sr_.{secret}",
        lambda prefix, secret: f"sr_%.{secret}",
        lambda prefix, secret: f"{prefix.upper()}.{secret}",
        lambda prefix, secret: f"{prefix}.{'é' * 43}",
        lambda prefix, secret: f"{prefix}.{ApiKey.objects.get().secret_hash}",
        lambda prefix, secret: "sr_" + "x" * 10_000,
    ],
)
def test_text_that_is_no_key_is_401(api: Api, bob: User, bend: Callable[[str, str], str]) -> None:
    """F-48."""
    text = make_key(bob)
    refused(api(bend(*text.split("."))).get(ME))
    assert ApiKey.objects.get().last_used_at is None
    assert api(text).get(ME).status_code == 200


def test_use_is_noted_at_most_once_a_minute(api: Api, bob: User, now: datetime) -> None:
    client, noted = api(make_key(bob)), []
    for seconds in (0, 59, 60, 119, 121):
        with time_machine.travel(now + timedelta(seconds=seconds), tick=False):
            assert client.get(ME).status_code == 200
        last = ApiKey.objects.get().last_used_at
        noted.append(last and (last - now).total_seconds())
    assert noted == [0, 0, 60, 60, 121]


def test_use_within_the_minute_writes_nothing(api: Api, bob: User, django_assert_num_queries: Any) -> None:
    client = api(make_key(bob))
    client.get(ME)
    with django_assert_num_queries(2):  # the key with its owner, their tenants
        client.get(ME)


def test_use_that_cannot_be_noted_fails_nothing(api: Api, bob: User) -> None:
    def read_only(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE"):
            raise OperationalError("attempt to write a readonly database")
        return execute(sql, *rest)

    client = api(make_key(bob))
    with connection.execute_wrapper(read_only):
        assert client.get(ME).status_code == 200
    assert ApiKey.objects.get().last_used_at is None


def test_key_of_somebody_who_left_stays_dead_when_they_come_back(
    api: Api, acme: Tenant, alice: User, bob: User, carol: User, now: datetime
) -> None:
    left, deactivated, other = make_key(bob), make_key(carol), make_key(alice)
    services.remove_member(membership=Membership.objects.get(user=bob), by=alice, now=now)
    services.add_member(tenant=acme, user=bob, roles=["member"], by=alice, now=now)
    for is_active in (False, True):
        carol.is_active = is_active
        services.update(carol, changed=["is_active"], by=None, now=now)

    assert [api(text).get(ME).status_code for text in (left, deactivated, other)] == [401, 401, 200]


def test_what_was_done_with_a_key_names_it_on_record(api: Api, bob: User) -> None:
    """In the hashed body, so that it cannot be taken out; what was done without one has nothing of the kind."""
    text = make_key(bob)
    for who in (text, bob):
        api(who).post("/api/v1/collections/", {"display_name": f"By {str(who)[:3]}"})

    made = [facts("collection.create", which) for which in (0, 1)]
    assert [fact.get("key") for fact in made] == [text.partition(".")[0], None]
    assert set(AuditEvent.objects.filter(action="collection.create").values_list("actor", flat=True)) == {"bob"}
