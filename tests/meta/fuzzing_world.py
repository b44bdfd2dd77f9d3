"""The world of the fuzzed requests: a collection and one object of every kind that an operation can refer to."""

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

from django.utils import timezone
from rest_framework.test import APIClient

from files.models import Collection, DownloadLink, Grant
from tenants.auth import tokens
from tenants.models import ApiKey, Invitation, Tenant, User
from tenants.people import invite
from tests.factories import make_destruction, make_member, make_tenant
from tests.services import egress


SLUG, FILENAME, TOKEN = "november-2012-7kq3", "readings.csv", "t" * 43
TENANT, PREFIX, ACCOUNT = "acme", "sr_12345678", "importer@acme"
CONTENT: Final = b"a,b\r\n1,2\r\n"
GRANT: Final = UUID(int=1)
INVITATION: Final = UUID("11111111-2222-4333-8444-555555555555")
HOLD: Final = UUID("22222222-2222-4333-8444-555555555555")
DESTRUCTION: Final = UUID("33333333-2222-4333-8444-555555555555")


@dataclass(frozen=True)
class FuzzingWorld:
    """Objects of the tenant acme. The admin alice can release an egress request with one approval, and may download packages."""

    acme: Tenant
    alice: User
    bob: User
    mallory: User  # member of another tenant
    requests: dict[str, UUID]  # by state: in_review, by_alice (also in review), returned and released

    def request_for(self, path: str) -> UUID:
        """Returns the egress request whose state permits the operation."""
        match path.rpartition("{request_id}/")[2]:
            case "resubmit/":
                return self.requests["returned"]
            case "withdraw/":
                return self.requests["by_alice"]
            case "revoke/" | "extend/" | "downloads/" | "package.zip" | "manifest/":
                return self.requests["released"]
        return self.requests["in_review"]


def make_fuzzing_world() -> FuzzingWorld:
    now = timezone.now()
    acme = make_tenant(TENANT)
    alice, bob = make_member(acme, "alice", "admin", "research_it"), make_member(acme, "bob", "member")
    alices = client_of(alice)
    alices.post("/api/v1/collections/", {"display_name": "November 2012"})
    Collection.objects.update(slug=SLUG)
    alices.put(f"/api/v1/collections/{SLUG}/content/{FILENAME}", CONTENT, content_type="text/csv")
    alices.post(f"/api/v1/collections/{SLUG}/files/{FILENAME}/grants/", {"user": "bob", "level": "viewer"})
    Grant.objects.filter(user=bob).update(id=GRANT)
    alices.post(f"/api/v1/collections/{SLUG}/files/{FILENAME}/download/")
    DownloadLink.objects.update(token_hash=sha256(TOKEN.encode()).hexdigest(), expires_at=now + timedelta(days=1))
    alices.post(f"/api/v1/tenants/{TENANT}/service-accounts/", {"name": "importer", "roles": ["member"]})
    alices.post(f"/api/v1/tenants/{TENANT}/api-keys/", {"name": "nightly", "scopes": ["read"]})
    ApiKey.objects.update(prefix=PREFIX)
    invite(tenant=acme, email="dora@example.org", roles=["member"], by=alice, now=now)
    Invitation.objects.update(id=INVITATION)
    make_destruction(acme, "October", pk=DESTRUCTION)
    mallory = make_member(make_tenant("globex"), "mallory", "member")
    return FuzzingWorld(acme, alice, bob, mallory, make_requests(acme, alices, client_of(bob)))


def make_requests(acme: Tenant, alices: APIClient, bobs: APIClient) -> dict[str, UUID]:
    policy = {"stages": ["research_it"], "downloaders": ["requester", "admin"]}
    assert alices.put(f"/api/v1/tenants/{TENANT}/egress-policy/", policy).status_code == 200
    reviewer = client_of(make_member(acme, "rita", "research_it"))
    requests = {}
    for state, client in {"in_review": bobs, "by_alice": alices, "returned": alices, "released": bobs}.items():
        requests[state] = egress.submit(client, egress.fill(client, f"October, {state}", {FILENAME: CONTENT}))
    egress.work_on()
    assert egress.decide(reviewer, requests["returned"], "return").status_code == 201
    assert egress.decide(reviewer, requests["released"]).status_code == 201
    egress.work_on()
    found = {state: egress.row(request).status for state, request in requests.items()}
    assert found == {"in_review": "in_review", "by_alice": "in_review", "returned": "returned", "released": "released"}
    return {state: UUID(request["id"]) for state, request in requests.items()}


def client_of(user: User) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens.mint(user)['access']}")
    return client
