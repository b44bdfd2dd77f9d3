"""Renders all errors as problem documents (RFC 9457): `{type, title, status, detail, code}`, and `errors` for invalid fields.

They contain no internals of the server: no stack, SQL, key, bucket or path (INV-17). Programs should rely on `code` only.
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
from files.http.bodies import announced_length
from tenants.errors import TooManyRequests, Unavailable
from vault.crypto import WrongKey
from vault.errors import KeyUnavailable, StorageUnavailable
from vault.stores import StoreError


log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
BODY_TOO_LARGE = "The request body is too large."
DATABASE_UNAVAILABLE = "The database is not available at the moment. Try again later."
MAX_ANONYMOUS_BODY = 16 * 1024  # bytes
READ_ONLY = "25006"  # PostgreSQL: the server is a standby, or accepts no writes


def problem(code: int, *, name: str, detail: str, **members: Any) -> dict[str, Any]:
    """Returns a problem document. With the type about:blank, `title` is the phrase of the status (RFC 9457, 4.2.1)."""
    return {"type": "about:blank", "title": HTTPStatus(code).phrase, "status": code, "detail": detail, "code": name, **members}


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """Handles exceptions of DRF views. DRF rolls back and sets headers. Returns None for an unknown error: Django answers 500."""
    if isinstance(error, StoreError | StorageUnavailable | KeyUnavailable):
        # Only the log has the cause. The message of a store names the operation and the error code.
        log.warning(
            "a dependency failed", extra={"error": str(error.__cause__ or error), "kind": type(error.__cause__ or error).__name__}
        )
    error = _translate(error)
    response = exception_handler(error, context)
    if response is None:
        return None
    for name, value in getattr(error, "headers", {}).items():
        response[name] = value
    response.data = _body(error, response)
    response.content_type = MEDIA_TYPE
    return response


def _translate(error: Exception) -> Exception:
    """Translates errors of lower layers and libraries into errors of the API."""
    if isinstance(error, RequestDataTooBig):
        return TooLarge(BODY_TOO_LARGE, code="body_too_large")
    if isinstance(error, UnreadablePostError):  # Django wraps the error of the server twice
        return BodyTimeout() if isinstance(error.__cause__ and error.__cause__.__cause__, TimeoutError) else BadBody()
    if isinstance(error, StoreError):
        return StorageUnavailable()
    if isinstance(error, WrongKey):
        return KeyUnavailable()
    if _is_database_failure(error):
        log.warning("the database does not respond", extra={"error": type(error).__name__})
        return Unavailable(DATABASE_UNAVAILABLE, code="database_unavailable")
    return error


def _is_database_failure(error: BaseException | None) -> bool:
    """Whether the database is unavailable or read-only. All other database errors are bugs in this project."""
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
    """Flattens DRF's nested errors: `{"file.0": [{"detail", "code"}]}`. The field "" stands for the whole request."""
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


# --- Errors outside DRF ---


def respond(code: int, *, name: str, detail: str) -> JsonResponse:
    return JsonResponse(problem(code, name=name, detail=detail), status=code, content_type=MEDIA_TYPE)


def respond_or_render(request: HttpRequest, code: int, *, name: str, detail: str) -> HttpResponse:
    """Returns an HTML page if a browser requests a page of the admin site, else a problem document."""
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
        return respond_or_render(request, 413, name="body_too_large", detail=BODY_TOO_LARGE)
    return respond_or_render(request, 400, name="bad_request", detail="The request is malformed.")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return respond_or_render(request, 403, name="refused", detail="You are not allowed to do this.")


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return respond_or_render(request, 404, name="not_found", detail="Not found.")


def server_error(request: HttpRequest) -> HttpResponse:
    # Django calls this function inside its exception handler. Django's own log message is off, because it contains the path.
    if _is_database_failure(error := sys.exception()):
        log.warning("the database does not respond", extra={"error": type(error).__name__})
        response = respond_or_render(request, 503, name="database_unavailable", detail=DATABASE_UNAVAILABLE)
        response["Retry-After"] = "5"
        return response
    log.exception("request failed")
    detail = "The server failed. Report the X-Request-ID of this response to the operator, who can find the error in the log."
    return respond_or_render(request, 500, name="error", detail=detail)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    detail = "The security token of the form is invalid. Reload the page and send the form again."
    return respond_or_render(request, 403, name="csrf", detail=detail)


class HandleApiErrors:
    """Handles errors of services in views outside DRF, such as too many failed sign-ins on the admin site."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, TooManyRequests | Unavailable):
            return None
        response = respond_or_render(request, error.status_code, name=error.default_code, detail=str(error.detail))
        response["Retry-After"] = str(error.wait)
        return response


class RefuseInvalidUrls:
    """Refuses URLs with NUL characters or invalid UTF-8.

    PostgreSQL does not accept NUL in text (D-2). Django would replace invalid UTF-8 by percent signs, so that two different URLs
    could name the same file.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        query = request.META.get("QUERY_STRING", "")
        if "\x00" in request.path or "\x00" in query or "%00" in query:
            return respond(400, name="bad_request", detail="The URL must not contain NUL characters.")
        try:
            request.META.get("strongroom.path", "").encode("latin-1").decode()  # WSGI passes bytes as Latin-1 (PEP 3333)
        except UnicodeError:
            return respond(400, name="bad_request", detail="The URL must be percent-encoded UTF-8.")
        return self.get_response(request)


class RefuseBody:
    """Refuses bodies before anything reads them: large ones without authentication, and chunked ones that no view would read.

    A view without authentication needs at most 16 KiB. Pages read their forms, for the CSRF token, before they look at the user;
    DRF authenticates a request by its head. Django takes a chunked body for an empty one (T-14) and would ignore its data.
    Views that read the body themselves set `accepts_chunked_bodies`.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponseBase | None:
        if request.method not in {"POST", "PUT", "PATCH"}:
            return None
        view_class = getattr(view, "cls", None)
        if "Transfer-Encoding" in request.headers and not getattr(view_class, "accepts_chunked_bodies", False):
            return respond(411, name="length_required", detail="Send the body with a Content-Length instead of in chunks.")
        is_anonymous = not (view_class.authentication_classes if view_class else request.user.is_authenticated)
        if is_anonymous and (announced_length(request.META) or 0) > MAX_ANONYMOUS_BODY:
            return respond(
                413, name="body_too_large", detail=f"Without authentication, a body has at most {MAX_ANONYMOUS_BODY} bytes."
            )
        return None
