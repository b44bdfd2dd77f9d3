"""Generates requests from the OpenAPI schema and checks every response (INV-17).

The import takes seconds. Tests import this module in a fixture, so that collecting them stays fast.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from typing import Any, Final, TypeAlias
from uuid import UUID

import hypothesis
import schemathesis
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, transaction
from django.test import Client
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from config.wsgi import application
from tenants.people import PLATFORM_SETTINGS
from tests.factories import PASSWORD
from tests.meta import fuzzing_world
from tests.meta.internals import exposed_internals


Case: TypeAlias = schemathesis.Case[Any]
Operation: TypeAlias = schemathesis.APIOperation[Any, Any, Any, Any]
REQUEST: Final = UUID(int=4)  # a placeholder for the id of the egress request, which the server chooses
PROBLEM_MEMBERS: Final = {"type", "title", "status", "detail", "code"}


def served(environ: Any, start_response: Any) -> list[bytes]:
    """Runs the application like a server: reads the whole body and closes it. The client of schemathesis does not close it."""
    body: Any = application(environ, start_response)
    try:
        return [b"".join(body)]
    finally:
        body.close()


@cache
def published() -> dict[str, Any]:
    """Returns the OpenAPI schema that the server publishes."""
    document: dict[str, Any] = Client().get("/api/schema/").json()
    return document


@cache
def operations() -> dict[str, Operation]:
    """Maps method and path to the operation."""
    schema = schemathesis.openapi.from_dict(with_existing_ids(json.loads(json.dumps(published()))))
    schema.app = served
    found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    return {operation.label: operation for operation in found}


@cache
def cases(label: str) -> tuple[st.SearchStrategy[Case], st.SearchStrategy[Case]]:
    """Returns strategies for requests that are valid by the schema, and for requests of which many are invalid."""
    valid, invalid = (operations()[label].as_strategy(generation_mode=mode) for mode in GenerationMode)
    return valid, st.one_of(valid, invalid)


def with_existing_ids(document: dict[str, Any]) -> dict[str, Any]:
    """Restricts the schema to identifiers that exist, because generated ones would only get 404.

    Requests that violate the schema still contain other identifiers.
    """
    known = {
        "slug": fuzzing_world.SLUG,
        "filename": fuzzing_world.FILENAME,
        "token": fuzzing_world.TOKEN,
        "tenant": fuzzing_world.TENANT,
        "username": "bob",
        "prefix": fuzzing_world.PREFIX,
        "account": fuzzing_world.ACCOUNT,
        "grant_id": str(fuzzing_world.GRANT),
        "hold_id": str(fuzzing_world.HOLD),
        "destruction": str(fuzzing_world.DESTRUCTION),
        "invitation": str(fuzzing_world.INVITATION),
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
    inputs["NamedFileFormRequest"]["properties"]["collection"]["enum"] = [fuzzing_world.SLUG, "November 2012"]
    inputs["GrantInputRequest"]["properties"]["user"]["enum"] = ["bob"]
    inputs["TokenInputRequest"]["properties"]["username"]["enum"] = ["alice"]
    inputs["TokenInputRequest"]["properties"]["password"]["enum"] = [PASSWORD]
    inputs["CreateApiKeyInputRequest"]["properties"]["owner"]["enum"] = ["alice", fuzzing_world.ACCOUNT]
    inputs["ChangePasswordInputRequest"]["properties"]["current_password"]["enum"] = [PASSWORD]
    inputs["ChangePasswordInputRequest"]["properties"]["new_password"]["enum"] = ["another long password"]
    inputs["AddMemberInputRequest"]["properties"]["username"]["enum"] = ["mallory", "nobody"]
    inputs["AddMemberInputRequest"]["properties"]["email"]["enum"] = ["dan@example.org"]
    inputs["SubmitInputRequest"]["properties"]["collection"]["enum"] = [fuzzing_world.SLUG, "November 2012"]
    inputs["SubmitInputRequest"]["properties"]["tenant"]["enum"] = [fuzzing_world.TENANT]
    for name in ("round", "stage"):
        inputs["DecisionInputRequest"]["properties"][name]["enum"] = [1]
    for name in ("SubmitInputRequest", "ResubmitInputRequest"):
        inputs[name]["properties"]["files"]["items"]["enum"] = [fuzzing_world.FILENAME]
    for name in ("DecisionInputRequest", "ReasonInputRequest", "ExtendInputRequest"):
        inputs[name]["properties"]["reason"]["enum"] = ["As the protocol allows.", "Why not?"]
    for name in PLATFORM_SETTINGS:
        del inputs["PatchedUpdateTenantInputRequest"]["properties"][name]
    return document


# --- Checks of every response ---


@schemathesis.check
def exposes_no_internals(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    assert exposed_internals((response.content or b"") + repr(response.headers).encode()) == []


@schemathesis.check
def success_is_documented_and_failure_is_a_problem(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case
) -> None:
    """The response `default` documents only problems, so it must not cover an undocumented success status."""
    if response.status_code < 400:
        assert str(response.status_code) in case.operation.definition.raw["responses"]
        return
    assert response.headers["content-type"] == ["application/problem+json"]
    problem = response.json()
    assert problem.keys() >= PROBLEM_MEMBERS
    assert problem["status"] == response.status_code


@schemathesis.check
def exposes_nothing_of_acme(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """INV-01: for requests by users of other tenants."""
    secrets = (
        fuzzing_world.SLUG,
        fuzzing_world.FILENAME,
        sha256(fuzzing_world.CONTENT).hexdigest(),
        fuzzing_world.TENANT,
        fuzzing_world.PREFIX,
        "October",
    )
    for known in (fuzzing_world.CONTENT, *(text.encode() for text in secrets)):
        assert known not in (response.content or b"")


CHECKS: Final = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
    exposes_no_internals,
    success_is_documented_and_failure_is_a_problem,
]


@contextmanager
def one_transaction() -> Iterator[None]:
    """Rolls back all database changes of the block.

    Like Django's test client, prevents the end of a request from closing the connection with the transaction.
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


def fuzz(label: str, *, valid: int, mixed: int, request: UUID, token: str | None = None, is_outsider: bool = False) -> set[int]:
    """Sends `valid` valid requests of an operation and `mixed` requests that may be invalid. Returns the response statuses.

    The requests are the same in every run and on every machine.
    """
    statuses = set()
    checks = [*CHECKS, exposes_nothing_of_acme] if is_outsider else CHECKS

    def send(case: Case) -> None:
        if token:
            case.headers["Authorization"] = f"Bearer {token}"  # replaces the generated one
        if case.path_parameters.get("request_id") == str(REQUEST):
            case.path_parameters["request_id"] = str(request)
        with one_transaction():
            statuses.add(case.call_and_validate(checks=checks).status_code)

    for strategy, number in zip(cases(label), (valid, mixed), strict=True):
        if number:
            settings = hypothesis.settings(
                derandomize=True, max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck)
            )
            settings(hypothesis.given(strategy)(send))()
    return statuses
