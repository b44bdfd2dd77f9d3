"""The API of tenants, their members and invitations."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tenants import access, people
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import ADMINISTER, user_of
from tenants.filters import MemberFilter
from tenants.models import Invitation, Membership, Scope, Tenant
from tenants.serializers import (
    AcceptInput,
    AcceptOutput,
    AddMemberInput,
    CreateTenantInput,
    InvitationOutput,
    InvitedOutput,
    MemberOutput,
    SetRolesInput,
    TenantOutput,
    UpdateTenantInput,
)
from tenants.views import TokenView


def tenant_output(request: Request, tenant: Tenant) -> dict[str, Any]:
    return TenantOutput(tenant, context={"principal": access.principal_of(user_of(request))}).data


# --- Tenants ---


class TenantsView(generics.GenericAPIView[Tenant]):
    scopes = {"POST": None}  # API keys never have the rights of a superuser
    queryset = Tenant.objects.none()  # only for the schema: `access` returns the rows
    serializer_class = TenantOutput

    def get_serializer_context(self) -> dict[str, Any]:
        return {"principal": access.principal_of(user_of(self.request))}

    @extend_schema(operation_id="tenants_list", responses=TenantOutput(many=True))
    def get(self, request: Request) -> Response:
        """Lists the tenants that you belong to. A superuser gets all tenants, including suspended ones."""
        page = self.paginate_queryset(access.visible_tenants(user_of(request)))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="tenants_create", request=CreateTenantInput, responses={201: TenantOutput})
    def post(self, request: Request) -> Response:
        """Creates a tenant without members. For superusers."""
        serializer = CreateTenantInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        tenant = people.create_tenant(settings=serializer.validated_data, by=user_of(request), now=timezone.now())
        location = absolute_url(request, "tenant", tenant=tenant.slug)
        return Response(tenant_output(request, tenant), status=status.HTTP_201_CREATED, headers={"Location": location})


class TenantView(APIView):
    scopes = {"PATCH": Scope.ADMINISTER}

    @extend_schema(operation_id="tenants_retrieve", responses=TenantOutput)
    def get(self, request: Request, tenant: str) -> Response:
        """Returns a tenant that you belong to. Only superusers can see a suspended tenant."""
        return Response(tenant_output(request, access.get_tenant(user_of(request), tenant, suspended=True)))

    @extend_schema(operation_id="tenants_update", request=UpdateTenantInput, responses=TenantOutput)
    def patch(self, request: Request, tenant: str) -> Response:
        """Changes settings of the tenant. For its admins and superusers.

        Only superusers can set `is_active`, `quota_bytes`, `quota_files` and `allowed_ciphers`. For other users, a request with
        one of these fields is refused as a whole with 403, even if the value does not change.
        """
        user = user_of(request)
        found = access.get_tenant(user, tenant, suspended=True)
        serializer = UpdateTenantInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        people.update_tenant(found, settings=serializer.validated_data, by=user, now=timezone.now())
        return Response(tenant_output(request, access.get_tenant(user, tenant, suspended=True)))


# --- Members ---


class MembersView(generics.GenericAPIView[Membership]):
    scopes = ADMINISTER
    filterset_class = MemberFilter
    queryset = Membership.objects.none()
    serializer_class = MemberOutput

    @extend_schema(operation_id="members_list", responses=MemberOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists the members of a tenant: people and service accounts. For its admins and auditors, and for superusers."""
        members = access.visible_members(user_of(request), tenant)
        page = self.paginate_queryset(self.filter_queryset(members))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="members_create", request=AddMemberInput, responses={201: MemberOutput, 202: InvitedOutput})
    def post(self, request: Request, tenant: str) -> Response:
        """Adds a user by username, or invites a person by e-mail. For admins of the tenant and superusers.

        An admin can add users of the tenants that they administer, a superuser any user. Any e-mail address can be invited. The
        response does not show whether a user has the address. Inviting it again renews the invitation and its roles.
        """
        user = user_of(request)
        found = access.get_tenant(user, tenant)
        serializer = AddMemberInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        if "email" in serializer.validated_data:
            invitation = people.invite(tenant=found, **serializer.validated_data, by=user, now=timezone.now())
            return Response(InvitedOutput({"invited": invitation.email}).data, status=status.HTTP_202_ACCEPTED)
        membership = people.add_member(tenant=found, **serializer.validated_data, by=user, now=timezone.now())
        return Response(MemberOutput(membership).data, status=status.HTTP_201_CREATED)


class MemberView(APIView):
    scopes = ADMINISTER

    @extend_schema(operation_id="members_update", request=SetRolesInput, responses=MemberOutput)
    def patch(self, request: Request, tenant: str, username: str) -> Response:
        """Replaces the roles of a member, who can be yourself. Refuses to remove the last active admin of a tenant with 409."""
        user = user_of(request)
        membership = access.get_member(user, tenant, username)
        serializer = SetRolesInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        people.set_roles(membership, **serializer.validated_data, by=user, now=timezone.now())
        membership.refresh_from_db(fields=["roles"])
        return Response(MemberOutput(membership).data)

    @extend_schema(operation_id="members_delete", responses={204: None})
    def delete(self, request: Request, tenant: str, username: str) -> Response:
        """Ends a membership with immediate effect. Refuses to remove the last active admin of a tenant with 409."""
        user = user_of(request)
        people.remove_member(access.get_member(user, tenant, username), by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


# --- Invitations ---


class InvitationsView(generics.GenericAPIView[Invitation]):
    scopes = ADMINISTER
    queryset = Invitation.objects.none()
    serializer_class = InvitationOutput

    @extend_schema(operation_id="invitations_list", responses=InvitationOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists pending and expired invitations. For admins and auditors of the tenant, and for superusers."""
        page = self.paginate_queryset(access.visible_invitations(user_of(request), tenant))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class InvitationView(APIView):
    scopes = ADMINISTER

    @extend_schema(operation_id="invitations_delete", responses={204: None})
    def delete(self, request: Request, tenant: str, invitation: str) -> Response:
        """Withdraws an invitation, which makes its token invalid."""
        user = user_of(request)
        people.withdraw(access.get_invitation(user, tenant, invitation), by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class AcceptView(TokenView):
    @extend_schema(operation_id="invitations_accept", request=AcceptInput, responses={201: AcceptOutput}, tags=["auth"])
    def post(self, request: Request) -> Response:
        """Accepts an invitation with the token from the mail. The token works once.

        If no user has the e-mail address, a user is created. `username` and `password` are then required, otherwise ignored.
        """
        serializer = AcceptInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        membership = people.accept(
            token=values["token"], username=values.get("username"), password=values.get("password"), now=timezone.now()
        )
        return Response(AcceptOutput(membership).data, status=status.HTTP_201_CREATED)
