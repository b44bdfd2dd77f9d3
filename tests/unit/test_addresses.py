"""The client of a request is the address that the outermost trusted proxy has seen (RFC 7239, 7.4 describes the risks)."""

import pytest
from django.test import RequestFactory
from pytest_django import Settings

from tenants.addresses import client_address, network_of


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (0, "192.0.2.1", "203.0.113.9"),
        (1, "", "203.0.113.9"),
        (1, "192.0.2.1", "192.0.2.1"),
        (1, "forged, 192.0.2.1", "192.0.2.1"),
        (2, "198.51.100.7, 192.0.2.1, 10.0.0.1", "192.0.2.1"),
        (2, "192.0.2.1", "192.0.2.1"),  # it came through one proxy only
        (1, "192.0.2.1:5555", "192.0.2.1"),
        (1, "[2001:db8::1]:5555", "2001:db8::1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "::ffff:192.0.2.1", "192.0.2.1"),
        (1, "fe80::1%eth0", "fe80::1"),
        (1, "unknown", ""),
    ],
)
def test_client_address(settings: Settings, proxies: int, forwarded: str, expected: str) -> None:
    settings.BEHIND_PROXY = proxies
    request = RequestFactory(REMOTE_ADDR="203.0.113.9").get("/", headers={"X-Forwarded-For": forwarded} if forwarded else {})
    assert client_address(request) == expected


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:a:b:c:d", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
    ],
)
def test_network_is_an_ipv4_address_or_an_ipv6_site(address: str, network: str) -> None:
    assert network_of(address) == network
