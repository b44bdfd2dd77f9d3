"""The OpenAPI schema is valid, and responses to fuzzed requests conform to it (INV-17)."""

import json
from pathlib import Path
from types import ModuleType

import drf_spectacular
import pytest
from django.utils import timezone

from files.models import Collection, Hold
from tenants.auth import tokens
from tests.meta.fuzzing_world import HOLD, SLUG, FuzzingWorld, make_fuzzing_world
from tests.meta.url_routes import routes
from tests.worlds import starts_from


NOT_DOCUMENTED = {"/", "/api/schema/", "/api/docs/"}
OPERATIONS = [
    f"{method} {path}"
    for path, methods in routes().items()
    for method in sorted(methods - {"HEAD"})
    if path not in NOT_DOCUMENTED
]
NEVER_SUCCESSFUL = {
    "POST /api/v1/collections/{slug}/restore/",  # the collection is not deleted
    # The fuzzer cannot guess a token.
    "POST /api/v1/auth/token/refresh/",
    "POST /api/v1/auth/password/reset/confirm/",
    "POST /api/v1/auth/invitations/accept/",
    # alice is not a superuser.
    "POST /api/v1/tenants/",
    "GET /api/v1/audit/",
    "GET /api/v1/audit.csv",
    "POST /api/v1/egress/requests/{request_id}/retry/",
}
RARELY_SUCCESSFUL = {  # most requests that are valid by the schema violate other rules
    "POST /api/v1/tenants/{tenant}/members/",
    "POST /api/v1/tenants/{tenant}/api-keys/",
    "POST /api/v1/collections/{slug}/grants/",
    "PUT /api/v1/collections/{slug}/content/{filename}",
    "POST /api/v1/egress/requests/",
    "POST /api/v1/egress/requests/{request_id}/decisions/",
    "POST /api/v1/egress/requests/{request_id}/revoke/",
}
PUBLIC = {
    "/api/v1/auth/token/",
    "/api/v1/auth/token/revoke/",
    "/api/v1/auth/password/reset/",
    "/api/v1/egress/signing-keys/",
    "/downloads/{token}",
}


def examples(*, gate: int, long: int) -> pytest.MarkDecorator:
    """Parametrizes the number of requests for each operation that may violate the schema."""
    marks = [pytest.mark.long, pytest.mark.timeout(1200)]
    return pytest.mark.parametrize("examples", [gate, pytest.param(long, marks=marks)])


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    from tests.meta import fuzzing

    return fuzzing


@pytest.fixture
def world(built: FuzzingWorld) -> FuzzingWorld:
    return built


each_operation = pytest.mark.parametrize("operation", OPERATIONS)


@pytest.mark.django_db
@starts_from(make_fuzzing_world)
@examples(gate=3, long=1200)
@each_operation
def test_fuzzed_with_a_token(fuzzing: ModuleType, operation: str, world: FuzzingWorld, examples: int) -> None:
    path = operation.partition(" ")[2]
    if "{hold_id}" in path:  # a hold would block other operations
        Collection.objects.get(slug=SLUG).holds.create(id=HOLD, kind=Hold.Kind.LEGAL, reason="a suit", placed_at=timezone.now())
    token = tokens.mint(world.alice)["access"]
    valid = 20 if operation in RARELY_SUCCESSFUL else 2
    statuses = fuzzing.fuzz(operation, valid=valid, mixed=examples, request=world.request_for(path), token=token)

    # A fuzzer whose requests are all refused tests nothing behind the permission check.
    assert operation in NEVER_SUCCESSFUL or min(statuses) < 300 or statuses >= {303}


@pytest.mark.django_db
@starts_from(make_fuzzing_world)
@examples(gate=0, long=60)
@each_operation
def test_fuzzed_without_a_token(fuzzing: ModuleType, operation: str, world: FuzzingWorld, examples: int) -> None:
    path = operation.partition(" ")[2]
    statuses = fuzzing.fuzz(operation, valid=1, mixed=examples, request=world.request_for(path))

    assert min(statuses) >= 400 or path in PUBLIC


@pytest.mark.django_db
@starts_from(make_fuzzing_world)
@examples(gate=1, long=100)
@each_operation
def test_fuzzed_by_a_user_of_another_tenant(fuzzing: ModuleType, operation: str, world: FuzzingWorld, examples: int) -> None:
    path = operation.partition(" ")[2]
    token = tokens.mint(world.mallory)["access"]
    # A one-off link is a credential by itself, so another user may see the content.
    statuses = fuzzing.fuzz(
        operation,
        valid=1,
        mixed=examples,
        request=world.request_for(path),
        token=token,
        is_outsider=path != "/downloads/{token}",
    )

    assert min(statuses) >= 400 or not {"{slug}", "{tenant}", "{request_id}"} & set(path.split("/"))


def test_every_documented_operation_is_fuzzed(fuzzing: ModuleType) -> None:
    assert sorted(fuzzing.operations()) == sorted(OPERATIONS)


def test_schema_is_valid(fuzzing: ModuleType) -> None:
    """The document is valid OpenAPI 3.1, which does not validate components, and each component is valid JSON Schema 2020-12."""
    import jsonschema_rs

    # The library's own validate_schema takes five seconds to import.
    specification = Path(drf_spectacular.__file__).parent / "validation" / "openapi_3_1_schema.json"
    published = fuzzing.published()
    assert published["openapi"].startswith("3.1")
    jsonschema_rs.validate(json.loads(specification.read_text()), published)
    for component in published["components"]["schemas"].values():
        jsonschema_rs.meta.validate(component)
