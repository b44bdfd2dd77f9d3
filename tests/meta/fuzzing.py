"""Requests that are made up from the OpenAPI schema, and what every answer has to keep to (INV-17).

It takes seconds to import: tests do so in a fixture, or every process that collects them would.
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
from tenants.people import OF_THE_PLATFORM
from tests.factories import PASSWORD
from tests.meta import fuzzing_world
from tests.meta.internals import exposed_internals


Case: TypeAlias = schemathesis.Case[Any]
Operation: TypeAlias = schemathesis.APIOperation[Any, Any, Any, Any]
REQUEST: Final = UUID(int=4)  # in place of the one that the operation is for: its id is not ours to choose
PROBLEM_MEMBERS: Final = {"type", "title", "status", "detail", "code"}


def served(environ: Any, start_response: Any) -> list[bytes]:
    """The application as a server runs it: to the end of the body, and closed. The fuzzer's client closes nothing."""
    body: Any = application(environ, start_response)
    try:
        return [b"".join(body)]
    finally:
        body.close()


@cache
def published() -> dict[str, Any]:
    """What the server says of itself."""
    document: dict[str, Any] = Client().get("/api/schema/").json()
    return document


@cache
def operations() -> dict[str, Operation]:
    """By method and path."""
    schema = schemathesis.openapi.from_dict(with_what_exists(json.loads(json.dumps(published()))))
    schema.app = served
    found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    return {operation.label: operation for operation in found}


@cache
def cases(label: str) -> tuple[st.SearchStrategy[Case], st.SearchStrategy[Case]]:
    """Requests that keep to the schema, and requests of which many break it."""
    sound, broken = (operations()[label].as_strategy(generation_mode=mode) for mode in GenerationMode)
    return sound, st.one_of(sound, broken)


def with_what_exists(document: dict[str, Any]) -> dict[str, Any]:
    """The schema, naming what exists: made-up names would see little but 404. Requests that break it still have others."""
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
    for name in OF_THE_PLATFORM:
        del inputs["PatchedUpdateTenantInputRequest"]["properties"][name]
    return document


# --- What every answer has to keep to ---


@schemathesis.check
def nothing_shows(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    assert exposed_internals((response.content or b"") + repr(response.headers).encode()) == []


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


@schemathesis.check
def nothing_foreign_shows(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """INV-01: of what acme keeps, whatever was asked."""
    kept = (
        fuzzing_world.SLUG,
        fuzzing_world.FILENAME,
        sha256(fuzzing_world.CONTENT).hexdigest(),
        fuzzing_world.TENANT,
        fuzzing_world.PREFIX,
        "October",
    )
    for known in (fuzzing_world.CONTENT, *(text.encode() for text in kept)):
        assert known not in (response.content or b"")


CHECKS: Final = [
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


def fuzz(label: str, *, sound: int, mixed: int, request: UUID, token: str | None = None, is_stranger: bool = False) -> set[int]:
    """Sends so many requests of an operation that keep to the schema, and so many others. Returns the statuses of their answers.

    They are the same in every run and in everybody's checkout.
    """
    statuses = set()
    checks = [*CHECKS, nothing_foreign_shows] if is_stranger else CHECKS

    def send(case: Case) -> None:
        if token:
            case.headers["Authorization"] = f"Bearer {token}"  # over the one that was made up
        if case.path_parameters.get("request_id") == str(REQUEST):
            case.path_parameters["request_id"] = str(request)
        with one_transaction():
            statuses.add(case.call_and_validate(checks=checks).status_code)

    for strategy, number in zip(cases(label), (sound, mixed), strict=True):
        if number:
            settings = hypothesis.settings(
                derandomize=True, max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck)
            )
            settings(hypothesis.given(strategy)(send))()
    return statuses
