"""What an answer has to look like, whatever was asked."""

import base64
import hashlib
import json
from typing import Any

from tenants import audit
from tenants.models import AuditEvent


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of a response, which has to be one."""
    body = json.loads(b"".join(response) if response.streaming else response.content)
    assert (response.status_code, body.get("code")) == (status, code), body
    assert response["Content-Type"] == "application/problem+json"
    assert body["type"] == "about:blank"
    assert body["status"] == status
    assert body["title"]
    assert isinstance(body["detail"], str)
    assert set(body) <= {"type", "title", "status", "detail", "code", "errors"}
    return dict(body)


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def audited(*actions: str) -> list[tuple[str, str]]:
    """(action, actor) of the tenant's events in their order; of these actions only, if any are given."""
    events = AuditEvent.objects.exclude(chain=audit.PLATFORM).order_by("chain", "seq")
    if actions:
        events = events.filter(action__in=actions)
    return list(events.values_list("action", "actor"))


def facts(action: str, which: int = 0) -> dict[str, Any]:
    """What the first event of this action says, or another one, in their order."""
    body = AuditEvent.objects.filter(action=action).order_by("chain", "seq").values_list("body", flat=True)[which]
    return dict(json.loads(body)["facts"])
