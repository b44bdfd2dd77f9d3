"""Every error is a problem document (RFC 9457): `{type, title, status, detail, code}`, and `errors` where fields are wrong.

Nothing of the server shows: no stack, SQL, key, bucket or path (INV-17). `code` is what programs should look at.
"""

import logging
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.contrib import admin
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, UnreadablePostError
from django.template.loader import render_to_string
from django.utils.cache import patch_vary_headers
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.utils.serializer_helpers import ReturnDict
from rest_framework.views import exception_handler

from files.errors import BadBody, BodyTimeout, TooLarge
from tenants.errors import TooManyRequests, Unavailable
from vault.crypto import WrongKey
from vault.errors import KeyUnavailable, StorageUnavailable
from vault.stores import StoreError


log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
READ_ONLY = "25006"  # PostgreSQL: a standby, or a server that somebody set so


def problem(code: int, *, name: str, detail: str, **members: Any) -> dict[str, Any]:
    """`type` is about:blank, which says that `title` is the status's phrase (RFC 9457, 4.2.1); `code` tells the rest."""
    return {"type": "about:blank", "title": HTTPStatus(code).phrase, "status": code, "detail": detail, "code": name, **members}


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: it does the rollback and the headers, this renders. None for what is a bug: that is a 500."""
    if isinstance(error, StoreError | StorageUnavailable | KeyUnavailable):
        # The client learns that it does not work, the operator why. A store's words name the operation and its code.
        log.warning(
            "a dependency failed", extra={"error": str(error.__cause__ or error), "kind": type(error.__cause__ or error).__name__}
        )
    error = _translated(error)
    response = exception_handler(error, context)
    if response is None:
        return None
    for name, value in getattr(error, "headers", {}).items():
        response[name] = value
    response.data = _body(error, response)
    response.content_type = MEDIA_TYPE
    return response


def _translated(error: Exception) -> Exception:
    """What lower layers raise, as what it means to the client."""
    if isinstance(error, RequestDataTooBig):
        return TooLarge("The body is larger than this address accepts.", code="body_too_large")
    if isinstance(error, UnreadablePostError):  # Django wraps what the server raised, and wraps that again
        return BodyTimeout() if isinstance(error.__cause__ and error.__cause__.__cause__, TimeoutError) else BadBody()
    if isinstance(error, StoreError):
        return StorageUnavailable()
    if isinstance(error, WrongKey):
        return KeyUnavailable()
    if _is_of_the_database(error):
        log.warning("the database does not answer", extra={"error": type(error).__name__})
        return Unavailable("The database does not answer.", code="database_unavailable")
    return error


def _is_of_the_database(error: BaseException | None) -> bool:
    """Whether it is the database that did not do what it was asked. Other errors that it reports are bugs of ours."""
    is_read_only = getattr(error and error.__cause__, "sqlstate", "") == READ_ONLY
    return isinstance(error, OperationalError | InterfaceError) or is_read_only


def _body(error: Exception, response: Response) -> dict[str, Any]:
    code = response.status_code
    if isinstance(error, exceptions.ValidationError):
        details = error.get_full_details()
        fields = _by_field(details)
        names = {entry["code"] for entries in fields.values() for entry in entries}
        name = names.pop() if len(names) == 1 else "invalid"
        return problem(
            code,
            name=name,
            detail="; ".join(f"{field}: {entry['detail']}" for field, entries in fields.items() for entry in entries)[:1000],
            errors=fields,
        )
    if isinstance(error, exceptions.APIException):
        full = error.get_full_details()
        if isinstance(full, dict) and "message" in full:
            return problem(code, name=str(full["code"]), detail=str(full["message"]))
        return problem(code, name=error.default_code, detail=str(error.default_detail))
    return problem(
        code,
        name=HTTPStatus(code).phrase.lower().replace(" ", "_"),
        detail=HTTPStatus(code).description or HTTPStatus(code).phrase,
    )


def _by_field(details: Any, field: str = "") -> dict[str, list[dict[str, str]]]:
    """DRF's nested errors, flat: `{"file.0": [{"detail", "code"}]}`; "" is the request as a whole."""
    if isinstance(details, dict) and "message" in details and "code" in details:
        return {field: [{"detail": str(details["message"]), "code": str(details["code"])}]}
    items = details.items() if isinstance(details, dict | ReturnDict) else enumerate(details)
    fields: dict[str, list[dict[str, str]]] = {}
    for name, inner in items:
        is_leaf = isinstance(details, list) and isinstance(inner, dict) and "message" in inner
        path = field if is_leaf or name == "non_field_errors" else f"{field}.{name}".lstrip(".")
        for key, entries in _by_field(inner, path).items():
            fields.setdefault(key, []).extend(entries)
    return fields


