"""The API of collections, files and their bytes: load through `access`, call one service, serialize."""

from datetime import datetime
from typing import Any, cast

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, downloads, forms, links, services, uploads
from files.bodies import announced_length, read_body
from files.downloads import Answer, Wanted
from files.errors import DigestMismatch
from files.filters import CollectionFilter, FileFilter, StrictOrdering
from files.headers import parse_digest
from files.models import Collection, StoredFile
from files.serializers import (
    ArchiveInput,
    CollectionOutput,
    CreateCollectionInput,
    FileForm,
    FileOutput,
    FileUploadResults,
    LinkOutput,
    MintInput,
    NamedFileForm,
    UpdateCollectionInput,
    UpdateFileInput,
)
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.errors import Invalid
from tenants.models import Scope
from tenants.related import with_only


BYTES = OpenApiResponse(OpenApiTypes.BINARY, "the bytes")
# Of the type that the file was saved with; 304 to whoever has the content already.
CONTENT = {(200, "*/*"): BYTES, (206, "*/*"): BYTES, 304: OpenApiResponse(description="not modified")}


def header_parameters(*names: str) -> list[OpenApiParameter]:
    """For the schema."""
    return [OpenApiParameter(name, str, OpenApiParameter.HEADER) for name in names]


WANTED = header_parameters("Range", "If-Range", "If-Match", "If-None-Match")
FILENAMES = OpenApiParameter("file", str, many=True, description="filename; may be repeated; all files if left out")


def render(view: APIView, serializer: type[Any], data: Any, **kwargs: Any) -> Response:
    return Response(serializer(data, context={"request": view.request, "view": view}).data, **kwargs)


def wanted(request: Request) -> Wanted:
    names = {"range": "Range", "if_range": "If-Range", "if_match": "If-Match", "if_none_match": "If-None-Match"}
    return Wanted(head=request.method == "HEAD", **{field: request.headers.get(name) for field, name in names.items()})


def respond(answer: Answer) -> HttpResponseBase:
    if answer.body is None:
        response = HttpResponse(status=answer.status, headers=answer.headers)
        if "Content-Type" not in answer.headers:
            del response["Content-Type"]  # Django's own, which a 304 would put in place of the stored one
        return response
    return StreamingHttpResponse(answer.body, status=answer.status, headers=answer.headers)


# --- Collections ---


class CollectionsView(generics.GenericAPIView[Collection]):
    filterset_class = CollectionFilter
    queryset = Collection.objects.none()  # for the schema: what is served comes from `access`
    serializer_class = CollectionOutput

    @extend_schema(operation_id="collections_list", responses=CollectionOutput(many=True))
    def get(self, request: Request) -> Response:
        """Collections that you can read."""
        collections = with_only(access.visible_collections(user_of(request)), tenant="slug", created_by="username")
        page = self.paginate_queryset(self.filter_queryset(collections))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="collections_create", request=CreateCollectionInput, responses={201: CollectionOutput})
    def post(self, request: Request) -> Response:
        """A new, empty collection with a key of its own."""
        given = CreateCollectionInput(data=request.data)
        given.is_valid(raise_exception=True)
        user, wish = user_of(request), given.validated_data
        collection = services.create_collection(
            tenant=services.tenant_for(user, wish.get("tenant")),
            display_name=wish["display_name"],
            cipher=wish.get("cipher", settings.FILES_DEFAULT_CIPHER),
            purge_at=wish.get("purge_at"),
            by=user,
            now=timezone.now(),
        )
        created = access.get_collection(user, collection.slug)
        location = absolute_url(request, "collection", slug=collection.slug)
        return render(self, CollectionOutput, created, status=status.HTTP_201_CREATED, headers={"Location": location})


class CollectionView(APIView):
    @extend_schema(operation_id="collections_retrieve", responses=CollectionOutput)
    def get(self, request: Request, slug: str) -> Response:
        return render(self, CollectionOutput, access.get_collection(user_of(request), slug, deleted=True))

    @extend_schema(operation_id="collections_update", request=UpdateCollectionInput, responses=CollectionOutput)
    def patch(self, request: Request, slug: str) -> Response:
        """Changes the display name or the purge date. The cipher and the id are final."""
        user = user_of(request)
        collection = access.get_collection(user, slug, deleted=True)
        given = UpdateCollectionInput(data=request.data)
        given.is_valid(raise_exception=True)
        wish = given.validated_data
        keep = "purge_at" in wish and wish["purge_at"] is None
        services.update_collection(
            collection,
            by=user,
            now=timezone.now(),
            display_name=wish.get("display_name"),
            purge_at=wish.get("purge_at"),
            keep=keep,
        )
        return render(self, CollectionOutput, access.get_collection(user, slug))

    @extend_schema(operation_id="collections_delete", responses={202: CollectionOutput})
    def delete(self, request: Request, slug: str) -> Response:
        """Unreadable at once; may be restored until the grace is over."""
        user = user_of(request)
        services.delete_collection(access.get_collection(user, slug, deleted=True), by=user, now=timezone.now())
        return render(self, CollectionOutput, access.get_collection(user, slug, deleted=True), status=status.HTTP_202_ACCEPTED)


