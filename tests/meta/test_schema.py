"""The OpenAPI schema is valid, and the server keeps to it, whatever the requests that are made up from it hold (INV-17)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, transaction
from django.utils import timezone
from drf_spectacular.validation import validate_schema
from hypothesis import HealthCheck
from hypothesis import strategies as st
from rest_framework.test import APIClient
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from config.wsgi import application
from egress.models import EgressRequest
from files.models import Collection, DownloadLink, Grant, Hold
from tenants import tokens
from tenants.models import ApiKey, Invitation, Membership, Tenant, User
from tenants.people import OF_THE_PLATFORM, invite
from tests.factories import PASSWORD, make_destruction, make_member, make_tenant
from tests.meta.leaks import insides
from tests.services import egress
from tests.worlds import starts_from


SLUG, FILENAME, TOKEN = "november-2012-7kq3", "readings.csv", "t" * 43
TENANT, PREFIX, ACCOUNT, GRANT = "acme", "sr_12345678", "importer@acme", UUID(int=1)
CONTENT = b"a,b\r\n1,2\r\n"
Case: TypeAlias = schemathesis.Case[Any]
Operation: TypeAlias = schemathesis.APIOperation[Any, Any, Any, Any]
NEVER_RIGHT = {
    "POST /api/v1/collections/{slug}/restore/",  # nothing to do
    # Nobody guesses a token.
    "POST /api/v1/auth/token/refresh/",
    "POST /api/v1/auth/password/reset/confirm/",
    "POST /api/v1/auth/invitations/accept/",
    # alice is no superuser
    "POST /api/v1/tenants/",
    "GET /api/v1/audit/",
    "GET /api/v1/audit.csv",
    "HEAD /api/v1/audit.csv",
    "POST /api/v1/egress/requests/{request_id}/retry/",
}
PUBLIC = {
    "/api/v1/auth/token/",
    "/api/v1/auth/token/revoke/",
    "/api/v1/auth/password/reset/",
    "/api/v1/egress/signing-keys/",
    "/downloads/{token}",
}
HOLD = UUID("22222222-2222-4333-8444-555555555555")
REQUEST = UUID("44444444-2222-4333-8444-555555555555")  # stands for the one that there is: nobody chooses its id
DESTRUCTION = UUID("33333333-2222-4333-8444-555555555555")
INVITATION = "11111111-2222-4333-8444-555555555555"
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code"}


def with_what_exists(document: dict[str, Any]) -> dict[str, Any]:
    """The schema, naming what exists: made-up names would see little but 404. Requests that break it still have others."""
    known = {
        "slug": SLUG,
        "filename": FILENAME,
        "token": TOKEN,
        "tenant": TENANT,
        "username": "bob",
        "prefix": PREFIX,
        "account": ACCOUNT,
        "grant_id": str(GRANT),
        "hold_id": str(HOLD),
        "destruction": str(DESTRUCTION),
        "invitation": INVITATION,
        "request_id": str(REQUEST),
        "number": 1,
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["schema"] |= {"enum": [known[parameter["name"]]]}
                if parameter["name"] == "If-Match":
                    parameter["schema"] |= {"enum": ["*", '"0"']}
    inputs = document["components"]["schemas"]
    inputs["NamedFileFormRequest"]["properties"]["collection"]["enum"] = [SLUG, "November 2012"]
    inputs["GrantInputRequest"]["properties"]["user"]["enum"] = ["bob"]
    inputs["TokenInputRequest"]["properties"]["username"]["enum"] = ["alice"]
    inputs["TokenInputRequest"]["properties"]["password"]["enum"] = [PASSWORD]
    inputs["CreateApiKeyInputRequest"]["properties"]["owner"]["enum"] = ["alice", ACCOUNT]
    inputs["ChangePasswordInputRequest"]["properties"]["current_password"]["enum"] = [PASSWORD]
    inputs["ChangePasswordInputRequest"]["properties"]["new_password"]["enum"] = ["another long password"]
    inputs["AddMemberInputRequest"]["properties"]["username"]["enum"] = ["mallory", "nobody"]
    inputs["SubmitInputRequest"]["properties"]["collection"]["enum"] = [SLUG, "November 2012"]
    inputs["SubmitInputRequest"]["properties"]["tenant"]["enum"] = [TENANT]
    for name in ("SubmitInputRequest", "ResubmitInputRequest"):
        inputs[name]["properties"]["files"]["items"]["enum"] = [FILENAME]
    for name in ("DecisionInputRequest", "ReasonInputRequest", "ExtendInputRequest"):
        inputs[name]["properties"]["reason"]["enum"] = ["As the protocol allows.", "Why not?"]
    for name in OF_THE_PLATFORM:
        del inputs["PatchedUpdateTenantInputRequest"]["properties"][name]
    return document


def served(environ: Any, start_response: Any) -> list[bytes]:
    """The application as a server runs it: to the end of the body, and closed. The fuzzer's client closes nothing."""
    body: Any = application(environ, start_response)
    try:
        return [b"".join(body)]
    finally:
        body.close()


