"""Every address asked by everybody, as `matrix.py` has it; what is of one tenant stays there, whoever names it (F-50, INV-01)."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib import admin
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from django.urls import URLPattern, URLResolver, get_resolver
from pytest_django import DjangoDbBlocker
from rest_framework.test import APIClient

from files import access, links, sharing
from files.models import Collection, Grant, Level, StoredFile
from tenants import tokens
from tenants.models import Tenant, User
from tenants.people import invite, token_of
from tests.factories import PASSWORD, make_member, make_tenant, make_user
from tests.meta.leaks import insides
from tests.meta.matrix import COLUMNS, EMPTY, PAGE, ROWS, Row, page


pytestmark = pytest.mark.django_db
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


# --- What the server has ---


def patterns(resolver: URLResolver, prefix: str = "/") -> Iterator[tuple[str, URLPattern]]:
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from patterns(entry, path)
        else:
            yield re.sub(r"<\w+:(\w+)>", r"{\1}", path), entry


def views() -> dict[str, Any]:
    """Path -> class of its view, of everything but the admin site."""
    return {
        path: getattr(pattern.callback, "cls", None) or pattern.callback.view_class  # type: ignore[attr-defined]
        for path, pattern in patterns(get_resolver())
        if not path.startswith("/admin/")
    }


def routes() -> dict[str, set[str]]:
    """Path -> methods that its view has."""
    return {
        path: {method.upper() for method in view.http_method_names if hasattr(view, method)} - {"OPTIONS"}
        for path, view in views().items()
    }


def test_table_has_every_address_and_method_and_no_other() -> None:
    served = {(path, method) for path, methods in routes().items() for method in methods - {"HEAD"}}
    assert {(row.path, row.method) for row in ROWS} == served


def test_table_has_both_states_of_whatever_is_about_a_collection() -> None:
    states: dict[tuple[str, str], list[str]] = {}
    for row in ROWS:
        states.setdefault((row.path, row.method), []).append(row.state)
    assert all(found in (["-"], ["open", "deleted"]) for found in states.values())
    assert all(found != ["-"] for (path, _), found in states.items() if "{slug}" in path or "{token}" in path)


def test_views_that_answer_head_are_those_that_answer_get() -> None:
    assert not [path for path, methods in routes().items() if "HEAD" in methods and "GET" not in methods]


def test_page_shows_the_table() -> None:
    assert PAGE.read_text() == page(), "docs/access.md is stale; its first line says how to make it anew"


# --- The world they ask about ---


@dataclass(frozen=True)
class Names:
    """What a request can name."""

    tenant: str
    slug: str
    display_name: str
    filename: str
    etag: str
    token: str
    grant_id: str
    username: str
    prefix: str  # of an API key of the admin
    account: str  # a service account
    invitation: str
    invitation_token: str


UNKNOWN = Names(
    tenant="no-such-tenant",
    slug="november-2012-xxxx",
    display_name="No such name",
    filename="no-such-file.csv",
    etag=f'"{"0" * 32}"',
    token="x" * 43,
    grant_id=str(UUID(int=7)),
    username="nobody-at-all",
    prefix="sr_00000000",
    account="nobody@no-such-tenant",
    invitation=str(UUID(int=8)),
    invitation_token="x" * 80,
)
NEW_FILE = "new.csv"
NEW_PASSWORD = "another long password"


@dataclass(frozen=True)
class World:
    people: dict[str, User | None]
    clients: dict[str, APIClient]
    tokens: dict[str, tokens.Pair]
    collection: Collection
    names: Names
    secrets: list[bytes]  # what only those who may read the collection ever see
    tenant_secrets: list[bytes]  # what nobody outside the tenant ever sees


@contextmanager
def undone() -> Iterator[None]:
    """Whatever happens in its block has not happened afterwards, as far as the database knows."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture(scope="module")
