"""Facts about the current request, for log lines, audit events and rate limits."""

from contextvars import ContextVar

from tenants.addresses import network_of


request_id: ContextVar[str] = ContextVar("request_id", default="")
tenant_id: ContextVar[str] = ContextVar("tenant_id", default="")  # set by `access` when it grants the request access to a tenant
client: ContextVar[str] = ContextVar("client", default="")  # the address of the client (`tenants.addresses`)


def network() -> str:
    """Returns the network of the client, by which rate limits count (`tenants.addresses.network_of`)."""
    return network_of(client.get())
