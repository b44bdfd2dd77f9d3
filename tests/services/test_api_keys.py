"""What ends with an API key (F-49, F-51, INV-16), keys under contention and by operators, and where no secret is (INV-15)."""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from config.logs import JsonFormatter
from files import uploads
from files.http import streaming
from files.http.streaming import TransferEnded
from files.models import Collection, DownloadLink, StoredFile, Upload
from tenants import audit
from tenants.auth import api_keys
from tenants.errors import NotFound
from tenants.models import ApiKey, AuditEvent, Scope, Tenant, User
from tests.api import paths
from tests.api.answers import audited, facts
from tests.factories import make_key
from tests.needs import mark_dependents
from tests.races import race
from tests.services import worlds
from tests.worlds import starts_from


Api = Callable[[User | str | None], APIClient]
ME = "/api/v1/me/"
KEYS = "/api/v1/tenants/acme/api-keys/"
CONTENT = random.Random(3).randbytes(3 * 1024 * 1024)


def with_a_file() -> int:
    return worlds.november_with({"a.bin": CONTENT})


@pytest.fixture
@mark_dependents(starts_from(with_a_file))
def november(own_buckets: object, built: int) -> Collection:
    return Collection.objects.get(pk=built)


# --- What a key started ends with it ---


def revoke(bob: User) -> None:
    api_keys.revoke(ApiKey.objects.get(), by=bob, now=datetime.now(UTC))


def expire(bob: User) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    ApiKey.objects.update(created_at=past - timedelta(days=1), expires_at=past)


ENDS = pytest.mark.parametrize("end", [revoke, expire])


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("way", "end"),
    [
        *(("content", revoke), ("archive", expire), ("link", expire), ("archive link", revoke)),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("content", expire), ("archive", revoke), ("link", revoke), ("archive link", expire))
        ),
    ],
)
def test_running_download_ends_with_the_key_that_it_was_asked_with(
    api: Api, bob: User, november: Collection, monkeypatch: pytest.MonkeyPatch, way: str, end: Callable[[User], None]
) -> None:
    """And one that the same person runs without it goes on."""
    monkeypatch.setattr(streaming, "CHECK_INTERVAL_SECONDS", -1)

    def stream(who: User | str) -> Any:
        match way:
            case "content":
                response: Any = api(who).get(paths.content(november.slug, "a.bin"))
            case "archive":
                response = api(who).get(paths.archive(november.slug))
            case "link":
                response = api(None).get(api(who).post(paths.download(november.slug, "a.bin")).json()["url"])
            case _:
                response = api(None).get(api(who).post(paths.archive_link(november.slug)).json()["url"])
        assert response.status_code == 200
        return response.streaming_content

    with_key, without = stream(make_key(bob, "read")), stream(bob)
    received = next(with_key) + next(with_key), next(without) + next(without)
    end(bob)
    with pytest.raises(TransferEnded):
        b"".join(with_key)
    assert CONTENT in received[1] + b"".join(without)


@ENDS
@pytest.mark.django_db
def test_link_dies_with_the_key_that_it_was_minted_with(
    api: Api, bob: User, november: Collection, end: Callable[[User], None]
) -> None:
    by_key, by_token = (
        api(who).post(paths.download(november.slug, "a.bin")).json()["url"] for who in (make_key(bob, "read"), bob)
    )
    assert DownloadLink.objects.get(minted_with=None).minted_by == bob
    assert api(None).head(by_key).status_code == 200
    end(bob)
    assert [api(None).head(link).status_code for link in (by_key, by_token)] == [404, 200]
    assert api(None).get(by_key).status_code == 404


@pytest.mark.django_db
def test_link_that_was_claimed_names_the_key_on_record(api: Api, bob: User, november: Collection) -> None:
    text = make_key(bob, "read")
    link = api(text).post(paths.download(november.slug, "a.bin")).json()["url"]
    fetched: Any = api(None).get(link)
    assert b"".join(fetched.streaming_content) == CONTENT
    assert {facts(action)["key"] for action in ("link.mint", "link.claim")} == {text.partition(".")[0]}
    assert not list(audit.verify())