def made_world(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[World]:
    with django_db_blocker.unblock(), undone():
        yield make_world()


@pytest.fixture
def world(made_world: World) -> Iterator[World]:
    """Made once for the whole table: what a test does to it is undone."""
    with undone():
        yield made_world


def make_world() -> World:
    acme, globex = make_tenant("acme", new_collections="private"), make_tenant("globex")
    acme.allow_external_sharing = True
    acme.slug, acme.name = "acme-research", "Acme Research Ltd"  # long enough to be in no answer by chance
    acme.save()
    people: dict[str, User | None] = {
        "admin": make_member(acme, "alice", "admin"),
        "manager": make_member(acme, "mona", "member"),
        "editor": make_member(acme, "edgar", "member"),
        "viewer": make_member(acme, "vera", "member"),
        "member": make_member(acme, "bob", "member"),
        "file": make_member(acme, "fred", "member"),
        "external": make_member(globex, "xena", "member"),
        "auditor": make_member(acme, "erin", "auditor"),
        "stage": make_member(acme, "gina", "information_governance"),
        "other": make_member(globex, "mallory", "admin", "member"),
        "root": make_user("root", is_superuser=True),
        "inactive": make_member(acme, "ivan", "member"),
        "suspended": make_member(acme, "sven", "member"),
        "nobody": None,
    }
    make_member(acme, "carol", "member")
    pairs = {name: tokens.mint(user) for name, user in people.items() if user}
    clients = {name: APIClient() for name in people}
    for name, pair in pairs.items():
        clients[name].credentials(HTTP_AUTHORIZATION=f"Bearer {pair['access']}")
    alice, alices = people["admin"], clients["admin"]
    assert alice
    slug = alices.post("/api/v1/collections/", {"display_name": "November Cohort"}).json()["id"]
    put = alices.put(f"/api/v1/collections/{slug}/content/patient-4711.csv", b"confidential readings", content_type="text/csv")
    alices.patch(f"/api/v1/collections/{slug}/files/patient-4711.csv/", {"notes": "from the third ward"})
    file = access.get_file(alice, slug, "patient-4711.csv")
    collection = file.collection
    in_a_day = datetime.now(UTC) + timedelta(days=1)  # the table takes longer than a link lives
    token = links.mint(collection=collection, file=file, by=alice, now=in_a_day)
    grants = {name: give(collection, people[name], level) for name, level in GIVEN.items()}
    grants["file"] = give(collection, people["file"], Level.VIEWER, file=file)
    about = f"/api/v1/tenants/{acme.slug}"
    prefix = alices.post(f"{about}/api-keys/", {"name": "From the third ward", "scopes": ["read"]}).json()["prefix"]
    account = alices.post(f"{about}/service-accounts/", {"name": "importer", "roles": ["member"]}).json()["username"]
    invitation = invite(tenant=acme, email="newcomer@example.org", roles=["member"], by=alice, now=datetime.now(UTC))
    User.objects.filter(username="ivan").update(is_active=False)
    clients["root"].post("/api/v1/auth/token/", {"username": "root", "password": PASSWORD})  # is on the platform's record
    people["root"].refresh_from_db()  # type: ignore[union-attr]  # a reset of the password depends on the last sign-in
    secrets = [
        slug, "November Cohort", "patient-4711", "confidential", "third ward", str(collection.uuid), str(file.uuid),
        file.object_id.hex, str(file.object_id), file.sha256, "alice", prefix, account, str(invitation.pk), "newcomer@example",
    ]  # fmt: skip
    tenant_secrets = [acme.slug, acme.name, str(acme.pk), acme.pk.hex]
    return World(
        people=people,
        clients=clients,
        tokens=pairs,
        collection=collection,
        names=Names(
            tenant=acme.slug,
            slug=slug,
            display_name="November Cohort",
            filename="patient-4711.csv",
            etag=put["ETag"],
            token=token,
            grant_id=str(grants["file"].pk),
            username="carol",
            prefix=prefix,
            account=account,
            invitation=str(invitation.pk),
            invitation_token=token_of(invitation),
        ),
        secrets=[secret.encode() for secret in secrets],
        tenant_secrets=[secret.encode() for secret in tenant_secrets],
    )


GIVEN = {
    "manager": Level.MANAGER,
    "editor": Level.EDITOR,
    "viewer": Level.VIEWER,
    "external": Level.VIEWER,
    "inactive": Level.MANAGER,
    "suspended": Level.MANAGER,
}


def give(collection: Collection, user: User | None, level: Level, *, file: StoredFile | None = None) -> Grant:
    assert user
    grant, _ = sharing.grant(collection, file=file, username=user.username, level=level, by=None, now=datetime.now(UTC))
    return grant


def form(**fields: str) -> dict[str, Any]:
    """With a file behind the fields."""
    parts = {**fields, "file": SimpleUploadedFile(NEW_FILE, b"a,b", "text/csv")}
    return {"data": encode_multipart(BOUNDARY, parts), "content_type": MULTIPART_CONTENT}


def body(row: Row, world: World, names: Names, who: str) -> dict[str, Any]:
    """What a request carries so that it would succeed for somebody with every right."""
    user, pair = world.people[who], world.tokens.get(who, {"refresh": "none"})
    data: Any
    match row.method, row.path.removeprefix("/api/v1/"):
        case "POST", "auth/token/":
            data = {"username": user.username if user else "nobody", "password": PASSWORD if user else "a guess"}
        case "POST", "auth/token/refresh/" | "auth/token/revoke/":
            data = {"refresh": pair["refresh"]}
        case "POST", "auth/password/change/":
            data = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        case "POST", "auth/password/reset/":
            data = {"email": user.email if user else "nobody@example.org"}
        case "POST", "auth/password/reset/confirm/":
            secret = f"{user.pk}-{PasswordResetTokenGenerator().make_token(user)}" if user else "none"
            data = {"token": secret, "new_password": NEW_PASSWORD}
        case "POST", "auth/invitations/accept/":
            data = {"token": names.invitation_token, "username": "newcomer", "password": NEW_PASSWORD}
        case "POST", "tenants/":
            data = {"slug": "initech", "name": "Initech"}
        case "PATCH", "tenants/{tenant}/":
            data = {"name": "Acme Institute"}
        case "POST", "tenants/{tenant}/members/":
            data = {"email": "somebody@example.org", "roles": ["member"]}
        case "PATCH", "tenants/{tenant}/members/{username}/":
            data = {"roles": ["member"]}
        case "POST", "collections/":
            data = {"display_name": "December", "tenant": names.tenant}
        case "POST", "tenants/{tenant}/api-keys/":
            data = {"name": "nightly", "scopes": ["read"]}
        case "POST", "tenants/{tenant}/service-accounts/":
            data = {"name": "exporter", "roles": ["member"]}
        case "PATCH", "collections/{slug}/":
            data = {"display_name": "December"}
        case "POST", "collections/{slug}/files/":
            return form()
        case "POST", "files/":
            return form(collection=names.slug)
        case "POST", "collections/{slug}/archive/":
            data = {"file": [names.filename]}
        case "PUT", "collections/{slug}/content/{filename}":
            return {"data": b"a,b\r\n", "content_type": "text/csv", "headers": {"If-Match": names.etag}}
        case "POST", "collections/{slug}/grants/" | "collections/{slug}/files/{filename}/grants/":
            data = {"user": names.username, "level": "viewer"}
        case "PUT" | "PATCH", _:
            data = {"notes": "changed"}
        case _:
            data = {}
    return {"data": json.dumps(data), "content_type": "application/json"}


def ask(client: Client, method: str, path: str, **request: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers."""
    response: Any = client.generic(method, path, **request)
    content = response.getvalue() if response.streaming else response.content
    headers = {name: value for name, value in response.items() if name not in {"X-Request-ID", "Date"}}
    return response.status_code, content, headers


def ask_row(row: Row, world: World, names: Names, who: str, client: Client | None = None) -> tuple[int, bytes, dict[str, str]]:
    path = row.path.format_map(asdict(names))
    request = body(row, world, names, who) if row.method != "GET" else {}
    return ask(client or world.clients[who], row.method, path, **request)


def prepare(world: World, state: str, who: str) -> None:
    if state == "deleted":
        Collection.objects.filter(pk=world.collection.pk).update(status="deleted", deleted_at=datetime.now(UTC))
    if who == "suspended":
        Tenant.objects.filter(pk=world.collection.tenant_id).update(is_active=False)


def told(status: int, content: bytes) -> str:
    return EMPTY if status == 200 and content[:1] == b"{" and json.loads(content).get("results") == [] else str(status)


def leaked(world: World, who: str, answer: tuple[int, bytes, dict[str, str]]) -> list[bytes]:
    _, content, headers = answer
    text = content + repr(headers).encode()
    kept = world.secrets + (world.tenant_secrets if who in {"other", "inactive", "suspended", "nobody"} else [])
    return [secret for secret in kept if secret in text]


# --- Everybody asks everything ---


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row, world: World) -> None:
    """Each answer is the table's; whoever is refused sees nothing of the collection, and the same as of one that never was."""
    answers, leaks, tells = {}, {}, []
    for who in COLUMNS:
        with undone():
            prepare(world, row.state, who)
            answer = ask_row(row, world, world.names, who)
        answers[who] = told(*answer[:2])
        assert insides(answer[1] + repr(answer[2]).encode()) == []
        is_reader = row.answers[who][0] in "23" and row.answers[who] != EMPTY
        if not is_reader and (found := leaked(world, who, answer)):
            leaks[who] = found
        if row.answers[who] in {"404", "400"}:
            with undone():
                prepare(world, row.state, who)
                unknown = ask_row(row, world, UNKNOWN, who)
            if unknown != answer:
                tells.append((who, answer, unknown))
    assert answers == row.answers
    assert leaks == {}
    assert tells == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.method == "GET"], ids=str)
