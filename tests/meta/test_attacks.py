"""Bodies and queries that refer to another tenant's objects reveal and change nothing (F-50, INV-01)."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from files.models import StoredFile
from tests.meta.access_world import NEW_FILE, UNKNOWN, Names, World, find_leaks, form, make_world, rolled_back, send
from tests.worlds import starts_from


pytestmark = [pytest.mark.django_db, starts_from(make_world)]


@dataclass(frozen=True)
class Attack:
    """A request by another tenant's admin whose path, body or query refers to an object of this tenant."""

    name: str
    method: str
    path: str
    request: Callable[[Names], dict[str, Any]]
    status: int


def as_json(**data: Any) -> dict[str, Any]:
    return {"data": json.dumps(data), "content_type": "application/json"}


def query(text: str) -> dict[str, Any]:
    return {"QUERY_STRING": text}


REQUESTS = "/api/v1/egress/requests/"
MINE, MY_TENANT = "/api/v1/collections/{mine}/", "/api/v1/tenants/globex/"
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
        "upload by id and own tenant",
        "POST",
        "/api/v1/files/",
        lambda names: form(tenant="globex", collection=names.slug),
        400,
    ),
    Attack(
        "upload by own name and their tenant",
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
    Attack("their grant in the own collection", "DELETE", f"{MINE}grants/{{grant_id}}/", lambda names: {}, 404),
    Attack("grants by user", "GET", f"{MY_TENANT}grants/", lambda names: query(f"user={names.username}"), 200),
    Attack(
        "member by the name of one of theirs",
        "POST",
        f"{MY_TENANT}members/",
        lambda names: as_json(username=names.username, roles=["member"]),
        400,
    ),
    Attack("their member", "PATCH", f"{MY_TENANT}members/{{username}}/", lambda names: as_json(roles=["member"]), 404),
    Attack("their invitation", "DELETE", f"{MY_TENANT}invitations/{{invitation}}/", lambda names: {}, 404),
    Attack(
        "key of their service account",
        "POST",
        f"{MY_TENANT}api-keys/",
        lambda names: as_json(name="x", scopes=["read"], owner=names.account),
        400,
    ),
    Attack("their key", "DELETE", f"{MY_TENANT}api-keys/{{prefix}}/", lambda names: {}, 404),
    Attack("keys by owner", "GET", f"{MY_TENANT}api-keys/", lambda names: query(f"owner={names.account}"), 200),
    Attack("their service account", "DELETE", f"{MY_TENANT}service-accounts/{{account}}/", lambda names: {}, 404),
    Attack("members by search", "GET", f"{MY_TENANT}members/", lambda names: query(f"search={names.username}"), 200),
    Attack("audit by actor", "GET", f"{MY_TENANT}audit/", lambda names: query(f"actor={names.username}"), 200),
    Attack("create", "POST", "/api/v1/collections/", lambda names: as_json(display_name="x", tenant=names.tenant), 400),
    Attack("requests by collection", "GET", REQUESTS, lambda names: query(f"collection={names.slug}"), 200),
    Attack("requests by tenant", "GET", REQUESTS, lambda names: query(f"tenant={names.tenant}"), 200),
    Attack("requests by requester", "GET", REQUESTS, lambda names: query("requester=rosa"), 200),
    Attack("submit", "POST", REQUESTS, lambda names: as_json(collection=names.slug, justification="It is for our paper."), 400),
    Attack(
        "submit by name and tenant",
        "POST",
        REQUESTS,
        lambda names: as_json(collection=names.display_name, tenant=names.tenant, justification="It is for our paper."),
        400,
    ),
    Attack("archive link", "POST", f"{MINE}archive/", lambda names: as_json(file=[names.filename]), 404),
    Attack(
        "archive link with an own file", "POST", f"{MINE}archive/", lambda names: as_json(file=["mine.csv", names.filename]), 404
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
    Attack("their file in the own collection", "GET", f"{MINE}files/patient-4711.csv/", lambda names: {}, 404),
]


@pytest.fixture
def mine(world: World) -> str:
    """The id of the other admin's own collection, with one file."""
    client = world.clients["other"]
    slug = client.post("/api/v1/collections/", {"display_name": "Mine"}).json()["id"]
    client.put(f"/api/v1/collections/{slug}/content/mine.csv", b"mine", content_type="text/csv")
    return str(slug)


def test_reference_to_a_foreign_object_gets_the_response_for_an_unknown_object(
    world: World, mine: str, subtests: pytest.Subtests
) -> None:
    files = StoredFile.objects.count()
    for attack in ATTACKS:
        with subtests.test(attack.name):
            answers = []
            for names in (world.names, UNKNOWN):
                with rolled_back():
                    path = attack.path.format(mine=mine, **asdict(names))
                    answers.append(send(world.clients["other"], attack.method, path, **attack.request(names)))
                    assert StoredFile.objects.count() == files
            assert answers[0][0] == attack.status
            assert find_leaks(world, "other", answers[0]) == []
            assert answers[0] == answers[1]


def test_name_used_in_both_tenants_refers_to_the_own_object(world: World) -> None:
    """Names are unique per tenant, so the same name in another tenant is neither a conflict nor ambiguous."""
    client = world.clients["other"]
    made = send(client, "POST", "/api/v1/collections/", **as_json(display_name="November Cohort"))
    sent = send(client, "POST", "/api/v1/files/", **form(collection="November Cohort"))
    slug = json.loads(made[1])["id"]
    renamed = send(client, "PATCH", f"/api/v1/collections/{slug}/files/{NEW_FILE}/", **as_json(filename="patient-4711.csv"))

    assert [made[0], sent[0], renamed[0]] == [201, 201, 200]
    assert json.loads(sent[1])["collection"] == slug
    secrets = [secret for secret in world.secrets if secret not in {b"November Cohort", b"patient-4711"}] + world.tenant_secrets
    assert not [secret for secret in secrets for _, content, headers in (made, sent, renamed) if secret in content]
    assert world.collection.files.count() == 1


def test_cursor_of_another_tenant_returns_no_rows(world: World) -> None:
    admin_client = world.clients["admin"]
    admin_client.post("/api/v1/collections/", {"display_name": "November Cohort II"})
    page_two = admin_client.get("/api/v1/collections/?page_size=1").json()["next"]

    answer = send(world.clients["other"], "GET", page_two.removeprefix("http://testserver"))

    assert answer[0] == 200
    assert json.loads(answer[1])["results"] == []
    assert find_leaks(world, "other", answer) == []
