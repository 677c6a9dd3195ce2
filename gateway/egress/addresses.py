"""Hosts as clients write them, and addresses that no policy opens. Pure.

A name is checked before it is resolved and each of its addresses before it is dialled, and what is dialled is the very
address that was checked: a resolver that answers differently the second time (DNS rebinding) is never asked twice.

Sources: the IANA registries of special-purpose addresses; what clouds document of their metadata servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Host = str | IPv4Address | IPv6Address  # a name in lower case without a final dot, or an address

MAX_NAME = 253  # characters of a DNS name
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


def parse_host(text: str) -> Host:
    """A name, or an address in its one canonical notation. Raises ValueError with the reason.

    2130706433, 0177.0.0.1, 0x7f.1 and 127.1 are 127.0.0.1 to some programs and names or other addresses to others; all
    are refused. So is a zone (fe80::1%eth0), which means an interface of this machine, and a name that is not ASCII,
    which each program turns into another one.
    """
    if not text or len(text) > MAX_NAME + 1:
        raise ValueError(f"expected a host of 1 to {MAX_NAME} characters")
    if not text.isascii():
        raise ValueError("write the name in its ASCII form (xn--...)")
    if ":" in text:
        if "%" in text:
            raise ValueError("an address with a zone (%) cannot be reached")
        try:
            return IPv6Address(text)
        except AddressValueError:
            raise ValueError(f"{text[:64]!r} is not an IPv6 address") from None
    name = text.lower().removesuffix(".")
    last = name.rpartition(".")[2]
    if _NUMERIC.fullmatch(last):
        try:
            return IPv4Address(name)
        except AddressValueError:
            raise ValueError(f"{name[:64]!r}: write an address as four decimal numbers, such as 192.0.2.7") from None
    if not is_name(name):
        raise ValueError(f"{name[:64]!r} is not the name of a host")
    return name


def is_name(text: str) -> bool:
    """Whether it is a DNS name in lower case, without a final dot."""
    return 0 < len(text) <= MAX_NAME and all(_LABEL.fullmatch(label) for label in text.split("."))


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


# Where clouds answer with the credentials, or the start-up secrets, of the machine that asks.
METADATA = _networks(
    "169.254.0.0/16", "fe80::/10",  # link-local: AWS, Azure, Google, OpenStack, ECS tasks, EKS pod identities
    "fd00:ec2::/32",  # AWS over IPv6
    "fd20:ce::254/128",  # Google over IPv6
    "168.63.129.16/32",  # Azure's WireServer
    "100.100.100.200/32",  # Alibaba
    "192.0.0.192/32",  # Oracle, earlier instances
)  # fmt: skip
_ALWAYS: tuple[tuple[str, tuple[Network, ...]], ...] = (
    ("link-local or a metadata server", METADATA),
    ("loopback", _networks("127.0.0.0/8", "::1/128")),
    ("no host's address", _networks("0.0.0.0/8", "::/128", "240.0.0.0/4", "fec0::/10", "100::/64")),
    ("multicast", _networks("224.0.0.0/4", "ff00::/8")),
    ("an IPv4 address in a form that only some kernels route", _networks("::/96", "64:ff9b:1::/48")),
)
# Networks of a site or a carrier, a cluster's own among them (RFC 1918, 6598, 4193).
SITE_NETWORKS = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
# Reached only where a policy names a network within one of them.
PRIVATE = SITE_NETWORKS + _networks(
    "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20",
    "5f00::/16",
)  # fmt: skip
_NAT64, _SIX_TO_FOUR, _TEREDO = _networks("64:ff9b::/96", "2002::/16", "2001::/32")


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an address is not dialled. `private`: a policy that names its network opens it."""

    reason: str
    private: bool = False


def unmapped(address: Address) -> Address:
    """::ffff:192.0.2.7 as 192.0.2.7, which is what a kernel makes of it; any other as it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def refusal(address: Address, more: Iterable[Network] = ()) -> Refused | None:
    """Why no policy, or only one that names its network, opens an address. `more`: networks refused by setting."""
    address = unmapped(address)
    for network in more:
        if address in network:
            return Refused(f"{network} is closed by --egress-refuse")
    found = _refusal(address)
    if found is None and (inner := _embedded(address)) is not None and (why := refusal(inner, more)) is not None:
        return Refused(f"it leads to {inner}: {why.reason}")
    return found


@lru_cache(maxsize=4096)
def _refusal(address: Address) -> Refused | None:
    for reason, networks in _ALWAYS:
        if any(address in network for network in networks):
            return Refused(reason)
    if any(address in network for network in PRIVATE):
        return Refused("private", private=True)
    return None


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address at which a gateway of NAT64, 6to4 or Teredo delivers what is sent to this one."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _SIX_TO_FOUR:
            return address.sixtofour
        if address in _TEREDO and address.teredo is not None:
            return address.teredo[1]
    return None


def is_within(inner: Network, outers: Sequence[Network]) -> bool:
    """Whether a network lies in one of these."""
    return any(inner.version == outer.version and inner.subnet_of(outer) for outer in outers)  # type: ignore[arg-type]


def is_open(network: Network) -> bool:
    """Whether no part of a network is refused, always or unless it is named."""
    closed = (*PRIVATE, *(each for _, networks in _ALWAYS for each in networks))
    return not any(network.version == each.version and network.overlaps(each) for each in closed)