PUBLISHED = schemathesis.openapi.from_wsgi("/api/schema/", served)
SCHEMA = schemathesis.openapi.from_dict(with_what_exists(json.loads(json.dumps(PUBLISHED.raw_schema))))
SCHEMA.app = served
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]


@schemathesis.check
def nothing_shows(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    assert insides((response.content or b"") + repr(response.headers).encode()) == []


@schemathesis.check
def success_is_documented_and_failure_is_a_problem(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case
) -> None:
    """`default` documents problems alone, so that it must not excuse a status that the operation does not name."""
    if response.status_code < 400:
        assert str(response.status_code) in case.operation.definition.raw["responses"]
        return
    assert response.headers["content-type"] == ["application/problem+json"]
    problem = response.json()
    assert problem.keys() >= PROBLEM_MEMBERS
    assert problem["status"] == response.status_code


CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
    nothing_shows,
    success_is_documented_and_failure_is_a_problem,
]


@contextmanager
def one_transaction() -> Iterator[None]:
    """Nothing of what happens in its block is there afterwards.

    The end of a request would close the connection under it: as Django's own test client does it, requests leave it alone.
    """
    signals = (request_started, request_finished)
    for signal in signals:
        signal.disconnect(close_old_connections)
    try:
        with transaction.atomic():
            yield
            transaction.set_rollback(True)
    finally:
        for signal in signals:
            signal.connect(close_old_connections)


