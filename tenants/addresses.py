"""The address of the client, and the network by which limits count it."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from django.conf import settings
from django.http import HttpRequest


IPV6_SITE: Final = 64  # bits: a client chooses the rest of its IPv6 address freely (RFC 4291, 2.5.4)

Address = IPv4Address | IPv6Address


def client_address(request: HttpRequest) -> str:
    """Returns the address of the client, or "" if the connection does not use IP.

    Each of the `BEHIND_PROXY` trusted proxies appends the address of its own client to X-Forwarded-For. So the entry that the
    outermost proxy appended is the client. Entries before it were sent by the client and are not trusted.
    """
    peer = str(request.META.get("REMOTE_ADDR", ""))
    if settings.BEHIND_PROXY:
        entries = str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")
        peer = entries[-min(settings.BEHIND_PROXY, len(entries))].strip() or peer
    address = parse(peer)
    return str(address) if address else ""


def parse(text: str) -> Address | None:
    """Parses an address with or without a port. Maps IPv4-mapped IPv6 to IPv4. Returns None for invalid text."""
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
    """Returns an IPv4 address itself, or the /64 network of an IPv6 address."""
    parsed = parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, IPV6_SITE), strict=False))
    return str(parsed or "")
