from typing import Any

from rest_framework import serializers

from tenants.auth.api_keys import MAX_NAME_LENGTH
from tenants.models import SERVICE_ROLES, ApiKey, Scope, User, check_slug
from tenants.serializers import UtcDateTimeField


class CreateApiKeyInput(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=MAX_NAME_LENGTH, help_text="what it is for, in one line")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=len(Scope))
    expires_at = UtcDateTimeField(required=False, help_text="a year from now if left out, which is nearly the latest")
    owner = serializers.CharField(
        required=False, max_length=150, help_text="username: a service account of the tenant, if you are its admin; else yourself"
    )


class ApiKeyOutput(serializers.Serializer[ApiKey]):
    prefix = serializers.CharField(help_text="the part before the dot")
    name = serializers.CharField()
    owner = serializers.CharField(source="owner.username")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    created_at = UtcDateTimeField()
    created_by = serializers.CharField(
        source="created_by.username", allow_null=True, default=None, help_text="null: an operator, or somebody who is gone"
    )
    expires_at = UtcDateTimeField()
    last_used_at = UtcDateTimeField(allow_null=True, help_text="to the minute")
    revoked_at = UtcDateTimeField(allow_null=True)


class NewApiKeyOutput(ApiKeyOutput):
    key = serializers.CharField(help_text="what stands behind `Authorization: Bearer`; it is never shown again")


class CreateServiceAccountInput(serializers.Serializer[Any]):
    name = serializers.CharField(
        max_length=64, validators=[check_slug], help_text="the part of its username before the @; the tenant's slug is the other"
    )
    roles = serializers.ListField(
        child=serializers.ChoiceField(choices=SERVICE_ROLES), allow_empty=False, max_length=len(SERVICE_ROLES)
    )


class ServiceAccountOutput(serializers.Serializer[User]):
    username = serializers.CharField()
    email = serializers.EmailField(help_text="made from the username; no mail gets there (RFC 2606)")
    roles = serializers.SerializerMethodField()
    is_active = serializers.BooleanField()
    created_at = UtcDateTimeField()

    def get_roles(self, account: User) -> list[str]:
        """None for one that an admin has taken out of the tenant."""
        return [role for membership in account.tenant_memberships for role in membership.roles]  # type: ignore[attr-defined]  # by visible_accounts