class RestoreView(APIView):
    @extend_schema(operation_id="collections_restore", request=None, responses=CollectionOutput)
    def post(self, request: Request, slug: str) -> Response:
        """Undoes the deletion of a collection."""
        user = user_of(request)
        services.restore_collection(access.get_collection(user, slug, deleted=True), by=user, now=timezone.now())
        return render(self, CollectionOutput, access.get_collection(user, slug))


# --- Files ---


def receive_form(view: APIView, request: Request, choose: Any, now: datetime) -> Response:
    outcomes = forms.receive(request.META, by=user_of(request), choose=choose, now=now)
    context = {"request": request, "view": view}
    if len(outcomes) == 1:
        if outcomes[0].problem:
            raise outcomes[0].problem
        return created(view, request, cast(StoredFile, outcomes[0].file))
    results = []
    for outcome in outcomes:
        if outcome.file:
            file = FileOutput(outcome.file, context=context).data
            results.append({"filename": outcome.filename, "status": status.HTTP_201_CREATED, "file": file})
        else:
            handle = view.get_exception_handler()
            problem = handle(cast(APIException, outcome.problem), view.get_exception_handler_context())
            results.append({"filename": outcome.filename, "status": problem.status_code, "problem": problem.data})
    return Response({"results": results})


def created(view: APIView, request: Request, file: StoredFile, *, is_new: bool = True) -> Response:
    location = absolute_url(request, "file", slug=file.collection.slug, filename=file.filename)
    code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    return render(view, FileOutput, file, status=code, headers={"Location": location, "ETag": file.etag})


class CollectionFilesView(generics.GenericAPIView[StoredFile]):
    takes_chunks = True
    filterset_class = FileFilter
    filter_backends = (DjangoFilterBackend, StrictOrdering)
    ordering_fields = ("created_at", "updated_at", "filename", "length")
    ordering = ("-created_at", "-id")
    queryset = StoredFile.objects.none()  # for the schema: what is served comes from `access`
    serializer_class = FileOutput

    @extend_schema(operation_id="files_list", responses=FileOutput(many=True))
    def get(self, request: Request, slug: str) -> Response:
        """Files of a collection."""
        files = with_only(access.visible_files(user_of(request), slug), created_by="username", updated_by="username")
        page = self.paginate_queryset(self.filter_queryset(files))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(
        operation_id="files_upload",
        request={"multipart/form-data": FileForm},
        responses={201: FileOutput, 200: FileUploadResults},
    )
    def post(self, request: Request, slug: str) -> Response:
        """One file: 201. Several: 200 with a result for each; every file is kept or refused by itself."""
        collection = access.get_collection(user_of(request), slug)
        return receive_form(self, request, lambda _: collection, timezone.now())


class FilesView(APIView):
    takes_chunks = True

    @extend_schema(
        operation_id="files_upload_by_name",
        request={"multipart/form-data": NamedFileForm},
        responses={201: FileOutput, 200: FileUploadResults},
    )
    def post(self, request: Request) -> Response:
        """Files into the collection that the form names, by its id or display name."""
        user = user_of(request)

        def choose(fields: dict[str, str]) -> Collection:
            if not (name := fields.get("collection")):
                raise Invalid("collection", "Name the collection, before the first file.", code="required")
            return access.find_collection(user, name, tenant=fields.get("tenant") or None)

        return receive_form(self, request, choose, timezone.now())


