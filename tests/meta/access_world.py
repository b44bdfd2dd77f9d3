"""The world of the access matrix: every kind of user, the objects that requests refer to, and helpers that send requests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeAlias
from uuid import UUID

from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart

from egress.models import EgressRequest
from files import access, links
from files import grants as sharing
from files.models import Collection, Grant, Hold, Level, StoredFile
from tenants.auth import tokens
from tenants.models import Tenant, User
from tenants.people import invite, token_of
from tests.clients import Clients
from tests.factories import PASSWORD, make_destruction, make_member, make_tenant, make_user
from tests.meta.matrix import EMPTY, Row
from tests.services import egress
from vault import keys
from vault.models import Key
from vault.stores import get_store


Response: TypeAlias = tuple[int, bytes, dict[str, str]]  # status, body and headers


@dataclass(frozen=True)
class Names:
    """The identifiers that a request can contain."""

    tenant: str
    slug: str
    display_name: str
    filename: str
    etag: str
    token: str
    grant_id: str
    hold_id: str
    destruction: str
    request_id: str
    number: str  # of a file in the request
    username: str
    prefix: str  # of an API key of the admin
    account: str  # username of a service account
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
    hold_id=str(UUID(int=9)),
    destruction=str(UUID(int=11)),
    request_id=str(UUID(int=12)),
    number="12",
    username="nobody-at-all",
    prefix="sr_00000000",
    account="nobody@no-such-tenant",
    invitation=str(UUID(int=8)),
    invitation_token="x" * 80,
)
HOLD = UUID(int=10)
NEW_FILE = "new.csv"
NEW_PASSWORD = "another long password"


@dataclass(frozen=True)
class World:
    people: dict[str, User | None]
    collection: Collection
    names: Names
    secrets: list[bytes]  # visible only to users who may read the collection
    tenant_secrets: list[bytes]  # visible only inside the tenant

    @cached_property
    def clients(self) -> Clients:
        return Clients(self.people)


@contextmanager
def rolled_back() -> Iterator[None]:
    """Rolls back all database changes of the block."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def make_world() -> World:
    acme, globex = make_tenant("acme", new_collections="private"), make_tenant("globex")
    acme.allow_external_sharing = True
    acme.slug, acme.name = "acme-research", "Acme Research Ltd"  # long enough to appear in no response by chance
    acme.save()
    people: dict[str, User | None] = {
        "admin": make_member(acme, "alice", "admin"),
        "manager": make_member(acme, "mona", "member"),
        "editor": make_member(acme, "edgar", "member"),
        "viewer": make_member(acme, "vera", "member"),
        "member": make_member(acme, "bob", "member"),
        "file": make_member(acme, "fred", "member"),
        "requester": make_member(acme, "rosa", "member"),
        "external": make_member(globex, "xena", "member"),
        "auditor": make_member(acme, "erin", "auditor"),
        "stage": make_member(acme, "gina", "information_governance"),
        "last": make_member(acme, "rick", "research_it"),
        "other": make_member(globex, "mallory", "admin", "member"),
        "root": make_user("root", is_superuser=True),
        "inactive": make_member(acme, "ivan", "member"),
        "suspended": make_member(acme, "sven", "member"),
        "anonymous": None,
    }
    make_member(acme, "carol", "member")
    clients = Clients(people)
    alice, alices = people["admin"], clients["admin"]
    assert alice
    slug = alices.post("/api/v1/collections/", {"display_name": "November Cohort"}).json()["id"]
    put = alices.put(f"/api/v1/collections/{slug}/content/patient-4711.csv", b"confidential readings", content_type="text/csv")
    alices.patch(f"/api/v1/collections/{slug}/files/patient-4711.csv/", {"notes": "from the third ward"})
    file = access.get_file(alice, slug, "patient-4711.csv")
    collection = file.collection
    in_a_day = datetime.now(UTC) + timedelta(days=1)  # the tests take longer than the lifetime of a link
    token = links.mint(collection=collection, file=file, by=alice, now=in_a_day)
    grants = {name: grant_access(collection, people[name], level) for name, level in GRANTED_LEVELS.items()}
    grants["file"] = grant_access(collection, people["file"], Level.VIEWER, file=file)
    about = f"/api/v1/tenants/{acme.slug}"
    prefix = alices.post(f"{about}/api-keys/", {"name": "From the third ward", "scopes": ["read"]}).json()["prefix"]
    account = alices.post(f"{about}/service-accounts/", {"name": "importer", "roles": ["member"]}).json()["username"]
    invitation = invite(tenant=acme, email="newcomer@example.org", roles=["member"], by=alice, now=datetime.now(UTC))
    destroyed = make_destruction(acme, "Third Ward Cohort", started_by="alice")
    request = returned(clients, slug)
    keys.ensure_signing_key(Key.Purpose.EGRESS, now=datetime.now(UTC))
    User.objects.filter(username="ivan").update(is_active=False)
    # Adds an event to the platform's audit trail.
    clients["root"].post("/api/v1/auth/token/", {"username": "root", "password": PASSWORD})
    people["root"].refresh_from_db()  # type: ignore[union-attr]  # a reset of the password depends on the last sign-in
    secrets = [
        slug, "November Cohort", "patient-4711", "confidential", "third ward", str(collection.uuid), str(file.uuid),
        file.object_id.hex, str(file.object_id), file.sha256, "alice", prefix, account, str(invitation.pk), "newcomer@example",
        "Third Ward", destroyed.slug, str(destroyed.pk), request["id"], request["content_sha256"], "rosa", "release-", "Release ",
    ]  # fmt: skip
    tenant_secrets = [acme.slug, acme.name, str(acme.pk), acme.pk.hex]
    return World(
        people=people,
        collection=collection,
        names=Names(
            tenant=acme.slug,
            slug=slug,
            display_name="November Cohort",
            filename="patient-4711.csv",
            etag=put["ETag"],
            token=token,
            grant_id=str(grants["file"].pk),
            hold_id=str(HOLD),
            destruction=str(destroyed.pk),
            request_id=request["id"],
            number="1",
            username="carol",
            prefix=prefix,
            account=account,
            invitation=str(invitation.pk),
            invitation_token=token_of(invitation),
        ),
        secrets=[secret.encode() for secret in secrets],
        tenant_secrets=[secret.encode() for secret in tenant_secrets],
    )


