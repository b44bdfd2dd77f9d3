"""What log lines, audit events and limits say of the request that they belong to."""

from contextvars import ContextVar

from tenants.addresses import network_of


request_id: ContextVar[str] = ContextVar("request_id", default="")
tenant_id: ContextVar[str] = ContextVar("tenant_id", default="")  # set by `access` when it grants the request access to a tenant
client: ContextVar[str] = ContextVar("client", default="")  # the address of the client (`tenants.addresses`)


def network() -> str:
    """What limits count the client by (`tenants.addresses.network_of`)."""
    return network_of(client.get())
