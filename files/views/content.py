"""API views of the content of files."""

from django.http import HttpResponseBase
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, downloads, uploads
from files.errors import DigestMismatch
from files.http.bodies import announced_length, read_body
from files.http.headers import parse_digest
from files.http.responses import BYTE_REQUEST_HEADERS, CONTENT_RESPONSES, byte_request_of, header_parameters, respond
from files.serializers import FileOutput
from files.views.files import file_created
from tenants.auth.permissions import user_of
from tenants.errors import Invalid


def announced_digest(request: Request) -> bytes | None:
    """The SHA-256 digest in Content-Digest or Repr-Digest, or None. Both fields mean the same bytes here (RFC 9530)."""
    digests = set()
    for name in ("Content-Digest", "Repr-Digest"):
        try:
            digests.add(parse_digest(request.headers.get(name)))
        except ValueError as error:
            raise Invalid(name, str(error), code="bad_digest") from None
    digests.discard(None)
    if len(digests) > 1:
        raise DigestMismatch("Content-Digest and Repr-Digest differ. Send the same digest in both, or only one of them.")
    return digests.pop() if digests else None


class ContentView(APIView):
    accepts_chunked_bodies = True

    @extend_schema(operation_id="content_download", parameters=BYTE_REQUEST_HEADERS, responses=CONTENT_RESPONSES)
    def get(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        """Downloads the file as an attachment. Supports a single range and the conditional headers of RFC 9110."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        return respond(
            downloads.open_file(
                file, by=user, byte_request=byte_request_of(request), disposition="attachment", now=timezone.now()
            )
        )

    @extend_schema(operation_id="content_head", responses={200: None})
    def head(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        return self.get(request, slug, filename)

    @extend_schema(
        operation_id="content_upload",
        parameters=header_parameters("If-Match", "If-None-Match", "Content-Digest", "Repr-Digest"),
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses={201: FileOutput, 200: FileOutput},
    )
    def put(self, request: Request, slug: str, filename: str) -> Response:
        """Creates a file with the request body as its content (201), or replaces the file of this name with If-Match (200)."""
        user, now = user_of(request), timezone.now()
        collection = access.get_collection(user, slug)
        if "Content-Range" in request.headers:
            # RFC 9110, 14.5. Otherwise a client that resumes an upload would store the end of its file as the whole file.
            raise Invalid("Content-Range", "An upload cannot be resumed. Send the whole content.", code="partial_upload")
        digest = announced_digest(request)
        conditions = uploads.Conditions(request.headers.get("If-Match"), request.headers.get("If-None-Match"))
        with uploads.begin(
            by=user,
            collection=collection,
            filename=filename,
            content_type=request.headers.get("Content-Type", ""),
            notes="",
            size=announced_length(request.META),
            conditions=conditions,
            now=now,
        ) as session:
            for piece in read_body(request.META):
                session.write(piece)
            file = session.commit(by=user, now=timezone.now(), digest=digest)
        return file_created(self, request, file, is_new=not session.is_replacement)


class PreviewView(APIView):
    @extend_schema(operation_id="preview", parameters=BYTE_REQUEST_HEADERS, responses=CONTENT_RESPONSES)
    def get(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        """Returns the content for display in a browser, inline and in a sandbox."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        return respond(
            downloads.open_file(file, by=user, byte_request=byte_request_of(request), disposition="inline", now=timezone.now())
        )

    @extend_schema(operation_id="preview_head", responses={200: None})
    def head(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        return self.get(request, slug, filename)