GRANTED_LEVELS = {
    "manager": Level.MANAGER,
    "editor": Level.EDITOR,
    "viewer": Level.VIEWER,
    "requester": Level.VIEWER,
    "external": Level.VIEWER,
    "inactive": Level.MANAGER,
    "suspended": Level.MANAGER,
}


def grant_access(collection: Collection, user: User | None, level: Level, *, file: StoredFile | None = None) -> Grant:
    assert user
    grant, _ = sharing.grant_access(collection, file=file, username=user.username, level=level, by=None, now=datetime.now(UTC))
    return grant


def returned(clients: Clients, slug: str) -> Any:
    """Submits an egress request for the file and returns it to the requester. In this state it blocks no other operation."""
    request = egress.submit(clients["requester"], slug, justification="The third ward publishes its readings.")
    egress.work_on()
    assert egress.decide(clients["stage"], request, "return", "The third ward is named.").status_code == 201
    egress.work_on()
    return request


def advance_request(world: World, state: str) -> None:
    """Advances the egress request of the world to a state."""
    request = {"id": world.names.request_id}
    if state == "withdrawn":
        assert world.clients["requester"].post(egress.path(request, "withdraw/"), {}).status_code == 200
    if state not in {"in_review", "failed", "released"}:
        return
    assert world.clients["requester"].post(egress.path(request, "resubmit/"), {}).status_code == 200
    egress.work_on()
    if state in {"failed", "released"}:
        for who in ("stage", "last"):
            assert egress.decide(world.clients[who], request).status_code == 201
        if state == "failed":
            staging = get_store("staging")
            staging.erase(list(staging.entries("")))
        egress.work_on()
    assert EgressRequest.objects.get(pk=request["id"]).status == state


