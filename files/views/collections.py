"""API views of collections."""

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, services
from files.filters import CollectionFilter
from files.http.responses import render
from files.models import Collection
from files.serializers import CollectionOutput, CreateCollectionInput, UpdateCollectionInput
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.querysets import select_related_only


class CollectionsView(generics.GenericAPIView[Collection]):
    filterset_class = CollectionFilter
    queryset = Collection.objects.none()  # only for the OpenAPI document; responses use `access`
    serializer_class = CollectionOutput

    @extend_schema(operation_id="collections_list", responses=CollectionOutput(many=True))
    def get(self, request: Request) -> Response:
        """Lists the collections that you can see."""
        collections = select_related_only(access.visible_collections(user_of(request)), tenant="slug", created_by="username")
        page = self.paginate_queryset(self.filter_queryset(collections))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="collections_create", request=CreateCollectionInput, responses={201: CollectionOutput})
    def post(self, request: Request) -> Response:
        """Creates an empty collection with its own encryption key."""
        serializer = CreateCollectionInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        user, data = user_of(request), serializer.validated_data
        collection = services.create_collection(
            tenant=services.resolve_tenant(user, data.get("tenant")),
            display_name=data["display_name"],
            cipher=data.get("cipher", settings.FILES_DEFAULT_CIPHER),
            purge_at=data.get("purge_at"),
            by=user,
            now=timezone.now(),
        )
        created = access.get_collection(user, collection.slug)
        location = absolute_url(request, "collection", slug=collection.slug)
        return render(self, CollectionOutput, created, status=status.HTTP_201_CREATED, headers={"Location": location})


class CollectionView(APIView):
    @extend_schema(operation_id="collections_retrieve", responses=CollectionOutput)
    def get(self, request: Request, slug: str) -> Response:
        """Returns a collection. Managers can also see a deleted collection until it is purged."""
        return render(self, CollectionOutput, access.get_collection(user_of(request), slug, deleted=True))

    @extend_schema(operation_id="collections_update", request=UpdateCollectionInput, responses=CollectionOutput)
    def patch(self, request: Request, slug: str) -> Response:
        """Changes the display name or the purge date. The cipher and the id cannot be changed."""
        user = user_of(request)
        collection = access.get_collection(user, slug, deleted=True)
        serializer = UpdateCollectionInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        clear_purge_at = "purge_at" in data and data["purge_at"] is None
        services.update_collection(
            collection,
            by=user,
            now=timezone.now(),
            display_name=data.get("display_name"),
            purge_at=data.get("purge_at"),
            clear_purge_at=clear_purge_at,
        )
        return render(self, CollectionOutput, access.get_collection(user, slug))

    @extend_schema(operation_id="collections_delete", responses={202: CollectionOutput})
    def delete(self, request: Request, slug: str) -> Response:
        """Deletes a collection. It is no longer readable, but can be restored during the grace period."""
        user = user_of(request)
        services.delete_collection(access.get_collection(user, slug, deleted=True), by=user, now=timezone.now())
        return render(self, CollectionOutput, access.get_collection(user, slug, deleted=True), status=status.HTTP_202_ACCEPTED)


class RestoreView(APIView):
    @extend_schema(operation_id="collections_restore", request=None, responses=CollectionOutput)
    def post(self, request: Request, slug: str) -> Response:
        """Restores a deleted collection."""
        user = user_of(request)
        services.restore_collection(access.get_collection(user, slug, deleted=True), by=user, now=timezone.now())
        return render(self, CollectionOutput, access.get_collection(user, slug))
