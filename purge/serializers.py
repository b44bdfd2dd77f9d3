import json
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from purge.models import Destruction
from tenants.absolute_urls import absolute_url
from tenants.serializers import UtcDateTimeField


class Progress(serializers.Serializer[Any]):
    """Number of deleted objects (including old versions, delete markers and unfinished uploads) and of verified parts."""

    erased = serializers.IntegerField()
    parts = serializers.IntegerField(source="shards_count", help_text="key prefixes that have to be emptied")
    parts_verified = serializers.IntegerField(source="shards_done", help_text="key prefixes whose listing was empty")


class DestructionLinks(serializers.Serializer[Any]):
    self = serializers.URLField()
    certificate = serializers.URLField(allow_null=True, help_text="null until the destruction is complete")


class DestructionOutput(serializers.Serializer[Destruction]):
    id = serializers.UUIDField()
    tenant = serializers.CharField(source="tenant.slug")
    collection = serializers.CharField(source="slug", help_text="the former id of the collection")
    display_name = serializers.CharField()
    reason = serializers.ChoiceField(choices=Destruction.Reason.choices)
    due_at = UtcDateTimeField()
    started_at = UtcDateTimeField(help_text="when its key was destroyed; its content is unreadable since")
    started_by = serializers.CharField(help_text="a username, or `system`")
    status = serializers.ChoiceField(choices=Destruction.Status.choices)
    blocked_by = serializers.CharField(
        help_text="the storage's reason for refusing a deletion, which is retried every day; empty if not blocked"
    )
    completed_at = UtcDateTimeField(allow_null=True)
    file_count = serializers.IntegerField()
    total_length = serializers.IntegerField(help_text="plaintext bytes")
    progress = Progress(source="*")
    links = serializers.SerializerMethodField()

    @extend_schema_field(DestructionLinks)
    def get_links(self, destruction: Destruction) -> dict[str, str | None]:
        request, where = self.context["request"], {"destruction": str(destruction.pk)}
        is_done = destruction.status == Destruction.Status.DONE
        return {
            "self": absolute_url(request, "destruction", **where),
            "certificate": absolute_url(request, "certificate", **where) if is_done else None,
        }


class CertificateOutput(serializers.Serializer[Destruction]):
    id = serializers.UUIDField()
    certificate = serializers.SerializerMethodField()
    signed = serializers.CharField(source="certificate", help_text="the certificate as canonical JSON: the text that is signed")
    signature = serializers.CharField(help_text="Ed25519 signature in base64; docs/retention.md describes how to verify it")

    @extend_schema_field(serializers.DictField())
    def get_certificate(self, destruction: Destruction) -> Any:
        return json.loads(destruction.certificate)