def test_head_is_answered_as_get(row: Row, world: World) -> None:
    for who in COLUMNS:
        with undone():
            prepare(world, row.state, who)
            status, content, headers = ask_row(replace(row, method="HEAD"), world, world.names, who)
        expected = "200" if row.answers[who] == EMPTY else row.answers[who]
        assert (who, str(status), content) == (who, expected, b"")
        if expected[0] not in "23":
            assert leaked(world, who, (status, content, headers)) == []


@pytest.mark.parametrize("path", routes())
def test_every_other_method_is_refused_whatever_the_address_names(path: str, world: World) -> None:
    served = {row.method for row in ROWS if row.path == path}
    for method in [method for method in METHODS if method not in served and not (method == "HEAD" and "GET" in served)]:
        for who in COLUMNS:
            answers = [ask(world.clients[who], method, path.format_map(asdict(names))) for names in (world.names, UNKNOWN)]
            status, content, headers = answers[0]
            assert status in ({401, 405} if who in {"inactive", "nobody"} else {405}), (method, who)
            assert headers["Content-Type"] == "application/problem+json"
            assert answers[0] == answers[1]
            assert insides(content) == []
            assert set(headers.get("Allow", "").split(", ")) - {"HEAD", "OPTIONS", ""} <= served


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_session_of_the_admin_site_opens_nothing_here(row: Row, world: World) -> None:
    """As nobody, for everybody: a cookie that a browser sends by itself must not carry out a request (T-16)."""
    signed_in = Client()
    signed_in.force_login(world.people["admin"])  # type: ignore[arg-type]
    with undone():
        prepare(world, row.state, "nobody")
        answer = ask_row(row, world, world.names, "nobody", signed_in)
    assert told(*answer[:2]) == row.answers["nobody"]