# --- What happens outside DRF ---


def respond(code: int, *, name: str, detail: str) -> JsonResponse:
    return JsonResponse(problem(code, name=name, detail=detail), status=code, content_type=MEDIA_TYPE)


def answer(request: HttpRequest, code: int, *, name: str, detail: str) -> HttpResponse:
    """A problem document, and a page to browsers in the admin site: they ask for HTML by name."""
    response: HttpResponse
    is_in_admin = request.resolver_match is not None and request.resolver_match.app_name == "admin"
    if is_in_admin and "text/html" in request.headers.get("Accept", ""):
        context = problem(code, name=name, detail=detail) | {"site_header": admin.site.site_header}
        response = HttpResponse(render_to_string("problem.html", context), status=code)
    else:
        response = respond(code, name=name, detail=detail)
    patch_vary_headers(response, ["Accept"])
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if isinstance(exception, RequestDataTooBig):
        return answer(request, 413, name="body_too_large", detail="The body is larger than this address accepts.")
    return answer(request, 400, name="bad_request", detail="The request is malformed.")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return answer(request, 403, name="refused", detail="This is not allowed.")


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return answer(request, 404, name="not_found", detail="Not found.")


def server_error(request: HttpRequest) -> HttpResponse:
    # Django calls this while it handles the exception. Its own line, which we switch off, would have the path in it.
    if _is_of_the_database(error := sys.exception()):
        log.warning("the database does not answer", extra={"error": type(error).__name__})
        response = answer(request, 503, name="database_unavailable", detail="The database does not answer.")
        response["Retry-After"] = "5"
        return response
    log.exception("request failed")
    return answer(
        request, 500, name="error", detail="Something went wrong here. The log has it under this response's X-Request-ID."
    )


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return answer(request, 403, name="csrf", detail="The form's token does not fit. Reload the page and send it again.")


class AnswerRefusals:
    """Answers a refusal that leaves a view outside DRF, such as too many failed sign-ins at the admin site."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, TooManyRequests | Unavailable):
            return None
        response = answer(request, error.status_code, name=error.default_code, detail=str(error.detail))
        response["Retry-After"] = str(error.wait)
        return response


class RefuseUnstorableText:
    """NUL in an address is nobody's filename and breaks PostgreSQL (D-2). Of what is no UTF-8 Django would make percent signs,
    and so two names one. Neither reaches a view.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        query = request.META.get("QUERY_STRING", "")
        if "\x00" in request.path or "\x00" in query or "%00" in query:
            return respond(400, name="bad_request", detail="NUL characters are not allowed in an address.")
        try:
            request.META.get("strongroom.path", "").encode("latin-1").decode()  # bytes, as WSGI hands them over (PEP 3333)
        except UnicodeError:
            return respond(400, name="bad_request", detail="An address is UTF-8, percent-encoded.")
        return self.get_response(request)


class RefuseUnannouncedBody:
    """Django takes a chunked body for an empty one (T-14): a change that was asked for would be answered as if it were made.

    Views that read bodies themselves say so with `takes_chunks`.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponseBase | None:
        takes_chunks = getattr(getattr(view, "cls", None), "takes_chunks", False)
        if takes_chunks or "Transfer-Encoding" not in request.headers or request.method not in {"POST", "PUT", "PATCH"}:
            return None
        return respond(411, name="length_required", detail="Send this body with a Content-Length, not in chunks.")
