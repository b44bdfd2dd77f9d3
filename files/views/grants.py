"""API views of grants on a collection, on a file and in a whole tenant."""

from typing import Final

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access
from files.filters import GrantFilter
from files.grants import grant_access, revoke_grant
from files.http.responses import render
from files.models import Collection, Grant, StoredFile
from files.serializers import GrantInput, GrantOutput
from tenants import access as people
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.models import Scope, User
from tenants.querysets import select_related_only


RELATED_FIELDS: Final = {"collection": "slug", "file": "filename", "user": "username", "created_by": "username"}


def load_target(user: User, slug: str, filename: str | None) -> tuple[Collection, StoredFile | None]:
    """The collection and, if there is a filename, the file that the URL names."""
    if filename is None:
        return access.get_collection(user, slug), None
    file = access.get_file(user, slug, filename)
    return file.collection, file


class GrantsView(generics.GenericAPIView[Grant]):
    scopes = dict.fromkeys(("GET", "POST"), Scope.SHARE)
    filterset_class = GrantFilter
    queryset = Grant.objects.none()  # only for the OpenAPI document; responses use `access`
    serializer_class = GrantOutput

    @extend_schema(responses=GrantOutput(many=True))
    def get(self, request: Request, slug: str, filename: str | None = None) -> Response:
        """Lists the grants on a file, or on a collection and its files."""
        user = user_of(request)
        grants = select_related_only(access.visible_grants(user, *load_target(user, slug, filename)), **RELATED_FIELDS)
        page = self.paginate_queryset(self.filter_queryset(grants))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(request=GrantInput, responses={201: GrantOutput, 200: GrantOutput})
    def post(self, request: Request, slug: str, filename: str | None = None) -> Response:
        """Grants a level to a user or to all members of the tenant (201), or changes the level of an existing grant (200)."""
        user = user_of(request)
        collection, file = load_target(user, slug, filename)
        serializer = GrantInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        grant, is_new = grant_access(
            collection, file=file, username=data.get("user"), level=data["level"], by=user, now=timezone.now()
        )
        address = {"slug": slug, "grant_id": str(grant.pk)}
        location = (
            absolute_url(request, "grant", **address)
            if file is None
            else absolute_url(request, "file-grant", filename=file.filename, **address)
        )
        code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
        return render(self, GrantOutput, grant, status=code, headers={"Location": location})


class GrantView(APIView):
    scopes = dict.fromkeys(("GET", "DELETE"), Scope.SHARE)

    @extend_schema(responses=GrantOutput)
    def get(self, request: Request, slug: str, grant_id: str, filename: str | None = None) -> Response:
        """Returns a grant."""
        user = user_of(request)
        return render(self, GrantOutput, access.get_grant(user, grant_id, *load_target(user, slug, filename)))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, slug: str, grant_id: str, filename: str | None = None) -> Response:
        """Revokes the grant immediately. Access through a role or another grant remains."""
        user = user_of(request)
        revoke_grant(access.get_grant(user, grant_id, *load_target(user, slug, filename)), by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class TenantGrantsView(generics.GenericAPIView[Grant]):
    scopes = {"GET": Scope.AUDIT}
    filterset_class = GrantFilter
    queryset = Grant.objects.none()  # only for the OpenAPI document; responses use `access`
    serializer_class = GrantOutput

    @extend_schema(operation_id="tenant_grants_list", responses=GrantOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists all grants in the tenant. `external=true` selects grants to users of other tenants."""
        user = user_of(request)
        grants = select_related_only(access.tenant_grants(user, people.get_tenant(user, tenant)), **RELATED_FIELDS)
        page = self.paginate_queryset(self.filter_queryset(grants))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)