# --- What a body or a query names ---


@dataclass(frozen=True)
class Attack:
    """A request of another tenant's admin whose body or query names what is not theirs."""

    name: str
    method: str
    path: str
    request: Callable[[Names], dict[str, Any]]
    status: int

    def __str__(self) -> str:
        return self.name


def as_json(**data: Any) -> dict[str, Any]:
    return {"data": json.dumps(data), "content_type": "application/json"}


def query(text: str) -> dict[str, Any]:
    return {"QUERY_STRING": text}


MINE = "/api/v1/collections/{mine}/"
ATTACKS = [
    Attack("upload by id", "POST", "/api/v1/files/", lambda names: form(collection=names.slug), 400),
    Attack("upload by name", "POST", "/api/v1/files/", lambda names: form(collection=names.display_name), 400),
    Attack(
        "upload by id and tenant",
        "POST",
        "/api/v1/files/",
        lambda names: form(tenant=names.tenant, collection=names.slug),
        400,
    ),
    Attack(
        "upload by id and one's own tenant",
        "POST",
        "/api/v1/files/",
        lambda names: form(tenant="globex", collection=names.slug),
        400,
    ),
    Attack(
        "upload by one's own name and their tenant",
        "POST",
        "/api/v1/files/",
        lambda names: form(tenant=names.tenant, collection="Mine"),
        400,
    ),
    Attack(
        "grant to a member of theirs",
        "POST",
        f"{MINE}grants/",
        lambda names: as_json(user=names.username, level="viewer"),
        400,
    ),
    Attack("their grant in one's own collection", "DELETE", f"{MINE}grants/{{grant_id}}/", lambda names: {}, 404),
    Attack("grants by user", "GET", "/api/v1/tenants/globex/grants/", lambda names: query(f"user={names.username}"), 200),
    Attack("create", "POST", "/api/v1/collections/", lambda names: as_json(display_name="x", tenant=names.tenant), 400),
    Attack("archive link", "POST", f"{MINE}archive/", lambda names: as_json(file=[names.filename]), 404),
    Attack(
        "archive link beside one's own", "POST", f"{MINE}archive/", lambda names: as_json(file=["mine.csv", names.filename]), 404
    ),
    Attack("archive", "GET", f"{MINE}archive.zip", lambda names: query(f"file={names.filename}"), 404),
    Attack("list by tenant", "GET", "/api/v1/collections/", lambda names: query(f"tenant={names.tenant}"), 200),
    Attack("list by search", "GET", "/api/v1/collections/", lambda names: query(f"search={names.display_name[:4]}"), 200),
    Attack("files by search", "GET", f"{MINE}files/", lambda names: query(f"search={names.filename[:4]}"), 200),
    Attack(
        "replace on their ETag",
        "PUT",
        f"{MINE}content/mine.csv",
        lambda names: {"data": b"x", "content_type": "text/csv", "headers": {"If-Match": names.etag}},
        412,
    ),
    Attack("delete on their ETag", "DELETE", f"{MINE}files/mine.csv/", lambda names: {"headers": {"If-Match": names.etag}}, 412),
    Attack("their file in one's own collection", "GET", f"{MINE}files/patient-4711.csv/", lambda names: {}, 404),
]