@ENDS
@pytest.mark.django_db
def test_upload_under_way_is_not_kept_when_its_key_ends(
    bob: User, november: Collection, now: datetime, end: Callable[[User], None]
) -> None:
    key = api_keys.authenticate(make_key(bob, "write"), now=now)
    assert key
    collection = Collection.objects.select_related("tenant", "key").get(pk=november.pk)
    begin = partial(uploads.begin, collection=collection, content_type="", notes="", size=None, conditions=None, now=now)
    with begin(by=key.owner, filename="with.bin") as with_key, begin(by=bob, filename="without.bin") as without:
        with_key.write(CONTENT)
        without.write(CONTENT)
        end(bob)
        with pytest.raises(NotFound):
            with_key.commit(by=key.owner, now=now)
        without.commit(by=bob, now=now)
    assert set(StoredFile.objects.values_list("filename", flat=True)) == {"a.bin", "without.bin"}
    assert not Upload.objects.exists()


# --- At once ---


@pytest.mark.django_db(transaction=True)
def test_revoked_while_in_use_opens_nothing_from_the_answer_on(api: Api, bob: User) -> None:
    text = make_key(bob)
    path = f"{KEYS}{text.partition('.')[0]}/"

    def use() -> int:
        return int(api(text).get(ME).status_code)

    def revoke() -> int:
        return int(api(bob).delete(path).status_code)

    *used, first, second = race([use] * 8 + [revoke] * 2)

    assert set(used) <= {200, 401}
    assert sorted([first, second]) == [204, 409]
    assert use() == 401
    assert len(audited("api_key.revoke")) == 1
    assert not list(audit.verify())


@pytest.mark.django_db(transaction=True)
def test_keys_made_at_once_do_not_overshoot_the_limit(
    api: Api, acme: Tenant, bob: User, carol: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_LIVE_KEYS", 5)
    for _ in range(3):
        make_key(bob)

    def create(who: User) -> int:
        return int(api(who).post(KEYS, {"name": "nightly", "scopes": ["read"]}).status_code)

    statuses = race([partial(create, bob)] * 8 + [partial(create, carol)] * 2)

    assert Counter(statuses) == {201: 4, 409: 6}
    assert ApiKey.objects.filter(owner=bob).count() == 5
    assert len(audited("api_key.create")) == 7
    assert not list(audit.verify())


@pytest.mark.django_db(transaction=True)
def test_key_made_while_its_account_is_deactivated_is_dead(api: Api, alice: User) -> None:
    accounts = "/api/v1/tenants/acme/service-accounts/"
    for number in range(5):
        username = api(alice).post(accounts, {"name": f"n{number}", "roles": ["member"]}).json()["username"]

        def create(owner: str) -> int:
            return int(api(alice).post(KEYS, {"name": "x", "scopes": ["read"], "owner": owner}).status_code)

        def deactivate(owner: str) -> int:
            return int(api(alice).delete(f"{accounts}{owner}/").status_code)

        outcome = race([partial(create, username), partial(deactivate, username)])

        assert outcome in ([201, 204], [409, 204])
    assert not ApiKey.objects.filter(revoked_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_accounts_of_one_name_made_at_once_are_one(api: Api, alice: User) -> None:
    def create() -> int:
        wish = {"name": "importer", "roles": ["member"]}
        return int(api(alice).post("/api/v1/tenants/acme/service-accounts/", wish).status_code)

    assert Counter(race([create] * 5)) == {201: 1, 409: 4}
    assert len(audited("service_account.create")) == 1


# --- Operators ---


def run(name: str, *arguments: str) -> str:
    output = StringIO()
    call_command(name, *arguments, stdout=output)
    return output.getvalue()


@pytest.mark.django_db
def test_createapikey_prints_the_key_alone(api: Api, bob: User) -> None:
    text = run("createapikey", "acme", "bob", "--name=nightly", "--scope=write", "--scope=read", "--days=30")

    assert api(text.removesuffix("\n")).get(ME).json()["username"] == "bob"
    key = ApiKey.objects.get()
    assert (key.scopes, key.created_by, key.expires_at - key.created_at) == (["read", "write"], None, timedelta(days=30))
    assert audited("api_key.create") == [("api_key.create", "system")]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nowhere", "bob", "--name=x", "--scope=read"], "no tenant nowhere"),
        (["acme", "nobody", "--name=x", "--scope=read"], "There is no user nobody"),
        (["acme", "mallory", "--name=x", "--scope=read"], "not an active member"),
        (["acme", "bob", "--name=x", "--scope=read", "--days=0"], "expires_at"),
        (["acme", "bob", "--name=x", "--scope=read", "--days=367"], "366 days"),
        (["acme", "bob", "--name=x", "--scope=read", "--days=99999"], "not a number of days"),
        (["acme", "bob", "--name=x", "--scope=all"], "invalid choice"),
        (["acme", "bob", f"--name={'x' * 101}", "--scope=read"], "name: Describe the purpose of the key"),
        (["acme", "bob", "--name=two\nlines", "--scope=read"], "name: Describe the purpose of the key"),
        (["acme", "bob", "--name=x"], "--scope"),
        (["acme", "bob", "--scope=read"], "--name"),
    ],
)
def test_createapikey_that_is_not_acceptable_says_what(bob: User, mallory: User, arguments: list[str], hint: str) -> None:
    with pytest.raises(CommandError, match=hint):
        run("createapikey", *arguments)
    assert not ApiKey.objects.exists()


