from typing import Any

from rest_framework import serializers

from tenants.auth.api_keys import MAX_NAME_LENGTH
from tenants.models import SERVICE_ROLES, ApiKey, Scope, User, check_slug
from tenants.serializers import UtcDateTimeField


class CreateApiKeyInput(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=MAX_NAME_LENGTH, help_text="the purpose of the key, in one line")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=len(Scope))
    expires_at = UtcDateTimeField(required=False, help_text="by default a year from now")
    owner = serializers.CharField(
        required=False,
        max_length=150,
        help_text="username of a service account of the tenant, which only its admins can name; by default yourself",
    )


class ApiKeyOutput(serializers.Serializer[ApiKey]):
    prefix = serializers.CharField(help_text="the part before the dot")
    name = serializers.CharField()
    owner = serializers.CharField(source="owner.username")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    created_at = UtcDateTimeField()
    created_by = serializers.CharField(
        source="created_by.username",
        allow_null=True,
        default=None,
        help_text="null if an operator created the key, or if the user was deleted",
    )
    expires_at = UtcDateTimeField()
    last_used_at = UtcDateTimeField(allow_null=True, help_text="accurate to one minute")
    revoked_at = UtcDateTimeField(allow_null=True)


class NewApiKeyOutput(ApiKeyOutput):
    key = serializers.CharField(help_text="the value for `Authorization: Bearer`; only this response contains it")


class CreateServiceAccountInput(serializers.Serializer[Any]):
    name = serializers.CharField(
        max_length=64,
        validators=[check_slug],
        help_text="the part of the username before the @; the part after it is the tenant's slug",
    )
    roles = serializers.ListField(
        child=serializers.ChoiceField(choices=SERVICE_ROLES), allow_empty=False, max_length=len(SERVICE_ROLES)
    )


class ServiceAccountOutput(serializers.Serializer[User]):
    username = serializers.CharField()
    email = serializers.EmailField(help_text="generated from the username; it receives no mail (RFC 2606)")
    roles = serializers.SerializerMethodField()
    is_active = serializers.BooleanField()
    created_at = UtcDateTimeField()

    def get_roles(self, account: User) -> list[str]:
        """Returns an empty list if an admin has removed the account from the tenant."""
        return [role for membership in account.tenant_memberships for role in membership.roles]  # type: ignore[attr-defined]  # by visible_accounts
