"""Which hosts are understood, and which addresses no policy opens."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.egress.addresses import is_open, parse_host, refusal


@pytest.mark.parametrize(
    "text",
    [
        "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "127.1", "127.0.1", "127.0.0.01", "127.0.0.0x1",
        "1.2.3.4.5", "256.1.1.1", "1.2.3.", "example.0x7f", "example.1", "0x",
        "fe80::1%eth0", "::1%lo", "::1%25lo", "[::1]", "1::2::3", "::ffff:127.0.0.1.1",
        "", ".", "..", "a..b", "-a.com", "a-.com", "a b.com", "a/b.com", "a@b.com", "a\x00.com", "a\n.com",
        "a" * 64 + ".com",
        "x." * 127 + "com", "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1", "ex\u00e4mple.com",
    ],
)  # fmt: skip
def test_host_that_programs_read_in_different_ways_is_refused(text: str) -> None:
    """Decimal, octal, hexadecimal and short forms, zones, and what is no name."""
    with pytest.raises(ValueError, match=r"\w"):
        parse_host(text)


def test_host_has_one_form() -> None:
    """Names in lower case without a final dot, addresses as addresses."""
    assert parse_host("Example.COM.") == "example.com"
    assert parse_host("192.0.2.7") == ip_address("192.0.2.7")
    assert parse_host("192.0.2.7.") == ip_address("192.0.2.7")
    assert parse_host("2001:DB8::1") == ip_address("2001:db8::1")
    assert parse_host("_srv.example.com") == "_srv.example.com"
    assert parse_host("0x7f.example.com") == "0x7f.example.com"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "0.1.2.3", "::", "169.254.169.254",
        "::ffff:169.254.169.254", "fe80::a9fe:a9fe", "fd00:ec2::254", "fd20:ce::254", "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192", "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fec0::1",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001:0:0:0:0:0:80ff:fffe", "64:ff9b::a00:1", "2002:a00:1::1",
    ],
)  # fmt: skip
def test_address_is_never_reached(address: str) -> None:
    """Loopback, link-local, metadata, multicast and reserved ones, also where they are within an IPv6 address."""
    found = refusal(ip_address(address))
    assert found is not None
    assert not found.private


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1", "198.18.0.1", "203.0.113.9", "2001:db8::1",
     "::ffff:10.1.2.3"],
)  # fmt: skip
def test_private_address_is_reached_where_its_network_is_named(address: str) -> None:
    found = refusal(ip_address(address))
    assert found is not None
    assert found.private


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:93.184.216.34"]
)
def test_public_address_is_open(address: str) -> None:
    assert refusal(ip_address(address)) is None


def test_setting_closes_networks() -> None:
    """Also where an address of them is within another."""
    more = [ip_network("93.184.0.0/16")]
    assert "--egress-refuse" in str(refusal(ip_address("93.184.216.34"), more))
    assert refusal(ip_address("64:ff9b::5db8:d822"), more) is not None
    assert refusal(ip_address("94.184.216.34"), more) is None


def test_network_with_a_closed_part_is_not_open() -> None:
    assert is_open(ip_network("93.184.216.0/24"))
    assert not is_open(ip_network("0.0.0.0/0"))
    assert not is_open(ip_network("8.0.0.0/6"))  # it contains 10.0.0.0/8
