from typing import Any

from rest_framework import serializers


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


class MeOutput(serializers.Serializer[Any]):
    username = serializers.CharField()
    email = serializers.EmailField()
    is_superuser = serializers.BooleanField()
    tenants = MyTenantOutput(many=True)