def form(**fields: str) -> dict[str, Any]:
    """Returns a form with these fields and a file as the last part."""
    parts = {**fields, "file": SimpleUploadedFile(NEW_FILE, b"a,b", "text/csv")}
    return {"data": encode_multipart(BOUNDARY, parts), "content_type": MULTIPART_CONTENT}


def body(row: Row, world: World, names: Names, who: str) -> dict[str, Any]:
    """Returns the body and headers with which the request succeeds for a user with all rights."""
    user = world.people[who]
    data: Any
    match row.method, row.path.removeprefix("/api/v1/"):
        case "POST", "auth/token/":
            data = {"username": user.username if user else "anonymous", "password": PASSWORD if user else "a guess"}
        case "POST", "auth/token/refresh/" | "auth/token/revoke/":
            data = {"refresh": tokens.mint(user)["refresh"] if user else "none"}
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
        case "POST", "collections/{slug}/holds/":
            data = {"reason": "a suit"}
        case "POST", "egress/requests/":
            data = {"collection": names.slug, "files": [names.filename], "justification": "It is for our paper."}
        case "POST", "egress/requests/{request_id}/decisions/":
            data = {"verdict": "return" if row.state == "failed" else "approve", "reason": "It is as the protocol says."}
        case "POST", "egress/requests/{request_id}/extend/":
            data = {"days": 1, "reason": "They were on holiday."}
        case "POST", "egress/requests/{request_id}/revoke/":
            data = {"reason": "It was a mistake."}
        case "PUT", "tenants/{tenant}/egress-policy/":
            data = {"single_approval": True}
        case "PUT" | "PATCH", _:
            data = {"notes": "changed"}
        case _:
            data = {}
    return {"data": json.dumps(data), "content_type": "application/json"}


def send(client: Client, method: str, path: str, **request: Any) -> Response:
    response: Any = client.generic(method, path, **request)
    content = response.getvalue() if response.streaming else response.content
    headers = {name: value for name, value in response.items() if name not in {"X-Request-ID", "Date"}}
    return response.status_code, content, headers


def send_row(row: Row, world: World, names: Names, who: str, client: Client | None = None) -> Response:
    path = row.path.format_map(asdict(names))
    request = body(row, world, names, who) if row.method != "GET" else {}
    return send(client or world.clients[who], row.method, path, **request)


def situation_of(row: Row) -> str:
    """Returns the conditions that the row's request needs, separated by spaces; see `set_up`."""
    if (row.method, row.path) == ("POST", "/api/v1/egress/requests/"):
        return f"{row.state} withdrawn"  # a collection has only one open request at a time
    return f"{row.state} held" if row.state == "held" or "/holds/" in row.path else row.state


def set_up(world: World, situation: str) -> None:
    for state in situation.split():
        advance_request(world, state)
    if "held" in situation:
        world.collection.holds.create(
            id=HOLD, kind=Hold.Kind.LEGAL, reason="a suit about the third ward", placed_at=datetime.now(UTC)
        )
    if "deleted" in situation:
        Collection.objects.filter(pk=world.collection.pk).update(status="deleted", deleted_at=datetime.now(UTC))


def suspend_tenant_for(world: World, who: str) -> None:
    if who == "suspended":
        Tenant.objects.filter(pk=world.collection.tenant_id).update(is_active=False)


def outcome_of(status: int, content: bytes) -> str:
    return EMPTY if status == 200 and content[:1] == b"{" and json.loads(content).get("results") == [] else str(status)


def find_leaks(world: World, who: str, answer: Response) -> list[bytes]:
    _, content, headers = answer
    text = content + repr(headers).encode()
    kept = world.secrets + (world.tenant_secrets if who in {"other", "inactive", "suspended", "anonymous"} else [])
    return [secret for secret in kept if secret in text]
