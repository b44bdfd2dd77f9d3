"""API views of one-off links and archives."""

from django.http import HttpResponseBase
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, downloads, links
from files.http.responses import BYTE_REQUEST_HEADERS, BYTES_RESPONSE, CONTENT_RESPONSES, byte_request_of, link_created, respond
from files.serializers import ArchiveInput, LinkOutput, MintInput
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.models import Scope


FILENAMES = OpenApiParameter("file", str, many=True, description="filename; may be repeated; all files if left out")


class FileDownloadView(APIView):
    scopes = {"POST": Scope.READ}

    @extend_schema(operation_id="file_download_redirect", responses={303: None})
    def get(self, request: Request, slug: str, filename: str) -> Response:
        """Redirects to a new one-off link, which a browser can open without the credentials of this request."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        token = links.mint(collection=file.collection, file=file, by=user, now=timezone.now())
        location = absolute_url(request, "download", token=token)
        return Response(status=status.HTTP_303_SEE_OTHER, headers={"Location": location, "Cache-Control": "no-store"})

    @extend_schema(operation_id="file_download_mint", request=MintInput, responses={201: LinkOutput})
    def post(self, request: Request, slug: str, filename: str) -> Response:
        """Creates a one-off link to the file."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        serializer = MintInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        disposition = serializer.validated_data["disposition"]
        return link_created(
            self, request, links.mint(collection=file.collection, file=file, by=user, now=timezone.now(), disposition=disposition)
        )


class ArchiveStreamView(APIView):
    @extend_schema(operation_id="archive_download", parameters=[FILENAMES], responses={(200, "application/zip"): BYTES_RESPONSE})
    def get(self, request: Request, slug: str) -> HttpResponseBase:
        """Downloads all files that you can read, or the named files, as a zip. The response has a Content-Length."""
        user = user_of(request)
        collection = access.get_collection(user, slug)
        names = request.query_params.getlist("file")
        is_head = request.method == "HEAD"
        return respond(downloads.open_archive(collection, by=user, filenames=names, head=is_head, now=timezone.now()))

    @extend_schema(operation_id="archive_head", parameters=[FILENAMES], responses={200: None})
    def head(self, request: Request, slug: str) -> HttpResponseBase:
        return self.get(request, slug)


class ArchiveView(APIView):
    scopes = {"POST": Scope.READ}

    @extend_schema(operation_id="archive_mint", request=ArchiveInput, responses={201: LinkOutput})
    def post(self, request: Request, slug: str) -> Response:
        """Creates a one-off link to the zip."""
        user = user_of(request)
        collection = access.get_collection(user, slug)
        serializer = ArchiveInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        names = serializer.validated_data.get("file", [])
        return link_created(self, request, links.mint(collection=collection, filenames=names, by=user, now=timezone.now()))


class DownloadView(APIView):
    """Downloads through a one-off link. The token is the only credential; all others are ignored."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(operation_id="download", auth=[], parameters=BYTE_REQUEST_HEADERS, responses=CONTENT_RESPONSES)
    def get(self, request: Request, token: str) -> HttpResponseBase:
        """Downloads the content once. An interrupted transfer can be resumed with Range."""
        return respond(links.open_link(token, byte_request=byte_request_of(request), now=timezone.now()))

    @extend_schema(operation_id="download_head", auth=[], responses={200: None})
    def head(self, request: Request, token: str) -> HttpResponseBase:
        """Returns the headers without using up the link."""
        return self.get(request, token)
