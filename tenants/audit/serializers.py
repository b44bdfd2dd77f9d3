import json
from typing import Any

from rest_framework import serializers

from tenants import audit
from tenants.models import AuditEvent
from tenants.serializers import UtcDateTimeField


class AuditInput(serializers.Serializer[Any]):
    """The filters of an audit trail."""

    action = serializers.RegexField(
        r"\A[a-z_]+\.[a-z_]*\Z",
        required=False,
        max_length=100,
        help_text="an action such as file.download, or a prefix that ends in a dot, such as file.",
        error_messages={"invalid": "Use an action such as file.download, or a prefix that ends in a dot, such as file."},
    )
    actor = serializers.CharField(required=False, max_length=150, help_text="a username, or system")
    target = serializers.CharField(required=False, max_length=100, help_text="the id of the changed object")
    request_id = serializers.CharField(required=False, max_length=100, help_text="the X-Request-ID of a response")
    since = UtcDateTimeField(required=False)
    until = UtcDateTimeField(required=False, help_text="exclusive")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "since" in attrs and "until" in attrs and attrs["until"] < attrs["since"]:
            raise serializers.ValidationError({"until": "This is before `since`."})
        return attrs


class EventOutput(serializers.Serializer[AuditEvent]):
    seq = serializers.IntegerField(help_text="1, 2, 3, ... without gaps")
    at = UtcDateTimeField()
    action = serializers.CharField()
    actor = serializers.CharField()
    actor_id = serializers.CharField(allow_blank=True)
    target_kind = serializers.CharField(allow_blank=True)
    target_id = serializers.CharField(allow_blank=True)
    request_id = serializers.CharField(allow_blank=True)
    facts = serializers.SerializerMethodField()
    hash = serializers.CharField(help_text="SHA-256 of `prev_hash` and the event, in hex")
    prev_hash = serializers.CharField()

    def get_facts(self, event: AuditEvent) -> dict[str, Any] | None:
        # A fact can contain a lone surrogate, which UTF-8 cannot encode.
        text = json.dumps(audit.facts_of(event.body), ensure_ascii=False)
        facts: dict[str, Any] | None = json.loads(text.encode(errors="replace"))
        return facts
