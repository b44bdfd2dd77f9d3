"""The API of API keys and service accounts. It does not accept API keys."""

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tenants import access
from tenants.absolute_urls import absolute_url
from tenants.auth import api_keys, service_accounts
from tenants.auth.api_key_serializers import (
    ApiKeyOutput,
    CreateApiKeyInput,
    CreateServiceAccountInput,
    NewApiKeyOutput,
    ServiceAccountOutput,
)
from tenants.auth.permissions import PEOPLE_ONLY, user_of
from tenants.models import ApiKey, User


class ApiKeyFilter(filters.FilterSet):  # type: ignore[misc]  # django-filter has no types
    owner = filters.CharFilter(field_name="owner__username", max_length=150)
    active = filters.ChoiceFilter(
        method="only_active", choices=[("true", "true"), ("false", "false")], help_text="neither revoked nor expired"
    )

    class Meta:
        model = ApiKey
        fields: list[str] = []

    def only_active(self, keys: QuerySet[ApiKey], name: str, value: str) -> QuerySet[ApiKey]:
        active = {"revoked_at": None, "expires_at__gt": timezone.now()}
        return keys.filter(**active) if value == "true" else keys.exclude(**active)


class ApiKeysView(generics.GenericAPIView[ApiKey]):
    scopes = PEOPLE_ONLY
    filterset_class = ApiKeyFilter
    queryset = ApiKey.objects.none()  # only for the schema: `api_keys` returns the rows
    serializer_class = ApiKeyOutput

    @extend_schema(operation_id="api_keys_list", responses=ApiKeyOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists your API keys in the tenant, including revoked and expired ones. Its admins and auditors get all keys."""
        user = user_of(request)
        keys = api_keys.visible_keys(user, access.get_tenant(user, tenant))
        page = self.paginate_queryset(self.filter_queryset(keys))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="api_keys_create", request=CreateApiKeyInput, responses={201: NewApiKeyOutput})
    def post(self, request: Request, tenant: str) -> Response:
        """Creates a key for yourself or, as an admin, for a service account of the tenant. Only this response has the key."""
        user = user_of(request)
        found = access.get_tenant(user, tenant)
        serializer = CreateApiKeyInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        key, text = api_keys.create(
            tenant=found,
            owner=api_keys.get_owner(user, found, values.get("owner", user.username)),
            name=values["name"],
            scopes=values["scopes"],
            expires_at=values.get("expires_at"),
            by=user,
            now=timezone.now(),
        )
        location = absolute_url(request, "api-key", tenant=found.slug, prefix=key.prefix)
        output = {**ApiKeyOutput(key).data, "key": text}
        headers = {"Location": location, "Cache-Control": "no-store"}
        return Response(output, status=status.HTTP_201_CREATED, headers=headers)


class ApiKeyView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="api_keys_retrieve", responses=ApiKeyOutput)
    def get(self, request: Request, tenant: str, prefix: str) -> Response:
        """Returns an API key, without its secret."""
        user = user_of(request)
        return Response(ApiKeyOutput(api_keys.get_key(user, access.get_tenant(user, tenant), prefix)).data)

    @extend_schema(operation_id="api_keys_revoke", responses={204: None})
    def delete(self, request: Request, tenant: str, prefix: str) -> Response:
        """Revokes an API key. Transfers that it started end within seconds. The key remains in the list."""
        user = user_of(request)
        key = api_keys.get_key(user, access.get_tenant(user, tenant), prefix)
        api_keys.revoke(key, by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class ServiceAccountsView(generics.GenericAPIView[User]):
    scopes = PEOPLE_ONLY
    queryset = User.objects.none()  # only for the schema: `service_accounts` returns the rows
    serializer_class = ServiceAccountOutput
    filter_backends = ()

    @extend_schema(operation_id="service_accounts_list", responses=ServiceAccountOutput(many=True))
    def get(self, request: Request, tenant: str) -> Response:
        """Lists the service accounts of the tenant, including deactivated ones. For its admins and auditors."""
        user = user_of(request)
        accounts = service_accounts.visible_accounts(user, access.get_tenant(user, tenant))
        page = self.paginate_queryset(accounts)
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(
        operation_id="service_accounts_create", request=CreateServiceAccountInput, responses={201: ServiceAccountOutput}
    )
    def post(self, request: Request, tenant: str) -> Response:
        """Creates an account for a program. It cannot sign in. Create an API key for it."""
        user = user_of(request)
        found = access.get_tenant(user, tenant)
        serializer = CreateServiceAccountInput(data=request.data)
        serializer.is_valid(raise_exception=True)
        account = service_accounts.create(tenant=found, **serializer.validated_data, by=user, now=timezone.now())
        location = absolute_url(request, "service-account", tenant=found.slug, account=account.username)
        output = ServiceAccountOutput(service_accounts.get_account(user, found, account.username)).data
        return Response(output, status=status.HTTP_201_CREATED, headers={"Location": location})


class ServiceAccountView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="service_accounts_retrieve", responses=ServiceAccountOutput)
    def get(self, request: Request, tenant: str, account: str) -> Response:
        """Returns a service account."""
        user = user_of(request)
        return Response(ServiceAccountOutput(service_accounts.get_account(user, access.get_tenant(user, tenant), account)).data)

    @extend_schema(operation_id="service_accounts_deactivate", responses={204: None})
    def delete(self, request: Request, tenant: str, account: str) -> Response:
        """Deactivates a service account and revokes its keys. The account remains in the list."""
        user = user_of(request)
        found = service_accounts.get_account(user, access.get_tenant(user, tenant), account)
        service_accounts.deactivate(found, by=user, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)
