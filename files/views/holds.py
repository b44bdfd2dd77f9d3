"""API views of holds on a collection and on its files."""

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from files import access, holds
from files.http.responses import render
from files.models import Hold
from files.serializers import HoldInput, HoldOutput
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import user_of
from tenants.models import Scope
from tenants.querysets import select_related_only


class HoldsView(generics.GenericAPIView[Hold]):
    scopes = {"POST": Scope.ADMINISTER}
    queryset = Hold.objects.none()  # only for the OpenAPI document; responses use `access`
    serializer_class = HoldOutput
    ordering = ("-placed_at", "-id")

    @extend_schema(responses=HoldOutput(many=True))
    def get(self, request: Request, slug: str) -> Response:
        """Lists the holds on the collection and its files, which prevent changes and deletion. For its managers and auditors."""
        user = user_of(request)
        found = access.visible_holds(user, access.get_collection(user, slug, deleted=True))
        page = self.paginate_queryset(select_related_only(found, file="filename", placed_by="username"))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(request=HoldInput, responses={201: HoldOutput})
    def post(self, request: Request, slug: str) -> Response:
        """Places a legal hold. For admins of the tenant. A deleted collection can be held until its purge starts."""
        user = user_of(request)
        collection = access.get_collection(user, slug, deleted=True)
        serializer = HoldInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        hold = holds.place(
            collection, filename=data.get("file"), ref=data["ref"], reason=data["reason"], by=user, now=timezone.now()
        )
        location = absolute_url(request, "hold", slug=slug, hold_id=str(hold.pk))
        return render(self, HoldOutput, hold, status=status.HTTP_201_CREATED, headers={"Location": location})


class HoldView(APIView):
    scopes = {"DELETE": Scope.ADMINISTER}

    @extend_schema(responses=HoldOutput)
    def get(self, request: Request, slug: str, hold_id: str) -> Response:
        """Returns a hold."""
        user = user_of(request)
        return render(self, HoldOutput, access.get_hold(user, hold_id, access.get_collection(user, slug, deleted=True)))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, slug: str, hold_id: str) -> Response:
        """Lifts a legal hold. Other holds remain in force."""
        user = user_of(request)
        hold = access.get_hold(user, hold_id, access.get_collection(user, slug, deleted=True))
        holds.lift(hold, by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)
