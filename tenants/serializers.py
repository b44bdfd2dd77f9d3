from datetime import UTC
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from tenants.access import can_administer, can_audit
from tenants.models import CIPHERS, MAX_RETENTION_DAYS, ApiKey, Membership, Role, Scope, Tenant


MAX_BIGINT = 2**63 - 1  # the maximum of a BIGINT column


class UtcDateTimeField(serializers.DateTimeField):
    timezone = UTC  # otherwise the field determines the time zone for each value, a quarter of the time of a long list


class PlainTextField(serializers.CharField):
    """One line of text without control characters."""

    default_error_messages = {"control": "Control characters are not allowed."}

    def to_internal_value(self, data: Any) -> str:
        value = super().to_internal_value(data)
        if not value.isprintable():
            self.fail("control")
        return str(value)


class RolesField(serializers.ListField):
    child = serializers.RegexField(r"^[a-z_]{1,40}$", help_text=f"{', '.join(Role.values)}, or the role of an egress stage")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_empty=False, max_length=50, **kwargs)


# --- Sessions and passwords ---


class TokenInput(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=1000, trim_whitespace=False, style={"input_type": "password"})


class RefreshInput(serializers.Serializer[Any]):
    refresh = serializers.CharField(max_length=2048)


class TokenOutput(serializers.Serializer[Any]):
    access = serializers.CharField()
    refresh = serializers.CharField()


class ChangePasswordInput(serializers.Serializer[Any]):
    current_password = serializers.CharField(max_length=1000, trim_whitespace=False, style={"input_type": "password"})
    new_password = serializers.CharField(max_length=1000, trim_whitespace=False, style={"input_type": "password"})


class ResetPasswordInput(serializers.Serializer[Any]):
    email = serializers.EmailField(max_length=254)


class ConfirmResetInput(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=200)
    new_password = serializers.CharField(max_length=1000, trim_whitespace=False, style={"input_type": "password"})


class MyTenantOutput(serializers.Serializer[Any]):
    slug = serializers.CharField(source="tenant.slug")
    name = serializers.CharField(source="tenant.name")
    roles = serializers.ListField(child=serializers.CharField())


class MyKeyOutput(serializers.Serializer[ApiKey]):
    prefix = serializers.CharField()
    name = serializers.CharField()
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    expires_at = UtcDateTimeField()


class MeOutput(serializers.Serializer[Any]):
    username = serializers.CharField()
    email = serializers.EmailField()
    is_superuser = serializers.BooleanField()
    tenants = MyTenantOutput(many=True)
    key = MyKeyOutput(allow_null=True, help_text="the API key of this request")


# --- Tenants ---


class UpdateTenantInput(serializers.Serializer[Any]):
    """Fields that are absent do not change."""

    name = PlainTextField(max_length=200, required=False)
    default_retention_days = serializers.IntegerField(
        min_value=1, max_value=MAX_RETENTION_DAYS, allow_null=True, required=False, help_text="null for no expiry"
    )
    new_collections = serializers.ChoiceField(choices=Tenant.NewCollections.choices, required=False)
    allow_external_sharing = serializers.BooleanField(required=False)
    is_active = serializers.BooleanField(required=False, help_text="superusers only, like the fields below")
    quota_bytes = serializers.IntegerField(
        min_value=0, max_value=MAX_BIGINT, allow_null=True, required=False, help_text="null for no limit"
    )
    quota_files = serializers.IntegerField(
        min_value=0, max_value=MAX_BIGINT, allow_null=True, required=False, help_text="null for no limit"
    )
    allowed_ciphers = serializers.ListField(
        child=serializers.ChoiceField(choices=CIPHERS), allow_empty=False, max_length=len(CIPHERS), required=False
    )


class CreateTenantInput(UpdateTenantInput):
    slug = serializers.RegexField(r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=50, help_text="cannot be changed")
    name = PlainTextField(max_length=200)


class TenantOutput(serializers.Serializer[Tenant]):
    """Needs the `principal` of the reader in its context."""

    slug = serializers.CharField()
    name = serializers.CharField()
    is_active = serializers.BooleanField()
    quota_bytes = serializers.IntegerField(allow_null=True)
    quota_files = serializers.IntegerField(allow_null=True)
    default_retention_days = serializers.IntegerField(allow_null=True)
    allowed_ciphers = serializers.ListField(child=serializers.ChoiceField(choices=CIPHERS))
    new_collections = serializers.ChoiceField(choices=Tenant.NewCollections.choices)
    allow_external_sharing = serializers.BooleanField()
    created_at = UtcDateTimeField()
    my_roles = serializers.SerializerMethodField()
    allowed_actions = serializers.SerializerMethodField()

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_my_roles(self, tenant: Tenant) -> list[str]:
        return sorted(self.context["principal"].roles.get(tenant.pk, ()))

    @extend_schema_field(
        serializers.ListField(child=serializers.ChoiceField(choices=["update", "manage_members", "list_members", "set_limits"]))
    )
    def get_allowed_actions(self, tenant: Tenant) -> list[str]:
        principal = self.context["principal"]
        actions = {
            "update": can_administer(principal, tenant),
            "manage_members": tenant.is_active and can_administer(principal, tenant),
            "list_members": tenant.is_active and can_audit(principal, tenant),
            "set_limits": principal.is_superuser,
        }
        return [action for action, may in actions.items() if may]


# --- Members and invitations ---


class AddMemberInput(serializers.Serializer[Any]):
    """Either a username or an e-mail address."""

    username = serializers.CharField(
        max_length=150, required=False, help_text="of a user in one of your tenants, who is added immediately"
    )
    email = serializers.EmailField(max_length=254, required=False, help_text="of any person, who is invited by mail")
    roles = RolesField()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("username" in attrs) == ("email" in attrs):
            problem = ["Give either a username or an e-mail address."]
            raise serializers.ValidationError({"username": problem, "email": problem})
        return attrs


class SetRolesInput(serializers.Serializer[Any]):
    roles = RolesField()


class MemberOutput(serializers.Serializer[Membership]):
    username = serializers.CharField(source="user.username")
    email = serializers.EmailField(source="user.email")
    roles = serializers.ListField(child=serializers.CharField())
    is_active = serializers.BooleanField(source="user.is_active")
    is_service_account = serializers.SerializerMethodField()
    created_at = UtcDateTimeField(help_text="of the membership")

    def get_is_service_account(self, membership: Membership) -> bool:
        return membership.user.service_of_id is not None


class InvitedOutput(serializers.Serializer[Any]):
    invited = serializers.EmailField()


class InvitationOutput(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    email = serializers.EmailField()
    roles = serializers.ListField(child=serializers.CharField())
    invited_by = serializers.CharField(source="invited_by.username", default=None, allow_null=True)
    created_at = UtcDateTimeField()
    expires_at = UtcDateTimeField()


class AcceptInput(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=500)
    username = serializers.CharField(max_length=150, required=False, help_text="required if no user has the e-mail address")
    password = serializers.CharField(
        max_length=1000,
        required=False,
        trim_whitespace=False,
        style={"input_type": "password"},
        help_text="required if no user has the e-mail address",
    )


class AcceptOutput(serializers.Serializer[Membership]):
    username = serializers.CharField(source="user.username")
    tenant = serializers.CharField(source="tenant.slug")
