"""Requests for content, responses with content, and their headers."""

from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files.http.headers import content_disposition
from files.http.streaming import Transfer
from files.serializers import LinkOutput
from tenants.absolute_urls import absolute_url


@dataclass(frozen=True)
class ByteRequest:
    """The parts of a GET or HEAD request that determine the response: the method and the conditional and range headers."""

    head: bool = False
    range: str | None = None
    if_range: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None


@dataclass(frozen=True)
class ByteResponse:
    """A response that does not depend on Django. `body` is None for HEAD and 304."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Transfer | None = None


def byte_headers(disposition: str, filename: str, content_type: str) -> dict[str, str]:
    """The headers of every response with content. They prevent caching, sniffing and the execution of scripts."""
    return {
        "Content-Type": content_type,
        "Content-Disposition": content_disposition(disposition, filename),  # type: ignore[arg-type]
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
        "Cross-Origin-Resource-Policy": settings.FILES_RESOURCE_POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Accel-Buffering": "no",  # nginx would buffer plaintext on disk (T-9)
    }


# --- For views ---

BYTES_RESPONSE = OpenApiResponse(OpenApiTypes.BINARY, "the bytes")
# The media type is that of the file.
CONTENT_RESPONSES = {(200, "*/*"): BYTES_RESPONSE, (206, "*/*"): BYTES_RESPONSE, 304: OpenApiResponse(description="not modified")}


def header_parameters(*names: str) -> list[OpenApiParameter]:
    """Describes request headers in the OpenAPI document."""
    return [OpenApiParameter(name, str, OpenApiParameter.HEADER) for name in names]


BYTE_REQUEST_HEADERS = header_parameters("Range", "If-Range", "If-Match", "If-None-Match")


def render(view: APIView, serializer: type[Any], data: Any, **kwargs: Any) -> Response:
    return Response(serializer(data, context={"request": view.request, "view": view}).data, **kwargs)


def byte_request_of(request: Request) -> ByteRequest:
    names = {"range": "Range", "if_range": "If-Range", "if_match": "If-Match", "if_none_match": "If-None-Match"}
    return ByteRequest(head=request.method == "HEAD", **{field: request.headers.get(name) for field, name in names.items()})


def respond(answer: ByteResponse) -> HttpResponseBase:
    if answer.body is None:
        response = HttpResponse(status=answer.status, headers=answer.headers)
        if "Content-Type" not in answer.headers:
            del response["Content-Type"]  # a 304 must not replace the stored type with Django's default
        return response
    return StreamingHttpResponse(answer.body, status=answer.status, headers=answer.headers)


def link_created(view: APIView, request: Request, token: str) -> Response:
    """Responds with 201 and the one-off link with this token."""
    url = absolute_url(request, "download", token=token)
    link = {"url": url, "expires_in": settings.FILES_DOWNLOAD_EXPIRY_SECONDS}
    return render(view, LinkOutput, link, status=status.HTTP_201_CREATED, headers={"Location": url, "Cache-Control": "no-store"})