@schemathesis.check
def nothing_foreign_shows(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """INV-01: of what acme keeps, whatever was asked."""
    for known in (SLUG, FILENAME, CONTENT, sha256(CONTENT).hexdigest(), TENANT, PREFIX, "October"):
        assert (known if isinstance(known, bytes) else known.encode()) not in (response.content or b"")


EXAMPLES = pytest.mark.parametrize("times", [1, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)


def fuzz(operation: Operation, *, examples: int, token: str | None = None, checks: list[Any] = CHECKS) -> set[int]:
    """Sends requests that keep to the schema and such that break it, and returns the statuses of their answers.

    They are the same in every run and in everybody's checkout.
    """
    statuses = set()

    @hypothesis.settings(
        derandomize=True, max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    def send(case: Case) -> None:
        if token:
            case.headers["Authorization"] = f"Bearer {token}"  # over the one that was made up
        if case.path_parameters.get("request_id") == str(REQUEST):
            case.path_parameters["request_id"] = str(EgressRequest.objects.get().pk)
        with one_transaction():
            statuses.add(case.call_and_validate(checks=checks).status_code)

    send()
    return statuses


@dataclass(frozen=True)
class November:
    """What is there to be asked for, which alice manages."""

    acme: Tenant
    alice: User
    bob: User


def make_november() -> November:
    now = timezone.now()
    acme = make_tenant(TENANT)
    alice, bob = make_member(acme, "alice", "admin"), make_member(acme, "bob", "member")
    alices = client_of(alice)
    alices.post("/api/v1/collections/", {"display_name": "November 2012"})
    Collection.objects.update(slug=SLUG)
    alices.put(f"/api/v1/collections/{SLUG}/content/{FILENAME}", CONTENT, content_type="text/csv")
    alices.post(f"/api/v1/collections/{SLUG}/files/{FILENAME}/grants/", {"user": "bob", "level": "viewer"})
    Grant.objects.filter(user=bob).update(id=GRANT)
    alices.post(f"/api/v1/collections/{SLUG}/files/{FILENAME}/download/")
    alices.post(f"/api/v1/tenants/{TENANT}/service-accounts/", {"name": "importer", "roles": ["member"]})
    alices.post(f"/api/v1/tenants/{TENANT}/api-keys/", {"name": "nightly", "scopes": ["read"]})
    ApiKey.objects.update(prefix=PREFIX)
    invite(tenant=acme, email="dora@example.org", roles=["member"], by=alice, now=now)
    Invitation.objects.update(id=INVITATION)
    make_destruction(acme, "October", pk=DESTRUCTION)
    DownloadLink.objects.update(token_hash=sha256(TOKEN.encode()).hexdigest())
    return November(acme, alice, bob)


def client_of(user: User) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens.mint(user)['access']}")
    return client


@pytest.fixture
def november(built: November) -> November:
    """Made just now, whenever its world was built."""
    DownloadLink.objects.update(expires_at=timezone.now() + timedelta(hours=1))
    return built


@pytest.fixture
def october(operation: Operation, november: November) -> None:
    """A request in the state that the operation is for. alice decides alone on what bob asks for, and may fetch it, too."""
    if "{request_id}" not in operation.path:
        return
    Membership.objects.filter(user=november.alice).update(roles=["admin", "research_it"])
    alices, bobs = client_of(november.alice), client_of(november.bob)
    alices.put(f"/api/v1/tenants/{TENANT}/egress-policy/", {"stages": ["research_it"], "downloaders": ["requester", "admin"]})
    what = operation.path.rpartition("{request_id}/")[2]
    reviewer = client_of(make_member(november.acme, "rita", "research_it"))
    slug = egress.fill(bobs, "October", {FILENAME: CONTENT})
    requester = alices if what in {"resubmit/", "withdraw/"} else bobs
    request = egress.submit(requester, slug)
    egress.work_on()
    if what == "resubmit/":
        egress.decide(reviewer, request, "return")
    elif what in {"revoke/", "extend/", "downloads/", "package.zip", "manifest/"}:
        egress.decide(reviewer, request)
    egress.work_on()


@pytest.mark.django_db
@starts_from(make_november)
@EXAMPLES
@EACH
def test_fuzzed_with_a_token(operation: Operation, november: November, october: None, times: int) -> None:
    if "{hold_id}" in operation.path:  # elsewhere it would be in the way
        Collection.objects.get().holds.create(id=HOLD, kind=Hold.Kind.LEGAL, reason="a suit", placed_at=timezone.now())
    statuses = fuzz(operation, examples=60 * times, token=tokens.mint(november.alice)["access"])

    # A fuzzer that is refused at the door finds nothing behind it.
    assert operation.label in NEVER_RIGHT or min(statuses) < 300 or statuses >= {303}


@pytest.mark.django_db
@starts_from(make_november)
@EXAMPLES
@EACH
def test_fuzzed_without_a_token(operation: Operation, november: November, october: None, times: int) -> None:
    statuses = fuzz(operation, examples=3 * times)

    assert min(statuses) >= 400 or operation.path in PUBLIC


@pytest.mark.django_db
@starts_from(make_november)
@EXAMPLES
@EACH
def test_fuzzed_by_a_stranger(operation: Operation, november: November, october: None, times: int) -> None:
    is_link = operation.path == "/downloads/{token}"  # its own credential, whoever comes with it
    checks = CHECKS if is_link else [*CHECKS, nothing_foreign_shows]
    mallory = make_member(make_tenant("globex"), "mallory", "member")
    statuses = fuzz(operation, examples=5 * times, token=tokens.mint(mallory)["access"], checks=checks)

    assert min(statuses) >= 400 or not {"{slug}", "{tenant}", "{request_id}"} & set(operation.path.split("/"))


def test_schema_is_valid() -> None:
    """As OpenAPI 3.1, and each of its shapes as JSON Schema 2020-12, which that does not look into."""
    assert PUBLISHED.raw_schema["openapi"].startswith("3.1")
    validate_schema(PUBLISHED.raw_schema)  # type: ignore[no-untyped-call]
    for component in PUBLISHED.raw_schema["components"]["schemas"].values():
        jsonschema_rs.meta.validate(component)
