"""What a log line, an audit row and the lock-out say of the request they belong to."""

from contextvars import ContextVar

from django.conf import settings
from django.http import HttpRequest


request_id: ContextVar[str] = ContextVar("request_id", default="")
tenant_id: ContextVar[str] = ContextVar("tenant_id", default="")  # set by `access` when it lets a request at one


def client_address(request: HttpRequest) -> str:
    """Where the request came from. Behind our proxy that is what it appended last: what stands before it, the client wrote."""
    forwarded = str(request.META.get("HTTP_X_FORWARDED_FOR", "")) if settings.BEHIND_PROXY else ""
    return forwarded.rpartition(",")[2].strip() or str(request.META.get("REMOTE_ADDR", ""))