@pytest.mark.django_db
def test_revokeapikey(api: Api, bob: User) -> None:
    text = make_key(bob)
    prefix = text.partition(".")[0]
    assert run("revokeapikey", prefix) == f"{prefix} is revoked.\n"
    assert api(text).get(ME).status_code == 401
    for name, hint in ((prefix, "already"), ("sr_00000000", "no API key")):
        with pytest.raises(CommandError, match=hint):
            run("revokeapikey", name)


@pytest.mark.django_db
def test_admin_shows_keys_without_their_hash_and_revokes_them(api: Api, bob: User, root: User) -> None:
    text = make_key(bob)
    key = ApiKey.objects.get()
    site = Client()
    site.force_login(root)
    pages = [
        site.get(reverse(f"admin:tenants_apikey_{name}", args=args)) for name, args in (("changelist", []), ("change", [key.pk]))
    ]

    assert [page.status_code for page in pages] == [200, 200]
    assert all(key.prefix in page.content.decode() and key.secret_hash not in page.content.decode() for page in pages)
    for name, args in (("add", []), ("change", [key.pk]), ("delete", [key.pk])):
        assert site.post(reverse(f"admin:tenants_apikey_{name}", args=args), {"name": "x"}).status_code == 403

    for _ in range(2):
        site.post(reverse("admin:tenants_apikey_changelist"), {"action": "revoke", "_selected_action": [str(key.pk)]})
    assert api(text).get(ME).status_code == 401
    assert audited("api_key.revoke") == [("api_key.revoke", "root")]


# --- Where the secret is not ---


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Every line of every logger, as it is written."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.django_db
def test_request_line_names_the_key_and_what_has_none_names_none(
    api: Api, bob: User, november: Collection, logged: list[str]
) -> None:
    text = make_key(bob)
    api(text).get(ME)
    fetched: Any = api(text).get(paths.content(november.slug, "a.bin"))
    b"".join(fetched.streaming_content)
    api(bob).get(ME)
    lines = [line for line in map(json.loads, logged) if line["logger"] == "strongroom.request"]
    prefix = text.partition(".")[0]
    assert [(line["user"], line.get("key")) for line in lines] == [(bob.pk, prefix), (bob.pk, prefix), (bob.pk, None)]


@pytest.mark.django_db
def test_neither_secret_nor_hash_shows_in_logs_audit_or_any_other_answer(api: Api, bob: User, logged: list[str]) -> None:
    """INV-15."""
    made = api(bob).post(KEYS, {"name": "nightly", "scopes": list(Scope.values)}).json()
    path, client = f"{KEYS}{made['prefix']}/", api(made["key"])
    answers = [
        client.get(ME),
        client.get("/api/v1/collections/"),
        client.post("/api/v1/collections/", {"display_name": "November"}),
        client.post(KEYS, {"name": "x", "scopes": ["read"]}),
        client.get("/api/v1/collections/november-2012-xxxx/"),
        api(made["key"] + "x").get(ME),
        api(bob).get(KEYS),
        api(bob).get(path),
        api(bob).delete(path),
        client.get(ME),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 201, 403, 404, 401, 200, 200, 204, 401]
    secret = made["key"].partition(".")[2]
    told = [answer.content.decode() + repr(answer.headers) for answer in answers]
    told += [*logged, *AuditEvent.objects.values_list("body", flat=True)]
    assert len(logged) > len(answers)
    hashed = sha256(secret.encode()).hexdigest()
    assert ApiKey.objects.get().secret_hash == hashed
    assert not [text for text in told if secret in text or hashed in text]
    assert any(made["prefix"] in line for line in logged)
