from typing import Any

from rest_framework import serializers

from tenants.models import ApiKey, Scope


class TokenInput(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=1000, trim_whitespace=False, style={"input_type": "password"})


class RefreshInput(serializers.Serializer[Any]):
    refresh = serializers.CharField(max_length=2048)


class TokenOutput(serializers.Serializer[Any]):
    access = serializers.CharField()
    refresh = serializers.CharField()


class MyTenantOutput(serializers.Serializer[Any]):
    slug = serializers.CharField(source="tenant.slug")
    name = serializers.CharField(source="tenant.name")
    roles = serializers.ListField(child=serializers.CharField())


class MyKeyOutput(serializers.Serializer[ApiKey]):
    prefix = serializers.CharField()
    name = serializers.CharField()
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    expires_at = serializers.DateTimeField()


class MeOutput(serializers.Serializer[Any]):
    username = serializers.CharField()
    email = serializers.EmailField()
    is_superuser = serializers.BooleanField()
    tenants = MyTenantOutput(many=True)
    key = MyKeyOutput(allow_null=True, help_text="the API key of this request")