class FileView(APIView):
    @extend_schema(operation_id="files_retrieve", responses=FileOutput)
    def get(self, request: Request, slug: str, filename: str) -> Response:
        file = access.get_file(user_of(request), slug, filename)
        return render(self, FileOutput, file, headers={"ETag": file.etag})

    @extend_schema(operation_id="files_update", request=UpdateFileInput, responses=FileOutput)
    def put(self, request: Request, slug: str, filename: str) -> Response:
        """As PATCH: what is absent stays."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        given = UpdateFileInput(data=request.data)
        given.is_valid(raise_exception=True)
        wish = given.validated_data
        keep = "keep_until" in wish and wish["keep_until"] is None
        return render(self, FileOutput, services.update_file(file, by=user, now=timezone.now(), keep=keep, **wish))

    @extend_schema(operation_id="files_partial_update", request=UpdateFileInput, responses=FileOutput)
    def patch(self, request: Request, slug: str, filename: str) -> Response:
        """Changes the name, the type, the notes or `keep_until`, which null takes away: what is absent stays."""
        return self.put(request, slug, filename)

    @extend_schema(operation_id="files_delete", parameters=header_parameters("If-Match"), responses={204: None})
    def delete(self, request: Request, slug: str, filename: str) -> Response:
        """Honours If-Match."""
        user = user_of(request)
        services.delete_file(
            access.get_file(user, slug, filename), by=user, now=timezone.now(), if_match=request.headers.get("If-Match")
        )
        return Response(status=status.HTTP_204_NO_CONTENT)


# --- Bytes ---


def announced_digest(request: Request) -> bytes | None:
    """SHA-256 of the content as the client says it. Content-Digest and Repr-Digest name the same bytes here (RFC 9530)."""
    digests = set()
    for name in ("Content-Digest", "Repr-Digest"):
        try:
            digests.add(parse_digest(request.headers.get(name)))
        except ValueError as error:
            raise Invalid(name, str(error), code="bad_digest") from None
    digests.discard(None)
    if len(digests) > 1:
        raise DigestMismatch("Content-Digest and Repr-Digest name different contents.")
    return digests.pop() if digests else None


class ContentView(APIView):
    takes_chunks = True

    @extend_schema(operation_id="content_download", parameters=WANTED, responses=CONTENT)
    def get(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        """The file, as an attachment. Range, If-Range, If-Match and If-None-Match as in RFC 9110; one range at a time."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        return respond(downloads.open_file(file, by=user, wanted=wanted(request), disposition="attachment", now=timezone.now()))

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
        """The body becomes the file: 201. With If-Match it replaces the file of this name: 200."""
        user, now = user_of(request), timezone.now()
        collection = access.get_collection(user, slug)
        if "Content-Range" in request.headers:
            # RFC 9110, 14.5. A client that resumes would leave us the end of its file as the whole of it.
            raise Invalid("Content-Range", "Send the whole content: uploads are not resumed.", code="partial_upload")
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
        ) as incoming:
            for piece in read_body(request.META):
                incoming.write(piece)
            file = incoming.commit(by=user, now=timezone.now(), digest=digest)
        return created(self, request, file, is_new=not incoming.is_replacement)


class PreviewView(APIView):
    @extend_schema(operation_id="preview", parameters=WANTED, responses=CONTENT)
    def get(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        """The same bytes, to be shown: inline and sandboxed."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        return respond(downloads.open_file(file, by=user, wanted=wanted(request), disposition="inline", now=timezone.now()))

    @extend_schema(operation_id="preview_head", responses={200: None})
    def head(self, request: Request, slug: str, filename: str) -> HttpResponseBase:
        return self.get(request, slug, filename)


class FileDownloadView(APIView):
    scopes = {"POST": Scope.READ}

    @extend_schema(operation_id="file_download_redirect", responses={303: None})
    def get(self, request: Request, slug: str, filename: str) -> Response:
        """Redirects to a one-off link, for browsers that follow it without this request's credentials."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        token = links.mint(collection=file.collection, file=file, by=user, now=timezone.now())
        location = absolute_url(request, "download", token=token)
        return Response(status=status.HTTP_303_SEE_OTHER, headers={"Location": location, "Cache-Control": "no-store"})

    @extend_schema(operation_id="file_download_mint", request=MintInput, responses={201: LinkOutput})
    def post(self, request: Request, slug: str, filename: str) -> Response:
        """A one-off link."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        given = MintInput(data=request.data)
        given.is_valid(raise_exception=True)
        disposition = given.validated_data["disposition"]
        return minted(
            self, request, links.mint(collection=file.collection, file=file, by=user, now=timezone.now(), disposition=disposition)
        )


def minted(view: APIView, request: Request, token: str) -> Response:
    url = absolute_url(request, "download", token=token)
    link = {"url": url, "expires_in": settings.FILES_DOWNLOAD_EXPIRY_SECONDS}
    return render(view, LinkOutput, link, status=status.HTTP_201_CREATED, headers={"Location": url, "Cache-Control": "no-store"})


class ArchiveStreamView(APIView):
    @extend_schema(operation_id="archive_download", parameters=[FILENAMES], responses={(200, "application/zip"): BYTES})
    def get(self, request: Request, slug: str) -> HttpResponseBase:
        """What you can read, or the files that are named, as a zip whose length is announced."""
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
        """A one-off link to the zip."""
        user = user_of(request)
        collection = access.get_collection(user, slug)
        given = ArchiveInput(data=request.data)
        given.is_valid(raise_exception=True)
        names = given.validated_data.get("file", [])
        return minted(self, request, links.mint(collection=collection, filenames=names, by=user, now=timezone.now()))


class DownloadView(APIView):
    """One-off links: the token is the credential, whatever else the request carries."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(operation_id="download", auth=[], parameters=WANTED, responses=CONTENT)
    def get(self, request: Request, token: str) -> HttpResponseBase:
        """The bytes, once. A transfer that broke may be resumed with Range."""
        return respond(links.open_link(token, wanted=wanted(request), now=timezone.now()))

    @extend_schema(operation_id="download_head", auth=[], responses={200: None})
    def head(self, request: Request, token: str) -> HttpResponseBase:
        """Consumes nothing."""
        return self.get(request, token)
