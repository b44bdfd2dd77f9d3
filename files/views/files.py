"""API views of files: lists, metadata and form uploads."""

from collections.abc import Callable
from datetime import datetime
from typing import cast

from django.utils import timezone
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, form_uploads, services
from files.filters import FileFilter, StrictOrdering
from files.http.responses import header_parameters, render
from files.models import Collection, StoredFile
from files.serializers import FileForm, FileOutput, FileUploadResults, NamedFileForm, UpdateFileInput
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.errors import Invalid
from tenants.querysets import select_related_only


def receive_files(
    view: APIView, request: Request, choose_collection: Callable[[dict[str, str]], Collection], now: datetime
) -> Response:
    """Stores the files of a form. Responds with the file or, for several files, with a result for each."""
    outcomes = form_uploads.receive(request.META, by=user_of(request), choose_collection=choose_collection, now=now)
    context = {"request": request, "view": view}
    if len(outcomes) == 1:
        if outcomes[0].problem:
            raise outcomes[0].problem
        return file_created(view, request, cast(StoredFile, outcomes[0].file))
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


def file_created(view: APIView, request: Request, file: StoredFile, *, is_new: bool = True) -> Response:
    location = absolute_url(request, "file", slug=file.collection.slug, filename=file.filename)
    code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    return render(view, FileOutput, file, status=code, headers={"Location": location, "ETag": file.etag})


class CollectionFilesView(generics.GenericAPIView[StoredFile]):
    accepts_chunked_bodies = True
    filterset_class = FileFilter
    filter_backends = (DjangoFilterBackend, StrictOrdering)
    ordering_fields = ("created_at", "updated_at", "filename", "length")
    ordering = ("-created_at", "-id")
    queryset = StoredFile.objects.none()  # only for the OpenAPI document; responses use `access`
    serializer_class = FileOutput

    @extend_schema(operation_id="files_list", responses=FileOutput(many=True))
    def get(self, request: Request, slug: str) -> Response:
        """Lists the files of a collection that you can see."""
        files = select_related_only(access.visible_files(user_of(request), slug), created_by="username", updated_by="username")
        page = self.paginate_queryset(self.filter_queryset(files))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(
        operation_id="files_upload",
        request={"multipart/form-data": FileForm},
        responses={201: FileOutput, 200: FileUploadResults},
    )
    def post(self, request: Request, slug: str) -> Response:
        """Uploads one file (201) or several (200, with a result for each). Each file succeeds or fails separately."""
        collection = access.get_collection(user_of(request), slug)
        return receive_files(self, request, lambda _: collection, timezone.now())


class FilesView(APIView):
    accepts_chunked_bodies = True

    @extend_schema(
        operation_id="files_upload_by_name",
        request={"multipart/form-data": NamedFileForm},
        responses={201: FileOutput, 200: FileUploadResults},
    )
    def post(self, request: Request) -> Response:
        """Uploads files to the collection whose id or display name is in the form."""
        user = user_of(request)

        def choose_collection(fields: dict[str, str]) -> Collection:
            if not (name := fields.get("collection")):
                raise Invalid("collection", "Send the field `collection` before the first file.", code="required")
            return access.find_collection(user, name, tenant=fields.get("tenant") or None)

        return receive_files(self, request, choose_collection, timezone.now())


class FileView(APIView):
    @extend_schema(operation_id="files_retrieve", responses=FileOutput)
    def get(self, request: Request, slug: str, filename: str) -> Response:
        """Returns the metadata of a file."""
        file = access.get_file(user_of(request), slug, filename)
        return render(self, FileOutput, file, headers={"ETag": file.etag})

    @extend_schema(operation_id="files_update", request=UpdateFileInput, responses=FileOutput)
    def put(self, request: Request, slug: str, filename: str) -> Response:
        """Changes the metadata of a file, like PATCH: members that are absent keep their values."""
        user = user_of(request)
        file = access.get_file(user, slug, filename)
        serializer = UpdateFileInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        clear = "keep_until" in data and data["keep_until"] is None
        updated = services.update_file(file, by=user, now=timezone.now(), clear_keep_until=clear, **data)
        return render(self, FileOutput, updated)

    @extend_schema(operation_id="files_partial_update", request=UpdateFileInput, responses=FileOutput)
    def patch(self, request: Request, slug: str, filename: str) -> Response:
        """Changes the name, media type, notes or `keep_until`. Absent members keep their values; null removes `keep_until`."""
        return self.put(request, slug, filename)

    @extend_schema(operation_id="files_delete", parameters=header_parameters("If-Match"), responses={204: None})
    def delete(self, request: Request, slug: str, filename: str) -> Response:
        """Deletes a file. Supports If-Match."""
        user = user_of(request)
        services.delete_file(
            access.get_file(user, slug, filename), by=user, now=timezone.now(), if_match=request.headers.get("If-Match")
        )
        return Response(status=status.HTTP_204_NO_CONTENT)