@pytest.fixture
def mine(world: World) -> str:
    """The id of a collection of the other tenant's admin, with one file."""
    client = world.clients["other"]
    slug = client.post("/api/v1/collections/", {"display_name": "Mine"}).json()["id"]
    client.put(f"/api/v1/collections/{slug}/content/mine.csv", b"mine", content_type="text/csv")
    return str(slug)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_naming_what_is_of_another_tenant_is_as_naming_what_is_not(attack: Attack, world: World, mine: str) -> None:
    answers = []
    files = StoredFile.objects.count()
    for names in (world.names, UNKNOWN):
        with undone():
            path = attack.path.format(mine=mine, grant_id=names.grant_id)
            answers.append(ask(world.clients["other"], attack.method, path, **attack.request(names)))
            assert StoredFile.objects.count() == files
    assert answers[0][0] == attack.status
    assert leaked(world, "other", answers[0]) == []
    assert answers[0] == answers[1]


def test_naming_what_both_tenants_have_means_ones_own(world: World) -> None:
    """Names are unique in a tenant alone, so a taken one in another is neither a conflict nor ambiguous."""
    client = world.clients["other"]
    made = ask(client, "POST", "/api/v1/collections/", **as_json(display_name="November Cohort"))
    sent = ask(client, "POST", "/api/v1/files/", **form(collection="November Cohort"))
    slug = json.loads(made[1])["id"]
    renamed = ask(client, "PATCH", f"/api/v1/collections/{slug}/files/{NEW_FILE}/", **as_json(filename="patient-4711.csv"))

    assert [made[0], sent[0], renamed[0]] == [201, 201, 200]
    assert json.loads(sent[1])["collection"] == slug
    kept = [secret for secret in world.secrets if secret not in {b"November Cohort", b"patient-4711"}] + world.tenant_secrets
    assert not [secret for secret in kept for _, content, headers in (made, sent, renamed) if secret in content]
    assert world.collection.files.count() == 1


def test_cursor_of_another_tenant_opens_nothing(world: World) -> None:
    admin_client = world.clients["admin"]
    admin_client.post("/api/v1/collections/", {"display_name": "November Cohort II"})
    page_two = admin_client.get("/api/v1/collections/?page_size=1").json()["next"]

    answer = ask(world.clients["other"], "GET", page_two.removeprefix("http://testserver"))

    assert answer[0] == 200
    assert json.loads(answer[1])["results"] == []
    assert leaked(world, "other", answer) == []


# --- The admin site ---


def admin_pages() -> list[str]:
    """Every page of the admin site but its login, with an argument where it takes one."""
    pages = []
    for path, _ in patterns(get_resolver()):
        if path.startswith("/admin/") and path != "/admin/login/":
            path = re.sub(r"{\w+}|<id>", "1", path)
            path = re.sub(r"\^?\(\?P<app_label>(\w+).*?\)", r"\1", path).replace("(?P<url>.*)$", "no/such/page")
            pages.append(path.replace("^", "").rstrip("$"))
    return pages


def test_admin_pages_are_those_of_the_site() -> None:
    assert len(admin_pages()) > 5 * len(admin.site._registry)
    assert not [path for path in admin_pages() if re.search(r"[{}()<>?*\\]", path)]


@pytest.mark.parametrize("path", admin_pages())
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_admin_page_sends_everybody_who_is_not_staff_to_the_login(path: str, method: str, world: World) -> None:
    for who in ("nobody", "admin", "auditor"):
        client = Client()
        if user := world.people[who]:
            client.force_login(user)
        status, content, headers = ask(client, method, path)
        assert (who, status) == (who, 302)
        assert headers["Location"].startswith("/admin/" if path == "/admin/logout/" else "/admin/login/?next=")
        assert content == b""
    status, _, headers = ask(world.clients["root"], method, path)  # staff, with a token and without a session
    assert status == 302
