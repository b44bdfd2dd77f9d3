"""Where a request comes from: the address of the client, and the network that limits count it by."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from django.conf import settings
from django.http import HttpRequest


IPV6_SITE: Final = 64  # bits: a client chooses the rest of its IPv6 address freely (RFC 4291, 2.5.4)

Address = IPv4Address | IPv6Address


def client_address(request: HttpRequest) -> str:
    """The address of the client as text, "" if the server is not reached over IP.

    Each of the `BEHIND_PROXY` trusted proxies appends to X-Forwarded-For the address that it was contacted from. The entry that
    the outermost of them appended is the client; entries before it were written by the client.
    """
    peer = str(request.META.get("REMOTE_ADDR", ""))
    if settings.BEHIND_PROXY:
        entries = str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")
        peer = entries[-min(settings.BEHIND_PROXY, len(entries))].strip() or peer
    address = parse(peer)
    return str(address) if address else ""


def parse(text: str) -> Address | None:
    """An address, with or without a port. An IPv4 address that is mapped into IPv6 is an IPv4 address. None for anything else."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(address: str) -> str:
    """What the limits count a client by: an IPv4 address, or the /64 network of an IPv6 address."""
    parsed = parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, IPV6_SITE), strict=False))
    return str(parsed or "")
